"""The log of a run: metrics.jsonl, with a line per logged step, and the same in TensorBoard.

If the run is at a URL, metrics.jsonl is uploaded at most every `SEND_SECONDS`, and the whole log at
the end of every stage: a run that is resumed on another machine may lack the last lines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayd import remote
from rayd.artifacts import write_bytes
from rayd.engine.peak import PeakMemory
from rayd.errors import RunError

SEND_SECONDS = 10.0


class RunLog:
    """Appends to a run's log; a line that was truncated by a crash is dropped on opening.

    Args:
        metrics: path of metrics.jsonl.
        tensorboard: directory of the event files.

    Raises:
        RunError: they cannot be written.
    """

    def __init__(self, metrics: Path, tensorboard: Path):
        self._path = metrics
        self._tensorboard = tensorboard
        self._board = None
        with self._writing():
            self._entries = logged(metrics)
            self._rewrite()

    def step(self, stage: str, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Log a step of a stage, with the seconds since its start and values such as loss terms."""
        self._append({"stage": stage, "step": step, "seconds": round(seconds, 3), **values})
        with self._writing():
            self._add_scalars(stage, step, values)
            # flush, to be as complete as metrics.jsonl if the run is killed and resumed
            self.board.flush()

    def spend(
        self, stage: str, seconds: float, finished: bool, peak: PeakMemory | None = None
    ) -> None:
        """Log the time that a stage took in this process, and whether it finished.

        Args:
            stage: its name.
            seconds: its duration.
            finished: whether it came to its end.
            peak: most memory that a process of the run held by then.
        """
        entry: dict[str, Any] = {"stage": stage, "finished": finished, "seconds": round(seconds, 3)}
        if peak is not None:
            entry["peak_memory"] = peak.host
            if peak.gpu:
                entry["peak_gpu_memory"] = peak.gpu
        self._append(entry)
        if finished:
            self._sort(stage)
        if self._board is not None:
            # errors of TensorBoard's writer thread, such as a full disk, are raised here
            with self._writing():
                self._board.flush()
        self._send(self._path, *(path for path in self._tensorboard.rglob("*") if path.is_file()))

    def spent(self) -> dict[str, float]:
        """Seconds of every stage, summed over all processes of the run."""
        total: dict[str, float] = {}
        for entry in self._entries:
            if "finished" in entry:
                total[entry["stage"]] = total.get(entry["stage"], 0.0) + entry["seconds"]
        return total

    def forget(self, stage: str, kept: Callable[[int], bool]) -> None:
        """Drop a stage's steps that a resumed run will repeat: those that are not `kept`."""

        def stays(entry: dict[str, Any]) -> bool:
            return entry["stage"] != stage or "step" not in entry or kept(entry["step"])

        entries = [entry for entry in self._entries if stays(entry)]
        if len(entries) == len(self._entries):
            return
        self._entries = entries
        with self._writing():
            self._file.close()
            self._rewrite()
            self._drop_events(stage, kept)

    def picture(self, name: str, step: int, image: npt.NDArray[np.uint8]) -> None:
        """Add an image (height, width, 3) to TensorBoard."""
        with self._writing():
            self.board.add_image(name, image, step, dataformats="HWC")
            self.board.flush()

    def close(self) -> None:
        """Close the files; a full disk has raised errors when lines were written."""
        for file in (self._file, self._board):
            with suppress(OSError):
                if file is not None:
                    file.close()

    @property
    def board(self) -> Any:
        """The TensorBoard writer, created on first use."""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._tensorboard))
        return self._board

    def _add_scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(f"{stage}/{name}", value, step)

    def _sort(self, stage: str) -> None:
        """Order a stage's scalars in TensorBoard by step.

        Parallel blocks log in turn, and TensorBoard does not show points that are followed by a
        smaller step.
        """
        lines = [entry for entry in self._entries if entry["stage"] == stage and "step" in entry]
        in_order = sorted(lines, key=lambda entry: int(entry["step"]))
        if lines == in_order:
            return
        with self._writing():
            self._drop_events(stage, lambda _: False)
            for entry in in_order:
                values = dict(entry)
                for name in ("stage", "step", "seconds"):
                    del values[name]
                self._add_scalars(stage, entry["step"], values)

    def _drop_events(self, stage: str, kept: Callable[[int], bool]) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None
        for path in sorted(self._tensorboard.glob("events.*")):
            _drop_events(path, stage, kept)

    def _append(self, entry: dict[str, Any]) -> None:
        self._entries.append(entry)
        with self._writing():
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        if time.monotonic() - self._sent >= SEND_SECONDS:
            self._send(self._path)

    def _rewrite(self) -> None:
        write_bytes(
            self._path, "".join(json.dumps(entry) + "\n" for entry in self._entries).encode()
        )
        self._file = self._path.open("a", encoding="utf-8")
        self._sent = time.monotonic()

    def _send(self, *paths: Path) -> None:
        for path in paths:
            remote.send(path, path)
        self._sent = time.monotonic()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"Cannot write the log '{self._path}': {error.strerror or error}."
            ) from error


def _drop_events(path: Path, stage: str, kept: Callable[[int], bool]) -> None:
    """Rewrite a file of TensorBoard without the scalars of a stage's steps that are not `kept`."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    # written as a whole at the end, so that a crash leaves either the old or the new file
    buffer = BytesIO()
    writer = RecordWriter(buffer)
    for record in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(record)
        of_stage = any(value.tag.startswith(f"{stage}/") for value in event.summary.value)
        if not of_stage or kept(event.step):
            writer.write(record)
    write_bytes(path, buffer.getvalue())


def logged(path: Path) -> list[dict[str, Any]]:
    """The readable lines of metrics.jsonl; none if there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [entry for entry in map(_entry, lines) if entry is not None]


def _entry(line: str) -> dict[str, Any] | None:
    """Parse a line of the log; None for one that was truncated by a crash, or is something else."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("stage"), str):
        return None
    return entry if isinstance(entry.get("seconds"), int | float) else None
