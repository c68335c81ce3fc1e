"""The synthetic set: a module whose parameters are all that is stored of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Storage:
    """What a synthetic set costs to keep, so that sets are compared at equal storage."""

    numbers: dict[str, int]
    """Stored numbers by part (images or their factors, labels, ...)."""
    bytes: dict[str, int]
    """The same parts in bytes."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self.bytes.values())


class SyntheticSet(nn.Module, ABC):
    """Base of the parameterisations. Its parameters are learned; images are in normalised (network
    input) space.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Number of images that the set decodes to."""

    @abstractmethod
    def batch(self, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) and labels (n,) at indices, all of them when absent; differentiable
        in the parameters.
        """

    @abstractmethod
    def clip(self, lower: Tensor, upper: Tensor) -> None:
        """Bring the images into a range, (1, C, 1, 1) or (1, C, H, W) each, by changing the
        parameters in place.
        """

    @property
    @abstractmethod
    def samples(self) -> Tensor:
        """Class indices (m,) of what can be cut apart, in order: what the indices of `part` and
        `put` count.
        """

    @abstractmethod
    def part(self, indices: Tensor) -> Self:
        """Some units as a set of their own, to be optimised apart from the others.

        Raises:
            ConfigError: images share parameters, so that they cannot be cut apart.
        """

    @abstractmethod
    def put(self, indices: Tensor, part: Self) -> None:
        """Overwrite some units with those of a part."""

    def storage(self) -> Storage:
        """What is stored: every parameter and every buffer that is not implied by its position."""
        kept = dict(self.named_parameters()) | {
            n: b for n, b in self.named_buffers() if n not in self.implied
        }
        return Storage(
            {name: tensor.numel() for name, tensor in kept.items()},
            {name: tensor.numel() * tensor.element_size() for name, tensor in kept.items()},
        )

    @property
    def implied(self) -> frozenset[str]:
        """Buffers that follow from the order of the images, such as hard labels sorted by class,
        and so cost nothing.
        """
        return frozenset()

    @property
    def step_scales(self) -> dict[str, float]:
        """Factors of the step size under SGD by the last part of a parameter's name; 1 for those
        that are not named.

        They make a step along the parameter move images about as far as a step along their pixels.
        """
        return {}

    @torch.no_grad()
    def assign(self, parameters: dict[str, Tensor]) -> None:
        """Overwrite the parameters with values of the same names and shapes: how a replica follows
        the original.
        """
        for name, parameter in self.named_parameters():
            parameter.copy_(parameters[name])
