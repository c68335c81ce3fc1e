"""Groups on Ray: with `ray_train` and `ray_data` the only module under `rayd` that imports it.

Workers are standing actors that Ray restarts, and whose calls the group gives to whoever is there, so that a killed worker or a
lost node costs time and nothing else: their methods are idempotent and keep no state that matters. A worker that is away is
asked for a sign of life until it answers, whether Ray has to start it again, or for the first time on a node that joins.
Tensors travel as numpy arrays. Every wait has a limit.

Where Ray's metrics are collected they tell: rayd_rate (by stage), rayd_wait_seconds_total (by method; of `answer` the wait for
gradients), rayd_bytes_moved_total (by direction, seen from who asks) and rayd_restarts_total.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
import uuid
from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self, cast

import torch

from rayd.config import ResourceSettings
from rayd.devices import threads
from rayd.engine.group import Group, Presence
from rayd.engine.wire import pack, size, unpack
from rayd.errors import RaydError, ResourceError, RunError

try:
    import ray
    from ray.exceptions import (
        ActorDiedError,
        ObjectLostError,
        RayActorError,
        RayError,
        RayTaskError,
    )
    from ray.util.metrics import Counter, Gauge
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as missing:
    raise ResourceError(
        "Workers need Ray, which is not installed; install 'ray[tune,train]' or run in process with --workers 0."
    ) from missing

log = logging.getLogger(__name__)

KNOCK_LIMIT = 5.0
"""Seconds that a cluster's address may take to accept a connection."""
START_LIMIT = 180.0
"""Seconds that a worker may take to start."""
SILENCE_LIMIT = 6 * 3600.0
"""Seconds without any answer from any worker after which a run gives up; Ray itself notices a dead worker within seconds."""
ABSENCE_LIMIT = 1800.0
"""Seconds that a run goes on without a single worker: time for a node to be replaced."""
ASK_AGAIN = 1.0
"""Seconds between two signs of life asked of a worker that is away."""
LOSSES = 20
"""How often in a row an item may take its worker with it."""


class RayShared:
    """A value in Ray's object store; arrays in it are read without a copy."""

    def __init__(self, value: Any):
        """Place the value."""
        packed = pack(value)
        _count("rayd_bytes_moved", size(packed), direction="out")
        self._reference = ray.put(packed)

    @property
    def key(self) -> str:
        """The object's identity in the store."""
        return str(self._reference.hex())

    def get(self) -> Any:
        """The value, in the process that asks."""
        return unpack(ray.get(self._reference, timeout=SILENCE_LIMIT))


class _Worker:
    """What runs in an actor: a plain object, torch threads, and the wire format."""

    def __init__(self, threads_: int, factory: Callable[..., Any], arguments: tuple[Any, ...]):
        logging.basicConfig(level=logging.WARNING)
        torch.set_num_threads(threads_)
        self._inner, self._fault = None, None
        if ray.get_runtime_context().was_current_actor_reconstructed:
            _count("rayd_restarts", 1)
        try:
            self._inner = factory(*arguments)
        except Exception as error:
            # raised by the first call: an actor that fails while it is made tells Ray's story instead of its own
            self._fault = error

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return pack(self._method(method)(*arguments))

    def stream(self, method: str, arguments: tuple[Any, ...]) -> Iterator[Any]:
        for event in self._method(method)(*arguments):
            yield pack(event)

    def presence(self, role: str) -> Presence:
        if self._fault is not None:
            raise self._fault
        return Presence(role, os.getpid(), f"{socket.gethostname()} ({ray.util.get_node_ip_address()})", _log_name())

    def _method(self, name: str) -> Callable[..., Any]:
        if self._fault is not None:
            raise self._fault
        return cast("Callable[..., Any]", getattr(self._inner, name))


_Actor = ray.remote(max_restarts=-1, max_task_retries=-1)(_Worker)


class _LostError(Exception):
    """A call whose worker died; another may do it."""


