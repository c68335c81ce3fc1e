"""Tasks that several workers compute together, by Ray Train.

Each task is one run of a `TorchTrainer`: every worker hosts a replica, and all call the same method
with the same arguments and communicate through torch's process group. Ray Train restarts all of
them when one dies. `TorchTrainer.fit` blocks until everything is done, so it runs in a separate
actor, the launcher, which forwards the events of the first worker to the driver; closing the
launcher ends the run in any state.

    driver <-- events -- launcher (fit) <-- messages -- worker 0 <== process group ==> worker 1, ...

If several tasks run at a time, each has its own launcher and workers.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rayd.closable import Closable
from rayd.config import ResourceSettings
from rayd.devices import threads
from rayd.engine.on_ray.actors import SILENCE_LIMIT, RayActor, RayRef, get, wait
from rayd.engine.on_ray.cluster import check_resources, connect, sent
from rayd.engine.wire import pack, unpack
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
"""Restarts of an item's workers before it fails permanently: for occasional losses of nodes, not
for a worker that always dies at the same place.
"""
RESOURCE_RETRIES = 2
"""Further attempts to get the workers' resources, each of which Ray Train gives up after a minute."""
LINGER = 60.0
"""Seconds that Ray Train may take to end a run after its last event, before it is abandoned."""
PLACEMENT = "place"
"""The file with the id of a run's placement group."""
ALMOST_NOTHING = {"CPU": 0.001}
"""Resources reserved for workers that request none, as Ray Train cannot place such workers."""
ENVIRONMENT = {
    # how long the end of a worker may go unnoticed; the default of 2 s is long for short runs
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # rayd exports metrics of its own
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # workers keep the driver's working directory, so that relative paths stay valid
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Settings of Ray Train."""


class TrainPool(Closable):
    """Replicas that compute every item together: one item after another, or several at a time by
    teams of replicas. A context manager, whose exit stops nothing, as workers end with their item.

    Args:
        resources: the number of replicas of a team, and what each of them reserves.
        setting: name of the setting of their number.
        scratch: a directory on this machine for Ray Train's own files while it runs.
        factory: called as `factory(*arguments, parallelism=..., device=...)`, creates a replica.
        arguments: of the factory.
        teams: number of items that are computed at a time.

    Raises:
        ResourceError: the cluster cannot be reached, or cannot hold a team.
    """

    def __init__(
        self,
        resources: ResourceSettings,
        setting: str,
        scratch: Path,
        factory: Callable[..., Any],
        *arguments: Any,
        teams: int = 1,
    ):
        connect(resources.address)
        check_resources(resources, setting)
        self._resources = resources
        self._scratch = scratch
        self._factory = sent(factory)
        self._arguments = arguments
        self._teams = teams

    def share(self, value: Any) -> RayRef:
        """Store a value in the object store."""
        return RayRef(value)

    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Call a generator method on all replicas of a team for one item after another.

        Yields (index of the item, event of the first replica). A restarted item must yield its
        events again from the first one; each is passed on once.

        Raises:
            RaydError: the method raised it, on any worker.
            ResourceError: the workers do not start in time.
            RunError: the item failed for good.
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        upcoming = enumerate(items)
        with ExitStack() as stack:
            # the key is Ray's generator of the run's events, which `wait` returns
            running: dict[Any, _TeamRun] = {}
            exhausted = False
            while True:
                while not exhausted and len(running) < self._teams:
                    following = next(upcoming, None)
                    if following is None:
                        exhausted = True
                        break
                    run = self._run(method, *following)
                    stack.callback(run.close)
                    running[run.events] = run
                if not running:
                    return
                reference = wait(list(running))
                run = running[reference]
                try:
                    event = unpack(get(next(reference)))
                except StopIteration:
                    del running[reference]
                    run.close()
                    if run.fault is not None:
                        raise run.fault from None
                else:
                    if isinstance(event, RaydError):
                        run.fault = event
                    else:
                        yield run.index, event

    def _run(self, method: str, index: int, item: tuple[Any, ...]) -> _TeamRun:
        """Start the team of an item."""
        # cleanup may fail, as Ray Train may still write while it is being stopped
        storage = TemporaryDirectory(
            prefix="ray-train-", dir=self._scratch, ignore_cleanup_errors=True
        )
        task = _Task(
            resources=self._resources,
            factory=self._factory,
            arguments=self._arguments,
            method=method,
            item=item,
            storage=Path(storage.name),
        )
        return _TeamRun(index, task, storage)


class _TeamRun:
    """A team of replicas that computes an item; `close` ends it in any state."""

    def __init__(self, index: int, task: _Task, storage: TemporaryDirectory[str]):
        self.index = index
        self.fault: RaydError | None = None
        self._task = task
        self._storage = storage
        # two concurrent calls, as workers put messages while `run` streams them
        self._launcher = RayActor.start(1, _Launcher, calls=2)
        self._is_open = True
        self.events = self._launcher.events("run", task)
        """Ray's generator of the events of the first replica, and of an error as the last one."""

    def close(self) -> None:
        """End the run, and free its resources."""
        if self._is_open:
            self._is_open = False
            self._launcher.close()
            _free(self._task.storage)
            self._storage.cleanup()


_Message = tuple[int, Any] | RaydError | None
"""An event with its number, None after the last one, or an error."""


@dataclass(frozen=True)
class _Task:
    """An item and the replicas that compute it."""

    resources: ResourceSettings
    factory: Callable[..., Any]
    arguments: tuple[Any, ...]
    method: str
    item: tuple[Any, ...]
    storage: Path


class _Launcher:
    """Runs one task, and forwards the events of its first worker."""

    def __init__(self) -> None:
        os.environ.update(ENVIRONMENT)
        self._messages: queue.Queue[_Message] = queue.Queue()
        self._task: _Task | None = None
        self._run = ""
        self._over = False

    def register(self, run: str, group: PlacementGroup) -> bool:
        """Save the placement group of a run's workers; return whether they are still needed."""
        if run != self._run or self._task is None:
            return False
        (self._task.storage / PLACEMENT).write_text(group.id.hex())
        return not self._over

    def put(self, run: str, message: _Message) -> None:
        """Receive a message from a worker; those of earlier runs are ignored."""
        # workers of a run that Ray Train is still stopping may send late messages
        if run == self._run:
            self._over = self._over or not isinstance(message, tuple)
            self._messages.put(message)

    def run(self, task: _Task) -> Iterator[Any]:
        """Yield every event once and in order, and an error, if any, as the last event.

        The error is not raised, as Ray would repeat the call.
        """
        # free the placement group of an earlier launcher that died
        _free(task.storage)
        self._task = task
        self._run = uuid.uuid4().hex
        fitting = threading.Thread(target=self._fit, args=(task,), daemon=True)
        fitting.start()
        yielded = 0
        message = self._next()
        while isinstance(message, tuple):
            number, event = message
            # restarted workers repeat their events
            if number == yielded:
                yielded += 1
                yield event
            message = self._next()
        fitting.join(LINGER)
        if message is not None:
            yield message

    def _next(self) -> _Message:
        try:
            return self._messages.get(timeout=SILENCE_LIMIT)
        except queue.Empty:
            return RunError(
                f"No worker of Ray Train answered for {SILENCE_LIMIT / 60:g} minutes; --resume "
                "continues the run."
            )

    def _fit(self, task: _Task) -> None:
        resources = task.resources
        each = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
        reserved = {kind: amount for kind, amount in each.items() if amount > 0}
        try:
            TorchTrainer(
                _work,
                train_loop_config={"task": task, "launcher": RayActor.here(), "run": self._run},
                torch_config=TorchConfig(backend=_backend(resources)),
                scaling_config=ScalingConfig(
                    num_workers=resources.workers,
                    use_gpu=resources.gpus_per_worker > 0,
                    resources_per_worker=reserved or ALMOST_NOTHING,
                    placement_strategy=resources.placement.upper(),
                ),
                run_config=RunConfig(
                    name="run",
                    storage_path=str(task.storage),
                    failure_config=FailureConfig(
                        max_failures=RESTARTS, controller_failure_limit=RESOURCE_RETRIES
                    ),
                ),
            ).fit()
            self.put(self._run, None)
        except Exception as error:
            self.put(self._run, _explained(error, resources))


def _work(config: dict[str, Any]) -> None:
    """Run a worker's part of the task; the first worker sends events to the launcher."""
    task = config["task"]
    launcher = config["launcher"]
    run = config["run"]
    if not launcher.call("register", run, get_current_placement_group()):
        return
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(threads(task.resources))
    device = get_device() if task.resources.gpus_per_worker > 0 else torch.device("cpu")
    parallelism = DataParallel(device)
    try:
        replica = task.factory(*task.arguments, parallelism=parallelism, device=device)
        for number, event in enumerate(getattr(replica, task.method)(*task.item)):
            if parallelism.leads:
                launcher.call("put", run, (number, pack(event)))
    except RaydError as error:
        launcher.call("put", run, error)
        raise
    if parallelism.leads:
        launcher.call("put", run, None)


def _free(storage: Path) -> None:
    """Free the resources of a run's workers, which Ray Train does not do if the run is killed."""
    file = storage / PLACEMENT
    if file.exists():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(file.read_text()))))


def _backend(resources: ResourceSettings) -> str:
    """NCCL if every worker has its own GPU, as it does not support two on one; else Gloo."""
    return "nccl" if resources.gpus_per_worker >= 1 else "gloo"


def _explained(error: Exception, resources: ResourceSettings) -> RaydError:
    """An error that explains why Ray Train failed."""
    if isinstance(error, ControllerError):
        return ResourceError(
            f"{resources.workers} workers that train together could not be started; other jobs may "
            f"hold the resources. {_first_sentence(error.controller_failure)}."
        )
    count = ""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, error = min(error.worker_failures.items())
        count = f" {RESTARTS + 1} times, at last worker {rank}"
    return RunError(
        f"Workers that train together failed{count}: {type(error).__name__}: "
        f"{_first_sentence(error)}."
    )


def _first_sentence(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].partition(". ")[0].removesuffix(".")
