"""Progress of long work: on a terminal a picture of the stages with a bar, rate, time left and loss
terms; plain lines elsewhere.

How far a stage is, is counted in what people count (epochs, steps, shards) and, for the time that
is left, as a share of its work: an epoch of a thousand images is more of it than one of ten. The
time left begins with what was foreseen (`rayd.engine.plan`) and follows the measured rate as work
is done.
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

from rayd.engine.pool import WorkerPool

LINE_EVERY = 10.0
"""Seconds between two lines where there is no terminal."""
PRIOR = 0.05
"""Share of a stage's work whose measured time counts as much as the time that was foreseen."""

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
    """Its name."""
    total: float
    """Work units in all; may be set when it becomes known."""
    unit: str
    """What is counted."""
    done: float = 0.0
    """Work units finished, those of earlier runs included."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """Loss terms, or whatever else describes the work."""
    foreseen: float | None = None
    """Seconds that the whole stage should take; absent where that is not known."""
    stages: StageList | None = None
    """The stages of the run."""
    share: float | None = None
    """Share of the work that is done, in [0, 1]; absent: that of the units."""
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
        """Set how far the stage is."""
        self.done, self.total = done, self.total if total is None else total
        self.share = share
        if self._first is None:
            self._first, self._first_share = done, self._share
        if terms is not None:
            self.terms = terms

    @property
    def _share(self) -> float:
        if self.share is not None:
            return self.share
        return self.done / self.total if self.total > 0 else 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began here."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Work units a second since the stage began here."""
        return (self.done - (self._first or 0.0)) / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time until the stage is done: from the rate of its work here, and what was foreseen
        before there is one. None where neither is known, or nothing is left.
        """
        left = 1.0 - self._share
        gained = self._share - self._first_share
        if self.total <= 0 or left <= 0:
            return None
        if self.foreseen is None:
            return self.elapsed / gained * left if gained > 0 else None
        # as if a share of PRIOR had been done before, in the time that was foreseen for it
        return (PRIOR * self.foreseen + self.elapsed) / (PRIOR + gained) * left

    @property
    def note(self) -> str:
        """The terms in words."""
        return terms_text(self.terms)

    @property
    def count(self) -> str:
        """The work units in words."""
        return f"{self.done:g}/{self.total:g} {self.unit}"

    def line(self) -> str:
        """The state in words."""
        words = f"{self.stage}: {self.count}"
        if self.rate > 0 and self.done < self.total:
            words += f", {self.rate:.3g}/s"
        if self.done < self.total and (left := self.seconds_left) is not None:
            words += f", {clock(left)} left"
        return f"{words}, {self.note}" if self.note else words


def terms_text(terms: Mapping[str, float | None]) -> str:
    """Loss terms in words; a loss that is its only term is not said twice.

    >>> terms_text({"loss": 9.4, "mean": 9.4}), terms_text({"loss": 9.4, "mean": 4.7})
    ('loss 9.4', 'loss 9.4 mean 4.7')
    """
    known = {name: value for name, value in terms.items() if value is not None}
    others = [name for name in known if name != "loss"]
    if len(others) == 1 and known.get("loss") == known[others[0]]:
        del known[others[0]]
    return " ".join(f"{name} {value:.4g}" for name, value in known.items())


class StageList:
    """The stages of a run, and which of them are done."""

    def __init__(self, names: Sequence[str]):
        """None has begun."""
        self.states: dict[str, StageState] = dict.fromkeys(names, "waiting")

    def begin(self, name: str) -> None:
        """A stage begins; those before it that did not were found in the cache."""
        for before, state in self.states.items():
            if before == name:
                break
            if state == "waiting":
                self.states[before] = "cached"
        if name in self.states:
            self.states[name] = "running"

    def end(self, name: str) -> None:
        """A stage is done."""
        if name in self.states:
            self.states[name] = "done"

    def finish(self) -> None:
        """The run is done."""
        for name, state in self.states.items():
            if state == "waiting":
                self.states[name] = "cached"

    def text(self) -> str:
        """All of them in a line.

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
    """What else follows the progress of a run."""

    def stage(self, meter: StageProgress) -> None:
        """A stage begins; its meter is updated as it goes on."""

    def pool(self, pool: WorkerPool) -> AbstractContextManager[None]:
        """A group works while the block runs."""


