"""Faults for tests: runs that fail at a step, workers that are killed, and the results that must
not change.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from rayd.artifacts import read_tensors
from rayd.callbacks import Callbacks, RunCallback, Step
from rayd.config import Recipe, merge
from rayd.engine.distill import distill
from rayd.errors import RaydError
from rayd.recipes import resolve
from tests.runs import QUIET, bytes_of


class InterruptionError(RaydError):
    """Simulates any error that ends a process."""


class Stopping(RunCallback):
    """Ends a run with an error at the first logged step of the synthesis that is not before a given
    step; with step 0, before the first step.
    """

    def __init__(self, error: BaseException, step: int = 1):
        self._error = error
        self._step = step

    def on_stage(self, stage: str) -> None:
        """Fail at once, if no step is given."""
        if stage == "synthesize" and self._step == 0:
            raise self._error

    def on_step(self, step: Step) -> None:
        """Fail if the step is reached."""
        if step.stage == "synthesize" and step.step >= self._step:
            raise self._error


def stopping(error: BaseException, step: int = 1) -> Callbacks:
    """Callbacks that end a run with an error at a logged step."""
    return Callbacks([Stopping(error, step)])


class Interrupting(RunCallback):
    """Simulates Ctrl-C at a logged step, once; can be named in a recipe."""

    pending = False

    def on_step(self, step: Step) -> None:
        """Interrupt the run, unless that has happened."""
        if type(self).pending:
            type(self).pending = False
            raise KeyboardInterrupt


def every_step_logged(recipe: Recipe) -> Recipe:
    """The recipe, with a call of `on_step` after every step."""
    synthesis = recipe.synthesis.model_copy(update={"log_every": 1})
    return recipe.model_copy(update={"synthesis": synthesis})


def break_off(recipe: Recipe, out: Path, steps: int, block: int = 0, **options: Any) -> None:
    """Run a recipe until a block of its synthesis has taken a number of steps, and end it with an
    error.

    All steps are logged.
    """
    done = block * recipe.synthesis.steps + steps
    with pytest.raises(InterruptionError):
        distill(
            every_step_logged(recipe),
            out,
            callbacks=stopping(InterruptionError("interrupted"), done),
            progress=QUIET,
            **options,
        )


def check_resumes(recipe: Recipe, folder: Path, steps: int, block: int = 0) -> None:
    """Check that a run that is broken off, as by `break_off`, and resumed gives the bytes of one
    that is not. They are `cut` and `whole` in the folder.
    """
    distill(recipe, folder / "whole", progress=QUIET)
    break_off(recipe, folder / "cut", steps, block)
    distill(recipe, folder / "cut", resume=True, progress=QUIET)
    assert bytes_of(folder / "whole") == bytes_of(folder / "cut")


class Steps(RunCallback):
    """Records the steps of the synthesis."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def on_step(self, step: Step) -> None:
        """Remember a step."""
        if step.stage == "synthesize":
            self.made.append(step.step)


def workers_of(driver: int) -> list[int]:
    """Process ids of the Ray actors that descend from a driver."""
    table = subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], check=True, capture_output=True, text=True
    ).stdout.splitlines()[1:]
    rows = [
        (int(pid), int(parent), args)
        for pid, parent, args in (line.split(None, 2) for line in table)
    ]
    family = {driver}
    while True:
        grown = family | {pid for pid, parent, _ in rows if parent in family}
        if grown == family:
            break
        family = grown
    return [pid for pid, _, args in rows if pid in family and args.startswith("ray::_Worker")]


def kill_one_in_each_stage(running: subprocess.Popen[bytes], directory: Path) -> int:
    """Kill one of the two workers of a run once in each of its stages, until it ends; the number of
    kills.
    """
    killed = 0
    stages = -1
    while running.poll() is None:
        time.sleep(0.05)
        metrics = directory / "metrics.jsonl"
        done = (
            len([1 for line in metrics.read_text().splitlines() if '"finished"' in line])
            if metrics.exists()
            else -1
        )
        workers = workers_of(running.pid)
        if done > stages and len(workers) >= 2:
            try:
                os.kill(min(workers), signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed = killed + 1
            stages = done
    return killed


def four_observers(**overrides: Any) -> Recipe:
    """EDC on digits with four observers and stored labels, few epochs and steps."""
    observers = [
        {"name": "convnet", "depth": depth, "width": width, "norm": "batch"}
        for depth in (1, 2)
        for width in (16, 24)
    ]
    settings = {
        "observers": {"networks": observers, "per_step": 4},
        "squeeze": {"epochs": 40},
        "synthesis": {"steps": 60, "checkpoint_every": 10},
        "labels": {"kind": "stored"},
        "evaluation": {"seeds": 1, "epochs": 200, "baselines": []},
    }
    return resolve("edc-digits", merge(settings, overrides))


def made(run: Path, cache: Path) -> dict[str, bytes]:
    """Results of a run with stored labels: set, labels and the observers' weights, without fields
    that depend on time.
    """
    files = {path.name: path.read_bytes() for path in (run / "distilled").rglob("*.safetensors")}
    weights = {
        f"{path.name} {name}": tensor.numpy().tobytes()
        for path in (cache / "squeeze").glob("*.safetensors")
        for name, tensor in read_tensors(path)[0].items()
    }
    assert "data.safetensors" in files
    assert len(files) > 1, "There are no stored labels."
    assert weights
    return files | weights
