"""Results of applications of distilled sets (`rayd apply`), one YAML file per command.

    title: Class-incremental learning of CIFAR-10, ten images a class
    command: rayd apply continual dm-cifar10-ipc5-continual --memory random --out uses/continual
    commit: 0123abc
    date: '2026-11-29'
    hardware: one of 2 cores of a machine with AMD EPYC, no GPU
    cpu_seconds: 600
    repeats: 3 class orders
    columns: [2 classes, 4 classes]
    rows:
      random:
      - [0.81, 0.79, 0.84]     # accuracies, a list for each column
      - [0.55, 0.57, 0.52]

Files are written by `python -m benchmarks.applications`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import fmean, stdev

from pydantic import Field

from rayd.config import Settings
from rayd.results import read_all

FOLDER = Path(str(resources.files(__name__)))
"""Folder of the files."""


class ApplicationResult(Settings):
    """Accuracies of an application, with everything needed to reproduce them."""

    title: str
    """Description of the application and its data."""
    command: str
    """Commands that reproduce it."""
    commit: str
    """Revision of this repository."""
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    """Day of the run."""
    hardware: str
    """Machine on which the result was obtained."""
    cpu_seconds: float = Field(ge=0)
    """Processor time of the last command."""
    repeats: str
    """Description of the repetitions over which deviations are taken."""
    columns: tuple[str, ...]
    """Points at which accuracies were taken."""
    rows: dict[str, tuple[tuple[float, ...], ...]]
    """Test accuracies by memory or set: for each column a value for each repetition."""


@cache
def entries() -> Mapping[str, ApplicationResult]:
    """All results by file name, in alphabetical order."""
    return read_all(FOLDER, ApplicationResult)


def tables() -> Iterator[str]:
    """A heading, a table and the commands of each result, in Markdown."""
    for result in entries().values():
        yield f"**{result.title}.** Mean ± standard deviation over {result.repeats}:"
        lines = [f"| | {' | '.join(result.columns)} |", "|---" * (len(result.columns) + 1) + "|"]
        for name, row in result.rows.items():
            cells = [_cell(values) for values in row]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        yield "\n".join(lines)
        commands = result.command.split("; ")
        timed = "the last command" if len(commands) > 1 else "the command"
        yield f"Processor time of {timed}: {result.cpu_seconds:,.0f} s."
        yield "\n".join(["```bash", *commands, "```"])


def _cell(values: tuple[float, ...]) -> str:
    mean = f"{fmean(values):.3f}"
    return f"{mean} ± {stdev(values):.3f}" if len(values) > 1 else mean
