"""Charts of a page as SVG text, in the colours of the reader's light or dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING

from rayd.artifacts import content_hash
from rayd.drawing import DOTS_PER_INCH, new_figure, styled
from rayd.evaluation.report import SetResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Colour that stands for the colour of the page's text."""
GRID = "#808080"
DISTILLED = "#3d6fd1"
OTHERS = "#b0643a"
"""Colours of distilled and of other sets; both have a contrast above 3 on white and on black."""
WIDTH = 720
BAR = 26
"""Height of a bar with its margin, in pixels."""
MARGIN = 60
"""Height of axis and labels."""
CURVE = (350, 200)
"""Size of a curve, in pixels."""
ACROSS = 3
"""Most curves beside each other in a figure."""
MOST_CLASSES = 40
"""Most classes with a bar of their own."""

_STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.alpha": 0.3,
    # text stays text, which can be searched and read aloud
    "svg.fonttype": "none",
}


def accuracies(results: Sequence[SetResult]) -> str:
    """Bars of test accuracies with the standard deviation over students."""
    with _page_style():
        labels = ", ".join(_labels(results))
        return _svg(accuracy_figure(results), f"Test accuracies of {labels}.")


def accuracy_figure(results: Sequence[SetResult]) -> Figure:
    """The same as a figure; draw it inside a style."""
    figure = new_figure(WIDTH, MARGIN + BAR * len(results))
    axes = figure.subplots()
    means = [result.test_accuracy.mean for result in results]
    # one student has no deviation
    deviations = [result.test_accuracy.std or 0.0 for result in results]
    colours = [DISTILLED if result.set == "distilled" else OTHERS for result in results]
    places = range(len(results))
    axes.barh(places, means, xerr=deviations, color=colours, ecolor=INK, capsize=3, height=0.7)
    for place, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
        axes.text(mean + deviation + 0.01, place, f"{mean:.3f}", va="center")
    axes.set_yticks(places, _labels(results))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("test accuracy")
    axes.grid(axis="y", visible=False)
    return figure


def _labels(results: Sequence[SetResult]) -> list[str]:
    return [f"{result.set}, {result.network}" for result in results]


def classes(results: Sequence[SetResult], names: Sequence[str]) -> str:
    """Test accuracy of every class: a point for each set of the first network."""
    network = results[0].network
    shown = {result.set: result.per_class for result in results if result.network == network}
    with _page_style():
        figure = new_figure(WIDTH, MARGIN + BAR * len(names))
        axes = figure.subplots()
        for set_name, values in shown.items():
            points = [(place, value) for place, value in enumerate(values) if value is not None]
            axes.scatter(
                [value for _, value in points],
                [place for place, _ in points],
                label=set_name,
                marker="o" if set_name == "distilled" else "|",
                s=40 if set_name == "distilled" else 90,
                color=DISTILLED if set_name == "distilled" else _shade(set_name),
                zorder=2,
            )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(f"test accuracy of {network}")
        figure.legend(loc="outside upper center", ncols=len(shown), frameon=False)
        return _svg(figure, f"Test accuracy of every class, trained on {', '.join(shown)}.")


def curves(points: Mapping[str, Sequence[tuple[float, float]]], unit: str) -> list[str]:
    """A line for each quantity over steps or epochs."""
    drawn = []
    for name, pairs in points.items():
        with _page_style():
            figure = new_figure(*CURVE)
            axes = figure.subplots()
            _line(axes, pairs)
            axes.set_title(name)
            axes.set_xlabel(unit)
            last = pairs[-1][1]
            drawn.append(_svg(figure, f"{name} over {unit}; the last value is {last:.4g}."))
    return drawn


def curve_figure(points: Mapping[str, Sequence[tuple[float, float]]], unit: str) -> Figure:
    """The same as a figure with a subplot for each quantity; draw it inside a style."""
    across = min(ACROSS, len(points))
    down = ceil(len(points) / across)
    figure = new_figure(CURVE[0] * across, CURVE[1] * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(points) :]:
        axes.set_axis_off()
    for axes, (name, pairs) in zip(grid.flat, points.items(), strict=False):
        _line(axes, pairs)
        axes.set_title(name)
        axes.set_xlabel(unit)
    return figure


def _line(axes: Axes, pairs: Sequence[tuple[float, float]]) -> None:
    values = [value for _, value in pairs]
    axes.plot([step for step, _ in pairs], values, color=DISTILLED, linewidth=1.2)
    if min(values) > 0 and max(values) > 50 * min(values):
        axes.set_yscale("log")


def _shade(set_name: str) -> str:
    return {"whole": INK, "random": OTHERS}.get(set_name, GRID)


class _page_style:  # noqa: N801
    """rayd's style of charts, with the colours of a page."""

    def __enter__(self) -> None:
        import matplotlib

        self._style = styled()
        self._style.__enter__()
        matplotlib.rcParams.update(_STYLE)

    def __exit__(self, *error: object) -> None:
        self._style.__exit__(None, None, None)


def _svg(figure: Figure, description: str) -> str:
    """The figure as an SVG element with a description for readers who cannot see it."""
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
    # identifiers of several charts on a page must differ
    unique = content_hash({"chart": description})[:8]
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>c{unique}-", text)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
