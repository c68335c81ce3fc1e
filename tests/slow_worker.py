"""A worker with a given time per image, which makes idle workers visible even on few cores."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rayd.engine.gradients.feature_matching import GradientResult, GradientTask
from rayd.engine.worker import Worker


class SlowWorker(Worker):
    """A worker that sleeps for every image: a third of the time forward, two thirds backward.

    Args:
        log: file for the process ids of all results.
        seconds: time per image.
    """

    def __init__(self, *arguments: Any, log: Path, seconds: float, **options: Any):
        self._log = log
        self._seconds = seconds
        super().__init__(*arguments, **options)

    def _forward_part(self, task: GradientTask) -> Any:
        part = super()._forward_part(task)
        images = len(part.labels[part.rows])
        time.sleep(self._seconds * images / 3)
        return part

    def gradient(self, task: GradientTask) -> GradientResult:
        """Compute, sleep, and record the process id."""
        result = super().gradient(task)
        images = len(next(iter(result.gradients.values()))) / task.parts
        time.sleep(self._seconds * images * 2 / 3)
        with self._log.open("a") as log:
            log.write(f"{os.getpid()}\n")
        return result


def shares(log: Path) -> Counter[str]:
    """Number of results by process id."""
    return Counter(log.read_text().split())
