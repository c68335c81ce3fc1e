"""Where batches come from: drawn anew from a seed, or replayed from stored labels.

What is drawn for a batch is what happens to it, in this order: which images it has, the random view
of each (`transform`, then DSA's `augmentation`), and how they are mixed in pairs. All of it derives
from (seed, purpose, epoch, index of the batch) and never from what ran before. A set of a single
batch is not shuffled, as order then changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from rayd.config import TrainingSettings
from rayd.data.augmentation import CutMix, MixUp, Operation, at_rows, augmentation
from rayd.data.augmentation.mixing import draw_mix, mix_from_state
from rayd.data.augmentation.transform import Transform, draw_transform
from rayd.data.images import ImageShape
from rayd.data.normalization import Normalization
from rayd.seeding import generator
from rayd.training.packing import unpack
from rayd.training.stored import Chunk, StoredLabels
from rayd.transfer import upload

Rows = Tensor | slice
"""Which images of the set: int64 (n,) on the CPU, or all of them."""


@dataclass(frozen=True, eq=False)
class DrawnBatch:
    """What is drawn for one batch of n images."""

    rows: Rows
    """Which images of the set."""
    transform: Transform | None = None
    """The random view of each of them."""
    operations: tuple[Operation, ...] = ()
    """DSA's operations, applied after the transform."""
    mix: CutMix | MixUp | None = None
    """How they are mixed in pairs."""
    logits: Tensor | None = None
    """What the teachers say of the mixed images, (n, classes), if that was stored."""

    def view(self, images: Tensor, normalization: Normalization | None) -> Tensor:
        """The view of network input (n, C, H, W) that is mixed, or learned from."""
        if self.transform is not None:
            images = self.transform(images, normalization)
        for operation in self.operations:
            images = operation(images)
        return images

    def mixed(self, images: Tensor) -> tuple[Tensor, Tensor | None, float]:
        """The images (n, C, H, W) after mixing, each one's partner (n,), if it has one, and the
        share of the image itself.
        """
        if self.mix is None:
            return images, None, 1.0
        # losses need the partners' labels: they are copied to the device once
        return replace(self.mix, permutation=upload(self.mix.permutation, images.device))(images)

    def size(self, count: int) -> int:
        """Number of its images, of a set of `count`."""
        return count if isinstance(self.rows, slice) else len(self.rows)

    def part(self, places: Tensor) -> DrawnBatch:
        """What is drawn for its images at these places, int64 (m,): they are seen and mixed as in
        the whole batch.

        Where images are mixed, the partners follow as m more images; mixing gives back the m images
        themselves.
        """
        mix = self.mix
        seen = places
        if mix is not None:
            seen = torch.cat((places, mix.permutation[places]))
            mix = replace(mix, permutation=torch.arange(len(places), len(seen)))
        return DrawnBatch(
            seen if isinstance(self.rows, slice) else self.rows[seen],
            at_rows(self.transform, seen),
            tuple(at_rows(operation, seen) for operation in self.operations),
            mix,
            None if self.logits is None else self.logits[places],
        )


class Batches(Protocol):
    """The batches of every epoch."""

    def epoch(self, epoch: int) -> Iterator[DrawnBatch]:
        """The batches of one epoch, from 0, in order; as often as wished and always alike."""
        ...


