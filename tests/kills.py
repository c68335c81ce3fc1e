"""A run whose processes are killed at random moments, in every one of its stages, until it ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import workers_of

STAGES = ("squeeze", "measure", "synthesize", "relabel", "evaluate")
VICTIMS = ("worker", "driver")
AT_LEAST = 2
"""Minimum number of kills in each stage."""
DELAY = 1.0
"""Maximum seconds between the drawn moment and the kill, which may hit a process that is just
restarting.
"""
PROGRAM = """
from rayd.cli import main
from rayd.engine import status
from rayd.engine.stages import measure
from rayd.training import stored_labels
measure.SHARD, stored_labels.CHUNK_EPOCHS, status.INTERVAL = 8, 1, 0.1
main()
"""
"""rayd with shards and chunks so small that digits have many of them, and with frequent status
updates.
"""

Place = tuple[int, float]
"""Index of a stage, and the share of it that is done."""


def long_enough(scale: float) -> dict[str, Any]:
    """Settings of a run long enough to be hit in every stage: with a scale of 1, it takes about a
    minute on two idle cores.
    """
    return {
        "squeeze": {"epochs": round(50 * scale)},
        "synthesis": {"steps": round(400 * scale), "checkpoint_every": max(1, round(50 * scale))},
        "evaluation": {"epochs": round(1200 * scale), "seeds": 2},
        "resources": {"workers": 2, "threads": 1, "cpus_per_worker": 0.5},
    }


@dataclass
class Kill:
    """A process that was killed."""

    victim: str
    """What it was."""
    place: Place
    """Progress of the run."""
    at: float
    """When, in seconds since the run began."""


@dataclass
class Run:
    """`rayd distill` in a separate process, which is restarted after it was killed."""

    recipe: Path
    out: Path
    cache: Path
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    seen: list[tuple[float, Place]] = field(default_factory=list)
    """Progress of the run, with the time in seconds."""

    def __post_init__(self) -> None:
        self._start()

    def _start(self, *more: str) -> None:
        command = [
            sys.executable,
            "-c",
            PROGRAM,
            "distill",
            str(self.recipe),
            "--quiet",
            "--out",
            str(self.out),
            *more,
        ]
        self.process = subprocess.Popen(command, env=os.environ | {"RAYD_CACHE": str(self.cache)})

    @property
    def seconds(self) -> float:
        """Seconds since it began, until now or its end."""
        return (self.ended or time.monotonic()) - self.began

    def going_on(self) -> bool:
        """Whether the run is still going on.

        Raises:
            CalledProcessError: it failed.
        """
        code = self.process.poll()
        if code:
            raise subprocess.CalledProcessError(code, "rayd distill")
        if code is not None and self.ended is None:
            self.ended = time.monotonic()
        return code is None

    def place(self) -> Place | None:
        """Progress that the current process reports."""
        told = self._told()
        if told.get("stage") not in STAGES:
            return None
        place = (
            STAGES.index(told["stage"]),
            told["done"] / told["total"] if told["total"] else 0.0,
        )
        if not self.seen or self.seen[-1][1] != place:
            self.seen.append((self.seconds, place))
        return place

    def kill(self, victim: str, draws: random.Random) -> bool:
        """Kill a process of this kind, if there is one; a driver is restarted."""
        if victim == "driver":
            self.process.kill()
            self.process.wait()
            self._start("--resume")
            return True
        told = {one["pid"] for one in self._told().get("workers", []) if one["role"] == victim}
        with suppress(ProcessLookupError):
            if there := sorted(told & set(workers_of(self.process.pid))):
                os.kill(draws.choice(there), signal.SIGKILL)
                return True
        return False

    def _told(self) -> dict[str, Any]:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            told = json.loads((self.out / "status.json").read_text())
            if told["driver"]["pid"] == self.process.pid and told["state"] == "running":
                return told
        return {}


def undisturbed(recipe: Path, out: Path, cache: Path) -> Run:
    """An undisturbed run."""
    run = Run(recipe, out, cache)
    while run.going_on():
        run.place()
        time.sleep(0.05)
    return run


def killed_at_random(
    recipe: Path, out: Path, cache: Path, seed: int, kills: int, tell: Callable[[Kill], object]
) -> tuple[Run, list[Kill]]:
    """A run with a number of kills, with SIGKILL, of the driver or of a worker, possibly together
    with the synthesizer.

    Stages are drawn at random, with at least `AT_LEAST` kills in each, and moments uniformly within
    them. `tell` is called with each kill.

    Raises:
        AssertionError: the run ended before all of them happened.
    """
    draws = random.Random(seed)
    stages = [stage for stage in range(len(STAGES)) for _ in range(AT_LEAST)]
    stages += draws.choices(range(len(STAGES)), k=kills - len(stages))
    moments = sorted((stage, draws.random()) for stage in stages)
    run = Run(recipe, out, cache)
    done = list[Kill]()
    for moment in moments:
        victim = draws.choice(VICTIMS)
        wait = draws.uniform(0, DELAY)
        struck = False
        while not struck:
            assert run.going_on(), f"The run ended after {len(done)} kills."
            place = run.place()
            if place is not None and place >= moment:
                time.sleep(wait)
                place = run.place() or place
                wait = 0.0
                at = run.seconds
                struck = run.kill(victim, draws)
            time.sleep(0.05)
        done.append(Kill(victim, place, at))
        tell(done[-1])
    while run.going_on():
        run.place()
        time.sleep(0.05)
    return run, done


def lost(run: Run, kills: list[Kill]) -> Iterator[float]:
    """Seconds until the run had passed the point of the hit, possibly after further hits."""
    for kill in kills:
        yield (
            next((at for at, place in run.seen if at > kill.at and place > kill.place), run.seconds)
            - kill.at
        )
