"""The directory of a run: what it holds, who may write to it, and its log.

config.yaml  metrics.jsonl  tensorboard/  checkpoints/  distilled/  evaluation.json
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rayd.artifacts import write_bytes
from rayd.config import Recipe, read_yaml, validate
from rayd.errors import OutputError, RaydError


class RunDirectory:
    """A run's directory, locked for as long as the run has it open."""

    def __init__(self, path: Path):
        """Name the directory; nothing is touched."""
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.distilled = path / "distilled"
        self.evaluation = path / "evaluation.json"
        self._lock: IO[str] | None = None
        self._log: IO[str] | None = None
        self._board: Any = None

    def open(self, recipe: Recipe, resume: bool, overwrite: bool) -> None:
        """Claim the directory for a run.

        A new or empty directory is taken. One that holds a run is taken with `resume`, if it is the same run whatever the
        resources, or emptied with `overwrite`.

        Raises:
            OutputError: the directory is in use, cannot be written, or holds something else.
        """
        self._acquire()
        try:
            if overwrite:
                self._empty()
            if self.config.exists():
                self._continue(recipe, resume)
            elif any(entry.name != ".lock" for entry in self.path.iterdir()):
                raise OutputError(f"'{self.path}' is not empty and holds no run of rayd; choose another --out.")
            write_bytes(self.config, recipe.to_yaml().encode())
            self._log = self.metrics.open("a", encoding="utf-8")
        except OSError as error:
            self.close()
            raise OutputError(f"Cannot write into '{self.path}': {error.strerror}.") from error
        except RaydError:
            self.close()
            raise

    def _acquire(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"'{self.path}' is in use by another run; choose another --out or wait.") from error
        except OSError as error:
            raise OutputError(f"Cannot write into '{self.path}': {error.strerror}.") from error

    def _continue(self, recipe: Recipe, resume: bool) -> None:
        if not resume:
            raise OutputError(f"'{self.path}' holds a run already; add --resume to continue it, or choose another --out.")
        before = validate(Recipe, read_yaml(self.config), str(self.config))
        changed = sorted(_differences(_identity(before), _identity(recipe)))
        if changed:
            raise OutputError(f"'{self.path}' holds another run: {', '.join(changed[:5])} differ; choose another --out.")

    def _empty(self) -> None:
        if not self.config.exists() and any(entry.name != ".lock" for entry in self.path.iterdir()):
            raise OutputError(f"'{self.path}' holds no run of rayd, so --overwrite leaves it alone; choose another --out.")
        for directory in (self.tensorboard, self.checkpoints, self.distilled):
            shutil.rmtree(directory, ignore_errors=True)
        for file in (self.metrics, self.evaluation, self.config):
            file.unlink(missing_ok=True)

    def log(self, stage: str, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add a line to metrics.jsonl and scalars to TensorBoard."""
        if self._log is None:
            return
        self._log.write(json.dumps({"stage": stage, "step": step, "seconds": round(seconds, 3), **values}) + "\n")
        self._log.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{stage}/{name}", value, step)

    def finish_stage(self, stage: str, seconds: float) -> None:
        """Note that a stage is finished and how long it took."""
        if self._log is not None:
            self._log.write(json.dumps({"stage": stage, "finished": True, "seconds": round(seconds, 3)}) + "\n")
            self._log.flush()

    def finished_stages(self) -> dict[str, float]:
        """Seconds of every stage that this run, or the one it continues, has finished."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        return {entry["stage"]: entry["seconds"] for entry in entries if entry.get("finished")}

    def picture(self, name: str, step: int, image: npt.NDArray[np.uint8]) -> None:
        """Add an image (height, width, 3) to TensorBoard."""
        self.board.add_image(name, image, step, dataformats="HWC")
        self.board.flush()

    @property
    def board(self) -> Any:
        """The TensorBoard writer, made when first used."""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.tensorboard))
        return self._board

    def forget(self, stage: str, after: int) -> None:
        """Drop a stage's lines of steps that a resumed run does again."""
        if not self.metrics.exists():
            return
        kept = [line for line in self.metrics.read_text(encoding="utf-8").splitlines() if not _later(line, stage, after)]
        if self._log is not None:
            self._log.close()
        write_bytes(self.metrics, "".join(f"{line}\n" for line in kept).encode())
        self._log = self.metrics.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the log and give the directory free."""
        closers: list[Callable[[], None]] = [thing.close for thing in (self._log, self._board, self._lock) if thing is not None]
        for close in closers:
            close()
        self._log = self._board = self._lock = None


def _later(line: str, stage: str, step: int) -> bool:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return True  # the line that a crash cut off
    return bool(entry.get("stage") == stage and entry.get("step", 0) > step)


def _identity(recipe: Recipe) -> dict[str, Any]:
    """All settings that a result depends on, by dotted key."""
    tree = recipe.model_dump(mode="json", exclude={"resources", "measured", "paper", "summary", "evaluation"})
    return dict(_leaves(tree, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


def _differences(left: dict[str, Any], right: dict[str, Any]) -> set[str]:
    return {key for key in left.keys() | right.keys() if left.get(key) != right.get(key)}


def writable(path: Path) -> bool:
    """Whether this user may write at a path, or at the nearest directory above it that exists."""
    while not path.exists():
        path = path.parent
    return os.access(path, os.W_OK)
