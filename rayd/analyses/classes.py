"""Gains and losses of a distilled set over random images, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from rayd.analyses.base import PALETTE, Analysis, Subject
from rayd.errors import ArtifactError
from rayd.evaluation.report import Report, SetResult
from rayd.evaluation.variants import DISTILLED

SHOWN = 40
"""Maximum number of classes to draw; of more, those with the largest gains and losses."""


@dataclass(frozen=True)
class ClassGain:
    """Accuracies of one class."""

    name: str
    """Name of the class."""
    distilled: float
    """Test accuracy of the class, trained on the distilled set."""
    baseline: float
    """The same, trained on the baseline."""

    @property
    def gain(self) -> float:
        """Difference of the two."""
        return self.distilled - self.baseline


def gains(
    report: Report, names: Sequence[str], baseline: str = "random", network: str | None = None
) -> list[ClassGain]:
    """Accuracies of every class with test images, on the distilled set and on a baseline.

    Args:
        report: the evaluation.
        names: one per class, in label order.
        baseline: the set to compare with.
        network: label of the architecture; by default the first of the report.

    Raises:
        ArtifactError: the report lacks one of the two sets.
    """
    network = network or report.results[0].network
    ours, theirs = _pair(report, baseline, network)
    if ours is None:
        known = dict.fromkeys(one.network for one in report.results if one.set == DISTILLED)
        raise ArtifactError(
            f"The report holds no accuracies of {network} on the distilled set, but of "
            f"{', '.join(known) or 'no network'}; 'rayd evaluate' with --network adds them."
        )
    if theirs is None:
        raise ArtifactError(
            f"The report holds no accuracies of {network} on the set '{baseline}'; 'rayd evaluate' "
            f"with evaluation.baselines=[{baseline}] adds them."
        )
    rows = zip(names, ours.per_class, theirs.per_class, strict=True)
    return [
        ClassGain(name, distilled, other)
        for name, distilled, other in rows
        if distilled is not None and other is not None
    ]


def analyse(subject: Subject) -> Analysis:
    """Draw the gain of every class over random images, or over the baseline `how`."""
    if subject.report is None:
        raise ArtifactError(
            f"'{subject.directory}' holds no evaluation.json; 'rayd evaluate {subject.directory}' "
            "writes one."
        )
    baseline = subject.options.how or "random"
    network = subject.network.label if subject.options.network is not None else None
    found = gains(subject.report, subject.distilled.class_names, baseline, network)
    network = network or subject.report.results[0].network
    ordered = sorted(found, key=lambda one: -one.gain)
    width = min(24, max(len(one.name) for one in ordered))
    lines = [f"{'class':<{width}}  distilled  {baseline:>9}    gain"]
    for one in _ends(ordered, 20):
        values = f"{one.distilled:>9.3f}  {one.baseline:>9.3f}  {one.gain:>+6.3f}"
        lines.append(f"{one.name[:width]:<{width}}  {values}")
    losing = sum(one.gain < 0 for one in found)
    lines.append(f"{losing} of {len(found)} classes lose")
    return Analysis(
        name="classes",
        title=f"Gain by class: {subject.title}",
        explanation=(
            f"Test accuracy of {network} on every class, trained on the distilled set, above that "
            f"trained on '{baseline}'{_terms(subject.report, baseline, network)}."
        ),
        picture=chart(_ends(ordered, SHOWN), baseline, subject.title),
        lines=tuple(lines),
        numbers={"classes": [{**vars(one), "gain": one.gain} for one in found]},
    )


def chart(found: Sequence[ClassGain], baseline: str = "random", title: str = "") -> Image.Image:
    """Draw gains as bars, in the given order."""
    from rayd.drawing import as_image, new_figure, styled

    with styled():
        figure = new_figure(620, 90 + 24 * len(found))
        axes = figure.subplots()
        colours = [PALETTE[0] if one.gain >= 0 else PALETTE[1] for one in found]
        bars = axes.barh(range(len(found)), [one.gain for one in found], color=colours)
        axes.bar_label(bars, fmt="{:+.3f}", padding=3)
        axes.set_yticks(range(len(found)), [one.name for one in found])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.axvline(0, color="#444444", linewidth=0.8)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"test accuracy above '{baseline}'")
        axes.set_title(title)
        return as_image(figure)


def _terms(report: Report, baseline: str, network: str) -> str:
    """Describe what the two results have in common: labels and protocol."""
    ours, theirs = _pair(report, baseline, network)
    assert ours is not None
    assert theirs is not None
    labels = " under the same labels"
    if ours.label_kind != theirs.label_kind:
        labels = f", the former under {ours.label_kind} labels, the latter under {theirs.label_kind} ones"
    return labels if ours.same_protocol(theirs) else f"{labels}, in another protocol"


def _pair(report: Report, baseline: str, network: str) -> tuple[SetResult | None, SetResult | None]:
    """The first results on the distilled set and on a baseline; if possible of one protocol and
    under labels of one kind.
    """
    augmented = [one for one in report.results if one.network == network and one.augmented]
    distilled = [one for one in augmented if one.set == DISTILLED]
    others = [one for one in augmented if one.set == baseline]
    pairs = [(ours, theirs) for ours in distilled for theirs in others]

    def mismatch(pair: tuple[SetResult, SetResult]) -> tuple[bool, int, bool]:
        ours, theirs = pair
        place = distilled.index(ours)
        return not ours.same_protocol(theirs), place, ours.label_kind != theirs.label_kind

    if pairs:
        return min(pairs, key=mismatch)
    return next(iter(distilled), None), None


def _ends(ordered: Sequence[ClassGain], most: int) -> list[ClassGain]:
    """The first and the last lines of a long list."""
    if len(ordered) <= most:
        return list(ordered)
    return [*ordered[: most // 2], *ordered[-(most - most // 2) :]]
