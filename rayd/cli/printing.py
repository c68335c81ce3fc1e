"""Output of commands: results as text or JSON, tables, pictures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from rayd import remote
from rayd.errors import OutputError
from rayd.names import expanded

PIPE_WIDTH = 240
"""Width of tables without a terminal and without `COLUMNS`."""
LEAST_SHORTENED = 20
"""Minimum width of a shortened column; below it, the column is omitted."""

out = Console(soft_wrap=True, highlight=False)
"""Standard output, for text that a terminal wraps."""


class Result(Protocol):
    """Result of a command, for people and for programs."""

    def text(self) -> str:
        """Lines for people."""
        ...

    def to_json(self) -> Any:
        """JSON-able content."""
        ...


def print_result(result: Result, as_json: bool) -> None:
    """Print a result as text, or with `--json` as JSON."""
    if as_json:
        print_json(result.to_json())
    else:
        print_text(result.text())


def print_text(text: str, bold: bool = False) -> None:
    """Print text verbatim: brackets in it are not markup."""
    out.print(text, markup=False, style="bold" if bold else "")


def print_json(content: Any) -> None:
    """Print JSON-able content, indented."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def wide() -> Console:
    """Console for tables, as wide as the terminal or `COLUMNS`."""
    console = Console(highlight=False)
    given = os.environ.get("COLUMNS", "").isdigit()
    return console if console.is_terminal or given else Console(highlight=False, width=PIPE_WIDTH)


def print_rows(rows: Sequence[Mapping[str, str]], shortened: str, dropped: Sequence[str]) -> None:
    """Print rows with equal keys as a table without line breaks in cells.

    Args:
        rows: cells by column name.
        shortened: last column, cut with an ellipsis if the line is too narrow.
        dropped: columns that are omitted, one after another, until the others fit.
    """
    console = wide()
    widths = {}
    for column in rows[0]:
        widths[column] = max(len(column), *(len(row[column]) for row in rows))
    kept = widths | {shortened: min(widths[shortened], LEAST_SHORTENED)}
    for column in dropped:
        if _line_width(kept) > console.width:
            del kept[column]
    if shortened in kept:
        kept[shortened] = min(
            widths[shortened], kept[shortened] + console.width - _line_width(kept)
        )

    heading = {column: column for column in kept}
    for row in (heading, *rows):
        cells = [_fitted(row[column], width) for column, width in kept.items()]
        console.print(
            "  ".join(cells).rstrip(),
            style="bold" if row is heading else "",
            markup=False,
            soft_wrap=True,
        )


def _fitted(text: str, width: int) -> str:
    """Pad a text to a width, or cut it with an ellipsis."""
    return text.ljust(width) if len(text) <= width else f"{text[: width - 1]}…"


def _line_width(columns: Mapping[str, int]) -> int:
    """Width of a table's line: its columns, and two characters between them."""
    return sum(columns.values()) + 2 * (len(columns) - 1)


def check_picture(path: Path, overwrite: bool) -> None:
    """Refuse a file that no picture can be written to, before drawing one.

    Raises:
        OutputError: it exists and `overwrite` is not given, or its format is unknown.
    """
    from rayd.pictures import picture_format

    path = expanded(path)
    picture_format(path)
    if remote.exists(path) and not overwrite:
        raise OutputError(f"'{path}' exists already; choose another file or add --overwrite.")


def write_picture(path: Path, image: Any) -> None:
    """Write a picture in the format of the file's suffix."""
    from rayd.artifacts import write_bytes
    from rayd.pictures import as_file, picture_format

    path = expanded(path)
    write_bytes(path, as_file(image, picture_format(path)))


def open_page(path: Path) -> None:
    """Show a page in the browser; without one, its path has been printed."""
    import webbrowser

    webbrowser.open(remote.local(path).resolve().as_uri())
