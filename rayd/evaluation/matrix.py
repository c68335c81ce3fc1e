"""Accuracies by architecture and training set: how well a distilled set transfers to networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Self

from PIL import Image

from rayd.evaluation.table import NOTHING, WIDTH
from rayd.evaluation.variants import DISTILLED, EQUAL_STORAGE, Variant

if TYPE_CHECKING:
    from rayd.evaluation.report import Report, SetResult

FILE = "architectures.png"
"""File name of the chart, next to the report."""


@dataclass(frozen=True)
class Matrix:
    """Mean test accuracies, fractions, of networks in rows and training sets in columns."""

    networks: tuple[str, ...]
    """Labels of the architectures."""
    columns: tuple[str, ...]
    """Training sets, with labels and augmentation if they differ from the protocol's own."""
    cells: Mapping[tuple[str, str], float]
    """Accuracy by network and column; missing if not evaluated."""
    stds: Mapping[tuple[str, str], float]
    """Standard deviation over students by network and column, if there are several."""

    @classmethod
    def of(cls, report: Report) -> Self:
        """Arrange the results of a report; of several tested epochs, the first counts."""
        results = [r for r in report.results if r.epoch == report.results[0].epoch]
        columns = [words_of(result, results) for result in results]
        cells = {}
        stds = {}
        for result, column in zip(results, columns, strict=True):
            place = (result.network, column)
            # later evaluations may have added other protocols: the first counts
            if place in cells:
                continue
            cells[place] = result.test_accuracy.mean
            if result.test_accuracy.std is not None:
                stds[place] = result.test_accuracy.std
        networks = tuple(dict.fromkeys(result.network for result in results))
        return cls(networks, tuple(dict.fromkeys(columns)), cells, stds)

    def lines(self) -> list[str]:
        """Format as aligned lines of at most 80 characters; columns that do not fit are dropped."""
        first = max(len("mean"), *(len(name) for name in self.networks))
        shown: list[str] = []
        for column in self.columns:
            if first + sum(len(name) + 2 for name in [*shown, column]) <= WIDTH:
                shown.append(column)
        rows = [("", shown)]
        for network in self.networks:
            rows.append((network, [self._cell(network, column) for column in shown]))
        rows.append(("mean", [self._mean(column) for column in shown]))
        lines = []
        for name, cells in rows:
            parts = [
                cell.rjust(max(len(column), 5)) for cell, column in zip(cells, shown, strict=True)
            ]
            lines.append("  ".join([name.ljust(first), *parts]))
        return lines

    def _cell(self, network: str, column: str) -> str:
        value = self.cells.get((network, column))
        return NOTHING if value is None else f"{value:.3f}"

    def _mean(self, column: str) -> str:
        """Mean over networks; None if a network lacks the column."""
        values = [self.cells.get((network, column)) for network in self.networks]
        known = [value for value in values if value is not None]
        return f"{fmean(known):.3f}" if len(known) == len(values) else NOTHING

    def chart(self, title: str = "") -> Image.Image:
        """Draw accuracies as groups of bars, one group for each network."""
        from rayd.drawing import as_image, new_figure, styled

        width = 0.8 / len(self.columns)
        with styled():
            figure = new_figure(max(480, 60 * len(self.networks) * len(self.columns)), 360)
            axes = figure.subplots()
            for number, column in enumerate(self.columns):
                places = []
                values = []
                errors = []
                for index, network in enumerate(self.networks):
                    if (network, column) in self.cells:
                        places.append(index - 0.4 + (number + 0.5) * width)
                        values.append(self.cells[network, column])
                        errors.append(self.stds.get((network, column), 0.0))
                axes.bar(places, values, width, yerr=errors, capsize=2, label=column)
            axes.set_xticks(range(len(self.networks)), self.networks, rotation=15, ha="right")
            axes.set_ylabel("test accuracy")
            axes.set_ylim(0, 1)
            axes.grid(visible=False, axis="x")
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
            axes.set_title(title)
            return as_image(figure)


def words_of(result: SetResult, results: Iterable[SetResult]) -> str:
    """Name of a result's set, with labels and augmentation if they differ from the protocol's own.

    Args:
        result: one result.
        results: all results of the report.
    """
    results = list(results)
    # real images of equal storage have hard labels in any case
    hard = any(one.taught for one in results) and not result.taught
    if result.set == DISTILLED:
        same = [one.label_kind for one in results if one.set == DISTILLED]
        hard = result.label_kind == "hard" and any(kind != "hard" for kind in same)
    words = Variant(result.set, hard, result.augmented).words
    if result.set == EQUAL_STORAGE:
        first = next(one for one in results if one.set == EQUAL_STORAGE)
        # later results are of evaluations whose labels take a different number of bytes
        words += "" if result.bytes == first.bytes else f", {result.bytes or 0:,} bytes"
    return words
