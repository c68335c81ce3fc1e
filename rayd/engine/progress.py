"""Progress of long work: a bar with rate, time left and loss terms on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rayd.engine.group import Group

LINE_EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


@dataclass
class Meter:
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
    """Loss terms, or whatever else tells how it goes."""
    _first: float | None = None
    _began: float = field(default_factory=time.monotonic)

    def update(self, done: float, total: float | None = None, terms: Mapping[str, float] | None = None) -> None:
        """Say how far the stage is."""
        self._first = done if self._first is None else self._first
        self.done, self.total = done, self.total if total is None else total
        if terms is not None:
            self.terms = terms

    @property
    def note(self) -> str:
        """The terms in words."""
        return " ".join(f"{name} {value:.4g}" for name, value in self.terms.items())

    @property
    def rate(self) -> float:
        """Work units a second since the stage began here."""
        elapsed = time.monotonic() - self._began
        return (self.done - (self._first or 0.0)) / elapsed if elapsed > 0 else 0.0

    def line(self) -> str:
        """The state in words."""
        words = f"{self.stage}: {self.done:g}/{self.total:g} {self.unit}"
        if self.rate > 0 and self.done < self.total:
            words += f", {self.rate:.3g}/s, {clock((self.total - self.done) / self.rate)} left"
        return f"{words}, {self.note}" if self.note else words


class Watcher(Protocol):
    """Whoever else wants to know how a run goes."""

    def stage(self, meter: Meter) -> None:
        """A stage begins, and will tell by its meter how far it is."""

    def group(self, group: Group) -> AbstractContextManager[None]:
        """A group works while the block runs."""


class Reporter:
    """Shows meters on standard error; `quiet` shows nothing."""

    def __init__(self, quiet: bool = False, console: Console | None = None):
        """Report to a console, standard error unless given."""
        self.console = console or Console(stderr=True, highlight=False, quiet=quiet)
        self._watchers: list[Watcher] = []

    def say(self, sentence: str) -> None:
        """A line of its own."""
        self.console.print(sentence, markup=False, soft_wrap=True)

    def waiting(self, stage: str, unit: str) -> Callable[[int], None]:
        """Whom to tell how many pieces of a stage other runs are making, which this one waits for."""

        def told(count: int) -> None:
            self.say(f"{stage}: waiting for {count} {unit} that another run is making")

        return told

    @contextmanager
    def watched(self, watcher: Watcher) -> Iterator[None]:
        """Let somebody else see every stage and every group of workers while the block runs."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)

    @contextmanager
    def workers(self, group: Group) -> Iterator[None]:
        """Let those who watch see a group while the block runs."""
        with ExitStack() as stack:
            for watcher in self._watchers:
                stack.enter_context(watcher.group(group))
            yield

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Shown]:
        """Show the progress of one stage while the block runs."""
        meter = Meter(name, total, unit)
        for watcher in self._watchers:
            watcher.stage(meter)
        if not self.console.is_terminal:
            shown: Shown = _Lines(meter, self)
            yield shown
            shown.finish()
            return
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(name, total=total, rate="", note="")
            yield _Bar(meter, bar, task)


class Shown:
    """A meter that is shown whenever it changes."""

    def __init__(self, meter: Meter):
        self.meter = meter

    def update(self, done: float, total: float | None = None, terms: Mapping[str, float] | None = None) -> None:
        """Say how far the stage is."""
        self.meter.update(done, total, terms)
        self.show()

    def show(self) -> None:
        """Show the meter."""

    def finish(self) -> None:
        """Show it a last time."""


class _Bar(Shown):
    def __init__(self, meter: Meter, bar: Progress, task: object):
        super().__init__(meter)
        self._bar, self._task = bar, task

    def show(self) -> None:
        meter = self.meter
        rate = f"{meter.rate:.3g} {meter.unit}/s"
        self._bar.update(self._task, completed=meter.done, total=meter.total, rate=rate, note=meter.note)  # type: ignore[arg-type]


class _Lines(Shown):
    def __init__(self, meter: Meter, reporter: Reporter):
        super().__init__(meter)
        self._reporter, self._last, self._said = reporter, time.monotonic(), ""

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
            self._reporter.say(line)
            self._said = line


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
