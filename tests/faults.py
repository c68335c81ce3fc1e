"""What goes wrong in tests: runs that break off at a step, and workers that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import Tensor

from rayd.engine.synthesize import Synthesizer


class InterruptionError(Exception):
    """Stands for whatever ends a process."""


@contextmanager
def interrupted_at(step: int, block: int | None = None) -> Iterator[None]:
    """A synthesis inside breaks off before this step, of this block if one is named; it must come to it."""
    one_step = Synthesizer._one_step

    def interrupted(self: Synthesizer) -> dict[str, Tensor]:
        if self._step == step and block in (None, self._assignment.block):
            raise InterruptionError
        return one_step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Synthesizer, "_one_step", interrupted)
        with pytest.raises(InterruptionError):
            yield


def workers_of(driver: int) -> list[int]:
    """Process ids of the Ray actors that descend from a driver."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], check=True, capture_output=True, text=True).stdout.splitlines()[1:]
    rows = [(int(pid), int(parent), args) for pid, parent, args in (line.split(None, 2) for line in table)]
    family = {driver}
    while True:
        grown = family | {pid for pid, parent, _ in rows if parent in family}
        if grown == family:
            break
        family = grown
    return [pid for pid, _, args in rows if pid in family and args.startswith("ray::_Worker")]


def kill_one_in_each_stage(running: subprocess.Popen[bytes], directory: Path) -> int:
    """Kill a worker of a run with two of them once in each of its stages, until it ends; how many were killed."""
    killed, stages = 0, -1
    while running.poll() is None:
        time.sleep(0.05)
        metrics = directory / "metrics.jsonl"
        done = len([1 for line in metrics.read_text().splitlines() if '"finished"' in line]) if metrics.exists() else -1
        workers = workers_of(running.pid)
        if done > stages and len(workers) >= 2:
            try:
                os.kill(min(workers), signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed, stages = killed + 1, done
    return killed
