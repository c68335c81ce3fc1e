r"""The loss around a network's weights, along two random directions.

Directions are normalised by filter (Li et al., "Visualizing the Loss Landscape of Neural Nets",
NeurIPS 2018): each filter of a direction has the norm of the network's own, so that networks of
different scale are comparable; biases and normalisations stay fixed. With directions
:math:`\delta, \eta` the picture is :math:`L(\theta + a\,\delta + b\,\eta)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10

import torch
from PIL import Image
from torch import Tensor, nn

from rayd import seeding
from rayd.analyses.base import Analysis, Subject
from rayd.analyses.hessian import mean_losses
from rayd.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Landscape:
    """Losses on a square grid around a point."""

    places: Tensor
    """Coordinates along either direction (k,)."""
    losses: Tensor
    """Losses (k, k): the first direction by row."""

    @property
    def center(self) -> float:
        """Loss at the point itself."""
        middle = len(self.places) // 2
        return float(self.losses[middle, middle])

    @property
    def rise(self) -> float:
        """Mean rise of the loss at half the radius along both directions, or at the next grid point
        outwards.
        """
        quarter = len(self.places) // 4
        middle = len(self.places) // 2
        last = len(self.places) - 1 - quarter
        ends = torch.stack(
            [
                self.losses[quarter, middle],
                self.losses[last, middle],
                self.losses[middle, quarter],
                self.losses[middle, last],
            ]
        )
        return float(ends.mean()) - self.center


def directions(network: nn.Module, seed: int = 0, count: int = 2) -> list[dict[str, Tensor]]:
    """Draw random directions in weight space, normalised by filter.

    Args:
        network: its weights give the norms; parameters with fewer than two dimensions get zero.
        seed: of the draws.
        count: number of directions.
    """
    draws = seeding.generator(seed, "landscape")
    found = []
    for _ in range(count):
        direction = {}
        for name, weight in network.named_parameters():
            if weight.ndim < 2:
                direction[name] = torch.zeros_like(weight)
                continue
            drawn = torch.randn(weight.shape, generator=draws).to(weight)
            rows = drawn.flatten(1)
            norms = weight.detach().flatten(1).norm(dim=1, keepdim=True)
            scaled = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12) * norms
            direction[name] = scaled.view_as(weight)
        found.append(direction)
    return found


@torch.no_grad()
def landscape(
    network: nn.Module,
    loss: Callable[[], float],
    first: dict[str, Tensor],
    second: dict[str, Tensor],
    *,
    radius: float = 1.0,
    points: int = 13,
) -> Landscape:
    """Evaluate a loss on a square grid around a network's weights, which are restored afterwards.

    Args:
        network: its weights are moved.
        loss: computes the loss at the network's current weights.
        first: direction by parameter name.
        second: the other direction.
        radius: largest coordinate.
        points: coordinates along either direction; odd, so that the weights are one of them.

    Raises:
        ConfigError: the number of points is even or too small.
    """
    if points < 3 or points % 2 == 0:
        raise ConfigError(f"A landscape needs an odd number of points from 3 on. Got {points}.")
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    places = torch.linspace(-radius, radius, points)
    losses = torch.empty(points, points)
    try:
        for row, a in enumerate(places):
            for column, b in enumerate(places):
                for name, parameter in network.named_parameters():
                    moved = weights[name] + a * first[name] + b * second[name]
                    parameter.copy_(moved)
                losses[row, column] = loss()
    finally:
        for name, parameter in network.named_parameters():
            parameter.copy_(weights[name])
    return Landscape(places, losses)


def analyse(subject: Subject) -> Analysis:
    """Draw the loss on real images around networks trained on the set and on random images."""
    real, labels = subject.sample(default=300)
    sets = {
        "distilled": (subject.distilled.images, subject.distilled.labels),
        "random": subject.random(),
    }
    found: dict[str, dict[str, Landscape]] = {}
    for name, (images, own_labels) in sets.items():
        network = subject.fitted(images, own_labels)
        first, second = directions(network, subject.options.seed)
        judged = {"own images": (images, own_labels), "real images": (real, labels)}
        found[name] = {}
        for where, (x, y) in judged.items():
            losses = mean_losses(network, x, y)
            value = landscape(network, lambda losses=losses: _total(losses), first, second)  # type: ignore[misc]
            found[name][where] = value
        subject.progress.log(f"landscape: trained on {name}")
    lines = [f"{'trained on':<12}  {'loss on':<12}  {'loss':>8}  {'rise':>8}"]
    numbers = {}
    for name, by_set in found.items():
        for where, one in by_set.items():
            lines.append(f"{name:<12}  {where:<12}  {one.center:>8.4f}  {one.rise:>8.4f}")
            numbers[f"{name}, {where}"] = {"loss": one.center, "rise": one.rise}
    lines.append("rise: mean over both directions at half the radius")
    return Analysis(
        name="landscape",
        title=f"Loss around trained networks: {subject.title}",
        explanation=(
            f"Cross-entropy around the final weights (cross) of a {subject.network.label} that was "
            f"trained on each set for {subject.options.steps} steps, along two random directions "
            f"normalised by filter: on its training images, and on {len(real)} real ones."
        ),
        picture=chart(found, subject.title),
        lines=tuple(lines),
        numbers={"landscapes": numbers, "real_images": len(real)},
    )


def chart(found: dict[str, dict[str, Landscape]], title: str = "") -> Image.Image:
    """Draw landscapes as contours: a row for each network, a column for each set of images."""
    from matplotlib.colors import LogNorm

    from rayd.drawing import as_image, new_figure, styled

    columns: Sequence[str] = list(next(iter(found.values())))
    with styled():
        figure = new_figure(420 * len(columns), 340 * len(found) + 40)
        grid = figure.subplots(len(found), len(columns), squeeze=False)
        for number, where in enumerate(columns):
            # separate scales for each set of images, as losses on real ones vary less
            values = torch.stack([by_set[where].losses for by_set in found.values()])
            low = max(float(values.min()), 1e-4)
            high = max(float(values.max()), 1.1 * low)
            levels = torch.logspace(log10(low), log10(high), 25).tolist()
            for row, (name, by_set) in zip(grid, found.items(), strict=True):
                axes = row[number]
                one = by_set[where]
                drawn = axes.contourf(
                    one.places,
                    one.places,
                    one.losses.clamp(low, high).T,
                    levels=levels,
                    norm=LogNorm(low, high),
                    cmap="viridis",
                )
                axes.plot(0, 0, "w+", markersize=12, markeredgewidth=2)
                axes.set_title(f"trained on {name}, loss on {where}")
                axes.grid(visible=False)
                axes.set_aspect("equal")
            bar = figure.colorbar(drawn, ax=grid[:, number])
            bar.set_ticks([levels[place] for place in range(0, 25, 6)])
            bar.ax.minorticks_off()
            # without mathtext, which is disabled because of the names of runs
            bar.ax.yaxis.set_major_formatter("{x:.3g}")
        figure.suptitle(f"Cross-entropy: {title}" if title else "Cross-entropy")
        return as_image(figure)


def _total(losses: Callable[[], object]) -> float:
    return float(sum(losses()))  # type: ignore[call-overload]