@cache
def _counter(name: str, *tags: str) -> Any:
    return Counter(name, description=name.removeprefix("rayd_").replace("_", " "), tag_keys=tags)


def _count(name: str, amount: float, **tags: str) -> None:
    if amount > 0:
        _counter(name, *tags).inc(amount, tags=tags)


@cache
def _rate() -> Any:
    return Gauge("rayd_rate", description="work units a second", tag_keys=("stage",))


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or start a private one on this machine; nothing when connected already.

    Raises:
        ResourceError: no cluster answers at the address, or it is that of a Ray Client.
    """
    if (address or "").startswith("ray://"):
        raise ResourceError(
            f"'{address}' is the address of a Ray Client, which cannot follow what workers report while they work; from "
            "outside a cluster submit the run: ray job submit --address http://HEAD:8265 -- rayd distill ... --address auto"
        )
    _knock(address)
    if ray.is_initialized():
        return
    # A worker that reserved no GPU must not see one.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(
            f"Cannot join the Ray cluster at '{address or 'local'}': {reason} If it asks for a token, set RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the one of the cluster; from a machine that is none of its nodes, use 'ray job submit'."
        ) from error


def _knock(address: str | None) -> None:
    """Fail within seconds where nothing listens; Ray itself tries for minutes."""
    found = re.fullmatch(r"\[?([^\[\]/]+?)\]?:(\d+)", address or "")
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=KNOCK_LIMIT).close()
    except OSError as error:
        raise ResourceError(
            f"No Ray cluster answers at '{address}': {error.strerror or error}. Start one there with 'ray start --head', or "
            "leave --address out to work on this machine."
        ) from error


def check_resources(resources: ResourceSettings, setting: str = "workers") -> None:
    """Refuse at once what the connected cluster can never hold.

    Args:
        resources: how many workers there are to be, and what each of them reserves.
        setting: what the user sets their number by.

    Raises:
        ResourceError: says what was asked for and what there is.
    """
    nodes, room = _room(resources)
    if room < resources.workers:
        asked = " and ".join(f"{amount:g} {kind}" for kind, amount in _wanted(resources).items())
        there = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes)
        raise ResourceError(
            f"{resources.workers} workers of {asked} each do not fit: the cluster holds {room} of them "
            f"({len(nodes)} node{'s' if len(nodes) != 1 else ''}: {there}). "
            f"Ask for fewer {setting}, or less for each (resources.cpus_per_worker, resources.gpus_per_worker)."
        )
    spare = sum(node.get("CPU", 0.0) for node in nodes) - resources.workers * resources.cpus_per_worker
    if spare < resources.decoders:
        raise ResourceError(
            f"{resources.decoders} decoders need a CPU each that no worker has: the cluster has {max(spare, 0):g} of them. "
            "Ask for fewer resources.decoders; with 0, workers decode what they need."
        )


def check_store(needed: int, here: bool, remedy: str) -> None:
    """Refuse at once real images that Ray's object store does not hold: it would write them to disks, again and again.

    Args:
        needed: bytes that are in it at a time.
        here: whether all of them are on the driver's node; else they are spread.
        remedy: what to do instead of giving it more memory.

    Raises:
        ResourceError: says what is needed and what there is.
    """
    driver = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and (not here or node["NodeID"] == driver)]
    room = sum(int(node["Resources"].get("object_store_memory", 0)) for node in nodes)
    if needed > room:
        raise ResourceError(
            f"{needed / 1e9:.3g} GB of real images would be in Ray's object store at a time, which has {room / 1e9:.3g} GB "
            f"{'on this node' if here else 'on all nodes'}: {remedy}, or start Ray with more (ray start --object-store-memory)."
        )


def _wanted(resources: ResourceSettings) -> dict[str, float]:
    """What a worker reserves."""
    each = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {kind: amount for kind, amount in each.items() if amount > 0}


def _room(resources: ResourceSettings) -> tuple[list[dict[str, float]], int]:
    """What the nodes have, and how many of the workers they could hold were they empty."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    each = _wanted(resources).items()
    return nodes, sum(
        min((int(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in each), default=resources.workers) for node in nodes
    )


def census(address: str | None) -> str:
    """Join (or start) a cluster, tell in words what it holds, and leave it.

    Raises:
        ResourceError: no cluster answers at the address, or none can be started.
    """
    joined = not ray.is_initialized()
    connect(address)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    words = f"ray {ray.__version__} starts here" if address is None else f"ray {ray.__version__} at {address}"
    words += f": {len(nodes)} node{'s' if len(nodes) != 1 else ''}, {_words(ray.cluster_resources())}"
    if joined:
        ray.shutdown()
    return words


class RayGroup(Group):
    """Standing actors, each hosting one replica."""

    def __init__(self, resources: ResourceSettings, factory: Callable[..., Any], *arguments: Any):
        """Start `resources.workers` actors that host `factory(*arguments)`; if elastic, wait for the first of them only.

        Raises:
            ResourceError: the cluster cannot be reached, cannot hold them, or they do not start in time.
        """
        connect(resources.address)
        if not resources.elastic:
            check_resources(resources)
        self._threads = threads(resources)
        reserved = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker}
        options: dict[str, Any] = {**reserved, "max_task_retries": 0}
        if resources.placement == "spread":
            # not said otherwise: it would leave the placement group of a trial
            options["scheduling_strategy"] = "SPREAD"
        self._names = [f"rayd-{uuid.uuid4().hex}" for _ in range(resources.workers)]
        self._workers = [_Actor.options(name=name, **options).remote(self._threads, factory, arguments) for name in self._names]
        self._hosts: list[RayHost] = []
        try:
            self._start(resources)
        except BaseException:
            self.close()
            raise

    def _start(self, resources: ResourceSettings) -> None:
        needed, limit = (1, ABSENCE_LIMIT) if resources.elastic else (resources.workers, START_LIMIT)
        if resources.elastic and _room(resources)[1] == 0:
            log.warning("No worker fits into the cluster yet; waiting up to %g minutes for nodes to join.", limit / 60)
        began = time.monotonic()
        while len(self._crew.present) < needed:
            ready, _ = _ready(self._crew.awaited(), timeout=ASK_AGAIN)
            for sign in ready:
                self._crew.hear(sign)
            if time.monotonic() - began > limit:
                raise ResourceError(
                    f"{needed} worker{'s' if needed > 1 else ''} did not start within {limit:g} s: "
                    f"free resources are {_words(ray.available_resources())}; other jobs may hold the rest."
                )

    @cached_property
    def _crew(self) -> _Crew:
        return _Crew(self._workers)

    @cached_property
    def _lookout(self) -> _Lookout:
        return _Lookout()

    def roster(self) -> list[Presence]:
        """Where the workers and the hosted objects are, as far as is known without waiting."""
        if not self._workers or not ray.is_initialized():
            return []
        actors = [("worker", worker) for worker in self._workers] + [(host.role, host.actor) for host in self._hosts]
        return self._lookout.look(actors, self._crew.heard)

    def logs(self) -> str | None:
        """The directory of Ray's log files on each of its machines."""
        return _log_directory()

    def tell(self, stage: str, rate: float) -> None:
        """Publish the rate of a stage among Ray's metrics."""
        _rate().set(rate, tags={"stage": stage})

    def share(self, value: Any) -> RayShared:
        """Place a value in the object store."""
        return RayShared(value)

    def map(self, method: str, items: Sequence[tuple[Any, ...]], affinity: Sequence[int] | None = None) -> Iterator[Any]:
        """Keep every worker busy with one call at a time; yield results in the order of the items."""
        waiting = _Queue(len(items), affinity, len(self._workers))
        running: dict[Any, tuple[int, int]] = {}
        finished: dict[int, Any] = {}
        for index in range(len(items)):
            while index not in finished:
                for worker in self._idle(running):
                    item = waiting.take(worker)
                    if item is None:
                        break
                    running[self._workers[worker].call.remote(method, items[item])] = (item, worker)
                reference = self._next(method, running)
                if reference not in running:
                    self._crew.hear(reference)
                    continue
                item, worker = running.pop(reference)
                try:
                    finished[item] = self._taken(reference)
                except _LostError:
                    waiting.put_back(item)
                    self._crew.lose(worker)
            yield finished.pop(index)

    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Keep every worker busy with one generator at a time; yield events as they come."""
        coming, count, ended = iter(items), 0, False
        given: dict[int, tuple[Any, ...]] = {}
        lost = _Queue(0, None, len(self._workers))
        running: dict[Any, tuple[int, int]] = {}
        seen, told = Counts[int](), Counts[int]()
        while True:
            for worker in self._idle(running):
                item = lost.take(worker)
                if item is None:
                    following = None if ended else next(coming, None)
                    if following is None:
                        ended = True
                        break
                    item, count = count, count + 1
                    given[item] = following
                events = self._workers[worker].stream.options(num_returns="streaming").remote(method, given[item])
                running[events], seen[item] = (item, worker), 0
            if ended and not running and not lost:
                return
            reference = self._next(method, running)
            if reference not in running:
                self._crew.hear(reference)
                continue
            item, worker = running[reference]
            try:
                event = self._taken(next(reference))
            except StopIteration:
                # what it was given may be large, and is nobody's now
                del running[reference], given[item]
            except _LostError:
                del running[reference]
                lost.put_back(item)
                self._crew.lose(worker)
            else:
                seen[item] += 1
                if seen[item] > told[item]:
                    told[item] = seen[item]
                    lost.forgive(item)
                    yield item, event

    def _idle(self, running: dict[Any, tuple[int, int]]) -> list[int]:
        return sorted(self._crew.present - {worker for _, worker in running.values()})

    def _next(self, method: str, running: dict[Any, tuple[int, int]]) -> Any:
        """The next call that has something to say, or sign of life of a worker that was away."""
        began = time.monotonic()
        try:
            while True:
                # signs first: they are rare, and must not starve where results always wait
                ready, _ = _ready([*self._crew.awaited(), *running], timeout=ASK_AGAIN if self._crew.away else 10.0)
                if ready:
                    return ready[0]
                if time.monotonic() - began > SILENCE_LIMIT:
                    raise RunError(
                        f"No worker answered for {SILENCE_LIMIT / 60:g} minutes; the run was stopped, --resume continues it."
                    )
                if not running:
                    self._crew.check()
        finally:
            _count("rayd_wait_seconds", time.monotonic() - began, method=method)

    @staticmethod
    def _taken(reference: Any) -> Any:
        try:
            packed = ray.get(reference, timeout=SILENCE_LIMIT)
        except (RayActorError, ObjectLostError) as error:
            raise _LostError from error
        except RayError as error:
            raise translated(error) from error
        _count("rayd_bytes_moved", size(packed), direction="in")
        return unpack(packed)

    def host(self, factory: Callable[..., Any], *arguments: Any) -> RayHost:
        """An actor on this node that holds the group's handles."""
        host = RayHost.start(self._threads, factory, _Handles(self._names), *arguments)
        self._hosts.append(host)
        return host

    def close(self) -> None:
        """Stop the actors."""
        for host in self._hosts:
            host.close()
        for worker in self._workers:
            ray.kill(worker)
        self._workers, self._hosts = [], []


