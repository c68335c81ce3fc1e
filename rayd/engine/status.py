"""The status file of a run, `status.json`, and the report of `rayd status`.

A thread of the driver writes the file every `INTERVAL` seconds, so that its age shows on any
machine whether the driver is alive. The thread reads the progress of the current stage, which takes
the stage no time. Reading the file needs neither Ray nor the run's data.

    {"state": "running", "stage": "synthesize", "done": 120, "total": 400, "unit": "steps",
     "rate": 31.2, "seconds_left": 9.0,
     "stages": {"measure": "cached", "synthesize": "running", "evaluate": "waiting"},
     "terms": {"loss": 0.31}, "driver": {"pid": 4711, "node": "head"},
     "written": 1760000000.0, "interval": 2.0, "logs": ".../session_.../logs", "restarts": 0,
     "workers": [{"role": "worker", "pid": 4812, "node": "gpu-1 (10.0.0.7)",
                  "log": "worker-...-4812", "restarts": 0, "there": true}]}
"""

from __future__ import annotations

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
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from rayd import remote
from rayd.artifacts import parse, read_json, write_json
from rayd.engine.pool import WorkerInfo, WorkerPool
from rayd.engine.progress import StageProgress, clock, stages_text, terms_text
from rayd.errors import OutputError, RaydError
from rayd.locks import is_locked

NAME = "status.json"
METRICS = "metrics.jsonl"
INTERVAL = 2.0
"""Seconds between writes."""
PATIENCE = 10.0
"""Seconds that a run waits at its end for a write that hangs."""
STALE = 15
"""Intervals without a write after which a driver counts as killed if its lock cannot be checked."""
SUSPICIOUS = 60.0
"""Seconds of silence up to which a worker with a task counts as busy."""
SUSPICIOUS_FACTOR = 5.0
"""Multiple of the usual silence after which a worker may be stuck; a run restarts it only after 20
times.
"""
UNFINISHED = frozenset({"interrupted", "killed", "failed"})
"""States of a run that can be continued."""


class StatusFile:
    """Writes the status of a run from a separate thread, until it is closed.

    Args:
        path: of the file.
        command: continues the run after an interruption; None for a run of a sweep.
    """

    def __init__(self, path: Path, command: str | None = None):
        self._path = path
        self._command = command
        self._driver = {"pid": os.getpid(), "node": socket.gethostname()}
        self._meter: StageProgress | None = None
        self._pools: list[WorkerPool] = []
        self._last: list[WorkerInfo] = []
        self._logs: str | None = None
        self._restarts = 0
        self._over = threading.Event()
        # a daemon thread, which must not keep the process of a dead run alive
        self._thread = threading.Thread(target=self._run, name="rayd-status", daemon=True)
        self._thread.start()

    def stage(self, meter: StageProgress) -> None:
        """Report the progress of a stage from now on."""
        self._meter = meter

    @contextmanager
    def pool(self, pool: WorkerPool) -> Iterator[None]:
        """Context in which the workers of a pool are reported."""
        self._pools.append(pool)
        try:
            yield
        finally:
            self._pools.remove(pool)
            # workers of the next pool count their restarts from 0
            self._restarts += sum(worker.restarts for worker in self._last)
            self._last = [replace(worker, restarts=0) for worker in self._last]

    def close(self, error: BaseException | None = None) -> None:
        """Write the final state: finished, interrupted, or failed with an error."""
        self._over.set()
        self._thread.join(PATIENCE)
        if error is None:
            self._write("finished")
        elif isinstance(error, KeyboardInterrupt):
            self._write("interrupted")
        else:
            message = str(error)
            if not isinstance(error, RaydError):
                message = f"{type(error).__name__}: {error}".removesuffix(": ")
            self._write("failed", {"error": message})

    def _run(self) -> None:
        while True:
            self._write("running")
            if self._over.wait(INTERVAL):
                return

    def _write(self, state: str, more: dict[str, Any] | None = None) -> None:
        # an error here must not end the run; the next interval tries again
        with suppress(Exception):
            fields = {"state": state, **self._stage_fields(), **(more or {})}
            write_json(self._path, fields | self._worker_fields())

    def _stage_fields(self) -> dict[str, Any]:
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
                # JSON has no NaN
                name: value if math.isfinite(value) else None
                for name, value in meter.terms.items()
            },
        }

    def _worker_fields(self) -> dict[str, Any]:
        for pool in self._pools:
            workers = pool.workers()
            if workers:
                self._last = workers
                self._logs = pool.logs()
            if self._meter is not None:
                pool.publish(self._meter.stage, self._meter.rate)
        return {
            "driver": self._driver,
            "written": time.time(),
            "interval": INTERVAL,
            "command": self._command,
            "logs": self._logs,
            "restarts": self._restarts + sum(worker.restarts for worker in self._last),
            "workers": [asdict(worker) for worker in self._last],
        }


