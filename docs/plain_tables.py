"""Conversion of space-aligned tables in docstrings to Markdown tables."""

from __future__ import annotations

import re

LONGEST = 24
"""Characters of a symbol of an objective."""
HEADS = ("filter", "transform")
"""First cells of header rows."""
CELL = re.compile(r"\S+(?: \S+)*")


def with_tables(body: str) -> str:
    """Convert symbol lists, i.e. code paragraphs of one or two pairs of columns, and other
    paragraphs with aligned cells to tables.
    """
    paragraphs = body.split("\n\n")
    return "\n\n".join(
        _symbols(paragraph) or _columns(paragraph) or paragraph for paragraph in paragraphs
    )


def _symbols(paragraph: str) -> str | None:
    """Convert a paragraph to a table of symbols; None if it is something else."""
    pairs: list[list[str]] = []
    for line in paragraph.splitlines():
        if not line.startswith("    "):
            return None
        parts = re.split(r" {2,}", line.strip())
        if line.startswith("     "):
            # continues the meaning above
            if not pairs:
                return None
            pairs[-1][1] += f" {parts.pop(0)}"
        if len(parts) % 2 or any(len(symbol) > LONGEST for symbol in parts[::2]):
            return None
        if parts and parts[0] in HEADS:
            return None
        pairs += [list(pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
    if not pairs:
        return None
    rows = [f"| `{symbol}` | {escaped(meaning)} |" for symbol, meaning in pairs]
    return "\n".join(["| symbol | meaning |", "|---|---|", *rows])


def _columns(paragraph: str) -> str | None:
    """Convert a paragraph of aligned cells to a table; None if it is something else."""
    lines = paragraph.splitlines()
    if not all(line.startswith("    ") for line in lines):
        return None
    found = [[(cell.start(), cell[0]) for cell in CELL.finditer(line)] for line in lines]
    starts = [start for start, _ in max(found, key=len)]
    if len(starts) < 2 or starts[0] != 4 or sum(len(cells) > 1 for cells in found) < 2:
        return None
    rows: list[list[str]] = []
    for cells in found:
        if not {start for start, _ in cells} <= set(starts):
            return None
        if cells[0][0] == starts[0]:
            rows.append([""] * len(starts))
        for start, text in cells:
            # a line without a first cell continues the cells above
            column = starts.index(start)
            rows[-1][column] = f"{rows[-1][column]} {escaped(text)}".strip()
    head = rows.pop(0) if rows[0][0] in HEADS else [""] * len(starts)
    return "\n".join(
        [f"| {' | '.join(head)} |", "|---" * len(starts) + "|"]
        + [f"| {' | '.join(row)} |" for row in rows]
    )


def escaped(text: str) -> str:
    """Plain text with code between backticks as Markdown in a table."""
    parts = text.split("`")
    for index in range(0, len(parts), 2):
        part = re.sub(r"([|*_\[])", r"\\\1", parts[index])
        # a brace at the end of a cell would begin its attributes
        parts[index] = part.replace("<", "&lt;").replace("{", "&#123;")
    return "`".join(parts)