class _Crew:
    """Which workers can be given work.

    The others are asked for a sign of life. The call waits as long as an actor was never made, because no node can hold it,
    and fails within seconds while Ray cannot start it again.
    """

    def __init__(self, workers: list[Any]):
        """Ask everyone."""
        self._workers = workers
        self.present: set[int] = set()
        self.away = dict.fromkeys(range(len(workers)), 0.0)
        """When to ask those who are away again."""
        self.heard: dict[int, Presence] = {}
        """What they said last."""
        self._signs: dict[Any, int] = {}
        self._gone: set[int] = set()
        self._alone = time.monotonic()

    def awaited(self) -> list[Any]:
        """The signs of life that are asked for."""
        if self.away:
            asked, now = set(self._signs.values()), time.monotonic()
            for worker in sorted(self.away.keys() - asked):
                if self.away[worker] <= now:
                    self._signs[self._workers[worker].presence.remote("worker")] = worker
        return list(self._signs)

    def hear(self, sign: Any) -> None:
        """Know from a sign that is there whether its worker is.

        Raises:
            RaydError: the worker's replica cannot be made, or no worker will come back.
        """
        worker = self._signs.pop(sign)
        try:
            self.heard[worker] = ray.get(sign, timeout=START_LIMIT)
        except RayActorError as error:
            self.away[worker] = time.monotonic() + ASK_AGAIN
            if isinstance(error, ActorDiedError):
                self._gone.add(worker)
            self.check()
            return
        except RayError as error:
            raise translated(error) from error
        del self.away[worker]
        self.present.add(worker)
        self._gone.discard(worker)

    def lose(self, worker: int) -> None:
        """A worker is away."""
        self.present.discard(worker)
        self.away[worker] = 0.0
        if not self.present:
            self._alone = time.monotonic()

    def check(self) -> None:
        """Do not wait for ever.

        Raises:
            RunError: all workers are gone for good, or away for too long.
        """
        if len(self._gone) == len(self._workers):
            raise RunError("The workers could not be kept alive (most often memory ran out); --resume continues.")
        if not self.present and time.monotonic() - self._alone > ABSENCE_LIMIT:
            raise RunError(
                f"No worker was there for {ABSENCE_LIMIT / 60:g} minutes, as no node joined that could hold one; --resume "
                "continues."
            )


