"""Results of studies with `rayd tune`: one YAML file per space that is tried exhaustively.

    title: Which parts, which objective and which step size give the best hundred CIFAR-10 images
    command: rayd tune combined-cifar10-ipc10 --out sweeps/combined-cifar10-ipc10
    commit: 0123abc
    date: '2026-11-29'
    hardware: one of 2 cores of a machine with AMD EPYC, no GPU
    repeats: students of one distillation
    rows:
      dm, four parts: {accuracy: 0.447, std: 0.021, paper: {}}

Files are written by `python -m benchmarks.studies`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import Field

from rayd.config import Settings
from rayd.results import read_all
from rayd.results.text import three_digits

FOLDER = Path(str(resources.files(__name__)))
"""Folder of the files."""


class StudyRow(Settings):
    """Accuracies of one row of a study."""

    accuracy: float = Field(ge=0, le=1)
    """Mean validation accuracy."""
    std: float | None = Field(default=None, ge=0, le=1)
    """Its standard deviation, over what the study repeats."""
    paper: dict[str, float | None] = Field(default_factory=dict)
    """The paper's value for the row, by table, as a fraction."""


class StudyResult(Settings):
    """Accuracies of a study, with everything needed to reproduce them."""

    title: str
    """Description of the comparison and its data."""
    command: str
    """Command that reproduces it."""
    commit: str
    """Revision of this repository."""
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    """Day of the run."""
    hardware: str
    """Machine on which the result was obtained."""
    repeats: str
    """Description of the repetitions over which deviations are taken."""
    rows: dict[str, StudyRow]
    """Accuracies by row, in the order of the space."""


@cache
def entries() -> Mapping[str, StudyResult]:
    """All results by the name of their space, in alphabetical order."""
    return read_all(FOLDER, StudyResult)


def tables() -> Iterator[str]:
    """A heading, the command and a table for each study, in Markdown."""
    for name, result in entries().items():
        series = list(dict.fromkeys(key for row in result.rows.values() for key in row.paper))
        yield f"## {name}"
        yield f"{result.title}."
        yield f"```bash\n{result.command}\n```"
        lines = [
            f"| | here | {' | '.join(series)}".rstrip(" |") + " |",
            "|---" * (2 + len(series)) + "|",
        ]
        for label, row in result.rows.items():
            cells = [three_digits(row.accuracy, row.std)]
            cells += [three_digits(row.paper.get(one)) for one in series]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        yield "\n".join(lines)
        yield f"Validation accuracy; ± is over {result.repeats}. Revision {result.commit}, {result.date}."
