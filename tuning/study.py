"""Studies: spaces whose values are all tried, as a table and a chart with a paper's values.

Trials that differ only in their seed are distillations of the same settings, and form one line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from PIL import Image

from rayd.artifacts import write_bytes
from rayd.drawing import as_image, new_figure, styled
from tuning.domain import Point
from tuning.settings import ROW, SEED, PaperSeries, shown
from tuning.space import ResolvedSpace
from tuning.table import Row, finished

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS = "#1f4e9c"
PAPER = ("#d9730d", "#3a8f4d", "#8a4fa3", "#7a7a7a")
"""Colours of our accuracies and of the paper's, one a series."""
WIDTH = 900
HEADING = 110
LINE = 30
LEGEND = 18
"""Width of a chart, height of its heading, of a line and of an entry of its legend, in pixels."""


@dataclass(frozen=True)
class Line:
    """Results of the same settings."""

    name: str
    """Row, and values of other settings."""
    settings: Point
    """Settings by dotted key, without the seed."""
    accuracies: tuple[float, ...]
    """Validation accuracy of each finished distillation, a fraction."""
    students_std: float | None
    """Standard deviation over the students of the first distillation."""

    @property
    def mean(self) -> float | None:
        """Mean validation accuracy; None if no distillation finished."""
        return fmean(self.accuracies) if self.accuracies else None

    @property
    def std(self) -> float | None:
        """Standard deviation over distillations, or over the students of a single one."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else self.students_std


def lines(resolved: ResolvedSpace, trials: Sequence[Row]) -> list[Line]:
    """Group trials by their settings, in the order of the space."""
    groups: dict[str, list[Row]] = {}
    for trial in trials:
        groups.setdefault(_name(trial.settings), []).append(trial)
    found = []
    for name, group in groups.items():
        done = [row for row in finished(group) if row.validation_accuracy is not None]
        found.append(
            Line(
                name=name,
                settings={key: value for key, value in group[0].settings.items() if key != SEED},
                accuracies=tuple(float(row.validation_accuracy or 0.0) for row in done),
                students_std=done[0].validation_std if done else None,
            )
        )
    return sorted(found, key=lambda line: _order(resolved, line.settings))


def _name(settings: Point) -> str:
    parts = []
    for key, value in settings.items():
        if key == ROW:
            parts.append(str(value))
        elif key != SEED:
            parts.append(f"{key.rpartition('.')[2]} {shown(value)}")
    return ", ".join(parts)


def _order(resolved: ResolvedSpace, settings: Point) -> list[int]:
    order = []
    for key, domains in resolved.space.domains.items():
        values = [value for domain in domains for value in domain.values]
        order.append(values.index(settings[key]) if key in settings else -1)
    return order


def write(out: Path, resolved: ResolvedSpace, trials: Sequence[Row]) -> None:
    """Write `study.csv` and `study.md`: our accuracies and the paper's, in percent."""
    found = lines(resolved, trials)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    # fractions, as in the table of trials
    header = ["name", "validation_accuracy", "std", "distillations"]
    for series in resolved.space.paper:
        header += [_title(series), f"std of {_title(series)}"]
    writer.writerow(header)
    for line in found:
        cells = [line.name, line.mean, line.std, len(line.accuracies)]
        for series in resolved.space.paper:
            cells += (series.value(line.settings) or (None, None, ""))[:2]
        writer.writerow(cells)
    write_bytes(out / "study.csv", text.getvalue().encode())
    write_bytes(out / "study.md", markdown(resolved, found).encode())


