"""Flatness: an observer's output on the images should match that on their moving average.

Shao et al., "Elucidating the Design Space of Dataset Condensation" (NeurIPS 2024), flatness
regularisation:

    loss = mean_i KL( softmax(phi(x_i) / tau) || softmax(phi(average_i) / tau) )      average <- beta average + (1 - beta) x

    phi  the observer, logits (classes,)      tau  temperature, 4
    x_i  synthetic image, under the same random view as its moving average (beta = 0.99),
    which gets no gradient

Images that move along a sharp ridge of the loss leave their average behind; a small divergence
means a flat neighbourhood.

`compare: statistics` is the paper's first form (L_FR, Table 4). Instead of logits, it compares all
statistics that `moments` matches, between the images and their average: distances, not squared, of
means and variances of the inputs of normalisations and convolutions, by channel and patch. It has
no temperature, and costs about as much as that term. Sharpness-aware minimisation, which is also in
that table, is `synthesis.sam_radius`.

**Paper and released code differ.** The code has KL(average || image), the other direction; it also
divides by the number of classes (`reduction="mean"`), so that its weight is smaller by that factor;
and the released scripts omit the term. Here the printed formula is the default, averaged over
images only and not multiplied by tau^2 (nor is it in paper and code); `direction: average` gives
the code's direction. The code's average lags by one update: it includes the images of a step before
their update, ours after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rayd.config import Recipe, When
from rayd.config.choices import Direction, LayerRole
from rayd.errors import ConfigError
from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation
    from rayd.objectives.moments import MomentMatching
    from rayd.objectives.specification import StatisticSpec
    from rayd.statistics import Moments, Transform


def softened_divergence(
    current: Tensor, average: Tensor, temperature: float, direction: Direction = "current"
) -> Tensor:
    """Mean over rows of the divergence of two softened distributions, given as logits (N, classes);
    a scalar.

    `direction` selects which of them is p in KL(p || q) = sum p log(p / q).
    """
    from torch.nn import functional

    now, then = (
        functional.log_softmax(logits / temperature, dim=1) for logits in (current, average)
    )
    p, q = (now, then) if direction == "current" else (then, now)
    return functional.kl_div(q, p, reduction="batchmean", log_target=True)


def statistics_apart(
    current: Observation, average: Observation, specs: Sequence[StatisticSpec]
) -> Tensor:
    """Sum over layers of the distances of means and of variances over all images, as `moments`
    compares them with the real ones; a scalar, differentiable in the current ones.
    """
    import torch

    parts = []
    for spec in specs:
        layers = zip(current.layers[spec.layer_role], average.layers[spec.layer_role], strict=True)
        for now, then in layers:
            ours, theirs = (_over_all(spec.transform, maps) for maps in (now, then.detach()))
            parts.append(torch.linalg.vector_norm(ours.mean - theirs.mean))
            parts.append(torch.linalg.vector_norm(ours.variance - theirs.variance))
    return torch.stack(parts).sum()


def _over_all(transform: Transform, maps: Tensor) -> Moments:
    """Moments of all maps (N, c, h, w) together."""
    import torch

    from rayd.statistics import Moments

    together = torch.zeros(len(maps), dtype=torch.long, device=maps.device)
    return Moments.of_samples(transform.moments(maps), together, 1)


class Flatness(Term):
    """Divergence of an observer's output on the images from that on their moving average."""

    name = "flatness"
    for_any_method = True
    needs_classes = True
    splits = True

    weight: float = Field(default=0.25, ge=0)
    """Factor of the term; 0 switches it off."""
    compare: Literal["logits", "statistics"] = "logits"
    """The quantity that should stay close: softened logits (L'_FR of EDC), or means and variances
    of the inputs of all normalisations and convolutions, by channel and patch (L_FR, Table 4).
    """
    patch: Annotated[int, When(compare="statistics")] = Field(default=4, ge=1)
    """Side of a patch, in positions of a convolution's input."""
    temperature: Annotated[float, When(compare="logits")] = Field(default=4.0, gt=0)
    """Temperature of the softened logits of the images and of their average."""
    direction: Annotated[Direction, When(compare="logits")] = "current"
    """First distribution in the divergence: that of the images (paper) or of their average
    (released code).
    """
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the moving average of the images."""

    @property
    def averaging(self) -> float:
        """The decay."""
        return self.decay

    def check(self, recipe: Recipe) -> None:
        """Refuse to split a step if statistics of all its images are compared."""
        if self.compare == "statistics" and recipe.synthesis.split > 1:
            raise ConfigError(
                "'terms.flatness.compare: statistics' needs all images of a step at once: set "
                "'synthesis.split: 1'."
            )

    @property
    def _moments(self) -> MomentMatching:
        """The term whose statistics are compared."""
        from rayd.objectives.moments import MomentMatching

        return MomentMatching(patch=self.patch)

    @property
    def layer_roles(self) -> frozenset[LayerRole]:
        """Inputs of normalisations and convolutions, if these are compared."""
        if self.compare == "logits":
            return frozenset()
        return frozenset(spec.layer_role for spec in self._moments.specs)

    @property
    def optional(self) -> frozenset[LayerRole]:
        """Normalisations."""
        return self._moments.optional

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Mean over the images, or sum over the layers; differentiable in the observer's current
        output.
        """
        if self.compare == "statistics":
            return statistics_apart(seen, context.average_observation(), self._moments.specs)
        average = context.average_logits().detach().to(seen.logits)
        return softened_divergence(seen.logits, average, self.temperature, self.direction)
