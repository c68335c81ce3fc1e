"""Progress in a notebook: a single output of the cell, which is updated during the run."""

from __future__ import annotations

import sys
import time
from collections import deque
from html import escape
from typing import Any

KEPT = 12
"""Lines of the log that stay in the output."""
REFRESH = 0.25
"""Minimum seconds between updates of the progress."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookOutput:
    """The last lines of a run's log, and below them the progress of its stage."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._progress = ""
        self._share: float | None = None
        self._handle: Any = None
        self._updated = 0.0

    def log(self, sentence: str) -> None:
        """Add a line."""
        self._lines.append(sentence)
        self._update()

    def show(self, line: str, share: float | None) -> None:
        """Replace the progress.

        Args:
            line: text of the progress.
            share: fraction of the work that is done, in [0, 1]; None shows no bar.
        """
        self._progress = line
        self._share = share
        if time.monotonic() - self._updated >= REFRESH:
            self._update()

    def end(self, line: str) -> None:
        """Remove the progress, and add a line unless it is empty."""
        self._progress = ""
        self._share = None
        if line:
            self._lines.append(line)
        self._update()

    def _update(self) -> None:
        from IPython.display import display

        self._updated = time.monotonic()
        if self._handle is None:
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)

    def __repr__(self) -> str:
        return "\n".join([*self._lines, *([self._progress] if self._progress else [])])

    def _repr_html_(self) -> str:
        bar = ""
        if self._share is not None:
            bar = f'<progress value="{self._share:.4f}" max="1"></progress>'
        return f"<pre>{escape(repr(self))}</pre>{bar}"
