"""Runs, comparisons and sweeps as self-contained HTML pages, which need no network access."""

from pathlib import Path

from rayd import remote
from rayd.page.run import FILE, render
from rayd.page.run import write as write_run

SWEEP = "sweep.yaml"
"""File that distinguishes the directory of a sweep from that of a run."""


def write(directory: str | Path, to: Path | None = None) -> Path:
    """Write the page of a run or of a sweep.

    Args:
        directory: of the run, finished or not, or of the sweep.
        to: file to be written; by default `report.html` in the directory.

    Returns:
        The file.

    Raises:
        RaydError: the directory holds neither, or the page cannot be written.
    """
    folder = remote.local(directory)
    if (folder / SWEEP).is_file():
        # needs Ray Tune and Optuna, as sweeps do
        from tuning.page import write as write_sweep

        return write_sweep(folder, to)
    return write_run(folder, to)


__all__ = ["FILE", "render", "write"]