def markdown(resolved: ResolvedSpace, found: Sequence[Line]) -> str:
    """Format the table of a study, in percent, with remarks on the paper's values."""
    space = resolved.space
    header = ["", "ours", *(_title(series) for series in space.paper)]
    table = [header, ["---", *["---:"] * (len(header) - 1)]]
    remarks = []
    for line in found:
        cells = [line.name, _percent(line.mean, line.std) + _fewer(line, found)]
        for series in space.paper:
            value = series.value(line.settings)
            cells.append(_printed(*value[:2]) if value else "–")
            if value and value[2]:
                remark = f"- {series.table}, {line.name}: {value[2]}"
                # a remark that several columns of a table share is printed once
                if remark not in remarks:
                    remarks.append(remark)
        table.append(cells)
    text = [f"# {space.name}", "", space.summary, ""]
    for cells in table:
        # an unescaped bar would end the cell
        escaped = (cell.replace("|", "\\|") for cell in cells)
        text.append(f"| {' | '.join(escaped)} |")
    text += [
        "",
        f"- Ours: {_data(resolved)}, validation accuracy, ± over {_repeats(found)}; students of a "
        f"distillation: {resolved.students()}.",
    ]
    return "\n".join([*text, *remarks]) + "\n"


def chart(resolved: ResolvedSpace, trials: Sequence[Row]) -> Image.Image:
    """Draw our accuracies and, in a second panel with a separate axis, the paper's."""
    space = resolved.space
    found = lines(resolved, trials)
    with styled():
        figure = new_figure(WIDTH, HEADING + LINE * len(found) + LEGEND * len(space.paper))
        figure.suptitle(space.name)
        panels = figure.subplots(1, 2 if space.paper else 1, squeeze=False, sharey=True)[0]
        panels[0].set_title(f"ours: {_data(resolved)}, ± over {_repeats(found)}")
        panels[0].set_xlabel("validation accuracy, %")
        labels = [f"{line.name}{_fewer(line, found)}" for line in found]
        panels[0].set_yticks(range(len(labels)), labels)
        panels[0].set_ylim(len(labels) - 0.5, -0.5)
        _points(panels[0], [(line.mean, line.std) for line in found], OURS)
        if space.paper:
            panels[1].set_title("the paper's")
            panels[1].set_xlabel("test accuracy, %")
        for number, series in enumerate(space.paper):
            values = [series.value(line.settings) for line in found]
            shift = 0.12 * (number - (len(space.paper) - 1) / 2)
            _points(
                panels[1],
                [value[:2] if value else (None, None) for value in values],
                PAPER[number % len(PAPER)],
                label=_title(series),
                shift=shift,
            )
        if space.paper:
            figure.legend(loc="outside lower center", frameon=False)
        return as_image(figure)


def _points(
    axes: Axes,
    values: Sequence[tuple[float | None, float | None]],
    colour: str,
    label: str | None = None,
    shift: float = 0.0,
) -> None:
    shown = [(place, mean, std) for place, (mean, std) in enumerate(values) if mean is not None]
    axes.errorbar(
        [100 * mean for _, mean, _ in shown],
        [place + shift for place, _, _ in shown],
        xerr=[100 * (std or 0.0) for _, _, std in shown],
        fmt="o",
        color=colour,
        capsize=3,
        label=label,
    )


def _title(series: PaperSeries) -> str:
    return ", ".join(part for part in (series.table, series.conditions) if part)


def _percent(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "failed"
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def _fewer(line: Line, found: Sequence[Line]) -> str:
    """Number of distillations of a line if trials of it failed, as its deviation is over these."""
    most = max(len(other.accuracies) for other in found)
    count = len(line.accuracies)
    if not count or count == most:
        return ""
    return f" ({count} of {most} distillations{', ± over students' if count == 1 else ''})"


def _printed(mean: float, std: float | None) -> str:
    """A paper's value in percent, with the digits as printed."""
    numbers = [mean] if std is None else [mean, std]
    return " ± ".join(f"{round(100 * number, 6):g}" for number in numbers)


def _data(resolved: ResolvedSpace) -> str:
    recipe = resolved.own[resolved.space.base[0]]
    return f"{recipe.data.name}, IPC {recipe.ipc}"


def _repeats(found: Sequence[Line]) -> str:
    """Description of what deviations are over."""
    distillations = max((len(line.accuracies) for line in found), default=0)
    return f"{distillations} distillations" if distillations > 1 else "students"
