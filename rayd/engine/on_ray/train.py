"""Work items that several workers do together, by Ray Train.

Each item is one run of a `TorchTrainer`: every worker hosts a replica, all of them call the same
method for the same item, and they meet in torch's process group. Ray Train starts them all again
when one of them dies, and what the first of them yields reaches the driver through an actor beside
it, the launcher, in which `fit` runs: closing it ends the run, whatever it does.

    driver <-- events -- launcher (fit, letters) <-- letters -- worker 0 <== process group ==>
    worker 1, ...
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import torch

from rayd.config import ResourceSettings
from rayd.devices import threads
from rayd.engine.on_ray.actors import SILENCE_LIMIT, RayActor, RayRef
from rayd.engine.on_ray.cluster import check_resources, connect
from rayd.engine.wire import pack
from rayd.errors import RaydError, ResourceError, RunError
from rayd.training.parallelism import DataParallel

try:
    from ray import PlacementGroupID
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer, get_device
    from ray.util.placement_group import (
        PlacementGroup,
        get_current_placement_group,
        remove_placement_group,
    )
except ImportError as missing:
    raise ResourceError(
        "Workers that train together need Ray Train; install 'ray[tune,train]'."
    ) from missing

RESTARTS = 5
"""How often the workers of an item are started again before it fails for good."""
WAITS = 2
"""How often Ray Train waits for its workers' resources, a minute each time, beyond the first."""
LINGER = 60.0
"""Seconds that Ray Train gets to end a run that is over."""
PLACE = "place"
"""The file that tells where the workers of a run are."""
CHOSEN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Ray Train is to look after its workers often enough for short runs, and to leave them in the
driver's directory.
"""


class TrainPool:
    """Replicas that do every item together, item after item. A context manager, as every group.

    Args:
        resources: how many replicas there are, and what each of them reserves.
        setting: what the user sets their number by.
        scratch: a directory on this machine where Ray Train may keep its own files for as long as
            an item takes.
        factory: called as `factory(*arguments, crew=..., device=...)`, makes a replica.
        arguments: what a replica is made of.

    Raises:
        ResourceError: the cluster cannot be reached, or cannot hold the workers.
    """

    def __init__(
        self,
        resources: ResourceSettings,
        setting: str,
        scratch: Path,
        factory: Callable[..., Any],
        *arguments: Any,
    ):
        connect(resources.address)
        check_resources(resources, setting)
        self._resources = resources
        self._scratch = scratch
        self._factory = factory
        self._arguments = arguments

    def share(self, value: Any) -> RayRef:
        """Place a value in the object store."""
        return RayRef(value)

    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Let all replicas call a generator method for one item after another; yield (index of the
        item, event of the first).

        An item that was restarted must yield its events again from the first one; each is passed on
        once.

        Raises:
            RaydError: what the method raised, on any worker.
            ResourceError: the workers do not start in time.
            RunError: the item failed for good.
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        for index, item in enumerate(items):
            # Ray Train may still write when it is told to stop
            with TemporaryDirectory(
                prefix="ray-train-", dir=self._scratch, ignore_cleanup_errors=True
            ) as storage:
                task = _Task(
                    self._resources, self._factory, self._arguments, method, item, Path(storage)
                )
                launcher = RayActor.start(1, _Launcher, calls=2)
                fault = None
                try:
                    for event in launcher.stream("run", task):
                        if isinstance(event, RaydError):
                            fault = event
                        else:
                            yield index, event
                finally:
                    launcher.close()
                    _free(task.storage)
                if fault is not None:
                    raise fault

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is left to close: workers go when their item is done."""


_Letter = tuple[int, Any] | RaydError | None
"""An event with its number, the end of them, or what was wrong."""


@dataclass(frozen=True)
class _Task:
    """An item and who does it."""

    resources: ResourceSettings
    factory: Callable[..., Any]
    arguments: tuple[Any, ...]
    method: str
    item: tuple[Any, ...]
    storage: Path


