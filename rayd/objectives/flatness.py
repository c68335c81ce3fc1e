"""Flatness: an observer's output on the images should be that on their moving average.

Shao et al., "Elucidating the Design Space of Dataset Condensation" (NeurIPS 2024), flatness
regularisation:

    loss = mean_i KL( softmax(phi(x_i) / tau) || softmax(phi(average_i) / tau) )      average <- beta average + (1 - beta) x

    phi  the observer, logits (classes,)      tau  temperature, 4
    x_i  synthetic image, under the same random view as its moving average (beta = 0.99),
    which gets no gradient

Images that move along a sharp ridge of the loss leave their average behind; a small divergence
means a flat neighbourhood.

**Paper and released code differ.** The code has KL(average || image), the other direction; it
divides by the number of classes too (`reduction="mean"`), so that its weight is that many times
smaller; and the shipped scripts leave the term out. Here the printed formula is the default,
averaged over images alone, not multiplied by tau^2 (neither does so); `direction: average` gives
the code's direction. The average of the code is one update behind: it takes in the images of a step
before they move, ours after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayd.config.choices import Direction
from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation


def softened_divergence(
    current: Tensor, average: Tensor, temperature: float, direction: Direction = "current"
) -> Tensor:
    """Mean over rows of the divergence of two softened distributions, given as logits (N, classes);
    a scalar.

    `direction` is which of them is p in KL(p || q) = sum p log(p / q).
    """
    from torch.nn import functional

    now, then = (
        functional.log_softmax(logits / temperature, dim=1) for logits in (current, average)
    )
    p, q = (now, then) if direction == "current" else (then, now)
    return functional.kl_div(q, p, reduction="batchmean", log_target=True)


class Flatness(Term):
    """Divergence of an observer's output on the images from that on their moving average."""

    name = "flatness"
    for_any_method = True
    needs_classes = True
    splits = True

    weight: float = Field(default=0.25, ge=0)
    """Factor of the term; 0 switches it off."""
    temperature: float = Field(default=4.0, gt=0)
    """Of the softened logits of the images and of their average."""
    direction: Direction = "current"
    """Which distribution stands first in the divergence: that of the images (paper) or of their
    average (released code).
    """
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the moving average of the images."""

    @property
    def averaging(self) -> float:
        """The decay."""
        return self.decay

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Mean over the images, differentiable in the logits (N, classes) of the images now."""
        average = context.average_logits().detach().to(seen.logits)
        return softened_divergence(seen.logits, average, self.temperature, self.direction)