class Draws:
    """Batches drawn from a seed.

    Args:
        settings: size and views of the batches.
        count: images of the set.
        shape: shape of one image.
        seed: of all draws.
        purpose: what is trained (`student`, ...); other purposes have other draws.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        count: int,
        shape: ImageShape,
        seed: int,
        purpose: str = "student",
    ):
        self.sizes = batch_sizes(count, settings.batch_size)
        self._settings = settings
        self._shape = shape
        self._seed = seed
        self._purpose = purpose
        self._count = count
        self._augmentation = augmentation(settings.augmentation)

    def epoch(self, epoch: int) -> Iterator[DrawnBatch]:
        """The batches of one epoch, in order."""
        for index, rows in enumerate(split_rows(self.order(epoch), self.sizes)):
            operations = self.operations(epoch, index)
            yield DrawnBatch(
                rows, self._transform(epoch, index), operations, self._mix(epoch, index)
            )

    def order(self, epoch: int) -> Tensor | None:
        """The images in the order of an epoch, int64 (count,); None for a single batch, which is
        not shuffled.
        """
        return (
            torch.randperm(self._count, generator=self._draws("batches", epoch))
            if len(self.sizes) > 1
            else None
        )

    def operations(self, epoch: int, index: int) -> tuple[Operation, ...]:
        """DSA's operations on a batch."""
        if not self._augmentation.operations:
            return ()
        return self._augmentation.draw(
            self._draws("augmentation", epoch, index), self.sizes[index], *self._shape[1:]
        )

    def _transform(self, epoch: int, index: int) -> Transform | None:
        chosen = self._settings.transform
        if not chosen.summary:
            return None
        return draw_transform(
            chosen, self._draws("transform", epoch, index), self.sizes[index], *self._shape[1:]
        )

    def _mix(self, epoch: int, index: int) -> CutMix | MixUp | None:
        name = self._settings.mix
        concentration = self._settings.mix_concentration
        if name == "none":
            return None
        return draw_mix(
            name,
            self._draws("mix", epoch, index),
            self.sizes[index],
            *self._shape[1:],
            concentration,
        )

    def _draws(self, what: str, *indices: int) -> torch.Generator:
        return generator(self._seed, f"{self._purpose} {what}", *indices)


class Replay:
    """Batches as they were drawn when labels were stored, each with its logits; one chunk of them
    is in memory at a time.

    DSA's operations are not stored but drawn again, from the seed of the labels.

    Args:
        stored: the labels; `stored.check` has found that they fit.
        settings: size and views of the batches.
        shape: shape of one image.
    """

    def __init__(self, stored: StoredLabels, settings: TrainingSettings, shape: ImageShape):
        self._stored = stored
        self._size = (shape.height, shape.width)
        self._draws = Draws(settings, stored.made_for.count, shape, stored.made_for.seed)
        self._chunk: Chunk | None = None

    def epoch(self, epoch: int) -> Iterator[DrawnBatch]:
        """The batches of one epoch, in order."""
        sizes = self._draws.sizes
        one = self._of(epoch)
        transforms = unpack("transform", one, sizes)
        mixes = unpack("mix", one, sizes)
        every = zip(split_rows(one.get("order"), sizes), unpack("labels", one, sizes), strict=True)
        for index, (rows, labels) in enumerate(every):
            yield DrawnBatch(
                rows,
                Transform.from_state(transforms[index], self._size) if transforms[index] else None,
                self._draws.operations(epoch, index),
                mix_from_state(mixes[index]) if mixes[index] else None,
                labels["logits"].float(),
            )

    def _of(self, epoch: int) -> dict[str, Tensor]:
        if self._chunk is None or epoch not in self._chunk.epochs:
            self._chunk = None
            self._chunk = self._stored.chunk(epoch)
        return self._chunk.of(epoch)


def batch_sizes(count: int, size: int) -> tuple[int, ...]:
    """Images of each batch of an epoch; the last one may be smaller.

    >>> batch_sizes(5, 2), batch_sizes(2, 4)
    ((2, 2, 1), (2,))
    """
    return tuple(min(size, count - start) for start in range(0, count, size))


def split_rows(order: Tensor | None, sizes: tuple[int, ...]) -> tuple[Rows, ...]:
    """The rows of each batch of an epoch with this order; all of them where there is none."""
    if order is None:
        return (slice(None),)
    starts = (0, *accumulate(sizes))
    return tuple(order[start : start + size] for start, size in zip(starts, sizes, strict=False))
