r"""Ranking of architectures: does a distilled set order networks as the whole data set does?

Architecture search is the application that most papers name: networks are compared on a set that
trains in seconds, in the hope that their order is that on the whole data. For K networks with
accuracies
:math:`a_k` on a small set and :math:`b_k` on the whole one, Spearman's
:math:`\rho` is the correlation of their ranks, Kendall's :math:`\tau` the share of pairs in the
same order minus that of pairs in the opposite one (ties as in tau-b). Random and herded images of
the same budget are ranked for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from rayd.errors import ConfigError
from rayd.evaluation.variants import DISTILLED

if TYPE_CHECKING:
    from rayd.evaluation.report import Report

FEWEST = 3
"""Minimum number of networks to rank, as two have only two orders."""

SMALL: tuple[dict[str, Any], ...] = (
    {"name": "mlp", "width": 16},
    {"name": "mlp", "width": 128},
    {"name": "convnet", "depth": 1, "width": 4},
    {"name": "convnet", "depth": 1, "width": 16},
    {"name": "convnet", "depth": 2, "width": 4},
    {"name": "convnet", "depth": 2, "width": 8},
    {"name": "convnet", "depth": 2, "width": 32},
    {"name": "convnet", "depth": 3, "width": 8},
    {"name": "convnet", "depth": 2, "width": 8, "norm": "none"},
    {"name": "convnet", "depth": 2, "width": 8, "norm": "batch"},
)
"""Ten networks for images of 8 pixels or more: small, so that each can be trained on the whole
data, and diverse in kind, depth, width and normalisation, so that their accuracies differ.
"""


@dataclass(frozen=True)
class Ranking:
    """Rank correlations of networks' accuracies on a set with those on the whole data."""

    set: str
    """`distilled`, or the name of a baseline."""
    networks: tuple[str, ...]
    """Labels of the architectures."""
    accuracies: tuple[float, ...]
    """Mean test accuracy of each on the set, a fraction."""
    whole: tuple[float, ...]
    """Mean test accuracy of each on the whole data, a fraction."""
    spearman: float | None
    """Correlation of the ranks, -1 to 1; None where all accuracies are equal."""
    kendall: float | None
    """Agreement of pairs (tau-b), -1 to 1; None where all accuracies are equal."""

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return asdict(self)


def rankings(report: Report) -> tuple[Ranking, ...]:
    """Rank correlations of the distilled set and of every baseline, with the whole set.

    Only results with the protocol's own labels and the first tested epoch count.

    Args:
        report: an evaluation of several networks with the baseline `whole`.

    Raises:
        ConfigError: fewer than three networks, or no accuracies on the whole set.
    """
    matrix = report.matrix() if report.results else None
    cells = {} if matrix is None else matrix.cells
    columns = [] if matrix is None else matrix.columns
    networks = [] if matrix is None else matrix.networks
    # under a protocol of soft labels, the whole set may have been evaluated under hard ones only
    whole = "whole" if "whole" in columns else "whole, hard labels"
    ranked = [network for network in networks if (network, whole) in cells]
    if len(ranked) < FEWEST:
        raise ConfigError(
            f"A ranking needs at least {FEWEST} networks that were trained on the whole set. "
            f"Got {len(ranked)}; name more with --network, and set "
            "evaluation.baselines=[random,whole]."
        )
    correlations = []
    for column in columns:
        # skip `random, hard labels` and the like: sets under labels other than the protocol's own
        is_variant = "," in column
        if column == whole or is_variant:
            continue
        common = [network for network in ranked if (network, column) in cells]
        if len(common) >= FEWEST:
            ours = [cells[network, column] for network in common]
            theirs = [cells[network, whole] for network in common]
            correlations.append(_ranking(column, common, ours, theirs))
    return tuple(correlations)


def _ranking(
    name: str, networks: Sequence[str], ours: Sequence[float], theirs: Sequence[float]
) -> Ranking:
    from scipy.stats import kendalltau, spearmanr

    is_constant = len(set(ours)) == 1 or len(set(theirs)) == 1
    return Ranking(
        set=name,
        networks=tuple(networks),
        accuracies=tuple(ours),
        whole=tuple(theirs),
        spearman=None if is_constant else float(spearmanr(ours, theirs).statistic),
        kendall=None if is_constant else float(kendalltau(ours, theirs).statistic),
    )


def text(found: Sequence[Ranking]) -> str:
    """Format rank correlations as a table."""
    width = max(len("set"), *(len(one.set) for one in found))
    lines = [f"{'set':<{width}}  networks  Spearman  Kendall"]
    for one in found:
        rho = "-" if one.spearman is None else f"{one.spearman:+.3f}"
        tau = "-" if one.kendall is None else f"{one.kendall:+.3f}"
        lines.append(f"{one.set:<{width}}  {len(one.networks):>8}  {rho:>8}  {tau:>7}")
    lines.append("correlation of networks' accuracies on a set with those on the whole data")
    return "\n".join(lines)


def chart(found: Sequence[Ranking], title: str = "") -> Image.Image:
    """Draw accuracies on the sets against those on the whole data, a point for each network."""
    from rayd.drawing import as_image, new_figure, styled

    markers = ("o", "s", "^", "D", "v", "P")
    with styled():
        figure = new_figure(640, 400)
        axes = figure.subplots()
        for number, one in enumerate(found):
            rho = "" if one.spearman is None else f" ({one.spearman:+.2f})"
            is_ours = one.set == DISTILLED
            axes.scatter(
                one.whole,
                one.accuracies,
                marker=markers[number % len(markers)],
                s=36 if is_ours else 20,
                label=one.set + rho,
            )
        axes.set_xlabel("test accuracy, trained on the whole data")
        axes.set_ylabel("test accuracy, trained on the set")
        axes.legend(title="set (Spearman)", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        axes.set_title(title)
        return as_image(figure)
