"""Live display of a sweep: a table on a terminal, lines otherwise.

Ray Tune's own reporters print to standard output, which is reserved for a command's result, and
cannot be silenced.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray.tune import Callback
from rich.live import Live
from rich.table import Table

from rayd.artifacts import read_json
from rayd.engine import status
from rayd.engine.progress import Progress, clock
from rayd.errors import RaydError
from tuning.search import METRIC, SETTINGS
from tuning.space import ResolvedSpace

ROWS = 20
"""Maximum number of trials in the table: active ones first, then the best."""
NAMED = 4
"""Maximum number of running trials that a line describes."""
SILENCE = 30.0
"""Seconds without a line after which one describes the running trials."""
ENDED = ("finished", "stopped", "failed")


class LiveTable:
    """Display of trials; a context manager.

    Args:
        progress: display to use.
        resolved: the space.
        expected: expected number of trials.
        directory: directory of the trials, where each keeps the status of its run.
    """

    active: LiveTable | None = None
    """Receiver of Ray Tune's events: callbacks are pickled, which a terminal cannot be."""

    def __init__(self, progress: Progress, resolved: ResolvedSpace, expected: int, directory: Path):
        self._progress = progress
        self._name = resolved.space.name
        self._expected = expected
        self._directory = directory
        self._shown: dict[str, str] = {}
        self._live: Live | None = None
        self._began = time.monotonic()
        self._logged = self._began
        self._done_before: float | None = None

    def __enter__(self) -> LiveTable:
        if self._progress.console.is_terminal:
            table = self._table([], f"0 of {self._expected} done")
            self._live = Live(table, console=self._progress.console, refresh_per_second=2)
            self._live.start()
        LiveTable.active = self
        return self

    def __exit__(self, *_: object) -> None:
        LiveTable.active = None
        if self._live is not None:
            self._live.stop()

    def show(self, trials: list[Any]) -> None:
        """Show the trials as they are now."""
        states = {trial.trial_id: state(trial) for trial in trials}
        ended = sum(name in ENDED for name in states.values())
        expected = max(self._expected, len(trials))
        count = f"{ended} of {expected} done"
        left = self._left(trials, expected)
        if self._live is not None:
            self._live.update(self._table(trials, count + left))
            return
        for trial in trials:
            if (line := _line(trial)) != self._shown.get(trial.trial_id):
                self._shown[trial.trial_id] = line
                if state(trial) != "waits":
                    self._log(f"trial {trial.trial_id} ({count}{left}): {line}")
        if time.monotonic() - self._logged >= SILENCE:
            elapsed = clock(time.monotonic() - self._began)
            self._log(f"{count} after {elapsed}{left}: {self._now(trials)}")

    def _left(self, trials: list[Any], expected: int) -> str:
        """Time left, in words: none before a whole trial was computed, or once all have ended."""
        done = sum(_share(trial) for trial in trials)
        if self._done_before is None:
            # trials of a resumed sweep took their time before
            self._done_before = done
        computed = done - self._done_before
        left = expected - done
        if computed < 1 or left <= 0:
            return ""
        elapsed = time.monotonic() - self._began
        return f", about {clock(elapsed * left / computed)} left"

    def _log(self, sentence: str) -> None:
        self._logged = time.monotonic()
        self._progress.log(sentence)

    def _now(self, trials: list[Any]) -> str:
        """Description of the running trials, and the number that wait."""
        running = [trial for trial in trials if trial.status == "RUNNING"]
        parts = [f"trial {trial.trial_id} {self._activity(trial)}" for trial in running[:NAMED]]
        if len(running) > NAMED:
            parts.append(f"{len(running) - NAMED} more run")
        waiting = sum(state(trial) == "waits" for trial in trials)
        if waiting:
            parts.append(f"{waiting} waiting")
        return ", ".join(parts) or "no trial has started yet"

    def _activity(self, trial: Any) -> str:
        if _result(trial).get("fraction") == 1:
            return "ends"
        return activity(self._directory / trial.trial_id)

    def _table(self, trials: list[Any], count: str) -> Table:
        table = Table(
            title=f"{self._name}: {count}", title_justify="left", box=None, header_style="bold"
        )
        for name in ("trial", "state", "at", "validation accuracy", "seconds", "settings"):
            is_text = name in ("trial", "state", "settings")
            table.add_column(name, justify="left" if is_text else "right")
        order = sorted(
            trials,
            key=lambda trial: (trial.status != "RUNNING", -(_result(trial).get(METRIC) or 0.0)),
        )
        for trial in order[:ROWS]:
            result = _result(trial)
            numbers = ["", "", ""]
            if result:
                numbers = [
                    f"{result['fraction']:.2f}",
                    f"{result[METRIC]:.3f}",
                    f"{result['seconds']:.0f}",
                ]
            settings = words(trial.config.get(SETTINGS, {}))
            shown = state(trial)
            if shown == "runs":
                shown = self._activity(trial)
            table.add_row(trial.trial_id, shown, *numbers, settings)
        return table


def activity(folder: Path) -> str:
    """Current work of a trial, such as 'measure 3/20 shards', from the status of its latest run."""
    paths = list(folder.glob(f"run*/{status.NAME}"))
    if not paths:
        return "starts"
    try:
        found = read_json(max(paths, key=lambda path: path.stat().st_mtime))
    except (OSError, RaydError):
        # the file is being replaced
        return "runs"
    if found.get("stage") is None:
        return "reads data"
    progress = f" {found['done']:g}/{found['total']:g} {found['unit']}" if found["total"] else ""
    return f"{found['stage']}{progress}"


def state(trial: Any) -> str:
    """State of one of Ray Tune's trials."""
    if trial.status == "TERMINATED":
        return "finished" if _result(trial).get("fraction") == 1 else "stopped"
    if trial.status == "ERROR":
        return "failed"
    if trial.status != "RUNNING":
        return "waits"
    return "failed, tried again" if trial.num_failures else "runs"


def _share(trial: Any) -> float:
    """Share of a trial that is done: up to its last evaluation, or all of it."""
    return 1.0 if state(trial) in ENDED else float(_result(trial).get("fraction", 0.0))


def _result(trial: Any) -> dict[str, Any]:
    """Last evaluation of a trial; empty before the first one."""
    last = trial.last_result or {}
    return last if METRIC in last else {}


def _line(trial: Any) -> str:
    result = _result(trial)
    if not result:
        return f"{state(trial)}; {words(trial.config.get(SETTINGS, {}))}"
    return (
        f"{state(trial)} at {result['fraction']:.2f}, validation accuracy {result[METRIC]:.3f}, "
        f"{result['seconds']:.0f} s"
    )


def words(settings: dict[str, Any]) -> str:
    """Format settings as a line."""
    parts = []
    for key, value in settings.items():
        parts.append(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}")
    return ", ".join(parts)


class Events(Callback):  # type: ignore[misc]
    """Forwards Ray Tune's trials to the active display."""

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Show all trials."""
        if LiveTable.active is not None:
            LiveTable.active.show(trials)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Show all trials."""
        self.on_step_end(0, trials)
