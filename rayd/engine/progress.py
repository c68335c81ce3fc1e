"""Progress display: a live view of stages, rate, time left and loss terms, or plain lines.

The live view needs a terminal; in a notebook, one output is updated. Progress of a stage is
counted in its unit (epochs, steps, shards) and, for the time left, as a share of its work: an epoch
of a thousand images is more work than one of ten. The time left starts from the forecast
(`rayd.engine.progress_forecast`) and follows the measured rate as the stage proceeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayd.engine.notebook import NotebookOutput, in_notebook
from rayd.engine.pool import WorkerPool

LINE_EVERY = 10.0
"""Seconds between lines without a terminal."""
PRIOR = 0.05
"""Fraction of a stage's work whose measured time counts as much as the forecast."""

StageState = Literal["waiting", "running", "done", "cached"]
STYLES: Mapping[StageState, str] = {
    "waiting": "dim",
    "running": "bold",
    "done": "green",
    "cached": "green",
}


@dataclass
class StageProgress:
    """The progress of one stage."""

    stage: str
    """Name of the stage."""
    total: float
    """Number of work units; may be set later, when it becomes known."""
    unit: str
    """Name of the unit, in the plural."""
    done: float = 0.0
    """Finished work units, including those of earlier runs."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """Loss terms, or other values of interest."""
    expected_seconds: float | None = None
    """Forecast of the duration of the whole stage, in seconds; None if unknown."""
    stages: StageList | None = None
    """The stages of the run."""
    share: float | None = None
    """Fraction of the work that is done, in [0, 1]; None uses the fraction of units."""
    # where this process started: earlier work took no time here
    _first: float | None = None
    _first_share: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def update(
        self,
        done: float,
        total: float | None = None,
        terms: Mapping[str, float] | None = None,
        share: float | None = None,
    ) -> None:
        """Set the finished units and other attributes that are given."""
        self.done = done
        if total is not None:
            self.total = total
        self.share = share
        # the first update shows where an earlier run stopped: its work took no time here
        if self._first is None:
            self._first = done
            self._first_share = self.fraction
        if terms is not None:
            self.terms = terms

    @property
    def fraction(self) -> float:
        """Fraction of the work that is done."""
        if self.share is not None:
            return self.share
        return self.done / self.total if self.total > 0 else 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began here."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Work units per second since the stage began here."""
        return (self.done - (self._first or 0.0)) / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time until the end of the stage, from the forecast and the measured rate.

        None where neither is known, or nothing is left.
        """
        left = 1.0 - self.fraction
        gained = self.fraction - self._first_share
        if self.total <= 0 or left <= 0:
            return None
        if self.expected_seconds is None:
            return self.elapsed / gained * left if gained > 0 else None
        # as if a fraction of PRIOR had already been done in the forecast time
        return (PRIOR * self.expected_seconds + self.elapsed) / (PRIOR + gained) * left

    @property
    def note(self) -> str:
        """The terms as text."""
        return terms_text(self.terms)

    @property
    def count(self) -> str:
        """The work units as text."""
        return f"{self.done:g}/{self.total:g} {self.unit}"

    def line(self) -> str:
        """A line of text with all available figures."""
        words = f"{self.stage}: {self.count}"
        if self.rate > 0 and self.done < self.total:
            words += f", {self.rate:.3g}/s"
        if self.done < self.total and (left := self.seconds_left) is not None:
            words += f", {clock(left)} left"
        return f"{words}, {self.note}" if self.note else words

    def summary(self) -> str:
        """A line on the stage at its end."""
        note = f", {self.note}" if self.note else ""
        return f"{self.stage}: {self.count} in {clock(self.elapsed)}{note}"


def terms_text(terms: Mapping[str, float | None]) -> str:
    """Format loss terms; a single term that equals the loss is omitted.

    >>> terms_text({"loss": 9.4, "mean": 9.4}), terms_text({"loss": 9.4, "mean": 4.7})
    ('loss 9.4', 'loss 9.4 mean 4.7')
    """
    known = {name: value for name, value in terms.items() if value is not None}
    others = [name for name in known if name != "loss"]
    if len(others) == 1 and known.get("loss") == known[others[0]]:
        del known[others[0]]
    return " ".join(f"{name} {value:.4g}" for name, value in known.items())


class StageList:
    """The stages of a run and their states."""

    def __init__(self, names: Sequence[str]):
        self.states: dict[str, StageState] = dict.fromkeys(names, "waiting")

    def begin(self, name: str) -> None:
        """Mark a stage as running; earlier ones that never began were cached."""
        for before, state in self.states.items():
            if before == name:
                break
            if state == "waiting":
                self.states[before] = "cached"
        if name in self.states:
            self.states[name] = "running"

    def end(self, name: str) -> None:
        """Mark a stage as done."""
        if name in self.states:
            self.states[name] = "done"

    def finish(self) -> None:
        """Mark the stages that never began as cached."""
        for name, state in self.states.items():
            if state == "waiting":
                self.states[name] = "cached"

    def text(self) -> str:
        """All stages in a line.

        >>> stages = StageList(["measure", "synthesize", "evaluate"])
        >>> stages.begin("synthesize")
        >>> stages.text()
        'measure cached · synthesize running · evaluate'
        """
        return stages_text(self.states)

    def __rich__(self) -> Text:
        line = Text()
        for index, (name, state) in enumerate(self.states.items()):
            line.append(" · " if index else "", "dim")
            line.append(name if state == "waiting" else f"{name} {state}", STYLES[state])
        return line


def stages_text(states: Mapping[str, str]) -> str:
    """Stages and their states in a line."""
    words = (name if state == "waiting" else f"{name} {state}" for name, state in states.items())
    return " · ".join(words)


class ProgressListener(Protocol):
    """Interface for objects that receive a run's progress, e.g. to write its status file."""

    def stage(self, meter: StageProgress) -> None:
        """Called when a stage begins; the meter is updated while it runs."""

    def pool(self, pool: WorkerPool) -> AbstractContextManager[None]:
        """A context that is entered while a pool is open."""


