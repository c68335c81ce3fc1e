"""What a run is doing, for whoever looks at its directory: `status.json`, and what `rayd status`
makes of it.

A thread of the driver writes the file every `INTERVAL` seconds, so that its age tells whether the
driver lives, on whichever machine that is; stages only leave their meter with it, which costs their
steps nothing. Reading needs neither Ray nor the run's data.

    {"state": "running", "stage": "synthesize", "done": 120, "total": 400, "unit": "steps", "rate":
    31.2,
     "seconds_left": 9.0, "stages": {"measure": "cached", "synthesize": "running", "evaluate":
     "waiting"}, "terms": {"loss": 0.31}, "driver": {"pid": 4711, "node": "head"}, "written":
     1760000000.0, "interval": 2.0, "logs": "/tmp/ray/session_.../logs", "restarts": 0, "workers": [
         {"role": "worker", "pid": 4812, "node": "gpu-1 (10.0.0.7)", "log": "worker-...-4812",
         "restarts": 0, "there": true}]}
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shlex
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rayd import remote
from rayd.artifacts import read_json, write_json
from rayd.engine.pool import WorkerInfo, WorkerPool
from rayd.engine.progress import StageProgress, clock, stages_text, terms_text
from rayd.errors import ArtifactError, OutputError, RaydError

NAME = "status.json"
METRICS = "metrics.jsonl"
INTERVAL = 2.0
"""Seconds between two writes."""
PATIENCE = 10.0
"""Seconds that a run waits at its end for a write that hangs."""
STALE = 15
"""Intervals without a write after which a driver is taken for killed where its lock cannot be
asked.
"""
UNFINISHED = frozenset({"interrupted", "killed", "failed"})
"""States of a run that can be continued."""


class StatusFile:
    """Writes what a run is doing, from a thread of its own, until it is closed."""

    def __init__(self, path: Path, command: str | None = None):
        """Begin to write the file at `path`; `command` continues the run when it was
        interrupted.
        """
        self._path = path
        self._command = command
        self._driver = {"pid": os.getpid(), "node": socket.gethostname()}
        self._meter: StageProgress | None = None
        self._groups: list[WorkerPool] = []
        self._last: list[WorkerInfo] = []
        self._logs: str | None = None
        self._restarts = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rayd-status", daemon=True)
        self._thread.start()

    def stage(self, meter: StageProgress) -> None:
        """A stage begins, and will tell by its meter how far it is."""
        self._meter = meter

    @contextmanager
    def pool(self, pool: WorkerPool) -> Iterator[None]:
        """Tell of a group's workers while the block runs."""
        self._groups.append(pool)
        try:
            yield
        finally:
            self._groups.remove(pool)
            self._restarts += sum(one.restarts for one in self._last)
            self._last = [replace(one, restarts=0) for one in self._last]

    def close(self, error: BaseException | None = None) -> None:
        """Write it a last time: finished, interrupted, or how it failed."""
        self._over.set()
        self._thread.join(PATIENCE)
        if error is None:
            self._write("finished")
        elif isinstance(error, KeyboardInterrupt):
            self._write("interrupted")
        else:
            said = (
                str(error)
                if isinstance(error, RaydError)
                else f"{type(error).__name__}: {error}".removesuffix(": ")
            )
            self._write("failed", {"error": said})

    def _run(self) -> None:
        while True:
            self._write("running")
            if self._over.wait(INTERVAL):
                return

    def _write(self, state: str, more: dict[str, Any] | None = None) -> None:
        # a look at a run must not end it: whatever goes wrong here is tried again soon
        with suppress(Exception):
            write_json(
                self._path, {"state": state, **self._work(), **(more or {}), **self._people()}
            )

    def _work(self) -> dict[str, Any]:
        meter = self._meter
        if meter is None:
            return {"stage": None}
        return {
            "stage": meter.stage,
            "done": meter.done,
            "total": meter.total,
            "unit": meter.unit,
            "rate": round(meter.rate, 4),
            "seconds_left": meter.seconds_left,
            "stages": {} if meter.stages is None else dict(meter.stages.states),
            "terms": {
                name: value if math.isfinite(value) else None for name, value in meter.terms.items()
            },
        }

    def _people(self) -> dict[str, Any]:
        for pool in self._groups:
            if found := pool.workers():
                self._last = found
                self._logs = pool.logs()
            if self._meter is not None:
                pool.publish(self._meter.stage, self._meter.rate)
        return {
            "driver": self._driver,
            "written": time.time(),
            "interval": INTERVAL,
            "command": self._command,
            "logs": self._logs,
            "restarts": self._restarts + sum(one.restarts for one in self._last),
            "workers": [asdict(one) for one in self._last],
        }


