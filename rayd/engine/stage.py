"""Stages of a run: independent work items, each computed once and kept in the store.

A stage defines its items, the cache key of an item, how a worker computes it, and how the result is
saved and loaded. `Stage.run` does the rest for all stages: it loads results that the store holds,
waits for items that another run is computing, has the workers compute all others, saves them, and
reports progress.

To add a stage: a subclass of `TaskStage` in `rayd/engine/stages/`, a generator method of
`rayd.engine.worker.Worker` that computes an item (`task`), and its place in `rayd.engine.driver`
(the call and `_stage_names`) and in the plan (`rayd.engine.plan`). Its `key` must contain
everything that determines the result. New settings are part of `Recipe.identity`, the key of the
synthetic set, automatically; add their defaults to `rayd.config.recipe.NOT_KEYED`, so that earlier
results are still found.

Workers. A run has `resources.workers` of them, in one pool for all stages (`rayd.engine.open_pool`);
with 0 this process does the work. How many of them a stage uses depends on how it divides its work:

    squeeze             networks; with `squeeze.workers` above 1 a team of workers trains each, one
                        after another (`stages.squeeze.together` and `trainers`)
    experts             experts; of small ones several on a GPU (`gpu_sharing.processes`)
    measure             observers, or shards of the real images (`stages.measure.teams`, `_alone`)
    score, rank         classes; networks
    synthesize          blocks that do not depend on each other, one a worker; of other blocks the
                        tasks of a step (`gradients.base.tasks_per_step`), handed out by a synthesizer
                        in the first worker (`stages.blocks.place_synthesizer`)
    relabel             chunks of epochs
    evaluate            students; of small ones several on a GPU. With `evaluation.workers` above 1 a
                        team trains each, several teams at a time (`stages.students.team_of_student`,
                        `students_at_a_time`)

Plans assume the number of workers that items can keep busy (`Job.parallel`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from torch import Tensor

from rayd.engine.job import Job
from rayd.engine.pool import TaskStream
from rayd.engine.progress import StageDisplay
from rayd.engine.rundir import check_writable
from rayd.engine.stage_cost import StageCost
from rayd.engine.work_queue import WorkQueue, run_once
from rayd.training.progress import EpochProgress

if TYPE_CHECKING:
    from rayd.engine.costs import Costs

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


class Stage(ABC, Generic[Item, Result]):
    """One kind of work of a run.

    Subclasses set the class attributes and implement `items`, `key`, `save`, `find` and `compute`;
    those whose items are computed one by one derive from `TaskStage`, which has `compute`.
    """

    name: ClassVar[str]
    """Name of the stage in progress, status and plan."""
    folder: ClassVar[str]
    """Folder of its results in the store."""
    unit: ClassVar[str]
    """Unit of progress, e.g. `epochs`."""
    noun: ClassVar[str]
    """Name of the items in messages, e.g. `observers`."""

    def __init__(self, job: Job):
        """Create the stage; nothing is computed yet."""
        self.job = job
        self._results: dict[Item, Result] = {}

    @abstractmethod
    def items(self) -> Sequence[Item]:
        """The work items of the run, cached or not."""

    @abstractmethod
    def key(self, item: Item) -> Mapping[str, Any]:
        """Everything that determines the result of an item, JSON-able."""

    @abstractmethod
    def save(self, item: Item, result: Any) -> Result:
        """Save the result of a worker; return it as `find` would."""

    @abstractmethod
    def find(self, item: Item) -> Result | None:
        """The saved result of an item; None if it is missing or damaged."""

    def cost(self, costs: Costs) -> StageCost | None:
        """The remaining work, counted in operations; None if the run does not have this stage."""
        return None

    def units(self, item: Item) -> int:
        """Number of units of progress of an item."""
        return 1

    def paths(self, item: Item) -> Sequence[Path]:
        """Files of the result, which are locked while it is computed."""
        return [self.job.store.path(self.folder, self.key(item), "safetensors")]

    def devices(self) -> list[str]:
        """Kinds of device that computed the results in the store, sorted: `["cpu", "cuda"]`."""
        made = {device for item in self.items() if (device := self.device(item)) is not None}
        return sorted(made)

    def device(self, item: Item) -> str | None:
        """Kind of device that computed, or would compute, the result of an item; None if results do
        not depend on it.
        """
        found = self.job.store.resolve(self.folder, self.key(item), "safetensors")
        device: str | None = found.get("device")
        return device

    def result(self, item: Item) -> Result | None:
        """The result of an item if available; read from the store at most once."""
        if item not in self._results:
            found = self.find(item)
            if found is None:
                return None
            self._results[item] = found
        return self._results[item]

    def is_cached(self, item: Item) -> bool:
        """Whether an item's result is available."""
        return self.result(item) is not None

    def missing(self) -> list[Item]:
        """The items without a result."""
        return [item for item in self.items() if not self.is_cached(item)]

    def results(self) -> dict[Item, Result]:
        """All available results."""
        known = {}
        for item in self.items():
            result = self.result(item)
            if result is not None:
                known[item] = result
        return known

    def run(
        self,
        pool: TaskStream,
        shown: StageDisplay | None = None,
        on_wait: Callable[[int], None] = lambda _: None,
        weight: Callable[[Item], float] | None = None,
    ) -> dict[Item, Result]:
        """Compute the missing items and return all results.

        Args:
            pool: hosts `Worker`.
            shown: where progress is shown.
            on_wait: called with the number of items that other runs are computing, when nothing
                else is left to do.
            weight: work per unit of an item, if units differ between items.

        Raises:
            OutputError: results are missing and cannot be written into the store.
        """
        missing = self.missing()
        if missing:
            # before the work; a read-only store can still provide the results that it holds
            check_writable(self.job.store.root, "cache")
        progress = ItemProgress(shown, {item: self.units(item) for item in missing}, weight)

        def compute(queue: WorkQueue[Item]) -> None:
            for item in missing:
                if self.is_cached(item):
                    progress.finish(item)
            self.compute(pool, queue, progress)

        run_once(missing, self.is_cached, self.paths, compute, on_wait)
        return self.results()

    @abstractmethod
    def compute(
        self, pool: TaskStream, queue: WorkQueue[Item], progress: ItemProgress[Item]
    ) -> None:
        """Compute the items of a queue, and `keep` each.

        An item is locked when it is taken from the queue; `queue.done` releases it once it is
        saved.
        """

    def keep(self, item: Item, result: Any) -> None:
        """Save the result of an item, and cache it."""
        self._results[item] = self.save(item, result)


