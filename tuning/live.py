"""Live display of a sweep: a table on a terminal, lines otherwise."""

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
"""Maximum number of trials in the table: active ones first, then the best."""


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


class LiveTable:
    """Display of trials; a context manager."""

    active: LiveTable | None = None
    """Receiver of Ray Tune's events: its callbacks are pickled, but a terminal cannot be."""

    def __init__(self, progress: Progress, resolved: ResolvedSpace, expected: int):
        """Create a display.

        Args:
            progress: where to display.
            resolved: the space.
            expected: expected number of trials.
        """
        self._progress = progress
        self._resolved = resolved
        self._expected = expected
        self._lines: dict[str, _Line] = {}
        self._live: Live | None = None

    def __enter__(self) -> LiveTable:
        if self._progress.console.is_terminal:
            self._live = Live(self._table(), console=self._progress.console, refresh_per_second=2)
            self._live.start()
        LiveTable.active = self
        return self

    def __exit__(self, *_: object) -> None:
        LiveTable.active = None
        if self._live is not None:
            self._live.stop()

    def add_ended(self, trials: list[Any]) -> None:
        """Add trials that ended before the display was created, in a resumed sweep."""
        for trial in trials:
            if trial.trial_id not in self._lines and trial.status in ("TERMINATED", "ERROR"):
                state = ENDED if trial.status == "TERMINATED" else FAILED
                self._update_line(trial, state, trial.last_result or {})

    def update(self, trial: Any, state: str, judged: Mapping[str, Any] | None = None) -> None:
        """Update the state and the results of a trial."""
        line = self._update_line(trial, state, judged or trial.last_result or {})
        if self._live is not None:
            self._live.update(self._table())
            return
        text = f"trial {line.trial} ({self._count()}): {line.state}"
        if line.accuracy is not None and state != "runs":
            text += f" at {line.fraction:.2f}, validation accuracy {line.accuracy:.3f}"
            text += f", {line.seconds:.0f} s"
        self._progress.log(f"{text}; {line.settings}" if state == "runs" else text)

    def _update_line(self, trial: Any, state: str, result: Mapping[str, Any]) -> _Line:
        line = self._lines.setdefault(trial.trial_id, _Line(trial.trial_id, ""))
        line.settings = words(trial.config.get(SETTINGS, {}))
        if METRIC in result:
            line.fraction = result["fraction"]
            line.accuracy = result[METRIC]
            line.seconds = result["seconds"]
        line.state = state
        if state == ENDED:
            line.state = "finished" if line.fraction == 1 else "stopped"
        return line

    def _count(self) -> str:
        ended = sum(line.state in ("finished", "stopped", FAILED) for line in self._lines.values())
        return f"{ended} of {max(self._expected, len(self._lines))} done"

    def _table(self) -> Table:
        table = Table(
            title=f"{self._resolved.space.name}: {self._count()}",
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
    """Format settings in a line."""
    parts = []
    for key, value in settings.items():
        parts.append(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}")
    return ", ".join(parts)


class Events(Callback):  # type: ignore[misc]
    """Forwards Ray Tune's events to the active display."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show that a trial starts or continues."""
        self._forward(trials, trial, "runs")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show the result of a rung."""
        if result.get("fraction", 1) < 1:
            self._forward(trials, trial, "judged", result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show that a trial ended or was stopped."""
        self._forward(trials, trial, ENDED)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show that a trial failed."""
        self._forward(trials, trial, FAILED)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show that a failed trial is retried."""
        self._forward(trials, trial, "failed, tried again")

    def _forward(
        self, trials: list[Any], trial: Any, state: str, judged: Mapping[str, Any] | None = None
    ) -> None:
        if LiveTable.active is not None:
            LiveTable.active.add_ended(trials)
            LiveTable.active.update(trial, state, judged)
