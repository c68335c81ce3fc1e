"""The synthesis as a loop: `for step in rayd.synthesize(...)`."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayd.callbacks import RunCallback, Step, StopRun
from rayd.closable import Closable
from rayd.errors import RunError

if TYPE_CHECKING:
    from rayd.config import Recipe
    from rayd.distilled import Distilled

_END = object()


class Steps(Iterator[Step], Closable):
    """Logged steps of a synthesis, which pauses during the body of the loop.

    The loop may be left at any step, followed by `close` (or use it in a `with`), and the run
    resumed. An interrupt (Ctrl-C) also closes it, as does leaving a loop that holds the only
    reference.

    Args:
        start: performs the run with a callback; called in a separate thread.
    """

    def __init__(self, start: Callable[[RunCallback], Any]):
        self._start = start
        self._shared = _Shared()
        self._finished = False
        self._thread: threading.Thread | None = None

    @property
    def directory(self) -> Path | None:
        """The run's directory, known with the first step."""
        return self._shared.directory

    def __next__(self) -> Step:
        if self._finished:
            raise StopIteration
        if self._thread is None:
            # the thread must not hold this object, so that a loop that is left can be collected
            arguments = (self._start, self._shared)
            self._thread = threading.Thread(
                target=_run, args=arguments, name="rayd-synthesize", daemon=True
            )
            self._thread.start()
        else:
            self._shared.go.release()
        try:
            step = self._shared.steps.get()
        except BaseException:
            # an interrupt: the run ends at its next logged step, and can be resumed
            self.close()
            raise
        if step is not _END:
            return step  # type: ignore[no-any-return]
        self._finished = True
        self._thread.join()
        if self._shared.error is not None:
            raise self._shared.error
        raise StopIteration

    @property
    def distilled(self) -> Distilled:
        """The finished set.

        Raises:
            RunError: the loop was left before.
        """
        if not self._finished or self._shared.stopped or self.directory is None:
            raise RunError("The synthesis is not finished: go through all steps first.")
        from rayd.distilled import load

        return load(self.directory)

    def close(self) -> None:
        """End the run at its next logged step."""
        if self._thread is None or self._finished:
            return
        self._shared.stopped = True
        self._finished = True
        self._shared.go.release()
        self._thread.join()

    def __del__(self) -> None:
        # at the end of the interpreter the thread runs no more, and cannot be waited for
        if not sys.is_finalizing() and threading.current_thread() is not self._thread:
            self.close()


@dataclass
class _Shared:
    """State that the loop and the thread of the run share."""

    steps: queue.Queue[Any] = field(default_factory=queue.Queue)
    """Steps, and at last `_END`."""
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Lets the run continue after a step."""
    stopped: bool = False
    """Whether the loop was left."""
    error: BaseException | None = None
    """Error of the run."""
    directory: Path | None = None
    """The run's directory."""


def _run(start: Callable[[RunCallback], Any], shared: _Shared) -> None:
    callback = _Handover(shared)
    try:
        start(callback)
    except RunError as error:
        if not (shared.stopped or callback.reached_end):
            shared.error = error
    except BaseException as error:
        shared.error = error
    finally:
        shared.steps.put(_END)


class _Handover(RunCallback):
    """Passes each step to the loop, and waits until it requests the next one."""

    def __init__(self, shared: _Shared):
        self._shared = shared
        self.reached_end = False

    def on_run_start(self, directory: Path, recipe: Recipe) -> None:
        self._shared.directory = directory

    def on_stage(self, stage: str) -> None:
        if self._shared.stopped:
            raise StopRun
        if stage in ("relabel", "evaluate"):
            self.reached_end = True
            raise StopRun

    def on_step(self, step: Step) -> None:
        if self._shared.stopped:
            raise StopRun
        if step.stage != "synthesize":
            return
        self._shared.steps.put(step)
        self._shared.go.acquire()
        if self._shared.stopped:
            raise StopRun
