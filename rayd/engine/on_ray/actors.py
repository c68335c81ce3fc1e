"""Ray actor wrapper: creation, calls, health checks, error translation."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayd.engine.memory import device_fault, gpu_out_of_memory, out_of_memory
from rayd.engine.on_ray.cluster import log_directory
from rayd.engine.on_ray.metrics import count
from rayd.engine.on_ray.watch import check_head, head_is_lost
from rayd.engine.peak import PeakMemory
from rayd.engine.pool import WorkerInfo, free_memory
from rayd.engine.wire import only_tensors, pack, size, unpack
from rayd.errors import DeviceFaultError, OutOfMemoryError, RaydError, RunError

SILENCE_LIMIT = 6 * 3600.0
"""Seconds without a result from any worker after which a run ends. Dead workers are detected by Ray
within seconds; this limits tasks that hang.
"""

WAIT = 2.0
"""Seconds of a wait for results, after which the driver checks the cluster."""


INLINE = 32 * 2**10
"""Bytes up to which a value is sent with each call that refers to it. Ray keeps larger ones in its
object store, from which a worker must request them, which takes longer than sending so few bytes.
"""


class RayRef:
    """A value for workers. Small ones are part of the reference; others are in Ray's object store,
    from which their arrays are read without a copy.

    Args:
        value: to be stored.
    """

    def __init__(self, value: Any):
        packed = pack(value)
        bytes_ = size(packed)
        count("rayd_bytes_moved", bytes_, direction="out")
        self._packed = None
        self._reference = None
        if bytes_ <= INLINE and only_tensors(packed):
            self._packed = packed
            self._key = uuid.uuid4().hex
        else:
            self._reference = ray.put(packed)
            self._key = str(self._reference.hex())

    @property
    def key(self) -> str:
        """The identity of the value."""
        return self._key

    def get(self) -> Any:
        """The value, in the calling process."""
        if self._reference is None:
            return unpack(self._packed)
        return unpack(ray.get(self._reference, timeout=SILENCE_LIMIT))


class _Worker:
    """The actor: hosts a plain object, sets torch's threads, and serialises results."""

    def __init__(
        self,
        threads_: int,
        factory: Callable[..., Any],
        arguments: tuple[Any, ...],
        shared_gpu: str = "",
    ):
        # Ray's processes have no logging handler, so warnings would be lost
        logging.basicConfig(level=logging.WARNING)
        torch.set_num_threads(threads_)
        self._shared_gpu = shared_gpu
        self._show_gpu()
        self._inner = None
        self._fault = None
        if ray.get_runtime_context().was_current_actor_reconstructed:
            count("rayd_restarts", 1)
        try:
            self._inner = factory(*arguments)
        except Exception as error:
            # raised by the first call, as Ray hides errors of an actor's constructor
            self._fault = error

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        self._show_gpu()
        with _told_faults():
            try:
                return pack(self._method(method)(*arguments))
            except RuntimeError as error:
                if not gpu_out_of_memory(error):
                    raise
                # freed below, when the traceback holds no tensors any more
            # caches of earlier tasks may hold what this one needs
            free_memory()
            return pack(self._method(method)(*arguments))

    def stream(self, method: str, arguments: tuple[Any, ...]) -> Iterator[Any]:
        yielded = 0
        self._show_gpu()
        with _told_faults():
            try:
                for event in self._method(method)(*arguments):
                    yield pack(event)
                    yielded += 1
                return
            except RuntimeError as error:
                if not gpu_out_of_memory(error):
                    raise
            free_memory()
            # a method that is restarted yields its events again
            for number, event in enumerate(self._method(method)(*arguments)):
                if number >= yielded:
                    yield pack(event)

    def worker_info(self, role: str) -> WorkerInfo:
        if self._fault is not None:
            raise self._fault
        peak = PeakMemory.here()
        return WorkerInfo(
            role=role,
            pid=os.getpid(),
            node=f"{socket.gethostname()} ({ray.util.get_node_ip_address()})",
            log=_log_name(),
            node_id=str(ray.get_runtime_context().get_node_id()),
            gpu=os.environ.get("CUDA_VISIBLE_DEVICES", "") if ray.get_gpu_ids() else "",
            gpu_bytes=_gpu_bytes() if ray.get_gpu_ids() else 0,
            memory=peak.host,
            gpu_memory=peak.gpu,
        )

    def _show_gpu(self) -> None:
        """Make another worker's GPU visible, which Ray hides from workers that reserve none."""
        if self._shared_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = self._shared_gpu

    def _method(self, name: str) -> Callable[..., Any]:
        if self._fault is not None:
            raise self._fault
        return cast("Callable[..., Any]", getattr(self._inner, name))


