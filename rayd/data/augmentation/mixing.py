"""CutMix and mixup of the images of a batch, as used by soft-label protocols.

Both return the mixed images, the permutation of partners, and `kept`, the share of the image itself
(lambda in the papers), so that labels or losses are mixed as kept * own + (1 - kept) * partner.

The result has one image per entry of the permutation; images beyond its length serve as partners
only. A data-parallel process appends the partners of its share of a batch in this way.

A drawn mix can be stored (`state`) and replayed (`mix_from_state`) byte for byte, as stored soft
labels require.

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
"""Images (N, channels, H, W), permutation (N,) of partners, and share of the image in [0, 1]."""
Mix = Literal["none", "cutmix", "mixup"]
"""Mixing method, by its name in settings."""

_PERMUTATION = "mix.permutation"
_BOX = "mix.box"
_KEPT = "mix.kept"


def cutmix(images: Tensor, permutation: Tensor, box: Box) -> Mixed:
    """Replace a box of every image by its partner's; `kept` is the share of pixels outside it."""
    own = images[: len(permutation)]
    top, left, height, width = box
    hole = torch.zeros(images.shape[2:], dtype=torch.bool, device=images.device)
    hole[top : top + height, left : left + width] = True
    mixed = torch.where(hole, images[upload(permutation, images.device)], own)
    return mixed, permutation, 1 - height * width / hole.numel()


def mixup(images: Tensor, permutation: Tensor, kept: float) -> Mixed:
    """Blend every image with its partner: kept * image + (1 - kept) * partner."""
    own = images[: len(permutation)]
    partners = images[upload(permutation, images.device)]
    return kept * own + (1 - kept) * partners, permutation, kept


@dataclass(frozen=True, eq=False)
class CutMix:
    """A box and a permutation of partners for a batch."""

    permutation: Tensor
    """Integer (N,): partner of each of the first N images."""
    box: Box
    """Box copied from the partner."""

    @classmethod
    def draw(
        cls, generator: Generator, count: int, height: int, width: int, concentration: float = 1.0
    ) -> CutMix:
        """Draw a box with sides of sqrt(1 - lambda), clipped, and a uniform centre.

        lambda ~ Beta(concentration, concentration).
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
        """Restore a mix from its `state()`."""
        top, left, height, width = state[_BOX].tolist()
        return cls(state[_PERMUTATION].long(), (top, left, height, width))


@dataclass(frozen=True, eq=False)
class MixUp:
    """A share and a permutation of partners for a batch."""

    permutation: Tensor
    """Integer (N,): partner of each of the first N images."""
    kept: float
    """Share of the image itself, in [0, 1]."""

    @classmethod
    def draw(
        cls, generator: Generator, count: int, height: int, width: int, concentration: float = 0.8
    ) -> MixUp:
        """Draw `kept` from Beta(concentration, concentration)."""
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
        """Restore a mix from its `state()`."""
        return cls(state[_PERMUTATION].long(), float(state[_KEPT]))


def draw_mix(
    name: Mix, generator: Generator, count: int, height: int, width: int, concentration: float
) -> CutMix | MixUp | None:
    """Draw the mix named by a setting for `count` images; None, without a draw, for `none`."""
    match name:
        case "none":
            return None
        case "cutmix":
            return CutMix.draw(generator, count, height, width, concentration)
        case "mixup":
            return MixUp.draw(generator, count, height, width, concentration)


def mix_from_state(state: Mapping[str, Tensor]) -> CutMix | MixUp | None:
    """Restore a mix from tensors that include its `state()`; None if they include none."""
    if _BOX in state:
        return CutMix.from_state(state)
    return MixUp.from_state(state) if _KEPT in state else None


def draw_beta(generator: Generator, concentration: float) -> float:
    """Draw from Beta(concentration, concentration)."""
    # torch draws Beta only from its global generator, so NumPy's is seeded from this one
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(concentration, concentration))