class _Launcher:
    """Runs one task, and passes on what its first worker delivers."""

    def __init__(self) -> None:
        os.environ.update(CHOSEN)
        self._letters: queue.Queue[_Letter] = queue.Queue()
        self._task: _Task | None = None
        self._run = ""
        self._over = False

    def hear(self, run: str, place: PlacementGroup) -> bool:
        """Know where the workers of a run are; whether there is something to do for them."""
        if run != self._run or self._task is None:
            return False
        (self._task.storage / PLACE).write_text(place.id.hex())
        return not self._over

    def deliver(self, run: str, letter: _Letter) -> None:
        """Take an event with its number, None after the last one, or what was wrong."""
        if run == self._run:
            self._over = self._over or not isinstance(letter, tuple)
            self._letters.put(letter)

    def run(self, task: _Task) -> Iterator[Any]:
        """Every event once and in order, and at last what was wrong, if anything was: Ray would
        repeat what raises an error.
        """
        # of a launcher that died
        _free(task.storage)
        self._task = task
        self._run = uuid.uuid4().hex
        fitting = threading.Thread(target=self._fit, args=(task,), daemon=True)
        fitting.start()
        told = 0
        while isinstance(letter := self._next(), tuple):
            number, event = letter
            if number == told:
                told += 1
                yield event
        fitting.join(LINGER)
        if letter is not None:
            yield letter

    def _next(self) -> _Letter:
        try:
            return self._letters.get(timeout=SILENCE_LIMIT)
        except queue.Empty:
            return RunError(
                f"No worker of Ray Train was heard for {SILENCE_LIMIT / 60:g} minutes; --resume continues the run."
            )

    def _fit(self, task: _Task) -> None:
        resources = task.resources
        each = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
        try:
            TorchTrainer(
                _work,
                train_loop_config={"task": task, "launcher": RayActor.here(), "run": self._run},
                torch_config=TorchConfig(backend=_backend(resources)),
                scaling_config=ScalingConfig(
                    num_workers=resources.workers,
                    use_gpu=resources.gpus_per_worker > 0,
                    # Ray cannot place what reserves nothing
                    resources_per_worker={
                        kind: amount for kind, amount in each.items() if amount > 0
                    }
                    or {"CPU": 0.001},
                    placement_strategy=resources.placement.upper(),
                ),
                run_config=RunConfig(
                    name="run",
                    storage_path=str(task.storage),
                    failure_config=FailureConfig(
                        max_failures=RESTARTS, controller_failure_limit=WAITS
                    ),
                ),
            ).fit()
            self.deliver(self._run, None)
        except Exception as error:
            self.deliver(self._run, _in_words(error, resources))


def _work(config: dict[str, Any]) -> None:
    """What every worker does: its part of the task, and the first of them the letters."""
    task = config["task"]
    launcher = config["launcher"]
    run = config["run"]
    if not launcher.call("hear", run, get_current_placement_group()):
        return
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(threads(task.resources))
    device = get_device() if task.resources.gpus_per_worker > 0 else torch.device("cpu")
    crew = DataParallel(device)
    try:
        replica = task.factory(*task.arguments, crew=crew, device=device)
        for number, event in enumerate(getattr(replica, task.method)(*task.item)):
            if crew.leads:
                launcher.call("deliver", run, (number, pack(event)))
    except RaydError as error:
        launcher.call("deliver", run, error)
        raise
    if crew.leads:
        launcher.call("deliver", run, None)


def _free(storage: Path) -> None:
    """Give back what the workers of a run hold. Ray Train does so when a run ends, but not when it
    is cut off.
    """
    place = storage / PLACE
    if place.exists():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(place.read_text()))))


def _backend(resources: ResourceSettings) -> str:
    """NCCL where every worker has a GPU of its own; it refuses two workers on one."""
    return "nccl" if resources.gpus_per_worker >= 1 else "gloo"


def _in_words(error: Exception, resources: ResourceSettings) -> RaydError:
    """Why Ray Train gave up, as a sentence."""
    if isinstance(error, ControllerError):
        return ResourceError(
            f"{resources.workers} workers that train together could not be started; other jobs may hold what they need. "
            f"{_first_sentence(error.controller_failure)}."
        )
    count = ""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, error = min(error.worker_failures.items())
        count = f" {RESTARTS + 1} times, at last worker {rank}"
    return RunError(
        f"Workers that train together failed{count}: {type(error).__name__}: {_first_sentence(error)}."
    )


def _first_sentence(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].partition(". ")[0].removesuffix(".")
