"""What is derived of a tensor is made once, again when the tensor changes, and forgotten with
it.
"""

from __future__ import annotations

import gc
import weakref

import torch

from rayd.derived import (
    class_grid,
    class_sizes,
    derived,
    on_host,
    present_classes,
    rows_by_class,
    rows_of,
    uploaded,
)
from rayd.statistics import Moments
from rayd.terms import CovarianceMatching

LABELS = torch.tensor([4, 1, 4, 0, 1, 4])


def test_a_value_is_made_once():
    calls = []
    for _ in range(3):
        derived(LABELS, "sum", lambda: calls.append(0) or int(LABELS.sum()))
    assert derived(LABELS, "sum", lambda: -1) == 14
    assert len(calls) == 1


def test_a_value_of_a_tensor_that_was_changed_is_made_again():
    labels = LABELS.clone()
    assert rows_by_class(labels).keys() == {0, 1, 4}
    labels[3] = 2
    assert rows_by_class(labels).keys() == {1, 2, 4}
    assert class_sizes(labels, 5).tolist() == [0, 2, 1, 0, 3]


def test_equal_tensors_do_not_share_values():
    one = LABELS.clone()
    other = LABELS.clone()
    assert derived(one, "name", lambda: "one") == "one"
    assert derived(other, "name", lambda: "other") == "other"


def test_values_are_forgotten_with_their_tensor():
    labels = LABELS.clone()
    kept = weakref.ref(class_sizes(labels, 5))
    assert kept() is not None
    del labels
    gc.collect()
    assert kept() is None


def test_classes_are_those_of_torch():
    present, which = present_classes(LABELS)
    assert present.tolist() == [0, 1, 4]
    assert present[which].tolist() == LABELS.tolist()
    assert class_sizes(LABELS, 6).tolist() == torch.bincount(LABELS, minlength=6).tolist()
    for label, rows in rows_by_class(LABELS).items():
        assert rows.tolist() == (label == LABELS).nonzero().squeeze(1).tolist()


def test_a_grid_has_a_row_for_each_class_and_its_images_in_order():
    grid = class_grid(LABELS, 5)
    laid = torch.full((5, grid.width), -1)
    laid[grid.rows, grid.places] = grid.order
    assert laid.tolist() == [[3, -1, -1], [1, 4, -1], [-1, -1, -1], [-1, -1, -1], [0, 2, 5]]
    empty = class_grid(torch.empty(0, dtype=torch.int64), 3)
    assert empty.width == len(empty.order) == 0


def test_on_the_cpu_the_tensor_itself_is_known():
    assert on_host(LABELS) is LABELS
    assert uploaded(LABELS, torch.device("cpu")) is LABELS
    assert rows_of(LABELS, slice(1, 3)).tolist() == [1, 4]


def test_tensors_of_inference_mode_have_values_too():
    """Torch does not count their changes, so that nothing of them is cached."""
    with torch.inference_mode():
        labels = torch.tensor([2, 0, 2])
        assert class_sizes(labels, 3).tolist() == [1, 0, 2]
        labels[1] = 1
        assert class_sizes(labels, 3).tolist() == [0, 1, 2]
        present, which = present_classes(labels)
        assert (present.tolist(), which.tolist()) == ([1, 2], [1, 0, 1])
        features = torch.tensor([[[1.0]], [[2.0]], [[3.0]]])
        assert Moments.of(features, labels, 3).mean.flatten().tolist() == [0.0, 2.0, 2.0]


def test_values_that_inference_mode_needed_first_serve_gradients():
    labels = torch.tensor([0, 0, 1, 1])
    features = torch.arange(16.0).reshape(4, 4).square()
    term = CovarianceMatching()
    with torch.inference_mode():
        term(features, features + 1, labels, labels)
    learned = (2 * features).requires_grad_()
    term(features, learned, labels, labels).backward()
    assert learned.grad.abs().sum() > 0
