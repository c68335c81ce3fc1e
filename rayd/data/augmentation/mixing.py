"""Mixing the images of a batch in pairs: cutmix and mixup, as soft-label protocols use them.

Both return the mixed images, the permutation that names each image's partner, and `kept`, the share
of the image itself (the lambda of the papers), so that labels or losses are mixed as kept * own +
(1 - kept) * partner.

Images beyond the length of the permutation are there as partners only: a process that has some
images of a batch takes theirs along. What comes back are the images that the permutation has an
entry for.

A drawn mix can be stored (`state`) and replayed (`mix_from_state`) byte for byte, as stored soft
labels need it.

Sources: Yun et al., "CutMix" (ICCV 2019); Zhang et al., "mixup" (ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from rayd.transfer import upload

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels, inside the image."""
Mixed = tuple[Tensor, Tensor, float]
"""Images (N, channels, H, W), the permutation (N,) of partners, and the share of the image itself
in [0, 1].
"""
Mix = Literal["none", "cutmix", "mixup"]
"""How images are mixed, by the name that settings give it."""

_PERMUTATION = "mix.permutation"
_BOX = "mix.box"
_KEPT = "mix.kept"


def cutmix(images: Tensor, permutation: Tensor, box: Box) -> Mixed:
    """Replace one box of every image by that of its partner; `kept` is the exact share of pixels
    outside the box.
    """
    own = images[: len(permutation)]
    top, left, height, width = box
    hole = torch.zeros(images.shape[2:], dtype=torch.bool, device=images.device)
    hole[top : top + height, left : left + width] = True
    mixed = torch.where(hole, images[upload(permutation, images.device)], own)
    return mixed, permutation, 1 - height * width / hole.numel()


def mixup(images: Tensor, permutation: Tensor, kept: float) -> Mixed:
    """Blend every image with its partner: kept * image + (1 - kept) * partner."""
    return (
        kept * images[: len(permutation)] + (1 - kept) * images[upload(permutation, images.device)],
        permutation,
        kept,
    )


@dataclass(frozen=True, eq=False)
class CutMix:
    """A box and partners for a whole batch."""

    permutation: Tensor
    """Integer (N,): the partner of each of the first N images."""
    box: Box
    """The box that comes from the partner."""

    @classmethod
    def draw(
        cls, generator: Generator, count: int, height: int, width: int, concentration: float = 1.0
    ) -> CutMix:
        """A box of sqrt(1 - lambda) of the sides, clipped, its centre uniform; lambda ~
        Beta(concentration, concentration).
        """
        side = sqrt(1 - draw_beta(generator, concentration))
        bounds = []
        for length in (height, width):
            center = int(torch.randint(length, (), generator=generator))
            half = int(length * side) // 2
            start = max(center - half, 0)
            stop = min(center + half, length)
            bounds.append((start, stop - start))
        (top, box_height), (left, box_width) = bounds
        return cls(torch.randperm(count, generator=generator), (top, left, box_height, box_width))

    def __call__(self, images: Tensor) -> Mixed:
        """Apply to images (N, channels, H, W)."""
        return cutmix(images, self.permutation, self.box)

    def state(self) -> dict[str, Tensor]:
        """`mix.permutation` int32 (N,) and `mix.box` int16 (4,)."""
        return {
            _PERMUTATION: self.permutation.int(),
            _BOX: torch.tensor(self.box, dtype=torch.int16),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> CutMix:
        """The mix whose `state()` this is."""
        top, left, height, width = state[_BOX].tolist()
        return cls(state[_PERMUTATION].long(), (top, left, height, width))


@dataclass(frozen=True, eq=False)
class MixUp:
    """A share and partners for a whole batch."""

    permutation: Tensor
    """Integer (N,): the partner of each of the first N images."""
    kept: float
    """Share of the image itself, in [0, 1]."""

    @classmethod
    def draw(
        cls, generator: Generator, count: int, height: int, width: int, concentration: float = 0.8
    ) -> MixUp:
        """`kept` from Beta(concentration, concentration)."""
        kept = draw_beta(generator, concentration)
        return cls(torch.randperm(count, generator=generator), kept)

    def __call__(self, images: Tensor) -> Mixed:
        """Apply to images (N, channels, H, W)."""
        return mixup(images, self.permutation, self.kept)

    def state(self) -> dict[str, Tensor]:
        """`mix.permutation` int32 (N,) and `mix.kept` float64 ()."""
        return {
            _PERMUTATION: self.permutation.int(),
            _KEPT: torch.tensor(self.kept, dtype=torch.float64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> MixUp:
        """The mix whose `state()` this is."""
        return cls(state[_PERMUTATION].long(), float(state[_KEPT]))


def draw_mix(
    name: Mix, generator: Generator, count: int, height: int, width: int, concentration: float
) -> CutMix | MixUp | None:
    """The mix of a batch of `count` images of height x width pixels that a setting names; `none` is
    None, and draws nothing.
    """
    match name:
        case "none":
            return None
        case "cutmix":
            return CutMix.draw(generator, count, height, width, concentration)
        case "mixup":
            return MixUp.draw(generator, count, height, width, concentration)


def mix_from_state(state: Mapping[str, Tensor]) -> CutMix | MixUp | None:
    """The mix whose `state()` is among these tensors; None if there is none."""
    if _BOX in state:
        return CutMix.from_state(state)
    return MixUp.from_state(state) if _KEPT in state else None


def draw_beta(generator: Generator, concentration: float) -> float:
    """One draw from Beta(concentration, concentration)."""
    # torch draws Beta from its global generator only; numpy takes a seed that this generator gives.
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(concentration, concentration))
