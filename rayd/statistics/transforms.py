"""Transforms of the feature maps of a layer to feature vectors.

Symbols: N samples, s feature vectors of one sample, d their dimension, p the side of a patch; a map
is (N, channels, h, w).

    transform          d                       the s vectors of a sample
    Vectors()          that of the vectors     unchanged: features are (N, s, d)
    Flat()             all numbers of a map    one
    Channels()         channels                one per position: s = h w
    Patches(p)         patch positions         one per channel and place inside a patch: s = channels p^2
    Attention(p)       positions               one: the sum of |f|^p over channels at each position
    Normalized(inner)  that of `inner`         those of `inner`, divided by their Euclidean norm

Features (N, d) without positions are one vector per sample for all transforms except `Vectors`.

A new transform is a subclass of `Transform` that defines key, dimension and vectors; it is
registered by its class name, in `Transform.registry`.

The patch statistic is that of G-VBSM (Shao et al., CVPR 2024; released code): a map whose sides are
not multiples of p is stretched bilinearly to the next multiples, then tiled into ceil(h/p)
ceil(w/p) patches; a map smaller than p is one patch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rayd.repeats import repeated

Shape = tuple[int, ...]
"""Shape of the features of one sample, without the batch."""
Tiles = tuple[int, int, int]
"""Rows of patches, columns of patches, side of a patch."""


class SampleMoments(NamedTuple):
    """Moments of the s feature vectors of each sample."""

    mean: Tensor
    """Their mean (N, d)."""
    m2: Tensor
    """Sum of their squared deviations from it (N, d)."""
    size: int
    """Number of vectors per sample, s."""


@dataclass(frozen=True)
class Transform(ABC):
    """Maps feature maps to feature vectors. Equal transforms give equal vectors.

    >>> Patches(4).size((128, 30, 32)), Channels().size((128, 30, 32)), Flat().size((128, 30, 32))
    ((2048, 64), (960, 128), (1, 122880))
    """

    in_place: ClassVar[bool] = False
    """Whether `moments` reads maps without materialising their vectors. For such a transform,
    statistics get the maps, for all others the vectors, computed in the precision of the features.
    """
    registry: ClassVar[dict[str, type[Transform]]] = {}
    """All transforms, by the name of their class."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            Transform.registry[cls.__name__] = cls

    @property
    @abstractmethod
    def key(self) -> str:
        """A stable name of the transform and its settings, for files and cache keys."""

    @abstractmethod
    def size(self, shape: Shape) -> tuple[int, int]:
        """Number s of feature vectors of a sample of `shape`, and their dimension d."""

    @abstractmethod
    def vectors(self, features: Tensor) -> Tensor:
        """Feature vectors (N, s, d), float32 at least; differentiable."""

    def dimension(self, shape: Shape) -> int:
        """Dimension d of the feature vectors of a sample of `shape`."""
        return self.size(shape)[1]

    def moments(self, features: Tensor) -> SampleMoments:
        """Moments of every sample's vectors: those of `vectors(features)` over its second axis.

        Maps are read three times forward and once backward, in their own precision; sums are in
        float32 at least. Differentiable (twice).
        """
        return _moments_of(self.vectors(features).transpose(1, 2))


class Vectors(Transform):
    """Identity for feature vectors (N, s, d)."""

    in_place = True

    @property
    def key(self) -> str:
        """`vectors`."""
        return "vectors"

    def size(self, shape: Shape) -> tuple[int, int]:
        """The shape itself."""
        return shape[0], shape[1]

    def vectors(self, features: Tensor) -> Tensor:
        """The features."""
        _check(self, features, (3,), "feature vectors (N, s, d)")
        return wide(features)

    def moments(self, features: Tensor) -> SampleMoments:
        """Moments over the second axis."""
        _check(self, features, (3,), "feature vectors (N, s, d)")
        return _moments_of(features.transpose(1, 2))


