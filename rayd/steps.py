"""The synthesis as a loop: `for step in rayd.synthesize(...)`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rayd.callbacks import RunCallback, Step, StopRun
from rayd.errors import RunError

if TYPE_CHECKING:
    from rayd.config import Recipe
    from rayd.distilled import Distilled

_END = object()


class Steps(Iterator[Step]):
    """Logged steps of a synthesis, which waits while a step is looked at.

    Leave the loop at any step, then `close` (or use it in a `with`): the run can be resumed.

    Args:
        start: runs the whole with a callback, in a thread of its own.
    """

    def __init__(self, start: Callable[[RunCallback], Any]):
        self._start = start
        self._steps: queue.Queue[Any] = queue.Queue()
        self._go = threading.Semaphore(0)
        self._stopped = False
        self._finished = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.directory: Path | None = None
        """The run's directory, known with the first step."""

    def __next__(self) -> Step:
        if self._finished:
            raise StopIteration
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rayd-synthesize", daemon=True)
            self._thread.start()
        else:
            self._go.release()
        step = self._steps.get()
        if step is not _END:
            return step  # type: ignore[no-any-return]
        self._finished = True
        self._thread.join()
        if self._error is not None:
            raise self._error
        raise StopIteration

    @property
    def distilled(self) -> Distilled:
        """The finished set.

        Raises:
            RunError: the loop was left before.
        """
        if not self._finished or self._stopped or self.directory is None:
            raise RunError("The synthesis is not finished: go through all steps first.")
        from rayd.distilled import load

        return load(self.directory)

    def close(self) -> None:
        """End the run where it is."""
        if self._thread is None or self._finished:
            return
        self._stopped = True
        self._finished = True
        self._go.release()
        self._thread.join()

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        callback = _Handover(self)
        try:
            self._start(callback)
        except RunError as error:
            if not (self._stopped or callback.reached_end):
                self._error = error
        except BaseException as error:
            self._error = error
        finally:
            self._steps.put(_END)


class _Handover(RunCallback):
    """Hands each step to the loop, and waits until it asks for the next one."""

    def __init__(self, steps: Steps):
        self._to = steps
        self.reached_end = False

    def on_run_start(self, directory: Path, recipe: Recipe) -> None:
        self._to.directory = directory

    def on_stage(self, stage: str) -> None:
        if stage in ("relabel", "evaluate"):
            self.reached_end = True
            raise StopRun

    def on_step(self, step: Step) -> None:
        if step.stage != "synthesize":
            return
        self._to._steps.put(step)
        self._to._go.acquire()
        if self._to._stopped:
            raise StopRun
