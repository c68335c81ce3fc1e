"""What is drawn for a batch depends on seed, purpose, epoch and index alone, and comes back from
stored labels as it was.
"""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rayd.config import EvaluationSettings, LabelSettings
from rayd.data.augmentation import augmentation
from rayd.seeding import generator
from rayd.training.batches import Batches, DrawnBatch, Draws, Replay, batch_sizes
from rayd.training.stored_labels import Labelled, StoredLabels, write_chunk
from rayd.training.teacher_labels import label_epochs
from tests.training.toys import CLASSES, DSA, NORMALIZATION, REAL, SHAPE, VIEWS, of, teachers

IMAGES = NORMALIZATION(torch.from_numpy(REAL.images))


def settings(**changes: object) -> EvaluationSettings:
    chosen = {
        "transform": VIEWS,
        "augmentation": DSA,
        "mix": "cutmix",
        "loss": "kl",
        "batch_size": 12,
        **changes,
    }
    return EvaluationSettings.model_validate(chosen)


def seen(batches: Iterable[DrawnBatch]) -> list[tuple[Tensor, Tensor | None, float]]:
    """What becomes of the images."""
    return [batch.mixed(batch.view(IMAGES[batch.rows], NORMALIZATION)) for batch in batches]


def equal(first: Iterable[DrawnBatch], second: Iterable[DrawnBatch]) -> bool:
    pairs = list(zip(seen(first), seen(second), strict=True))
    return all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2] for a, b in pairs
    )


def differ(one: DrawnBatch, other: DrawnBatch) -> bool:
    """Whether the same images would be seen otherwise, and mixed otherwise."""
    images = IMAGES[: len(one.mix.permutation)]
    views = [batch.transform(images, NORMALIZATION) for batch in (one, other)]
    return not torch.equal(*views) and not torch.equal(one.mix.permutation, other.mix.permutation)


def test_batches_are_those_of_the_hard_label_protocol():
    draws = Draws(settings(transform={}, mix="none"), len(REAL), SHAPE, 7)
    order = torch.randperm(30, generator=generator(7, "student batches", 4))
    for index, batch in enumerate(draws.epoch(4)):
        rows = order[12 * index : 12 * index + 12]
        assert torch.equal(batch.rows, rows)
        wanted = augmentation(DSA)(IMAGES[rows], generator(7, "student augmentation", 4, index))
        assert torch.equal(batch.view(IMAGES[rows], NORMALIZATION), wanted)
        assert batch.mixed(wanted) == (wanted, None, 1.0)
    assert index == 2


def test_an_epoch_does_not_depend_on_what_was_drawn_before():
    draws = Draws(settings(), len(REAL), SHAPE, 7)
    list(draws.epoch(0))
    assert equal(draws.epoch(3), Draws(settings(), len(REAL), SHAPE, 7).epoch(3))


def test_every_batch_of_an_epoch_has_its_own_draws():
    one, other, _ = Draws(settings(), len(REAL), SHAPE, 7).epoch(3)
    assert differ(one, other)


@pytest.mark.parametrize("changed", ["seed", "purpose", "epoch"])
def test_other_seeds_purposes_and_epochs_have_other_draws(changed):
    draws = Draws(
        settings(),
        30,
        SHAPE,
        8 if changed == "seed" else 7,
        "observer" if changed == "purpose" else "student",
    )
    for one, other in zip(
        Draws(settings(), 30, SHAPE, 7).epoch(3),
        draws.epoch(4 if changed == "epoch" else 3),
        strict=True,
    ):
        assert not torch.equal(one.rows, other.rows)
        assert differ(one, other)


def test_a_single_batch_is_the_whole_set_in_its_order():
    (batch,) = Draws(settings(batch_size=30), 30, SHAPE, 0).epoch(0)
    assert batch.rows == slice(None)
    assert batch_sizes(31, 30) == (30, 1)


@pytest.mark.parametrize(
    "changes", [{}, {"mix": "mixup"}, {"transform": {"roll": 3}, "mix": "none"}, {"batch_size": 64}]
)
def test_replay_gives_the_batches_that_were_labelled(tmp_path: Path, changes: dict[str, object]):
    chosen = settings(**changes)
    labels = LabelSettings(kind="stored", seed=3)
    made_for = Labelled.of(of(REAL), CLASSES, chosen, labels)
    for epochs in (range(0, 2), range(2, 3)):
        chunk = label_epochs(IMAGES, chosen, labels, teachers(), NORMALIZATION, 3, epochs, "cpu")
        write_chunk(tmp_path, made_for, epochs, chunk)
    replay: Batches = Replay(StoredLabels(tmp_path), chosen, SHAPE)
    draws = Draws(chosen, len(REAL), SHAPE, 3)
    for epoch in (2, 0, 1):
        again = list(replay.epoch(epoch))
        drawn = list(draws.epoch(epoch))
        for one, other in zip(again, drawn, strict=True):
            assert one.logits.shape == (len(IMAGES[one.rows]), CLASSES)
            assert (
                one.rows == other.rows
                if isinstance(other.rows, slice)
                else torch.equal(one.rows, other.rows)
            )
            assert (one.mix is None) == (other.mix is None)
        views = zip(seen(again), seen(drawn), strict=True)
        assert all(torch.equal(a, b) and kept == kept_b for (a, _, kept), (b, _, kept_b) in views)
