"""Charts of a page as SVG text, in the colours of the reader's light or dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from rayd.artifacts import content_hash
from rayd.drawing import DOTS_PER_INCH, new_figure, styled
from rayd.evaluation.matrix import words_of
from rayd.evaluation.variants import DISTILLED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rayd.evaluation.report import SetResult

INK = "#010203"
"""Colour that stands for the colour of the page's text."""
GRID = "#808080"
OURS = "#3d6fd1"
OTHERS = "#b0643a"
"""Colours of distilled and of other sets; both have a contrast above 3 on white and on black."""
COLOURS = (OURS, OTHERS, "#2e8b57", "#8a63c9", "#808080", "#c2478d")
MARKERS = ("o", "x", "^", "s", "+", "v")
DASHES = ("-", "--", ":", "-.")
"""Colours, markers and lines of several sets or runs, distinguishable without colours as well."""
WIDTH = 720
BAR = 26
"""Height of a bar with its margin, in pixels."""
MARGIN = 60
"""Height of axis and labels."""
CURVE = (350, 200)
"""Size of a curve, in pixels."""
ACROSS = 3
"""Maximum number of curves per row of a figure."""
MOST_CLASSES = 40
"""Maximum number of classes to draw."""

_STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.alpha": 0.3,
    # keep text as text, which can be searched and read by screen readers
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Bar:
    """A bar of a chart of accuracies."""

    label: str
    """Network and training set."""
    mean: float
    """Test accuracy, a fraction."""
    std: float | None
    """Its standard deviation; None for a single student."""
    is_ours: bool
    """Whether it belongs to a distilled set."""


Points = Sequence[tuple[float, float]]
"""Values over steps."""


def accuracies(bars: Sequence[Bar]) -> str:
    """Bars of test accuracies with their standard deviations."""
    with page_style():
        values = ", ".join(f"{bar.label} {bar.mean:.3f}" for bar in bars)
        return as_svg(bar_figure(bars), f"Test accuracies: {values}.")


def accuracy_figure(results: Sequence[SetResult]) -> Figure:
    """The test accuracies of a report as a figure; call it inside a style."""
    return bar_figure(bars_of(results))


def bars_of(results: Sequence[SetResult]) -> list[Bar]:
    """A bar for each result; if later evaluations added other protocols, the first counts."""
    bars: dict[str, Bar] = {}
    for result in results:
        label = f"{words_of(result, results)}, {result.network}"
        if result.epoch != "last":
            label = f"{label} ({result.epoch} epoch)"
        if result.is_on_validation:
            label = f"{label}, on the validation split"
        accuracy = result.test_accuracy
        bar = Bar(label, accuracy.mean, accuracy.std, result.set == DISTILLED)
        bars.setdefault(label, bar)
    return list(bars.values())


