"""Write the tables of measured results into the documentation: `python -m rayd.results [PAGE]`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rayd.config import MeasuredResult, validate
from rayd.recipes import Headline, headlines
from rayd.results import applications, entries

BEGIN = "<!-- results: written by python -m rayd.results -->"
END = "<!-- end of results -->"
COLUMNS = ("recipe", "IPC", "paper", "distilled", "random", "whole", "seeds")
SCORES = (
    "recipe",
    "labels",
    "distilled",
    "random",
    "equal storage",
    "whole",
    "IOR",
    "HLR",
    "LRS",
)
EXPLAINED = """\
What these accuracies are worth: beside random images under the same labels, random images of as
many bytes, and all of it under hard labels ([the scores](concepts.md))."""
_REPEATED = re.compile(r"(seed|observers\.seed)=")
"""Settings that differ between the distillations of a command with several."""


def table() -> str:
    """All measured results as a Markdown table, one row each."""
    rows = [_cells(headline, result) for headline, result in _results()]
    return _markdown(COLUMNS, rows)


def counts() -> str:
    """How many recipes have numbers, as a sentence."""
    known = headlines()
    measured = {headline.name for headline, _ in _results()}
    published = {headline.name for headline in known if headline.published}
    return (
        f"Of {len(known)} recipes {len(published)} have an accuracy in a paper, "
        f"{len(measured)} one of ours, and {len(published & measured)} both."
    )


def scores_table() -> str:
    """Scores as a Markdown table, for results that have any; empty if none has.

    A result under soft labels has a second row with its accuracies under hard ones.
    """
    rows: list[list[str]] = []
    for headline, result in _results():
        rows += _scores(headline, result)
    return _markdown(SCORES, rows) if rows else ""


def _results() -> Iterator[tuple[Headline, MeasuredResult]]:
    """All results, each with the headline of its recipe."""
    known = {headline.name: headline for headline in headlines()}
    for name, results in entries().items():
        for result in results:
            yield known[name], validate(MeasuredResult, result, f"the results of '{name}'")


def _markdown(columns: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines)


def updated(text: str) -> str:
    """A page with the tables of now between its marks.

    Raises:
        ValueError: the page lacks the marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page must hold '{BEGIN}' and, below it, '{END}'.")
    parts = [counts(), table()]
    scores = scores_table()
    if scores:
        parts += [EXPLAINED, scores]
    parts += applications.tables()
    tables = "\n\n".join(parts)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def _cells(headline: Headline, result: MeasuredResult) -> Iterator[str]:
    """The cells of a result's row."""
    yield _name(headline, result)
    yield str(headline.ipc)
    paper = headline.published
    yield "" if paper is None else _number(paper.value, paper.std)
    yield _number(result.accuracy, result.std)
    yield _number(result.random)
    yield _number(result.whole)
    # what the deviation is over is said above the table
    yield result.seeds.partition(";")[0]


def _scores(headline: Headline, result: MeasuredResult) -> Iterator[list[str]]:
    """The rows of a result's scores: none, one, or one for soft and one for hard labels."""
    found = (result.ior, result.hlr, result.lrs, result.hard_labels, result.equal_storage)
    if all(value is None for value in found):
        return
    yield [
        _name(headline, result),
        "hard" if result.hard_labels is None else "soft",
        _number(result.accuracy, result.std),
        _number(result.random),
        _number(result.equal_storage),
        _number(result.whole),
        _gap(result.ior, result.ior_std),
        _gap(result.hlr, result.hlr_std),
        _number(result.lrs),
    ]
    if result.hard_labels is not None:
        over_random = None
        if result.random_hard_labels is not None:
            over_random = result.hard_labels - result.random_hard_labels
        yield [
            "",
            "hard",
            _number(result.hard_labels),
            _number(result.random_hard_labels),
            "",
            _number(result.whole_hard_labels),
            _gap(over_random),
            "",
            "",
        ]


def _name(headline: Headline, result: MeasuredResult) -> str:
    """A recipe with the settings that its command lays over it."""
    return f"`{' '.join([headline.name, *_overrides(result.command)])}`"


def _overrides(command: str) -> list[str]:
    """The settings that a command lays over its recipe, besides seeds."""
    given = re.findall(r"(?<= )[a-z_.]+=[^\s;]+", command)
    return [setting for setting in given if not _REPEATED.match(setting)]


def _number(value: float | None, std: float | None = None) -> str:
    """A fraction with its standard deviation, as far as they are known."""
    if value is None:
        return ""
    return f"{value:.3f}" if std is None else f"{value:.3f} ± {std:.3f}"


def _gap(value: float | None, std: float | None = None) -> str:
    """A difference of fractions with its sign."""
    if value is None:
        return ""
    return f"{value:+.3f}" if std is None else f"{value:+.3f} ± {std:.3f}"


def main() -> None:
    """Bring a page up to date."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pages/results.md")
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
