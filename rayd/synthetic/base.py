"""Base class of synthetic sets: modules whose parameters are stored, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from rayd.errors import ConfigError

TEACHERS = "teachers"
"""Part of the storage: weights of the networks that label online."""
SOFT_LABELS = "soft labels"
"""Part of the storage: teachers' logits of all epochs, and the draws that they belong to."""
OF_TEACHERS = frozenset({TEACHERS, SOFT_LABELS})
"""Parts that students under hard labels do not need."""


@dataclass(frozen=True)
class Storage:
    """Storage cost of a synthetic set, to compare sets at equal storage."""

    numbers: dict[str, int]
    """Number of stored values by part (images or their factors, labels, ...)."""
    bytes: dict[str, int]
    """Number of stored bytes by part."""

    @property
    def total_bytes(self) -> int:
        """Number of bytes of all parts."""
        return sum(self.bytes.values())

    def without(self, parts: Collection[str]) -> Storage:
        """The cost without some parts."""
        return Storage(
            {part: count for part, count in self.numbers.items() if part not in parts},
            {part: size for part, size in self.bytes.items() if part not in parts},
        )


def is_regular(labels: Tensor) -> bool:
    """Whether all classes have equally many images, sorted by class, so that labels need no
    storage.

    >>> is_regular(torch.tensor([0, 0, 1, 1])), is_regular(torch.tensor([0, 1, 1]))
    (True, False)
    """
    counts = torch.bincount(labels)
    return bool((counts == counts[0]).all() and (labels.diff() >= 0).all())


def check_labels(labels: Tensor, count: int) -> None:
    """Refuse labels that are neither class indices (count,) nor logits (count, classes).

    Raises:
        ConfigError: they are not.
    """
    learned = labels.is_floating_point()
    fits = labels.ndim == (2 if learned else 1) and len(labels) == count
    if fits and not learned and labels.device.type == "cpu":
        fits = labels.dtype != torch.bool and not bool((labels < 0).any())
    if not fits:
        kind = str(labels.dtype).removeprefix("torch.")
        raise ConfigError(
            f"Labels of a synthetic set must be class indices ({count},), from 0, or logits "
            f"({count}, classes). Got {kind} {tuple(labels.shape)} instead."
        )


class SyntheticSet(nn.Module, ABC):
    """Base class of parameterisations, with images in normalised (network input) space."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images that the set decodes to."""

    @abstractmethod
    def batch(self, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Decode images (n, C, H, W) and labels (n,) at indices (default: all), differentiably."""

    @abstractmethod
    def clip(self, lower: Tensor, upper: Tensor) -> None:
        """Clip the images to a range by changing the parameters in place.

        Args:
            lower: lower bounds, (1, C, 1, 1) or (1, C, H, W).
            upper: upper bounds, of the same shape.
        """

    @property
    @abstractmethod
    def samples(self) -> Tensor:
        """Class indices (m,) of the separable samples, which are the units of `part` and `put`."""

    @abstractmethod
    def part(self, indices: Tensor) -> Self:
        """Extract samples as a set that can be optimised separately.

        Raises:
            ConfigError: images share parameters and are not separable.
        """

    @abstractmethod
    def put(self, indices: Tensor, part: Self) -> None:
        """Overwrite samples with those of a part."""

    def storage(self) -> Storage:
        """Storage cost of all parameters and of buffers not implied by their position."""
        stored = dict[str, Tensor](self.named_parameters())
        for name, buffer in self.named_buffers():
            if name not in self.implied:
                stored[name] = buffer
        return Storage(
            {name: tensor.numel() for name, tensor in stored.items()},
            {name: tensor.numel() * tensor.element_size() for name, tensor in stored.items()},
        )

    @property
    def implied(self) -> frozenset[str]:
        """Names of buffers that need no storage, such as labels implied by the images' order."""
        return frozenset()

    @property
    def step_scales(self) -> dict[str, float]:
        """Factors of the SGD step size by the last part of a parameter's name; 1 by default.

        They make a step along the parameter move images about as far as a step along their pixels.
        """
        return {}

    @torch.no_grad()
    def assign(self, parameters: dict[str, Tensor]) -> None:
        """Overwrite the parameters, by name: synchronises a replica."""
        for name, parameter in self.named_parameters():
            parameter.copy_(parameters[name])