class Progress:
    """Shows the progress of stages on a console.

    Args:
        quiet: show nothing.
        console: where to show it; by default standard error, or the output of a notebook's cell.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None):
        is_notebook = console is None and not quiet and in_notebook()
        self._notebook = NotebookOutput() if is_notebook else None
        self.console = console or Console(stderr=True, highlight=False, quiet=quiet)
        self._listeners: list[ProgressListener] = []
        self._stages: StageList | None = None

    @property
    def is_shown(self) -> bool:
        """Whether progress is shown, so that a forecast is useful."""
        return not self.console.quiet

    def log(self, sentence: str) -> None:
        """Print a line."""
        if self._notebook is not None:
            self._notebook.log(sentence)
            return
        self.console.print(sentence, markup=False, soft_wrap=True)

    def wait_logger(self, stage: str, unit: str) -> Callable[[int], None]:
        """A callback that logs the number of items of a stage that other runs are computing."""

        def on_wait(count: int) -> None:
            self.log(f"{stage}: waiting for {count} {unit} that another run is computing")

        return on_wait

    @contextmanager
    def attached(self, listener: ProgressListener) -> Iterator[None]:
        """Context in which every stage and worker pool is reported to a listener."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    @contextmanager
    def workers(self, pool: WorkerPool) -> Iterator[None]:
        """Context in which a worker pool is reported to the listeners."""
        with ExitStack() as stack:
            for listener in self._listeners:
                stack.enter_context(listener.pool(pool))
            yield

    @contextmanager
    def stages(self, names: Sequence[str]) -> Iterator[None]:
        """Context in which the stages of a run are shown together."""
        before = self._stages
        self._stages = StageList(names)
        try:
            yield
            self._stages.finish()
            if set(self._stages.states.values()) == {"cached"}:
                self.log(f"stages: {self._stages.text()}")
        finally:
            self._stages = before

    @contextmanager
    def stage(
        self, name: str, total: float, unit: str, expected_seconds: float | None = None
    ) -> Iterator[StageDisplay]:
        """Context in which the progress of a stage is shown.

        Args:
            name: of the stage.
            total: number of work units; 0 while it is unknown, when nothing is shown.
            unit: name of the unit, in the plural.
            expected_seconds: forecast of the stage in seconds; None if unknown.
        """
        if self._stages is not None:
            self._stages.begin(name)
        meter = StageProgress(
            name, total, unit, expected_seconds=expected_seconds, stages=self._stages
        )
        for listener in self._listeners:
            listener.stage(meter)
        if self._notebook is not None:
            in_cell = _NotebookDisplay(meter, self._notebook)
            try:
                yield in_cell
            finally:
                in_cell.finish()
        elif not self.console.is_terminal:
            if self._stages is not None:
                self.log(f"stages: {self._stages.text()}")
            shown = StageDisplay(meter) if self.console.quiet else _LineDisplay(meter, self)
            yield shown
            shown.finish()
        else:
            with Live(
                _TerminalView(meter), console=self.console, refresh_per_second=4, transient=True
            ):
                yield StageDisplay(meter)
            if meter.total > 0:
                self.log(meter.summary())
        if self._stages is not None:
            self._stages.end(name)


