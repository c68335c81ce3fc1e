"""Sources of batches: drawn from a seed, or replayed from stored labels.

The draws of a batch are, in order of application: its images, the random view of each (`transform`,
then DSA's `augmentation`), and their pairwise mixing. All derive from (seed, purpose, epoch, index
of the batch) only. A set of a single batch is not shuffled, as its order would only affect
rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from rayd.config import TrainingSettings
from rayd.data.augmentation import CutMix, MixUp, Operation, Rows, at_rows, augmentation
from rayd.data.augmentation.mixing import draw_mix, mix_from_state
from rayd.data.augmentation.transform import Transform, draw_transform
from rayd.data.images import ImageShape
from rayd.data.normalization import Normalization
from rayd.seeding import generator
from rayd.training.packing import unpack
from rayd.training.stored_labels import LabelChunk, StoredLabels
from rayd.transfer import upload


@dataclass(frozen=True, eq=False)
class DrawnBatch:
    """Random draws for a batch of n images."""

    rows: Rows
    """Rows of the images in the set."""
    transform: Transform | None = None
    """Random view of each image."""
    operations: tuple[Operation, ...] = ()
    """DSA's operations, applied after the transform."""
    mix: CutMix | MixUp | None = None
    """Pairwise mixing of the images."""
    logits: Tensor | None = None
    """Stored logits of the teachers for the mixed images, (n, classes)."""

    def view(self, images: Tensor, normalization: Normalization | None) -> Tensor:
        """Apply the random view to network input (n, C, H, W), before mixing."""
        if self.transform is not None:
            images = self.transform(images, normalization)
        for operation in self.operations:
            images = operation(images)
        return images

    def mixed(self, images: Tensor) -> tuple[Tensor, Tensor | None, float]:
        """Mix images (n, C, H, W).

        Returns:
            The mixed images (n, C, H, W), the index of each one's partner (n,) or None, and the
            share of the image itself.
        """
        if self.mix is None:
            return images, None, 1.0
        # losses need the partners' labels, so the permutation is copied to the device only once
        return replace(self.mix, permutation=upload(self.mix.permutation, images.device))(images)

    def size(self, count: int) -> int:
        """Number of images of the batch, in a set of `count`."""
        return count if isinstance(self.rows, slice) else len(self.rows)

    def part(self, positions: Tensor) -> DrawnBatch:
        """Draws of the images at positions int64 (m,), processed as in the whole batch.

        If images are mixed, their partners follow as m further images; mixing returns the m images
        only.
        """
        mix = self.mix
        needed = positions
        if mix is not None:
            needed = torch.cat((positions, mix.permutation[positions]))
            mix = replace(mix, permutation=torch.arange(len(positions), len(needed)))
        return DrawnBatch(
            rows=needed if isinstance(self.rows, slice) else self.rows[needed],
            transform=at_rows(self.transform, needed),
            operations=tuple(at_rows(operation, needed) for operation in self.operations),
            mix=mix,
            logits=None if self.logits is None else self.logits[positions],
        )


class Batches(Protocol):
    """Batches of every epoch."""

    def epoch(self, epoch: int) -> Iterator[DrawnBatch]:
        """Yield the batches of an epoch (from 0) in order; repeated calls give equal batches."""
        ...


class Draws:
    """Batches drawn from a seed.

    Args:
        settings: size and views of the batches.
        count: number of images of the set.
        shape: shape of an image.
        seed: seed of all draws.
        purpose: kind of training (`student`, ...); part of the key of the draws.
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
        """Yield the batches of an epoch in order."""
        for index, rows in enumerate(split_rows(self.order(epoch), self.sizes)):
            yield DrawnBatch(
                rows=rows,
                transform=self._transform(epoch, index),
                operations=self.operations(epoch, index),
                mix=self._mix(epoch, index),
            )

    def order(self, epoch: int) -> Tensor | None:
        """Order of the images in an epoch, int64 (count,); None (unshuffled) for a single batch."""
        if len(self.sizes) == 1:
            return None
        return torch.randperm(self._count, generator=self._draws("batches", epoch))

    def operations(self, epoch: int, index: int) -> tuple[Operation, ...]:
        """Draw DSA's operations for a batch."""
        if not self._augmentation.operations:
            return ()
        return self._augmentation.draw(
            self._draws("augmentation", epoch, index), self.sizes[index], *self._shape[1:]
        )

    def _transform(self, epoch: int, index: int) -> Transform | None:
        settings = self._settings.transform
        if not settings.summary:
            return None
        return draw_transform(
            settings, self._draws("transform", epoch, index), self.sizes[index], *self._shape[1:]
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
    """Batches replayed from stored labels, with their logits, one chunk in memory at a time.

    DSA's operations are not stored but drawn again, from the seed of the labels.

    Args:
        stored: the labels, already validated by `stored.check`.
        settings: size and views of the batches.
        shape: shape of an image.
    """

    def __init__(self, stored: StoredLabels, settings: TrainingSettings, shape: ImageShape):
        self._stored = stored
        self._size = (shape.height, shape.width)
        self._draws = Draws(settings, stored.made_for.count, shape, stored.made_for.seed)
        self._chunk: LabelChunk | None = None

    def epoch(self, epoch: int) -> Iterator[DrawnBatch]:
        """Yield the batches of an epoch in order."""
        sizes = self._draws.sizes
        tensors = self._tensors(epoch)
        transforms = unpack("transform", tensors, sizes)
        mixes = unpack("mix", tensors, sizes)
        labels_by_batch = unpack("labels", tensors, sizes)
        rows_by_batch = split_rows(tensors.get("order"), sizes)
        for index, rows in enumerate(rows_by_batch):
            transform = None
            if transforms[index]:
                transform = Transform.from_state(transforms[index], self._size)
            yield DrawnBatch(
                rows=rows,
                transform=transform,
                operations=self._draws.operations(epoch, index),
                mix=mix_from_state(mixes[index]) if mixes[index] else None,
                logits=labels_by_batch[index]["logits"].float(),
            )

    def _tensors(self, epoch: int) -> dict[str, Tensor]:
        if self._chunk is None or epoch not in self._chunk.epochs:
            # free the old chunk before reading the next one
            self._chunk = None
            self._chunk = self._stored.chunk(epoch)
        return self._chunk.of(epoch)


def batch_sizes(count: int, size: int) -> tuple[int, ...]:
    """Number of images of each batch of an epoch; the last one may be smaller.

    >>> batch_sizes(5, 2), batch_sizes(2, 4)
    ((2, 2, 1), (2,))
    """
    return tuple(min(size, count - start) for start in range(0, count, size))


def split_rows(order: Tensor | None, sizes: tuple[int, ...]) -> tuple[Rows, ...]:
    """Split an order into the rows of each batch; None stands for a single batch of all rows."""
    if order is None:
        return (slice(None),)
    return torch.split(order[: sum(sizes)], list(sizes))