class Flat(Transform):
    """All numbers of a map as one vector."""

    in_place = True

    @property
    def key(self) -> str:
        """`flat`."""
        return "flat"

    def size(self, shape: Shape) -> tuple[int, int]:
        """One vector of all numbers."""
        return 1, math.prod(shape)

    def vectors(self, features: Tensor) -> Tensor:
        """One vector per sample (N, 1, d)."""
        return wide(features).flatten(1).unsqueeze(1)

    def moments(self, features: Tensor) -> SampleMoments:
        """A single vector is its own mean."""
        mean = wide(features.flatten(1))
        return SampleMoments(mean, torch.zeros_like(mean), 1)


class _OfMaps(Transform):
    """A transform of maps; features without positions are one vector per sample."""

    in_place = True

    def size(self, shape: Shape) -> tuple[int, int]:
        """Number and dimension of the vectors."""
        return Flat().size(shape) if len(shape) == 1 else self._size(shape)

    def vectors(self, features: Tensor) -> Tensor:
        """Feature vectors (N, s, d)."""
        _check(self, features, (2, 4), "maps (N, channels, h, w), or vectors (N, d)")
        if features.ndim == 2:
            return Flat().vectors(features)
        return self._vectors(wide(features))

    def moments(self, features: Tensor) -> SampleMoments:
        """Moments of every sample's vectors, without materialising them."""
        _check(self, features, (2, 4), "maps (N, channels, h, w), or vectors (N, d)")
        return Flat().moments(features) if features.ndim == 2 else self._moments(features)

    @abstractmethod
    def _size(self, shape: Shape) -> tuple[int, int]:
        """`size` of a map (channels, h, w)."""

    @abstractmethod
    def _vectors(self, maps: Tensor) -> Tensor:
        """`vectors` of maps (N, channels, h, w), float32 at least."""

    @abstractmethod
    def _moments(self, maps: Tensor) -> SampleMoments:
        """`moments` of maps (N, channels, h, w)."""


class Channels(_OfMaps):
    """The channels at each position as a vector."""

    @property
    def key(self) -> str:
        """`channels`."""
        return "channels"

    def _size(self, shape: Shape) -> tuple[int, int]:
        return shape[1] * shape[2], shape[0]

    def _vectors(self, maps: Tensor) -> Tensor:
        return maps.flatten(2).transpose(1, 2)

    def _moments(self, maps: Tensor) -> SampleMoments:
        return _moments_of(maps.flatten(2))


@dataclass(frozen=True)
class Patches(_OfMaps):
    """The values at one place inside all patches of a channel as a vector."""

    side: int
    """Side of a patch in pixels of the map, at least 1."""

    def __post_init__(self) -> None:
        if isinstance(self.side, bool) or not isinstance(self.side, int) or self.side < 1:
            raise ValueError(
                f"The 'side' of Patches must be an integer of at least 1. Got {self.side!r} instead."
            )

    @property
    def key(self) -> str:
        """`patches` and their side."""
        return f"patches{self.side}"

    def _size(self, shape: Shape) -> tuple[int, int]:
        rows, columns, side = _tiles(shape[1:], self.side)
        return shape[0] * side**2, rows * columns

    def _vectors(self, maps: Tensor) -> Tensor:
        tiled, (rows, columns, side) = _tiled(maps, self.side)
        samples, channels = tiled.shape[:2]
        split = tiled.reshape(samples, channels, rows, side, columns, side)
        ordered = split.permute(0, 1, 3, 5, 2, 4)
        return ordered.reshape(samples, channels * side * side, rows * columns)

    def _moments(self, maps: Tensor) -> SampleMoments:
        tiled, tiles = _tiled(maps, self.side)
        return _moments_of(tiled.flatten(2), tiles)