class _Lookout:
    """Tells where actors are without waiting for those that work: each has one question open, and is what it last answered."""

    def __init__(self) -> None:
        """Know nobody."""
        self._known: list[Presence] = []
        self._questions: dict[Any, int] = {}

    def look(self, actors: list[tuple[str, Any]], heard: dict[int, Presence]) -> list[Presence]:
        """What is known now of actors and what they are; later calls may add to them. `heard`: what some said elsewhere."""
        for index in range(len(self._known), len(actors)):
            self._known.append(heard.get(index, Presence(actors[index][0], 0, "", "", there=False)))
        for index in set(range(len(actors))) - set(self._questions.values()):
            role, actor = actors[index]
            self._questions[actor.presence.remote(role)] = index
        ready, _ = ray.wait(list(self._questions), num_returns=len(self._questions), timeout=0)
        for question in ready:
            index = self._questions.pop(question)
            before = self._known[index]
            try:
                now = ray.get(question, timeout=KNOCK_LIMIT)
            except RayError:
                self._known[index] = replace(before, there=False)
                continue
            again = before.pid not in (0, now.pid)
            self._known[index] = replace(now, restarts=before.restarts + again)
        return list(self._known)


class _Handles(RayGroup):
    """The group as its hosted object sees it: the same workers, nothing to start or stop.

    It knows them by name: handles among an actor's constructor arguments live in the object store, and its restart may not find
    them there.
    """

    def __init__(self, names: list[str]):
        self._names = names

    @cached_property
    def _workers(self) -> list[Any]:  # type: ignore[override]
        return [ray.get_actor(name) for name in self._names]


