"""Tables of reports: columns for values that differ, and footnotes for common values.

A table is at most `WIDTH` characters wide, unless names of networks are too long. Rows are mappings
by column; missing values are shown as `-`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH = 80
"""Maximum number of characters of a line."""

COLUMNS = (
    "network",
    "set",
    "labels",
    "test accuracy",
    "students",
    "head",
    "tail",
    "epoch",
    "seconds",
    "protocol",
)
"""All columns, in order. A protocol is a comma-separated list."""

LEFT_ALIGNED = frozenset({"network", "set", "labels", "protocol"})

ALWAYS = frozenset({"network", "set", "test accuracy", "seconds"})
"""Columns shown even if they are the same in all rows."""

NOTHING = "-"

Row = Mapping[str, str]


@dataclass(frozen=True)
class TableLayout:
    """Columns, cells and footnotes of a table."""

    columns: tuple[str, ...]
    """Shown columns."""
    rows: tuple[tuple[str, ...], ...]
    """A cell for each column."""
    below: tuple[str, ...]
    """Paragraphs below the table: common values, and numbered protocols."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> TableLayout:
        """Choose the columns for given rows."""
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

        # too wide
        numbered, notes = _numbered(short)
        return cls(made.columns, tuple(_cells(row, columns) for row in numbered), (*below, *notes))

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of every column, in characters."""
        return tuple(max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True))

    @property
    def width(self) -> int:
        """Width of a row, in characters."""
        return sum(self.widths) + 2 * (len(self.columns) - 1)

    def lines(self) -> list[str]:
        """Aligned lines: column headings, then rows."""
        aligned = []
        for cells in (self.columns, *self.rows):
            parts = [
                cell.ljust(width) if name in LEFT_ALIGNED else cell.rjust(width)
                for name, cell, width in zip(self.columns, cells, self.widths, strict=True)
            ]
            aligned.append("  ".join(parts).rstrip())
        return aligned


def wrapped(paragraph: str) -> str:
    """Wrap a paragraph at `WIDTH` characters, without breaking long names, paths and `a ± b`."""
    # textwrap breaks at plain spaces alone
    joined = paragraph.replace(" ± ", "\u00a0±\u00a0")
    filled = textwrap.fill(
        joined, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return filled.replace("\u00a0", " ")


def _shared_words(rows: Sequence[Row]) -> list[str]:
    """Parts common to all protocols, in the order of the first one."""
    protocols = [_words(row) for row in rows if _words(row)]
    if not protocols:
        return []
    return [word for word in protocols[0] if all(word in other for other in protocols)]


def _words(row: Row) -> list[str]:
    protocol = row.get("protocol", NOTHING)
    return [] if protocol == NOTHING else protocol.split(", ")


def _without(row: Row, shared: Sequence[str]) -> str:
    return ", ".join(word for word in _words(row) if word not in shared) if _words(row) else NOTHING


def _differs(name: str, rows: Sequence[Row]) -> bool:
    """Whether a column is informative: its values differ, or, for head and tail, it has any."""
    values = {row.get(name, NOTHING) for row in rows} - {NOTHING, ""}
    return len(values) > 1 or (name in ("head", "tail") and bool(values))


def _common(name: str, rows: Sequence[Row]) -> str:
    """The common value of a column, as text; empty if it has none."""
    value = next((row[name] for row in rows if row.get(name, NOTHING) != NOTHING), None)
    if value is None:
        return ""
    if name == "students":
        return "1 student" if value == "1" else f"{value} students"
    return f"{value} epoch"


def _numbered(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Rows with numbers in place of protocols, and the protocol of each number."""
    words = [row["protocol"] for row in rows if row["protocol"] not in ("", NOTHING)]
    numbers = {word: str(number) for number, word in enumerate(dict.fromkeys(words), 1)}
    numbered: list[Row] = []
    for row in rows:
        numbered.append({**row, "protocol": numbers.get(row["protocol"], NOTHING)})
    return numbered, [f"protocol {number}: {word}" for word, number in numbers.items()]


def _cells(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(row.get(name) or NOTHING for name in columns)