@contextmanager
def _told_faults() -> Iterator[None]:
    """Raise faults of a GPU as an error that the driver can unpickle, whatever torch raises."""
    try:
        yield
    except Exception as error:
        fault = None if isinstance(error, RaydError) else device_fault(error)
        if fault is None:
            raise
        raise DeviceFaultError(fault) from None


Actor = ray.remote(max_restarts=-1, max_task_retries=-1)(_Worker)


class RayActor:
    """A handle to an object in an actor.

    Args:
        actor: Ray's handle.
        role: the kind of the object, for status reports.
    """

    def __init__(self, actor: Any, role: str = "host"):
        self.actor = actor
        self.role = role
        self.is_closed = False

    @classmethod
    def start(
        cls, threads_: int, factory: Callable[..., Any], *arguments: Any, calls: int = 1
    ) -> Self:
        """Start an actor on this node that reserves nothing and hosts `factory(*arguments)`.

        Args:
            threads_: of torch.
            factory: creates the object.
            arguments: of the factory.
            calls: number of concurrent calls.
        """
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # reserves no CPU, which a worker could not use then: it mostly waits for workers
        options = Actor.options(num_cpus=0, scheduling_strategy=here, max_concurrency=calls)
        return cls(
            options.remote(threads_, factory, arguments),
            getattr(factory, "__name__", "host").lower(),
        )

    @classmethod
    def here(cls) -> Self:
        """A handle to the actor in which the caller runs."""
        return cls(ray.get_runtime_context().current_actor)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and wait for its result."""
        reference = self.actor.call.remote(method, arguments)
        # not just `ray.get`, which waits without checking the cluster
        wait([reference])
        return unpack(get(reference))

    def stream(self, method: str, *arguments: Any) -> Iterator[Any]:
        """Call a generator method; yield its events on arrival."""
        events = self.events(method, *arguments)
        while True:
            wait([events])
            try:
                event = get(next(events))
            except StopIteration:
                return
            yield unpack(event)

    def events(self, method: str, *arguments: Any) -> Any:
        """Call a generator method; returns Ray's generator of references to its packed events."""
        return self.actor.stream.options(num_returns="streaming").remote(method, arguments)

    def close(self) -> None:
        """Stop the actor."""
        if self.is_closed:
            return
        self.is_closed = True
        if not head_is_lost():
            ray.kill(self.actor)


def ready_within(references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
    """The first reference that is ready within `timeout` seconds, if any, and the others.

    Raises:
        ClusterLostError: the head is gone.
    """
    check_head()
    if not references:
        time.sleep(timeout)
        return [], []
    ready, others = ray.wait(references, num_returns=1, timeout=timeout)
    return list(ready), list(others)


def wait(references: list[Any]) -> Any:
    """The first reference, or Ray's generator, that is ready.

    Raises:
        RunError: nothing was ready for hours.
        ClusterLostError: the head is gone.
    """
    started = time.monotonic()
    while time.monotonic() - started < SILENCE_LIMIT:
        ready, _ = ready_within(references, timeout=WAIT)
        if ready:
            return ready[0]
    raise RunError(
        f"No worker answered for {SILENCE_LIMIT / 60:g} minutes; the run was stopped, --resume "
        "continues it."
    )


def get(reference: Any) -> Any:
    """The packed value of a reference that is ready.

    Raises:
        RaydError: its call failed.
    """
    try:
        return ray.get(reference, timeout=SILENCE_LIMIT)
    except RayError as error:
        raise translated(error) from error


def translated(error: RayError) -> RaydError:
    """The error that a worker raised, or an error that describes how Ray failed."""
    # errors for the user are passed on unchanged; others are reported with their type
    if isinstance(error, RayTaskError) and isinstance(error.cause, RaydError):
        return error.cause
    if isinstance(error, RayTaskError) and (what := out_of_memory(error.cause)) is not None:
        return OutOfMemoryError(what)
    if isinstance(error, RayTaskError):
        return RunError(f"A worker failed: {type(error.cause).__name__}: {error.cause}")
    if isinstance(error, RayActorError):
        return RunError(
            "A worker could not be kept alive, most likely because its machine ran out of memory; "
            "--resume continues."
        )
    return RunError(f"Ray failed: {str(error).strip().splitlines()[0]}")


@cache
def _gpu_bytes() -> int:
    """Memory of the GPU of this worker; 0 if none is seen."""
    with suppress(RuntimeError):
        return int(torch.cuda.get_device_properties(0).total_memory)
    return 0


@cache
def _log_name() -> str:
    """Name of this worker's log files; its middle part is the job for which Ray started it."""
    found = Path(log_directory() or "").glob(
        f"worker-{ray.get_runtime_context().get_worker_id()}-*-{os.getpid()}.err"
    )
    return next((path.stem for path in found), "")