class Progress:
    """Shows meters on standard error; `quiet` shows nothing."""

    def __init__(self, quiet: bool = False, console: Console | None = None):
        """Report to a console, standard error unless given."""
        self.console = console or Console(stderr=True, highlight=False, quiet=quiet)
        self._watchers: list[ProgressListener] = []
        self._stages: StageList | None = None

    @property
    def followed(self) -> bool:
        """Whether progress is shown, so that a forecast is of use."""
        return not self.console.quiet

    def log(self, sentence: str) -> None:
        """A line of its own."""
        self.console.print(sentence, markup=False, soft_wrap=True)

    def waiting(self, stage: str, unit: str) -> Callable[[int], None]:
        """A function that reports how many pieces of a stage other runs are making, which this one
        waits for.
        """

        def told(count: int) -> None:
            self.log(f"{stage}: waiting for {count} {unit} that another run is making")

        return told

    @contextmanager
    def watched(self, watcher: ProgressListener) -> Iterator[None]:
        """Let something else follow every stage and every group of workers while the block runs."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)

    @contextmanager
    def workers(self, pool: WorkerPool) -> Iterator[None]:
        """Let those who watch see a group while the block runs."""
        with ExitStack() as stack:
            for watcher in self._watchers:
                stack.enter_context(watcher.pool(pool))
            yield

    @contextmanager
    def stages(self, names: Sequence[str]) -> Iterator[None]:
        """Show the stages of one run as one picture while the block runs."""
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
        self, name: str, total: float, unit: str, foreseen: float | None = None
    ) -> Iterator[Shown]:
        """Show the progress of one stage while the block runs.

        Args:
            name: of the stage.
            total: work units in all; 0 while it is not known, when nothing is shown.
            unit: what they are.
            foreseen: seconds that the stage should take, where that is known.
        """
        if self._stages is not None:
            self._stages.begin(name)
        meter = StageProgress(name, total, unit, foreseen=foreseen, stages=self._stages)
        for watcher in self._watchers:
            watcher.stage(meter)
        if not self.console.is_terminal:
            if self._stages is not None:
                self.log(f"stages: {self._stages.text()}")
            shown = Shown(meter) if self.console.quiet else _Lines(meter, self)
            yield shown
            shown.finish()
        else:
            with Live(_Picture(meter), console=self.console, refresh_per_second=4, transient=True):
                yield Shown(meter)
            if meter.total > 0:
                note = f", {meter.note}" if meter.note else ""
                self.log(f"{name}: {meter.count} in {clock(meter.elapsed)}{note}")
        if self._stages is not None:
            self._stages.end(name)


class Shown:
    """A meter that is shown when it changes."""

    def __init__(self, meter: StageProgress):
        self.meter = meter

    def update(
        self,
        done: float,
        total: float | None = None,
        terms: Mapping[str, float] | None = None,
        share: float | None = None,
    ) -> None:
        """Set how far the stage is; `share` is that of its work, where units are unlike."""
        self.meter.update(done, total, terms, share)
        self.show()

    def show(self) -> None:
        """Show the meter."""

    def finish(self) -> None:
        """Show it a last time."""


class _Picture:
    """The stages of a run, the bar of the present one, and its loss terms: a line each."""

    def __init__(self, meter: StageProgress):
        self._meter = meter

    def __rich__(self) -> RenderableType:
        meter = self._meter
        lines: list[RenderableType] = [] if meter.stages is None else [meter.stages]
        if meter.total > 0:
            share = meter.done / meter.total if meter.share is None else meter.share
            left = meter.seconds_left
            row = Table.grid(padding=(0, 2), expand=True)
            row.add_column(no_wrap=True)
            # the bar gives way, the numbers do not
            row.add_column(ratio=1, max_width=40)
            cells: list[RenderableType] = [
                meter.stage,
                ProgressBar(total=1.0, completed=min(1.0, share), width=None),
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


class _Lines(Shown):
    def __init__(self, meter: StageProgress, progress: Progress):
        super().__init__(meter)
        self._progress = progress
        self._last = time.monotonic()
        self._said = ""

    def show(self) -> None:
        if time.monotonic() - self._last >= LINE_EVERY:
            self._say()

    def finish(self) -> None:
        if self.meter.total > 0:
            self._say()

    def _say(self) -> None:
        self._last = time.monotonic()
        line = self.meter.line()
        if line != self._said:
            self._progress.log(line)
            self._said = line


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