class TaskStage(Stage[Item, Result]):
    """A stage whose items are tasks of workers, computed as workers become free.

    Subclasses set `task` and implement `tasks` beside what every stage has.
    """

    task: ClassVar[str]
    """The generator method of a worker that computes an item."""

    @abstractmethod
    def tasks(self, pool: TaskStream, items: Iterator[Item]) -> Iterator[tuple[Any, ...]]:
        """The arguments of the worker's method for each item; values for all are shared first.

        Items are locked as they are taken from the iterator, so take one only when a worker is
        free.
        """

    def collect(self, item: Item, event: Any) -> Any | None:
        """Process an event other than progress; return the result once it is complete."""
        return event

    def compute(
        self, pool: TaskStream, queue: WorkQueue[Item], progress: ItemProgress[Item]
    ) -> None:
        """Compute the items of a queue as workers become free."""
        for index, event in pool.stream(self.task, self.tasks(pool, queue)):
            item = queue.made[index]
            if isinstance(event, EpochProgress):
                progress.update(item, event.epoch)
                continue
            result = self.collect(item, event)
            if result is not None:
                self.keep(item, result)
                queue.done(item)
                progress.finish(item)


class TensorStage(TaskStage[Item, dict[str, Tensor]]):
    """A stage whose results are tensors by name."""

    def save(self, item: Item, result: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, in a file of the store."""
        self.job.store.put_tensors(self.folder, self.key(item), result)
        return result

    def find(self, item: Item) -> dict[str, Tensor] | None:
        """The tensors of the store."""
        return self.job.store.tensors(self.folder, self.key(item))


class ItemProgress(Generic[Item]):
    """Progress of a stage: finished units of all items, and the fraction of the work."""

    def __init__(
        self,
        shown: StageDisplay | None,
        units: Mapping[Item, int],
        weight: Callable[[Item], float] | None = None,
    ):
        """Start at zero.

        Args:
            shown: where progress is shown; None shows nothing.
            units: of each item.
            weight: work per unit of an item; None weights all units equally.
        """
        self._shown = shown
        self._units = units
        self._done: dict[Item, int] = dict.fromkeys(units, 0)
        self._weights = {} if weight is None else {item: weight(item) for item in units}
        self._show()

    def update(self, item: Item, done: int) -> None:
        """Set the number of finished units of an item."""
        self._done[item] = done
        self._show()

    def finish(self, item: Item) -> None:
        """Count an item as done."""
        self.update(item, self._units[item])

    def done(self, item: Item) -> int:
        """Number of finished units of an item."""
        return self._done[item]

    def _show(self) -> None:
        if self._shown is None:
            return
        work = sum(weight * self._units[item] for item, weight in self._weights.items())
        spent = sum(weight * self._done[item] for item, weight in self._weights.items())
        share = spent / work if work else None
        self._shown.update(sum(self._done.values()), sum(self._units.values()), share=share)
