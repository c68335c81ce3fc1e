"""The table of a report: columns that tell its rows apart; what all rows share is said once, below.

A table is at most `WIDTH` characters wide wherever names of networks allow it. Rows are mappings by
column; what a row lacks is shown as `-`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH = 80
"""Characters of a line."""

COLUMNS = (
    "network",
    "set",
    "test accuracy",
    "students",
    "head",
    "tail",
    "epoch",
    "seconds",
    "protocol",
)
"""All columns, in order. The protocol is a list of words that commas separate."""

LEFT_ALIGNED = frozenset({"network", "set", "protocol"})

ALWAYS = frozenset({"network", "set", "test accuracy", "seconds"})
"""Columns that are shown even if they are the same in all rows."""

NOTHING = "-"

Row = Mapping[str, str]


@dataclass(frozen=True)
class Layout:
    """A table that is ready to be printed."""

    columns: tuple[str, ...]
    """Columns that are shown."""
    rows: tuple[tuple[str, ...], ...]
    """A cell for each column."""
    below: tuple[str, ...]
    """Paragraphs below the table: what all rows share, and what the numbers of protocols stand
    for.
    """

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Layout:
        """Choose the columns for some rows."""
        shared = _shared_words(rows)
        short = [{**row, "protocol": _without(row, shared)} for row in rows]
        columns = [name for name in COLUMNS if name in ALWAYS or _differs(name, short)]
        hidden = {
            name: _common(name, short) for name in ("students", "epoch") if name not in columns
        }
        common = [word for word in (hidden.get("students"), *shared, hidden.get("epoch")) if word]
        below = (f"protocol: {', '.join(common)}",) if common else ()
        made = cls(tuple(columns), tuple(_cells(row, columns) for row in short), below)
        if made.width <= WIDTH or "protocol" not in columns:
            return made

        # too wide: a number stands for the words, which follow below
        words = [row["protocol"] for row in short if row["protocol"] not in ("", NOTHING)]
        numbers = {word: str(number) for number, word in enumerate(dict.fromkeys(words), 1)}
        numbered = [{**row, "protocol": numbers.get(row["protocol"], NOTHING)} for row in short]
        notes = [f"protocol {number}: {word}" for word, number in numbers.items()]
        return cls(made.columns, tuple(_cells(row, columns) for row in numbered), (*below, *notes))

    @property
    def widths(self) -> tuple[int, ...]:
        """Characters of every column."""
        return tuple(max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True))

    @property
    def width(self) -> int:
        """Characters of a row."""
        return sum(self.widths) + 2 * (len(self.columns) - 1)

    def lines(self) -> list[str]:
        """Aligned lines: the heads of the columns, then the rows."""
        aligned = []
        for cells in (self.columns, *self.rows):
            parts = [
                cell.ljust(width) if name in LEFT_ALIGNED else cell.rjust(width)
                for name, cell, width in zip(self.columns, cells, self.widths, strict=True)
            ]
            aligned.append("  ".join(parts).rstrip())
        return aligned


def wrapped(paragraph: str) -> str:
    """A paragraph in lines of at most `WIDTH` characters; long names and paths are not cut."""
    return textwrap.fill(
        paragraph, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _shared_words(rows: Sequence[Row]) -> list[str]:
    """Words that all protocols have, in the order of the first one."""
    protocols = [_words(row) for row in rows if _words(row)]
    return (
        [word for word in protocols[0] if all(word in other for other in protocols)]
        if protocols
        else []
    )


def _words(row: Row) -> list[str]:
    protocol = row.get("protocol", NOTHING)
    return [] if protocol == NOTHING else protocol.split(", ")


def _without(row: Row, shared: Sequence[str]) -> str:
    return ", ".join(word for word in _words(row) if word not in shared) if _words(row) else NOTHING


def _differs(name: str, rows: Sequence[Row]) -> bool:
    """Whether a column says something: it has different values, where it has any."""
    values = {row.get(name, NOTHING) for row in rows} - {NOTHING, ""}
    return len(values) > 1 or (name in ("head", "tail") and bool(values))


def _common(name: str, rows: Sequence[Row]) -> str:
    """The one value of a column, in words; empty if it has none."""
    value = next((row[name] for row in rows if row.get(name, NOTHING) != NOTHING), None)
    if value is None:
        return ""
    if name == "students":
        return "1 student" if value == "1" else f"{value} students"
    return f"{value} epoch"


def _cells(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(row.get(name) or NOTHING for name in columns)
