"""How what a layer hears becomes feature vectors: views of feature maps, and moments of each
sample's vectors.

Symbols: N samples, s feature vectors of one sample, d their dimension, p the side of a patch; a map
is (N, channels, h, w).

    view        d                       the s vectors of a sample
    flat        all numbers of a map    one
    channels    channels                one a position: s = h w
    patches     patch positions         one a channel and a place inside the patch: s = channels p^2

The patch statistic is that of G-VBSM (Shao et al., CVPR 2024; released code): a map whose sides are
no multiples of p is stretched bilinearly to the next multiples, then tiled into ceil(h/p) ceil(w/p)
patches; a map smaller than p is one patch.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rayd.repeats import repeated

View = Literal["vectors", "flat", "channels", "patches"]
"""Name of a view; `vectors` are feature vectors (N, s, d) as they are. Elsewhere features (N, d)
are one vector a sample.
"""

Tiles = tuple[int, int, int]
"""Rows of patches, columns of patches, side of a patch."""


def dimension(shape: tuple[int, ...], view: View, patch: int = 0) -> int:
    """Dimension d of the feature vectors of a map of `shape`, without the batch.

    >>> dimension((128, 30, 32), "patches", patch=4), dimension((128, 30, 32), "channels"), dimension((10,), "channels")
    (64, 128, 10)
    """
    if view == "vectors":
        return shape[-1]
    if view == "flat" or len(shape) == 1:
        size = 1
        for side in shape:
            size *= side
        return size
    if view == "channels":
        return shape[0]
    rows, columns, _ = _tiles(shape[1:], patch)
    return rows * columns


def size(shape: tuple[int, ...], view: View, patch: int = 0) -> tuple[int, int]:
    """Number s of feature vectors of a map of `shape`, without the batch, and their dimension d.

    >>> size((128, 30, 32), "patches", patch=4), size((128, 30, 32), "channels"), size((128, 30, 32), "flat")
    ((2048, 64), (960, 128), (1, 122880))
    """
    across = dimension(shape, view, patch)
    if view == "vectors":
        return shape[0], across
    if view == "flat" or len(shape) == 1:
        return 1, across
    return (shape[1] * shape[2] if view == "channels" else shape[0] * patch**2), across


def vectors(features: Tensor, view: View, patch: int = 0) -> Tensor:
    """Feature vectors (N, s, d), float32 at least, of features (N, d) or feature maps (N, channels,
    height, width).
    """
    features = _wide(features)
    if view == "vectors":
        return features
    if view == "flat" or features.ndim == 2:
        return features.flatten(1).unsqueeze(1)
    if view == "channels":
        return features.flatten(2).transpose(1, 2)
    tiled, (rows, columns, side) = _tiled(features, patch)
    samples, channels = tiled.shape[:2]
    split = tiled.reshape(samples, channels, rows, side, columns, side)
    return split.permute(0, 1, 3, 5, 2, 4).reshape(samples, channels * side * side, rows * columns)


class SampleMoments(NamedTuple):
    """Moments of the s feature vectors of every sample on its own."""

    mean: Tensor
    """Their mean (N, d)."""
    m2: Tensor
    """Sum of their squared deviations from it (N, d)."""
    size: int
    """How many there are: s."""


def sample_moments(features: Tensor, view: View, patch: int = 0) -> SampleMoments:
    """Moments of every sample's vectors: those of `vectors(features, view, patch)` over its second
    axis.

    The vectors are never laid out: maps are read in place, three times forward and once backward,
    in whatever precision they have; sums are in float32 at least. Differentiable (twice).
    """
    if view == "flat" or (features.ndim == 2 and view != "vectors"):
        mean = _wide(features.flatten(1))
        return SampleMoments(mean, torch.zeros_like(mean), 1)
    tiles = None
    if view == "vectors":
        planes = features.transpose(1, 2)
    elif view == "channels":
        planes = features.flatten(2)
    else:
        tiled, tiles = _tiled(features, patch)
        planes = tiled.flatten(2)
    mean, m2 = _Moments.apply(planes, tiles)
    return SampleMoments(mean, m2, _vectors_of_a_sample(planes, tiles))


class _Moments(torch.autograd.Function):
    """Mean and centred second moment of planes (N, channels, L): over L, or with tiles over
    channels and inside the tiles.

    With g and q the gradients of mean and m2, that of a number x is g/s + 2 q (x - mean): one pass,
    where autograd would keep the deviations and make three.
    """

    @staticmethod
    def forward(planes: Tensor, tiles: Tiles | None) -> tuple[Tensor, Tensor]:
        return _moments_in_parts(planes, tiles)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tiles | None], output: tuple[Tensor, Tensor]
    ) -> None:
        planes, ctx.tiles = inputs
        ctx.save_for_backward(planes, output[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        planes, mean = ctx.saved_tensors
        axis = 2 if ctx.tiles is None else 1
        slope = 2 * gradients[1]
        offset = gradients[0] / _vectors_of_a_sample(planes, ctx.tiles) - slope * mean
        slope, offset = (_spread(tensor, ctx.tiles).unsqueeze(axis) for tensor in (slope, offset))
        return torch.addcmul(offset, planes, slope).to(planes.dtype), None


_AT_ONCE = 1 << 26
_IN_CACHE = {"cpu": 1 << 20}
"""Numbers of the maps that are worked on together: on a CPU so few that their deviations stay in
its cache.
"""


@repeated
def _moments_in_parts(planes: Tensor, tiles: Tiles | None) -> tuple[Tensor, Tensor]:
    numbers = planes.shape[1] * planes.shape[2]
    rows = max(1, _IN_CACHE.get(planes.device.type, _AT_ONCE) // numbers)
    parts = [_moments(part, tiles) for part in torch.split(planes, rows)]
    return torch.cat([mean for mean, _ in parts]), torch.cat([m2 for _, m2 in parts])


@repeated
def _moments(planes: Tensor, tiles: Tiles | None) -> tuple[Tensor, Tensor]:
    axis = 2 if tiles is None else 1
    wide = torch.promote_types(planes.dtype, torch.float32)
    mean = _gathered(planes.sum(axis, dtype=wide), tiles) / _vectors_of_a_sample(planes, tiles)
    deviation = planes - _spread(mean, tiles).unsqueeze(axis)
    return mean, _gathered(deviation.mul_(deviation).sum(axis), tiles)


def _vectors_of_a_sample(planes: Tensor, tiles: Tiles | None) -> int:
    return planes.shape[2] if tiles is None else planes.shape[1] * tiles[2] ** 2


def _gathered(sums: Tensor, tiles: Tiles | None) -> Tensor:
    """Sums over the patches (N, rows columns) of a plane (N, L); without tiles, what came."""
    if tiles is None:
        return sums
    rows, columns, side = tiles
    return sums.reshape(len(sums), rows, side, columns, side).sum((2, 4)).flatten(1)


def _spread(values: Tensor, tiles: Tiles | None) -> Tensor:
    """The plane (N, L) that holds at each place the value of its patch (N, rows columns); without
    tiles, what came.
    """
    if tiles is None:
        return values
    rows, columns, side = tiles
    return (
        values.reshape(len(values), rows, 1, columns, 1).expand(-1, -1, side, -1, side).flatten(1)
    )


def _tiles(sides: tuple[int, ...], patch: int) -> Tiles:
    if patch < 1:
        raise ValueError(
            f"The view 'patches' needs a 'patch' of at least 1 pixel. Got {patch} instead."
        )
    return -(-sides[0] // patch), -(-sides[1] // patch), patch


def _tiled(maps: Tensor, patch: int) -> tuple[Tensor, Tiles]:
    """The maps, stretched to whole patches, and their tiles."""
    tiles = _tiles(tuple(maps.shape[2:]), patch)
    whole = (tiles[0] * patch, tiles[1] * patch)
    if tuple(maps.shape[2:]) == whole:
        return maps, tiles
    return functional.interpolate(_wide(maps), whole, mode="bilinear", align_corners=False), tiles


def _wide(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))
