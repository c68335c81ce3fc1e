"""The synthetic set of a run: its card, and its files in the run's directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from rayd.closable import Closable
from rayd.distilled import Distilled
from rayd.engine import card
from rayd.engine.arithmetic import Hardware
from rayd.engine.job import Job
from rayd.engine.stages.experts import Experts
from rayd.engine.stages.measure import Measure
from rayd.engine.stages.rank import Rank
from rayd.engine.stages.squeeze import Squeeze
from rayd.synthetic import SyntheticSet

AT_ONCE = 1.0
"""Seconds within which a small set is written."""


class SetWriter(Closable):
    """Adds cards to sets and writes them, large ones in the background.

    A context manager, whose exit waits until everything is written, also after an error.

    Args:
        job: the run.
        directory: of the set.
        synthesis: hash of everything that the set depends on.
        hardware: the device that computes it.
    """

    def __init__(self, job: Job, directory: Path, synthesis: str, hardware: Hardware):
        self._job = job
        self._directory = directory
        self._synthesis = synthesis
        self._hardware = hardware
        self._thread = ThreadPoolExecutor(1, "rayd-save")
        self._writes: list[Future[None]] = []
        self._is_card_new = False

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Devices that compute the set and its parts, or, for a cached set, that computed them."""
        stages = (Squeeze(self._job), Experts(self._job), Measure(self._job), Rank(self._job))
        parts = {stage.name: stage.devices() for stage in stages}
        return card.origin(self._hardware, self._job.recipe.resources, parts)

    @cached_property
    def _experts(self) -> dict[str, Any] | None:
        return Experts(self._job).facts_for_card()

    def with_card(
        self, learned: SyntheticSet, observers: Sequence[Mapping[str, Any]] = ()
    ) -> Distilled:
        """A set with its card.

        Args:
            learned: the set, finished or not.
            observers: facts of the trained observers.
        """
        data = self._job.data
        facts = card.card(
            self._job.method,
            data,
            learned,
            synthesis=self._synthesis,
            observers=observers,
            experts=self._experts,
            origin=self.origin,
        )
        settings = self._job.recipe.synthetic
        distilled = Distilled.of(learned, settings, data.class_names, data.normalization, facts)
        distilled.card["pixel_range"] = asdict(distilled.pixel_range)
        return distilled

    def write(self, distilled: Distilled) -> None:
        """Start to write a set: a small one immediately, a large one in the background.

        Only later commands read it from the directory.
        """
        self.write_beside(lambda: distilled.save(self._directory))
        with suppress(TimeoutError):
            self._writes[-1].result(AT_ONCE)

    def write_beside(self, write: Callable[[], None]) -> None:
        """Write something in the background, after everything else that is being written."""
        self._writes.append(self._thread.submit(write))

    def add_to_card(self, distilled: Distilled, facts: Mapping[str, Any]) -> None:
        """Add facts to the card of a set, whose file `finish` writes again if they are new."""
        if any(distilled.card.get(name) != value for name, value in facts.items()):
            distilled.card |= facts
            self._is_card_new = True

    def finish(self, distilled: Distilled, *, wait: bool = True) -> None:
        """Rewrite the card if facts were added, after the set itself.

        Args:
            distilled: the set.
            wait: wait for a set that is still being written; otherwise a later call does it.
        """
        if not wait and not all(write.done() for write in self._writes):
            return
        for write in self._writes:
            write.result()
        if self._is_card_new:
            distilled.save_card()
            self._is_card_new = False

    def close(self) -> None:
        """Wait until everything is written."""
        self._thread.shutdown(wait=True)