@dataclass(frozen=True)
class Attention(_OfMaps):
    """The spatial attention map as a vector: the sum of powers of absolute values over channels.

    Sajedi et al. (DataDAM, ICCV 2023), Eq. 2.
    """

    in_place = False
    power: float
    """The power, above 0."""

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise ValueError(
                f"The 'power' of Attention must be finite and above 0. Got {self.power} instead."
            )

    @property
    def key(self) -> str:
        """`attention` and the power."""
        return f"attention{self.power:g}"

    def _size(self, shape: Shape) -> tuple[int, int]:
        return 1, shape[1] * shape[2]

    def _vectors(self, maps: Tensor) -> Tensor:
        return maps.abs().pow(self.power).sum(1).flatten(1).unsqueeze(1)

    def _moments(self, maps: Tensor) -> SampleMoments:
        # powers can overflow in half precision
        return _moments_of(self._vectors(wide(maps)).transpose(1, 2))


@dataclass(frozen=True)
class Normalized(Transform):
    """The vectors of another transform, divided by their Euclidean norm."""

    inner: Transform
    """The other transform."""

    @property
    def key(self) -> str:
        """The key of the other transform, and `normalized`."""
        return f"{self.inner.key}.normalized"

    def size(self, shape: Shape) -> tuple[int, int]:
        """Size of the other transform."""
        return self.inner.size(shape)

    def vectors(self, features: Tensor) -> Tensor:
        """Vectors of norm 1; those of dead features, which have no direction, are shorter."""
        # with a smaller eps the gradient of dead features would practically be infinite
        return functional.normalize(self.inner.vectors(features), dim=-1, eps=1e-6)


def _check(
    transform: Transform, features: Tensor, dimensions: tuple[int, ...], wanted: str
) -> None:
    """Refuse features with an unsupported number of dimensions.

    Raises:
        ValueError: the number of dimensions is not among these.
    """
    if features.ndim not in dimensions:
        raise ValueError(
            f"{type(transform).__name__} takes {wanted}. Got shape {tuple(features.shape)} instead."
        )


def _moments_of(planes: Tensor, tiles: Tiles | None = None) -> SampleMoments:
    mean, m2 = _Moments.apply(planes, tiles)
    return SampleMoments(mean, m2, _vectors_of_a_sample(planes, tiles))


class _Moments(torch.autograd.Function):
    """Mean and centred second moment of planes (N, channels, L): over L, or with tiles over
    channels and inside the tiles.

    With g and q the gradients of mean and m2, that of a value x is g/s + 2 q (x - mean), computed
    in one pass; autograd would store the deviations and make three.
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
"""Number of values processed at once: on a CPU few enough for their deviations to stay in cache."""


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
    """Sums over the patches (N, rows columns) of a plane (N, L); without tiles, the input."""
    if tiles is None:
        return sums
    rows, columns, side = tiles
    return sums.reshape(len(sums), rows, side, columns, side).sum((2, 4)).flatten(1)


def _spread(values: Tensor, tiles: Tiles | None) -> Tensor:
    """The plane (N, L) with the value of each position's patch (N, rows columns); without tiles,
    the input.
    """
    if tiles is None:
        return values
    rows, columns, side = tiles
    return (
        values.reshape(len(values), rows, 1, columns, 1).expand(-1, -1, side, -1, side).flatten(1)
    )


def _tiles(sides: tuple[int, ...], patch: int) -> Tiles:
    return -(-sides[0] // patch), -(-sides[1] // patch), patch


def _tiled(maps: Tensor, patch: int) -> tuple[Tensor, Tiles]:
    """Stretch maps to whole patches, and return them with their tiles."""
    tiles = _tiles(tuple(maps.shape[2:]), patch)
    whole = (tiles[0] * patch, tiles[1] * patch)
    if tuple(maps.shape[2:]) == whole:
        return maps, tiles
    return functional.interpolate(wide(maps), whole, mode="bilinear", align_corners=False), tiles


def wide(features: Tensor) -> Tensor:
    """Features in float32 at least."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
