r"""A synthetic set with a learned step size of the students that train on it.

The step size alpha is kept positive by learning log(alpha). A step of size s on log(alpha) is, to
first order, a step of size s alpha^2 on alpha. For a paper's step size s' on alpha, which starts at
alpha_0, s = s' / alpha_0^2 is initially equivalent (MTT: s' = 1e-5 at alpha_0 = 0.01, so s = 0.1).
"""

from __future__ import annotations

from math import log
from typing import Self

import torch
from torch import Tensor, nn

from rayd.errors import ConfigError
from rayd.synthetic.base import Storage, SyntheticSet


class WithLearnedStepSize(SyntheticSet):
    """Any synthetic set, and a learned step size."""

    def __init__(self, learned: SyntheticSet, step_size: float):
        """Add a step size with its initial value to a set, which becomes a submodule.

        Raises:
            ConfigError: the step size is not positive.
        """
        super().__init__()
        if not step_size > 0:
            raise ConfigError(
                f"The step size of students must be above 0. Got {step_size} instead."
            )
        self.learned = learned
        self.log_step_size = nn.Parameter(torch.tensor(log(step_size)))

    @classmethod
    def restored(cls, learned: SyntheticSet, log_step_size: Tensor) -> Self:
        """Restore a set with the exact logarithm from its `state_dict`."""
        restored = cls(learned, 1.0)
        restored.log_step_size.data = log_step_size.detach().clone()
        return restored

    @property
    def step_size(self) -> Tensor:
        """Step size, a positive scalar, differentiable."""
        return self.log_step_size.exp()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.learned)

    def batch(self, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images and labels of the wrapped set."""
        return self.learned.batch(indices)

    def clip(self, lower: Tensor, upper: Tensor) -> None:
        """Clip the wrapped set."""
        self.learned.clip(lower, upper)

    @property
    def step_scales(self) -> dict[str, float]:
        """Step scales of the wrapped set."""
        return self.learned.step_scales

    @property
    def samples(self) -> Tensor:
        """Samples of the wrapped set."""
        return self.learned.samples

    def part(self, indices: Tensor) -> Self:
        """Copy the whole set, as the step size belongs to all images together.

        Raises:
            ConfigError: the indices are not all, in order.
        """
        self._check_whole(indices)
        return type(self).restored(self.learned.part(indices), self.log_step_size)

    @torch.no_grad()
    def put(self, indices: Tensor, part: Self) -> None:
        """Overwrite the whole set.

        Raises:
            ConfigError: the indices are not all, in order.
        """
        self._check_whole(indices)
        self.learned.put(indices, part.learned)
        self.log_step_size.copy_(part.log_step_size)

    def _check_whole(self, indices: Tensor) -> None:
        if not torch.equal(indices.cpu(), torch.arange(len(self.samples))):
            raise ConfigError(
                "Images that are learned with a step size cannot be cut apart: "
                "set 'synthesis.block: null'."
            )

    def storage(self) -> Storage:
        """Storage of the wrapped set; a step size, learned or given, is part of the protocol."""
        return self.learned.storage()
