"""The report of a run, merged with that of its distilled set.

A run writes a report into its own directory. Later evaluations by `rayd evaluate` are added to a
report next to the set.
"""

from __future__ import annotations

from pathlib import Path

from rayd.distilled import DIRECTORY
from rayd.errors import RaydError
from rayd.evaluation.report import Report


def report_of(directory: Path, skip_damaged: bool = False) -> Report | None:
    """The report of a run, including results that were added to its set; None if there is none.

    Args:
        directory: of the run.
        skip_damaged: leave out a report that is damaged instead of raising an error.

    Raises:
        RaydError: a report is damaged, or cannot be fetched.
    """
    of_run = _kept(directory, skip_damaged)
    of_set = _kept(directory / DIRECTORY, skip_damaged)
    if of_run is None or of_set is None:
        return of_run or of_set
    return of_run.merge(of_set)


def report_of_set(directory: Path) -> Report | None:
    """The report of a distilled set, including that of its run; None if there is none.

    A set that was saved elsewhere in a run's directory does not count as the run's.

    Args:
        directory: of the set.

    Raises:
        RaydError: a report is damaged, or cannot be fetched.
    """
    if directory.name == DIRECTORY:
        return report_of(directory.parent)
    return Report.kept(directory)


def _kept(directory: Path, skip_damaged: bool) -> Report | None:
    try:
        return Report.kept(directory)
    except RaydError:
        if skip_damaged:
            return None
        raise