def bar_figure(bars: Sequence[Bar]) -> Figure:
    """Bars as a figure; call it inside a style."""
    figure = new_figure(WIDTH, MARGIN + BAR * len(bars))
    axes = figure.subplots()
    means = [bar.mean for bar in bars]
    # one student has no deviation
    deviations = [bar.std or 0.0 for bar in bars]
    colours = [OURS if bar.is_ours else OTHERS for bar in bars]
    places = range(len(bars))
    axes.barh(places, means, xerr=deviations, color=colours, ecolor=INK, capsize=3, height=0.7)
    for place, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
        axes.text(mean + deviation + 0.01, place, f"{mean:.3f}", va="center")
    axes.set_yticks(places, [bar.label for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("test accuracy")
    axes.grid(axis="y", visible=False)
    return figure


def classes(shown: Mapping[str, Sequence[float | None]], names: Sequence[str]) -> str:
    """Test accuracy of every class: a point for each set.

    Args:
        shown: accuracies of the classes, by set; the first one is drawn as the distilled set.
        names: of the classes.
    """
    with page_style():
        figure = new_figure(WIDTH, MARGIN + BAR * len(names))
        axes = figure.subplots()
        markers = []
        for index, values in enumerate(shown.values()):
            points = [(place, value) for place, value in enumerate(values) if value is not None]
            drawn = axes.scatter(
                [value for _, value in points],
                [place for place, _ in points],
                marker=MARKERS[index % len(MARKERS)],
                s=46,
                color=COLOURS[index % len(COLOURS)],
                zorder=3 if index == 0 else 2,
            )
            markers.append(drawn)
        axes.set_yticks(range(len(names)), names)
        # top to bottom, with room for the markers of the first and the last class
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("test accuracy")
        # named here, as matplotlib leaves out what is labelled by a name such as '_try'
        figure.legend(
            markers, shown, loc="outside upper center", ncols=min(4, len(shown)), frameon=False
        )
        return as_svg(figure, f"Test accuracy of every class: {', '.join(shown)}.")


def curves(quantities: Mapping[str, Mapping[str, Points]], unit: str) -> list[str]:
    """A chart for each quantity with a line for each run.

    Args:
        quantities: values by quantity and run; the name of a single run may be empty.
        unit: of the horizontal axis.
    """
    drawn = []
    for name, lines in quantities.items():
        with page_style():
            figure = new_figure(*CURVE)
            axes = figure.subplots()
            _lines(axes, lines)
            axes.set_title(name)
            axes.set_xlabel(unit)
            ends = []
            for label, pairs in lines.items():
                last = f"{pairs[-1][1]:.4g}"
                ends.append(
                    f"the last value of {label} is {last}" if label else f"it ends at {last}"
                )
            drawn.append(as_svg(figure, f"{name} over {unit}; {', '.join(ends)}."))
    return drawn


def curve_figure(points: Mapping[str, Points], unit: str) -> Figure:
    """A figure with a subplot for each quantity; call it inside a style."""
    across = min(ACROSS, len(points))
    down = ceil(len(points) / across)
    figure = new_figure(CURVE[0] * across, CURVE[1] * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(points) :]:
        axes.set_axis_off()
    for axes, (name, pairs) in zip(grid.flat, points.items(), strict=False):
        _lines(axes, {"": pairs})
        axes.set_title(name)
        axes.set_xlabel(unit)
    return figure


def _lines(axes: Axes, lines: Mapping[str, Points]) -> None:
    """Draw lines, on a logarithmic axis if the values span orders of magnitude."""
    values = []
    drawn = []
    for index, pairs in enumerate(lines.values()):
        steps = [step for step, _ in pairs]
        heights = [value for _, value in pairs]
        values += heights
        drawn += axes.plot(
            steps,
            heights,
            color=COLOURS[index % len(COLOURS)],
            linestyle=DASHES[index % len(DASHES)],
            linewidth=1.2,
        )
    if len(lines) > 1:
        # named here, as matplotlib leaves out what is labelled by a name such as '_try'
        axes.legend(drawn, lines, frameon=False, fontsize="small")
    if min(values) > 0 and max(values) > 50 * min(values):
        axes.set_yscale("log")
        # matplotlib's own formatter writes mathtext, which is disabled because of names
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(lambda *_: "")


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour, 0 to 255.

    >>> rgb("#3d6fd1")
    (61, 111, 209)
    """
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


class page_style:  # noqa: N801
    """Style context of rayd's charts, with the colours of a page."""

    def __enter__(self) -> None:
        import matplotlib

        self._style = styled()
        self._style.__enter__()
        matplotlib.rcParams.update(_STYLE)

    def __exit__(self, *error: object) -> None:
        self._style.__exit__(None, None, None)


def as_svg(figure: Figure, description: str) -> str:
    """The figure as an SVG element, with a description for screen readers."""
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        dpi=DOTS_PER_INCH,
        # neither time nor version, so that equal runs have equal pages
        metadata={"Date": None, "Creator": None},
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # identifiers must be unique among the charts of a page
    unique = content_hash({"chart": description})[:8]
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>c{unique}-", text)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
