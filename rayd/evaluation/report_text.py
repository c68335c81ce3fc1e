"""A report as a table for a terminal, and as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from rayd.data.summary import DataSummary
from rayd.evaluation.remarks import MARK, at_chance
from rayd.evaluation.scores import EXPLAINED
from rayd.evaluation.table import LEFT_ALIGNED, NOTHING, Row, TableLayout, wrapped
from rayd.evaluation.variants import DISTILLED, EQUAL_STORAGE

if TYPE_CHECKING:
    from rayd.evaluation.report import Report, SetResult

WORDS = {"random": "random images", "whole": "the whole set"}
"""Baselines in sentences."""
SHOWN_DEPARTURES = 6
"""Maximum number of settings to list if a run differs from its recipe."""


class ReportText:
    """Formats a report as text.

    Args:
        report: the report.
    """

    def __init__(self, report: Report):
        self._report = report

    def table(self) -> Table:
        """Format as a table for a terminal."""
        layout = TableLayout.of(self._rows())
        caption = "\n".join((*layout.below, *self._below()))
        table = Table(title=escape(self._title()), caption=escape(caption))
        for name in layout.columns:
            table.add_column(name, justify="left" if name in LEFT_ALIGNED else "right")
        for row in layout.rows:
            table.add_row(*row)
        return table

    def text(self) -> str:
        """Format as aligned lines of at most 80 characters, if network names are short enough."""
        layout = TableLayout.of(self._rows())
        paragraphs = (*layout.below, *self._below())
        matrix = ["", *self._report.matrix().lines()] if len(self._networks()) > 1 else []
        lines = [wrapped(self._title()), *layout.lines(), *map(wrapped, paragraphs), *matrix]
        return "\n".join(lines)

    def _networks(self) -> list[str]:
        """Labels of the architectures."""
        return list(dict.fromkeys(result.network for result in self._report.results))

    def _below(self) -> list[str]:
        """Everything below the table except the protocol."""
        return [*self._papers(), *self.score_lines(), *self._read(), *self._report.remarks()]

    def _papers(self) -> list[str]:
        """The paper's number for results with its settings, or else the settings that differ."""
        found = {result.network: result.paper for result in self._report.results if result.paper}
        networks = self._networks()
        lines = []
        for network, paper in found.items():
            of = f" with {network}" if len(networks) > 1 else ""
            lines.append(f"paper{of}: {paper.text()}")
        if self._report.departures:
            shown = ", ".join(self._report.departures[:SHOWN_DEPARTURES])
            more = len(self._report.departures) - SHOWN_DEPARTURES
            rest = f" and {more} more" if more > 0 else ""
            lines.append(f"differs from the recipe '{self._report.recipe}' in {shown}{rest}")
        return lines

    def score_lines(self) -> list[str]:
        """A line of scores for every architecture and tested epoch, and explanations."""
        lines = []
        shown = dict.fromkeys(
            name for scores in self._report.scores for name in scores.cells() if name in EXPLAINED
        )
        several = len(self._report.scores) > 1
        for scores in self._report.scores:
            words = [f"{name} {value}" for name, value in scores.cells().items()]
            of = f" of {scores.network}" if several else ""
            epoch = "" if scores.epoch == "last" else f" ({scores.epoch})"
            lines.append(f"scores{of}{epoch}: {', '.join(words)}")
        if shown:
            meaning = "; ".join(f"{name}: {EXPLAINED[name]}" for name in shown)
            lines.append(f"{meaning}; ± over students, paired by seed")
        if missing := self._missing():
            lines.append(missing)
        return lines

    def _missing(self) -> str | None:
        """Sentence on missing scores and the setting that adds them; None if none are missing."""
        lacking = self._lacking()
        if not lacking:
            return None
        scores, were = (
            ("IOR, HLR and LRS", "were") if "random" in lacking else ("HLR and LRS", "was")
        )
        both = " and ".join(WORDS[name] for name in lacking)
        others = any(result.set in lacking for result in self._report.results)
        where = " under the same protocol" if others else ""
        return (
            f"no {scores}: {both} {were} not evaluated{where}; "
            "set evaluation.baselines=[random,whole]"
        )

    def _lacking(self) -> list[str]:
        """Baselines without a result for some network and tested epoch of the distilled set."""
        results = self._report.results
        beside: set[tuple[str, str, str]] = set()
        for result in results:
            if result.set != DISTILLED:
                continue
            place = (result.network, result.epoch)
            for other in results:
                if (other.network, other.epoch) == place and result.same_protocol(other):
                    beside.add((other.set, *place))
        places = {(result.network, result.epoch) for result in results}
        return [name for name in WORDS if any((name, *place) not in beside for place in places)]

    def _read(self) -> list[str]:
        """Description of the real images, if known."""
        if self._report.real_data is None:
            return []
        return [f"real data: {DataSummary.from_json(self._report.real_data).brief()}"]

    def _title(self) -> str:
        report = self._report
        size = sum(report.storage_bytes.values())
        return (
            f"{report.recipe}: {report.method} on {report.data}, {report.ipc} per class, "
            f"{size:,} bytes"
        )

    def _rows(self) -> list[Row]:
        """Cells by column; if random images were not evaluated, a row states that."""
        results = self._report.results
        evaluated = {(result.set, result.network, result.epoch) for result in results}
        # if some accuracies are marked, the others are padded to keep digits aligned
        blank = " " * (len(MARK) + 1) if any(map(at_chance, results)) else ""
        rows: list[Row] = []
        several_labels = len({result.label_kind for result in results}) > 1
        for result in results:
            protocol = result.protocol
            if several_labels:
                # a separate column shows it
                protocol = protocol.removeprefix(f"{result.label_kind}-label").lstrip(", ")
            mark = f" {MARK}" if at_chance(result) else blank
            rows.append(
                {
                    "network": result.network,
                    "set": _set_words(result, results),
                    "labels": result.label_kind,
                    "test accuracy": result.test_accuracy.text() + mark,
                    "students": str(len(result.test_accuracy.runs)),
                    "head": _cell(result.head_accuracy),
                    "tail": _cell(result.tail_accuracy),
                    "epoch": result.epoch,
                    "seconds": f"{result.seconds:.1f}",
                    "protocol": protocol,
                }
            )
            random = ("random", result.network, result.epoch)
            if result.set == "distilled" and random not in evaluated:
                missing = {"network": result.network, "set": "random", "epoch": result.epoch}
                rows.append({**missing, "test accuracy": f"not evaluated{blank}"})
        return rows


def _set_words(result: SetResult, results: Sequence[SetResult]) -> str:
    """Name of a set; that of `equal-storage` includes its bytes if they vary."""
    sizes = {one.bytes for one in results if one.set == EQUAL_STORAGE}
    if result.set != EQUAL_STORAGE or len(sizes) < 2 or result.bytes is None:
        return result.set
    return f"{result.set} ({result.bytes:,} B)"


def _cell(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"