class StageDisplay:
    """Updates the progress of a stage; subclasses show it."""

    def __init__(self, meter: StageProgress):
        self.meter = meter

    def update(
        self,
        done: float,
        total: float | None = None,
        terms: Mapping[str, float] | None = None,
        share: float | None = None,
    ) -> None:
        """Update and show the progress; see `StageProgress`."""
        self.meter.update(done, total, terms, share)
        self.show()

    def show(self) -> None:
        """Show the progress."""

    def finish(self) -> None:
        """Show the progress one last time."""


class _TerminalView:
    """Live view: the stages of a run, the bar of the current one, and its loss terms."""

    def __init__(self, meter: StageProgress):
        self._meter = meter

    def __rich__(self) -> RenderableType:
        meter = self._meter
        lines: list[RenderableType] = [] if meter.stages is None else [meter.stages]
        if meter.total > 0:
            left = meter.seconds_left
            row = Table.grid(padding=(0, 2), expand=True)
            row.add_column(no_wrap=True)
            # on narrow terminals, shrink the bar instead of the numbers
            row.add_column(ratio=1, max_width=40)
            cells: list[RenderableType] = [
                meter.stage,
                ProgressBar(total=1.0, completed=min(1.0, meter.fraction), width=None),
                meter.count,
                f"{meter.rate:.3g}/s" if meter.rate > 0 else "",
                f"{clock(left)} left" if left is not None else clock(meter.elapsed),
            ]
            for _ in cells[2:]:
                row.add_column(no_wrap=True)
            row.add_row(*cells)
            lines.append(row)
        if meter.note:
            lines.append(Text(meter.note, "dim", no_wrap=True, overflow="ellipsis"))
        return Lines(*lines)


class _LineDisplay(StageDisplay):
    """Logs a line every `LINE_EVERY` seconds."""

    def __init__(self, meter: StageProgress, progress: Progress):
        super().__init__(meter)
        self._progress = progress
        self._last = time.monotonic()
        self._last_line = ""

    def show(self) -> None:
        if time.monotonic() - self._last >= LINE_EVERY:
            self._log()

    def finish(self) -> None:
        if self.meter.total > 0:
            self._log()

    def _log(self) -> None:
        self._last = time.monotonic()
        line = self.meter.line()
        if line != self._last_line:
            self._progress.log(line)
            self._last_line = line


class _NotebookDisplay(StageDisplay):
    """Rewrites the output of a notebook's cell."""

    def __init__(self, meter: StageProgress, output: NotebookOutput):
        super().__init__(meter)
        self._output = output

    def show(self) -> None:
        stages = "" if self.meter.stages is None else f"{self.meter.stages.text()}\n"
        if self.meter.total > 0:
            self._output.show(f"{stages}{self.meter.line()}", min(1.0, self.meter.fraction))

    def finish(self) -> None:
        self._output.end(self.meter.summary() if self.meter.total > 0 else "")


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