_Amount = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    """Part of a status file; unknown keys are refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Driver(_Strict):
    pid: int
    node: str


class _Worker(_Strict):
    role: str
    pid: int
    node: str
    log: str
    restarts: _Count = 0
    there: bool = True
    node_id: str = ""
    busy: _Amount | None = None
    usual: _Amount | None = None
    gpu: str = ""
    gpu_bytes: _Count = 0
    memory: _Count = 0
    gpu_memory: _Count = 0


class _Content(_Strict):
    """Content of a status file; see `StatusFile`."""

    state: Literal["running", "finished", "failed", "interrupted"]
    driver: _Driver | None = None
    written: float | None = None
    interval: Annotated[float, Field(gt=0)] = INTERVAL
    stage: str | None = None
    done: _Amount = 0.0
    total: _Amount = 0.0
    unit: str = ""
    rate: _Amount = 0.0
    seconds_left: _Amount | None = None
    stages: dict[str, Literal["waiting", "running", "done", "cached"]] = {}
    terms: dict[str, float | None] = {}
    error: str | None = None
    command: str | None = None
    logs: str | None = None
    restarts: _Count = 0
    workers: list[_Worker] = []


@dataclass(frozen=True)
class Status:
    """The status of a run, read from its directory."""

    directory: str
    """Path or URL of the directory."""
    state: str
    """`running`, `finished`, `failed` (see `error`), `interrupted` (Ctrl-C), or `killed`: the
    driver's process is gone without having written a final state.
    """
    driver: dict[str, Any]
    """Process and machine of the driver, and whether it holds the directory's lock (null if
    unknown).
    """
    stage: str | None = None
    """The last stage that was started."""
    done: float = 0.0
    """Finished work units."""
    total: float = 0.0
    """Number of work units."""
    unit: str = ""
    """Name of the unit, in the plural."""
    rate: float = 0.0
    """Work units per second."""
    seconds_left: float | None = None
    """Time until the end of the stage."""
    stages: dict[str, str] = field(default_factory=dict)
    """The stages of the run, in order, each waiting, running, done or cached."""
    terms: dict[str, float] = field(default_factory=dict)
    """Loss terms of the last logged step."""
    workers: list[dict[str, Any]] = field(default_factory=list)
    """The workers; see `rayd.engine.pool.WorkerInfo`."""
    restarts: int = 0
    """Restarts of all workers."""
    logs: str | None = None
    """The directory of Ray's logs on each machine."""
    disk_bytes: int = 0
    """Size of the directory."""
    age: float | None = None
    """Seconds since the driver last wrote its status."""
    error: str | None = None
    """Message of the error that ended the run."""
    command: str | None = None
    """Command that continues the run; None for a run of a sweep."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return asdict(self)

    def text(self) -> str:
        """A report for the terminal."""
        driver = "unknown"
        if self.driver.get("pid"):
            driver = f"pid {self.driver['pid']} on {self.driver['node']}"
        if self.age is not None and self.state not in ("finished", "failed", "interrupted"):
            driver += f", last seen {clock(self.age)} ago"
        lines = [
            f"{self.directory}: {self.state}{f', {self.error}' if self.error else ''}",
            f"driver   {driver}",
        ]
        if self.stages:
            lines.append(f"stages   {stages_text(self.stages)}")
        if self.stage is not None:
            lines.append(
                f"stage    {self.stage} {self.done:g}/{self.total:g} {self.unit}, "
                f"{self.rate:.3g}/s{self._left()}"
            )
        if self.terms:
            lines.append(f"terms    {terms_text(self.terms)}")
        lines.append(f"disk     {self.disk_bytes:,} bytes")
        if self.workers:
            count = f"{len(self.workers)} at the end"
            if self.state == "running":
                alive = sum(worker["there"] for worker in self.workers)
                count = f"{alive} of {len(self.workers)} alive"
            lines.append(f"workers  {count}, {self.restarts} restarts, logs in {self.logs}")
        lines += [f"         {_line(worker)}" for worker in self.workers]
        if self.state in UNFINISHED:
            lines.append(f"continue {self.command or 'by the sweep: rayd tune with --resume'}")
        return "\n".join(lines)

    def _left(self) -> str:
        return f", {clock(self.seconds_left)} left" if self.seconds_left else ""


def status(directory: Path) -> Status:
    """Read the status of a run.

    Raises:
        OutputError: the directory holds no run.
        ArtifactError: its status file is damaged.
    """
    directory = remote.local(directory).resolve()
    held = is_locked(directory)
    if not held:
        # a running driver on this machine writes these files, so they are newer than remote copies
        for name in (NAME, METRICS, "config.yaml", "evaluation.json"):
            remote.bring(directory / name)
    content: dict[str, Any] = {}
    if (directory / NAME).exists():
        content = read_json(directory / NAME)
        parse(_Content, content, f"'{remote.shown(directory / NAME)}'")
    elif not (directory / "config.yaml").is_file():
        raise OutputError(
            f"'{remote.shown(directory)}' holds no run of rayd; name the --out of one."
        )
    written = content.get("written")
    age = None if written is None else max(0.0, time.time() - written)
    driver = {"pid": None, "node": None, **(content.get("driver") or {}), "holds_lock": held}
    state = _state(directory, content, held, age)
    return Status(
        directory=remote.shown(directory),
        state=state,
        driver=driver,
        stage=content.get("stage"),
        done=content.get("done", 0.0),
        total=content.get("total", 0.0),
        unit=content.get("unit", ""),
        rate=content.get("rate", 0.0),
        seconds_left=content.get("seconds_left") if state == "running" else None,
        stages=_stages(content, state),
        terms=content.get("terms") or _last_terms(directory),
        workers=list(content.get("workers", [])),
        restarts=int(content.get("restarts", 0)),
        logs=content.get("logs"),
        disk_bytes=_bytes(directory),
        age=None if age is None else round(age, 1),
        error=content.get("error"),
        command=content.get(
            "command", f"rayd distill --resume {shlex.quote(remote.shown(directory))}"
        ),
    )


def _stages(content: dict[str, Any], state: str) -> dict[str, str]:
    """The stages of a run; those that a finished run did not start were cached."""
    stages: dict[str, str] = dict(content.get("stages") or {})
    if state == "finished":
        final = {"waiting": "cached", "running": "done"}
        return {name: final.get(known, known) for name, known in stages.items()}
    return stages


def _state(directory: Path, content: dict[str, Any], held: bool | None, age: float | None) -> str:
    """The state that the driver wrote; `killed` if it wrote `running` but no longer runs."""
    default = "finished" if (directory / "evaluation.json").is_file() else "running"
    written = content.get("state", default)
    if written != "running":
        return str(written)
    is_recent = age is not None and age <= STALE * float(content.get("interval", INTERVAL))
    # locks of other machines may not be visible here
    unknown = held is None or (content.get("driver") or {}).get("node") != socket.gethostname()
    return "running" if held or (is_recent and unknown) else "killed"


def _last_terms(directory: Path) -> dict[str, float]:
    """The terms of the last logged step, if the status file has none.

    Accuracies of students, which are logged as steps of the evaluation, are no terms.
    """
    metrics = directory / METRICS
    if not metrics.is_file():
        return {}
    for line in reversed(metrics.read_text(encoding="utf-8", errors="replace").splitlines()):
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            is_step = isinstance(entry, dict) and "step" in entry
            if is_step and entry.get("stage") != "evaluate":
                others = ("stage", "step", "seconds")
                terms = {name: value for name, value in entry.items() if name not in others}
                return {name: value for name, value in terms.items() if _is_number(value)}
    return {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bytes(directory: Path) -> int:
    if (total := remote.size(directory)) is not None:
        return total
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def _line(worker: dict[str, Any]) -> str:
    if not worker["pid"]:
        return f"{worker['role']:<12} not started yet"
    log = worker["log"] or "worker-*"
    state = _activity(worker) if worker["there"] else ", lost"
    return f"{worker['role']:<12} pid {worker['pid']} on {worker['node']}, {log}.out|err{state}"


def _activity(worker: dict[str, Any]) -> str:
    """End of a worker's line: whether it is busy or may be stuck."""
    busy = worker.get("busy")
    if busy is None:
        return ""
    usual = worker.get("usual")
    if usual is None or busy < max(SUSPICIOUS, SUSPICIOUS_FACTOR * usual):
        return ", busy"
    return f", perhaps stuck: silent for {busy:.0f} s where {usual:.2g} s are usual"
