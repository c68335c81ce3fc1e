"""A batch of all classes is augmented as a loop over the classes would do it."""

import pytest
import torch
from torch import Tensor

from rayd.data.augmentation import DSA, ByClass, Operation
from rayd.data.augmentation.dsa import OPERATIONS

EVERY = "_".join(OPERATIONS)
LABELS = torch.tensor([3, 0, 7, 7, 1, 3, 0, 5, 2, 2, 4, 6, 3, 8, 9, 9, 1])
SIZE = (9, 12)


def drawn(strategy: str, mode: str = "single", seed: int = 0) -> dict[int, tuple[Operation, ...]]:
    """Operations of each class, from a generator of its own."""
    dsa = DSA(strategy, mode)
    return {
        label: dsa.draw(torch.Generator().manual_seed(100 * seed + label), 1, *SIZE)
        for label in range(10)
    }


def images(count: int = len(LABELS), kind: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1), dtype=kind)


def class_by_class(
    operations: dict[int, tuple[Operation, ...]], batch: Tensor, labels: Tensor
) -> Tensor:
    """The reference: the images of each class by themselves."""
    augmented = torch.empty_like(batch)
    for label in labels.unique().tolist():
        part = batch[labels == label]
        for operation in operations[label]:
            part = operation(part)
        augmented[labels == label] = part
    return augmented


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("strategy", "mode"),
    [
        (EVERY, "single"),
        (EVERY, "all"),
        ("color+crop+flip_cutout_scale+rotate", "single"),
        *((name, "single") for name in OPERATIONS),
    ],
)
def test_by_class_matches_loop(strategy, mode, seed):
    operations = drawn(strategy, mode, seed)
    batch = images().requires_grad_()
    reference = images().requires_grad_()
    ours = ByClass(operations, LABELS, batch.device)(batch)
    wanted = class_by_class(operations, reference, LABELS)
    torch.testing.assert_close(ours, wanted, rtol=1e-13, atol=1e-13)

    weights = torch.randn_like(batch)
    (ours * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(batch.grad, reference.grad, rtol=1e-12, atol=1e-13)


def test_draws_of_one_batch_are_of_many_kinds():
    """So that the comparison above puts parts of a batch together."""
    assert (
        len({type(operation) for operations in drawn(EVERY).values() for operation in operations})
        >= 5
    )


@pytest.mark.parametrize(
    "rows", [slice(0, 1), slice(3, 11), slice(2, 4), slice(5, 99), torch.tensor([16, 2, 2, 0])]
)
def test_by_class_rows_of_batch(rows):
    """Images that are augmented in chunks, or picked from all over the batch, look as in the whole
    batch.
    """
    operations = drawn(EVERY)
    batch = images()
    augment = ByClass(operations, LABELS, batch.device)
    torch.testing.assert_close(
        augment(batch[rows], rows), augment(batch)[rows], rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("strategy", [EVERY, *OPERATIONS])
def test_by_class_reads_nothing_back(strategy):
    """A tensor without numbers cannot be read by the host, so whatever waited for the device would
    fail here.
    """
    device = torch.device("meta")
    augment = ByClass(drawn(strategy), LABELS, device)
    batch = images().to(device).requires_grad_()
    for rows in (slice(None), slice(3, 11)):
        augmented = augment(batch[rows], rows)
        assert augmented.shape == batch[rows].shape
        augmented.sum().backward()
