"""Ctrl-C: the first one ends a command in order, a second one ends the process at once.

The first one raises `KeyboardInterrupt`, which passes, from the inside out,

    rayd.engine.status        writes `interrupted` into the run's `status.json`
    rayd.cli.runs             `rayd distill`: adds the command that continues the run
    rayd.cli.group            any other command: makes it an `InterruptedRunError`
    rayd.cli.program          prints the error and exits with code 130
    rayd.__main__             ends the process without waiting for what Ray does at exit

Of the calls from Python, `rayd.distill` adds how to continue and lets it pass, and a loop over `rayd.synthesize` ends its
run before (`rayd.step_iterator`).

Imports almost nothing, so that it is in force before the imports that take seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rayd.errors import RaydError


class InterruptedRunError(RaydError):
    """The user pressed Ctrl-C."""

    exit_code = 130


NOTHING_DONE = "Interrupted before anything was done."
"""Message if the command had not started its work."""
WORK_IS_KEPT = "Interrupted; finished work is kept."
"""Message if the command had started its work."""
STOPPED = "Stopped at the second Ctrl-C; finished work is kept, and --resume continues a run."
"""Message if the command could not shut down cleanly."""


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Raise `KeyboardInterrupt` at the first Ctrl-C in the block, and exit at a second one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, lambda *_: leave(STOPPED))
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        # after an interruption, processes that end with the interpreter (Ray's) must not print a
        # traceback either
        if not interrupted:
            signal.signal(signal.SIGINT, before)


def leave_at_interrupt(sentence: str) -> None:
    """Exit at Ctrl-C at once, with a message: nothing has begun yet, or all is done."""
    signal.signal(signal.SIGINT, lambda *_: leave(sentence))


def leave(sentence: str | None = None, exit_code: int = InterruptedRunError.exit_code) -> NoReturn:
    """End the process without running anything else, which could print a traceback."""
    if sys.stderr.isatty():
        # a progress bar hides the cursor
        sys.stderr.write("\x1b[?25h\n")
    if sentence is not None:
        sys.stderr.write(f"rayd: {sentence}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