@dataclass(frozen=True)
class Status:
    """What a run directory tells of its run."""

    directory: str
    """Which."""
    state: str
    """`running`, `finished`, `failed` (see `error`), `interrupted` (Ctrl-C), or `killed`: the
    driver's process is gone without a word about its end.
    """
    driver: dict[str, Any]
    """Process and machine of the driver, and whether it holds the directory's lock: null where that
    cannot be known.
    """
    stage: str | None = None
    """The last stage that began."""
    done: float = 0.0
    """Work units finished."""
    total: float = 0.0
    """Work units in all."""
    unit: str = ""
    """What they are."""
    rate: float = 0.0
    """Work units a second."""
    seconds_left: float | None = None
    """Of the stage."""
    stages: dict[str, str] = field(default_factory=dict)
    """The stages of the run, in order, each waiting, running, done or cached."""
    terms: dict[str, float] = field(default_factory=dict)
    """What was logged last."""
    workers: list[dict[str, Any]] = field(default_factory=list)
    """Where workers are, what their logs are called, and how often they were started again."""
    restarts: int = 0
    """Of all workers together."""
    logs: str | None = None
    """The directory of Ray's logs on each machine."""
    disk_bytes: int = 0
    """What the directory holds."""
    age: float | None = None
    """Seconds since the driver was last heard of."""
    error: str | None = None
    """How the run failed."""
    command: str | None = None
    """What continues the run; absent for a run that a sweep continues."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON-able mapping."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        who = (
            f"pid {self.driver['pid']} on {self.driver['node']}"
            if self.driver.get("pid")
            else "unknown"
        )
        ended = ("finished", "failed", "interrupted")
        heard = (
            "" if self.age is None or self.state in ended else f", heard of {clock(self.age)} ago"
        )
        lines = [
            f"{self.directory}: {self.state}{f', {self.error}' if self.error else ''}",
            f"driver   {who}{heard}",
        ]
        if self.stages:
            lines.append(f"stages   {stages_text(self.stages)}")
        if self.stage is not None:
            lines.append(
                f"stage    {self.stage} {self.done:g}/{self.total:g} {self.unit}, {self.rate:.3g}/s{self._left()}"
            )
        if self.terms:
            lines.append(f"terms    {terms_text(self.terms)}")
        lines.append(f"disk     {self.disk_bytes:,} bytes")
        if self.state == "running" and self.workers:
            there = sum(one["there"] for one in self.workers)
            lines.append(
                f"workers  {there} of {len(self.workers)} there, {self.restarts} restarts, logs in {self.logs}"
            )
        elif self.workers:
            lines.append(
                f"workers  {len(self.workers)} at last, {self.restarts} restarts, logs in {self.logs}"
            )
        lines += [f"         {_line(one)}" for one in self.workers]
        if self.state in UNFINISHED:
            lines.append(f"continue {self.command or 'by the sweep: rayd tune with --resume'}")
        return "\n".join(lines)

    def _left(self) -> str:
        return f", {clock(self.seconds_left)} left" if self.seconds_left else ""


def status(directory: Path) -> Status:
    """What a run is doing, or did last.

    Raises:
        OutputError: the directory holds no run.
    """
    directory = remote.local(directory).resolve()
    held = lock_held(directory)
    if not held:
        # else the run is at work in this very folder
        for name in (NAME, METRICS, "config.yaml", "evaluation.json"):
            remote.bring(directory / name)
    try:
        told = read_json(directory / NAME)
    except ArtifactError as error:
        if not (directory / "config.yaml").is_file():
            raise OutputError(
                f"'{remote.shown(directory)}' holds no run of rayd; name the --out of one."
            ) from error
        told = {}
    age = max(0.0, time.time() - told["written"]) if "written" in told else None
    driver = {"pid": None, "node": None, **told.get("driver", {}), "holds_lock": held}
    state = _state(directory, told, held, age)
    return Status(
        directory=remote.shown(directory),
        state=state,
        driver=driver,
        stage=told.get("stage"),
        done=told.get("done", 0.0),
        total=told.get("total", 0.0),
        unit=told.get("unit", ""),
        rate=told.get("rate", 0.0),
        seconds_left=told.get("seconds_left") if state == "running" else None,
        stages=_stages(told, state),
        terms=told.get("terms") or _last_terms(directory),
        workers=list(told.get("workers", [])),
        restarts=int(told.get("restarts", 0)),
        logs=told.get("logs"),
        disk_bytes=_bytes(directory),
        age=None if age is None else round(age, 1),
        error=told.get("error"),
        command=told.get(
            "command", f"rayd distill --resume {shlex.quote(remote.shown(directory))}"
        ),
    )


def _stages(told: dict[str, Any], state: str) -> dict[str, str]:
    """The stages of a run; when it is finished, those that it did not need were cached."""
    stages: dict[str, str] = dict(told.get("stages") or {})
    if state == "finished":
        over = {"waiting": "cached", "running": "done"}
        return {name: over.get(one, one) for name, one in stages.items()}
    return stages


def _state(directory: Path, told: dict[str, Any], held: bool | None, age: float | None) -> str:
    """What the driver said, unless it said that it runs and does not."""
    said = told.get("state", "finished" if (directory / "evaluation.json").is_file() else "running")
    if said != "running":
        return str(said)
    young = age is not None and age <= STALE * float(told.get("interval", INTERVAL))
    # a lock that nobody holds may be one that this machine cannot see
    unseen = held is None or told.get("driver", {}).get("node") != socket.gethostname()
    return "running" if held or (young and unseen) else "killed"


def lock_held(directory: Path) -> bool | None:
    """Whether a process holds the lock of a directory; None if it cannot be asked."""
    from rayd.engine.rundir import LOCK

    try:
        with (directory / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return False


def _last_terms(directory: Path) -> dict[str, float]:
    """The terms of the last logged step, where the driver told none."""
    metrics = directory / METRICS
    for line in reversed(
        metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        if metrics.is_file()
        else []
    ):
        with suppress(json.JSONDecodeError):
            entry = json.loads(line)
            if "step" in entry:
                return {
                    name: value
                    for name, value in entry.items()
                    if name not in ("stage", "step", "seconds")
                }
    return {}


def _bytes(directory: Path) -> int:
    if (total := remote.size(directory)) is not None:
        return total
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def _line(one: dict[str, Any]) -> str:
    where = (
        f"pid {one['pid']} on {one['node']}, {one['log'] or 'worker-*'}.out|err"
        if one["pid"]
        else "not started yet"
    )
    return f"{one['role']:<12} {where}{'' if one['there'] or not one['pid'] else ', away'}"
