"""Display of results: a line for Python's prompt, HTML for notebooks.

Kept apart from the results, which call these functions by name, so that they stay light.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayd.errors import ArtifactError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rayd.distilled import Distilled
    from rayd.evaluation.report import Report


def short(kind: str, *parts: object, **facts: object) -> str:
    """A representation on one line.

    >>> short("Run", "runs/digits", images=10)
    "Run('runs/digits', images=10)"
    """
    words = [repr(str(part)) for part in parts]
    words += [f"{name}={value}" for name, value in facts.items()]
    return f"{kind}({', '.join(words)})"


def quantity(number: float, noun: str) -> str:
    """A number with a noun, in the plural unless it is one.

    Fractions have two significant digits.

    >>> quantity(1, "student"), quantity(1440, "image"), quantity(0.512, "network")
    ('1 student', '1,440 images', '0.51 networks')
    """
    digits = f"{number:,}" if isinstance(number, int) else f"{number:.2g}"
    return f"{digits} {noun if digits == '1' else noun + 's'}"


def table(heading: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> str:
    """An HTML table; all text is escaped.

    >>> table(["set"], [["<a>"]])
    '<table><thead><tr><th>set</th></tr></thead><tbody><tr><td>&lt;a&gt;</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{escape(str(name))}</th>" for name in heading)
    lines = []
    for row in rows:
        lines.append(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>")
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    body = "".join(lines)
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def preformatted(text: str) -> str:
    """Preformatted text in HTML."""
    return f"<pre>{escape(text)}</pre>"


def report_rows(report: Report) -> list[dict[str, Any]]:
    """One row for each set, with its labels and augmentation, architecture, tested epoch and
    protocol.
    """
    rows = []
    for result in report.results:
        rows.append(
            {
                "recipe": report.recipe,
                "method": report.method,
                "data": report.data,
                "ipc": report.ipc,
                "set": result.set,
                "labels": result.label_kind,
                "augmented": result.augmented,
                "network": result.network,
                "epoch": result.epoch,
                "test_accuracy": result.test_accuracy.mean,
                "test_accuracy_std": result.test_accuracy.std,
                "seeds": len(result.seeds),
                "seconds": result.seconds,
                "protocol": result.protocol,
            }
        )
    return rows


def report_html(report: Report) -> str:
    """A report as a table."""
    from rayd.evaluation.matrix import words_of

    rows = []
    for result in report.results:
        accuracy = result.test_accuracy.text()
        words = words_of(result, report.results)
        epoch = "" if result.epoch == "last" else f" ({result.epoch})"
        rows.append([words, f"{result.network}{epoch}", accuracy, len(result.seeds)])
    title = f"{report.recipe}: {report.method} on {report.data}, {report.ipc} per class"
    return table(["set", "network", "test accuracy", "seeds"], rows, title)


def distilled_html(distilled: Distilled) -> str:
    """A distilled set as its contact sheet."""
    from rayd.pictures import contact_sheet, data_url

    text = f"{len(distilled)} images of {'x'.join(map(str, distilled.shape))}"
    return (
        f'<figure><img alt="distilled images" src="{data_url(contact_sheet(distilled))}">'
        f"<figcaption>{escape(text)}, {distilled.classes} classes</figcaption></figure>"
    )


def distilled_figure(distilled: Distilled) -> Figure:
    """The contact sheet of a distilled set."""
    from rayd.drawing import image_figure
    from rayd.pictures import contact_sheet

    # shown pixel by pixel
    return image_figure(contact_sheet(distilled), interpolation="nearest")


def report_figure(report: Report) -> Figure:
    """Bars of a report's accuracies."""
    from rayd.drawing import styled
    from rayd.page.charts import accuracy_figure

    with styled():
        return accuracy_figure(report.results)


def run_figure(directory: Path) -> Figure:
    """Curves of the logged values of a run's synthesis.

    Raises:
        ArtifactError: it logged nothing that varies.
    """
    from rayd.drawing import styled
    from rayd.page.charts import curve_figure
    from rayd.page.run import series

    points = series(directory)
    if not points:
        raise ArtifactError(
            f"'{directory}' has no curves: its set came from the store or logged fewer than two "
            "steps; lower 'synthesis.log_every', or draw its images with run.distilled.plot()."
        )
    with styled():
        return curve_figure(points, "step")
