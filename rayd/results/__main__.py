"""Write the table of measured results into the documentation: `python -m rayd.results [PAGE]`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from rayd.config import MeasuredResult, validate
from rayd.recipes import Headline, headlines
from rayd.results import entries

BEGIN = "<!-- results: written by python -m rayd.results -->"
END = "<!-- end of results -->"
COLUMNS = ("recipe", "IPC", "paper", "distilled", "random", "whole", "seeds")
_REPEATED = re.compile(r"(seed|observers\.seed)=")
"""Settings that differ between the distillations of a command with several."""


def table() -> str:
    """All measured results as a Markdown table, one row each."""
    known = {headline.name: headline for headline in headlines()}
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, results in entries().items():
        for result in results:
            one = validate(MeasuredResult, result, f"the results of '{name}'")
            lines.append(f"| {' | '.join(_cells(known[name], one))} |")
    return "\n".join(lines)


def updated(text: str) -> str:
    """A page with the table of now between its marks.

    Raises:
        ValueError: the page lacks the marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page must hold '{BEGIN}' and, below it, '{END}'.")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _cells(headline: Headline, result: MeasuredResult) -> Iterator[str]:
    """The cells of a result's row."""
    yield f"`{' '.join([headline.name, *_overrides(result.command)])}`"
    yield str(headline.ipc)
    paper = headline.published
    yield "" if paper is None else _number(paper.value, paper.std)
    yield _number(result.accuracy, result.std)
    yield _number(result.random)
    yield _number(result.whole)
    # what the deviation is over is said above the table
    yield result.seeds.partition(";")[0]


def _overrides(command: str) -> list[str]:
    """The settings that a command lays over its recipe, besides seeds."""
    given = re.findall(r"(?<= )[a-z_.]+=[^\s;]+", command)
    return [setting for setting in given if not _REPEATED.match(setting)]


def _number(value: float | None, std: float | None = None) -> str:
    """A fraction with its standard deviation, as far as they are known."""
    if value is None:
        return ""
    return f"{value:.3f}" if std is None else f"{value:.3f} ± {std:.3f}"


def main() -> None:
    """Bring a page up to date."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pages/results.md")
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
