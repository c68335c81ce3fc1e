"""Partition and expansion: each stored image is a square of smaller images, enlarged for use.

Ganlong Zhao, Guanbin Li, Yipeng Qin and Yizhou Yu, "Improved Distribution Matching for Dataset
Condensation" (IDM), CVPR 2023, after the multi-formation of IDC (Kim et al., ICML 2022); NCFM does
the same. With f = 2:

    stored (C, H, W)  ->  quadrants top left, bottom left, top right, bottom right
                      ->  each (C, H, W) by bilinear enlargement

so that f^2 images take the storage of one, trading detail for number. The decoded
images of a stored image are consecutive and have its label. If f does not divide the side, parts
overlap by less than a pixel's width: part i of a side of n pixels begins at floor(i n / f) and is
ceil(n / f) wide.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from rayd.derived import derived
from rayd.errors import ConfigError
from rayd.synthetic.pixels import Pixels


class Partitioned(Pixels):
    """Images that each hold `factor` x `factor` smaller ones, with hard labels.

    >>> images = Partitioned(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), factor=2)
    >>> batch, labels = images.batch()
    >>> batch.shape, labels.tolist()
    (torch.Size([8, 3, 8, 8]), [0, 0, 0, 0, 1, 1, 1, 1])
    """

    def __init__(self, images: Tensor, labels: Tensor, factor: int = 2):
        """Initialise from stored images (n, C, H, W), normalised, and class indices (n,).

        Raises:
            ConfigError: labels are learned, or an image cannot be cut into so many parts.
        """
        super().__init__(images, labels)
        if labels.is_floating_point():
            raise ConfigError(
                "Labels of partitioned images must be class indices, as all parts of an image have "
                "its class. Got logits instead."
            )
        side = min(images.shape[2:])
        if isinstance(factor, bool) or not isinstance(factor, int) or not 1 <= factor <= side:
            raise ConfigError(
                f"The factor of partitioned images must be a whole number from 1 to {side}, their "
                f"side in pixels. Got {factor!r} instead."
            )
        self._factor = factor

    def __len__(self) -> int:
        """Number of decoded images."""
        return len(self.images) * self._factor**2

    def batch(self, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Decoded images and class indices; each stored image gives f^2, column by column."""
        if indices is None:
            # the same tensor in every call, so that values derived from it are cached
            labels = derived(
                self.labels,
                f"repeated {self._factor**2}",
                lambda: self.labels.repeat_interleave(self._factor**2),
            )
            return expand(self.images, self._factor), labels
        stored, which = torch.unique(indices // self._factor**2, return_inverse=True)
        expanded = expand(self.images[stored], self._factor)
        images = expanded[which * self._factor**2 + indices % self._factor**2]
        return images, self.labels[indices // self._factor**2]

    def part(self, indices: Tensor) -> Self:
        """Extract stored images."""
        return type(self)(self.images[indices], self.labels[indices], self._factor)


def expand(images: Tensor, factor: int) -> Tensor:
    """Enlarge the f^2 parts of images (n, C, H, W): (n f^2, C, H, W), column by column."""
    size = tuple(images.shape[2:])
    parts = [images[:, :, rows, columns] for rows, columns in _parts(size, factor)]
    stacked = torch.stack(parts, 1).flatten(0, 1)
    return functional.interpolate(stacked, size, mode="bilinear", align_corners=False)


def shrink(images: Tensor, factor: int) -> Tensor:
    """Assemble images (n f^2, C, H, W), reduced by area, into stored images (n, C, H, W).

    The order is that of `expand`.
    """
    size = tuple(images.shape[2:])
    height, width = (-(-side // factor) for side in size)
    small = functional.interpolate(images, (height, width), mode="area").reshape(
        -1, factor**2, images.shape[1], height, width
    )
    stored = images.new_empty(small.shape[0], images.shape[1], *size)
    for index, (rows, columns) in enumerate(_parts(size, factor)):
        stored[:, :, rows, columns] = small[:, index]
    return stored


def _parts(size: tuple[int, ...], factor: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the f^2 parts of an image of this size, column by column.

    Parts overlap where the size is no multiple of the factor, so that all are equally large.
    """
    height, width = (-(-side // factor) for side in size)
    parts = []
    for column in range(factor):
        left = column * size[1] // factor
        for row in range(factor):
            top = row * size[0] // factor
            parts.append((slice(top, top + height), slice(left, left + width)))
    return parts