def _log_directory() -> str | None:
    """Where Ray logs on this node. Ray tells nobody, so that this is nothing to rely on."""
    with suppress(AttributeError):
        return str(ray._private.worker._global_node.get_logs_dir_path())
    return None


@cache
def _log_name() -> str:
    """What the logs of this worker are called; in the middle is the job that Ray started it for, which may be none."""
    found = Path(_log_directory() or "").glob(f"worker-{ray.get_runtime_context().get_worker_id()}-*-{os.getpid()}.err")
    return next((path.stem for path in found), "")


class RayHost:
    """An object in an actor."""

    def __init__(self, actor: Any, role: str = "host"):
        """Hold the actor's handle; `role` says what it is for."""
        self.actor, self.role = actor, role

    @classmethod
    def start(cls, threads_: int, factory: Callable[..., Any], *arguments: Any, calls: int = 1) -> Self:
        """An actor on this node that reserves nothing and hosts `factory(*arguments)`.

        Args:
            threads_: of torch.
            factory: makes the object.
            arguments: what it is made of.
            calls: how many calls it answers at a time.
        """
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = _Actor.options(num_cpus=0, scheduling_strategy=here, max_concurrency=calls)
        return cls(options.remote(threads_, factory, arguments), getattr(factory, "__name__", "host").lower())

    @classmethod
    def here(cls) -> Self:
        """The host of the object that asks."""
        return cls(ray.get_runtime_context().current_actor)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call it and wait."""
        reference = self.actor.call.remote(method, arguments)
        _wait([reference])
        return unpack(_get(reference))

    def stream(self, method: str, *arguments: Any) -> Iterator[Any]:
        """Call a generator method; yield its events as they come."""
        events = self.actor.stream.options(num_returns="streaming").remote(method, arguments)
        while True:
            _wait([events])
            try:
                event = _get(next(events))
            except StopIteration:
                return
            yield unpack(event)

    def close(self) -> None:
        """Stop the actor."""
        ray.kill(self.actor)


class _Queue:
    """Waiting items: those that were given back, then a worker's own, then the oldest of anybody's."""

    def __init__(self, count: int, affinity: Sequence[int] | None, workers: int):
        self._own: list[deque[int]] = [deque() for _ in range(workers)]
        self._all = deque(range(count))
        self._back: deque[int] = deque()
        self._taken: set[int] = set()
        self._losses: Counts[int] = Counts()
        for item, home in enumerate(affinity or ()):
            self._own[home % workers].append(item)

    def take(self, worker: int) -> int | None:
        if self._back:
            return self._back.popleft()
        for queue in (self._own[worker], self._all):
            while queue:
                item = queue.popleft()
                if item not in self._taken:
                    self._taken.add(item)
                    return item
        return None

    def put_back(self, item: int) -> None:
        """Somebody else is to do it.

        Raises:
            RunError: too many workers died over it.
        """
        self._losses[item] += 1
        if self._losses[item] >= LOSSES:
            raise RunError(
                f"A piece of work lost its worker {LOSSES} times in a row (most often memory runs out); make batches "
                "smaller or give workers more memory, and --resume continues."
            )
        self._back.append(item)

    def __bool__(self) -> bool:
        """Whether anything was given back and waits."""
        return bool(self._back)

    def forgive(self, item: int) -> None:
        """It gets on."""
        self._losses.pop(item, None)


def _ready(references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
    """The first of some references that is ready within some seconds."""
    if not references:
        time.sleep(timeout)
        return [], []
    ready, others = ray.wait(references, num_returns=1, timeout=timeout)
    return list(ready), list(others)


def _wait(references: list[Any]) -> list[Any]:
    started = time.monotonic()
    while time.monotonic() - started < SILENCE_LIMIT:
        ready, _ = _ready(references, timeout=10.0)
        if ready:
            return ready
    raise RunError(f"No worker answered for {SILENCE_LIMIT / 60:g} minutes; the run was stopped, --resume continues it.")


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference, timeout=SILENCE_LIMIT)
    except RayError as error:
        raise translated(error) from error


def translated(error: RayError) -> RaydError:
    """The error that a worker raised, or a sentence about how Ray failed."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, RaydError):
        return error.cause
    if isinstance(error, RayTaskError):
        return RunError(f"A worker failed: {type(error.cause).__name__}: {error.cause}")
    if isinstance(error, RayActorError):
        return RunError("A worker could not be kept alive (most often the machine ran out of memory); --resume continues.")
    return RunError(f"Ray failed: {str(error).strip().splitlines()[0]}")


def _words(amounts: dict[str, float]) -> str:
    return ", ".join(f"{amounts.get(kind, 0.0):g} {kind}" for kind in ("CPU", "GPU"))
