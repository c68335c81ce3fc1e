"""What is seen of a sweep while it goes on: a table on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune import Callback
from rich.live import Live
from rich.table import Table

from rayd.engine.progress import Progress
from tuning.search import METRIC, SETTINGS
from tuning.space import ResolvedSpace

ROWS = 20
"""Trials that a terminal shows: those that go on, then the best."""


ENDED = "ended"
FAILED = "failed"


@dataclass
class _Line:
    trial: str
    settings: str
    state: str = "waits"
    fraction: float = 0.0
    accuracy: float | None = None
    seconds: float | None = None


class Board:
    """Shows trials. A context manager."""

    shown: Board | None = None
    """The one that Ray Tune's events go to: Tune pickles its callbacks, and a terminal cannot be
    pickled.
    """

    def __init__(self, progress: Progress, ground: ResolvedSpace, expected: int):
        """Show the trials of a space, about so many of them, by a reporter."""
        self._progress = progress
        self._ground = ground
        self._expected = expected
        self._lines: dict[str, _Line] = {}
        self._live: Live | None = None

    def __enter__(self) -> Board:
        if self._progress.console.is_terminal:
            self._live = Live(self._table(), console=self._progress.console, refresh_per_second=2)
            self._live.start()
        Board.shown = self
        return self

    def __exit__(self, *_: object) -> None:
        Board.shown = None
        if self._live is not None:
            self._live.stop()

    def know(self, trials: list[Any]) -> None:
        """Know those of Tune's trials that came to their end before the board was there."""
        for trial in trials:
            if trial.trial_id not in self._lines and trial.status in ("TERMINATED", "ERROR"):
                self._read(
                    trial,
                    ENDED if trial.status == "TERMINATED" else FAILED,
                    trial.last_result or {},
                )

    def publish(self, trial: Any, state: str, judged: Mapping[str, Any] | None = None) -> None:
        """Know what became of one of Tune's trials, and how it was judged."""
        line = self._read(trial, state, judged or trial.last_result or {})
        if self._live is not None:
            self._live.update(self._table())
            return
        said = f"trial {line.trial} ({self._count()}): {line.state}"
        if line.accuracy is not None and state != "runs":
            said += f" at {line.fraction:.2f}, validation accuracy {line.accuracy:.3f}, {line.seconds:.0f} s"
        self._progress.log(f"{said}; {line.settings}" if state == "runs" else said)

    def _read(self, trial: Any, state: str, result: Mapping[str, Any]) -> _Line:
        line = self._lines.setdefault(trial.trial_id, _Line(trial.trial_id, ""))
        line.settings = words(trial.config.get(SETTINGS, {}))
        if METRIC in result:
            line.fraction = result["fraction"]
            line.accuracy = result[METRIC]
            line.seconds = result["seconds"]
        line.state = state if state != ENDED else "finished" if line.fraction == 1 else "stopped"
        return line

    def _count(self) -> str:
        ended = sum(line.state in ("finished", "stopped", FAILED) for line in self._lines.values())
        return f"{ended} of {max(self._expected, len(self._lines))} done"

    def _table(self) -> Table:
        table = Table(
            title=f"{self._ground.space.name}: {self._count()}",
            title_justify="left",
            box=None,
            header_style="bold",
        )
        for name in ("trial", "state", "at", "validation accuracy", "seconds", "settings"):
            table.add_column(
                name, justify="left" if name in ("trial", "state", "settings") else "right"
            )
        order = sorted(
            self._lines.values(),
            key=lambda line: (line.state not in ("runs", "judged"), -(line.accuracy or 0.0)),
        )
        for line in order[:ROWS]:
            accuracy = "" if line.accuracy is None else f"{line.accuracy:.3f}"
            seconds = "" if line.seconds is None else f"{line.seconds:.0f}"
            table.add_row(
                line.trial, line.state, f"{line.fraction:.2f}", accuracy, seconds, line.settings
            )
        return table


def words(settings: dict[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(
        f"{key}={f'{value:.4g}' if isinstance(value, float) else value}"
        for key, value in settings.items()
    )


class Events(Callback):  # type: ignore[misc]
    """Passes Ray Tune's events on to the board that is shown."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins or goes on."""
        self._tell(trials, trial, "runs")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial was judged."""
        if result.get("fraction", 1) < 1:
            self._tell(trials, trial, "judged", result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended, or was stopped."""
        self._tell(trials, trial, ENDED)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        self._tell(trials, trial, FAILED)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed and is tried again."""
        self._tell(trials, trial, "failed, tried again")

    def _tell(
        self, trials: list[Any], trial: Any, state: str, judged: Mapping[str, Any] | None = None
    ) -> None:
        if Board.shown is not None:
            Board.shown.know(trials)
            Board.shown.publish(trial, state, judged)
