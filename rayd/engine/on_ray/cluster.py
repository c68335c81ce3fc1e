"""Connection to a Ray cluster, or to a private one, and checks of its capacity."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from rayd import plugins
from rayd.config import ResourceSettings
from rayd.engine.on_ray.watch import watch_head
from rayd.errors import ConfigError, ResourceError
from rayd.shown import quantity

T = TypeVar("T")

CONNECT_LIMIT = 5.0
"""Seconds that a cluster's address may take to accept a connection."""

START_TRIES = 2
"""Attempts to start a private cluster."""


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or start a private one on this machine, unless connected.

    Raises:
        ResourceError: no cluster answers at the address, or it is the address of a Ray Client.
    """
    if (address or "").startswith("ray://"):
        raise ResourceError(
            f"'{address}' is the address of a Ray Client, which does not support streams of "
            "results; from outside a cluster submit the run: ray job submit --address "
            "http://HEAD:8265 -- rayd distill ... --address auto"
        )
    _check_reachable(address)
    if ray.is_initialized():
        return
    # hide GPUs from workers that reserved none
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if own := plugins.environment():
        quiet["runtime_env"] = own
    try:
        if address is None:
            _start_private(quiet)
        else:
            with _held_back_stderr():
                ray.init(address=address, **quiet)
    except Exception as error:
        # for a node that does not start in time, Ray raises a bare Exception
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if address is None:
            raise ResourceError(
                f"Ray did not start on this machine: {reason} If the machine is busy or short of "
                "memory, try again; '--workers 0', where a command has it, works without Ray."
            ) from error
        raise ResourceError(
            f"Cannot join the Ray cluster at '{address}': {reason.removesuffix('.')}. If it "
            "requires a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token "
            "unless this machine has it; from a machine that is not one of its nodes, use 'ray "
            "job submit'."
        ) from error
    watch_head()


def _start_private(options: dict[str, Any]) -> None:
    """Start Ray on this machine; try again if its node took longer than the 30 s that Ray allows.
    On a busy machine the second start is faster, as files are in the page cache.
    """
    for attempt in range(START_TRIES):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception:
            if attempt == START_TRIES - 1:
                raise
            ray.shutdown()


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Buffer standard error, including output of Ray's C++ code, and drop it on an error.

    Ray logs twenty lines if a cluster cannot be joined; the error is one sentence.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        before = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.truncate(0)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            held.seek(0)
            with suppress(OSError):
                os.write(2, held.read())


def check_sendable(what: str, value: Any) -> None:
    """Refuse an object that cannot be sent to workers.

    Raises:
        ConfigError: states why.
    """
    try:
        ray.cloudpickle.dumps(value)
    except Exception as error:
        raise ConfigError(
            f"{what} cannot be sent to workers ({type(error).__name__}: {_first_line(error)}): "
            "define it at the top of a module that can be imported, or take workers=0."
        ) from error


def sent(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The factory, together with plug-ins for the process that calls it; see `plugins.Sent`.

    Objects that cannot be sent are left out, as a session may hold some from earlier runs.
    """
    found = {}
    for name, value in plugins.OBJECTS.items():
        with suppress(Exception):
            ray.cloudpickle.dumps(value)
            found[name] = value
    scripted = {}
    for name, part in plugins.scripted().items():
        with suppress(Exception):
            ray.cloudpickle.dumps(part)
            scripted[name] = part
    if not found and not scripted and not plugins.imported():
        return factory
    return plugins.Sent(factory, found, scripted)


def _check_reachable(address: str | None) -> None:
    """Fail within seconds if nothing listens; Ray itself tries for minutes."""
    meant = ""
    if address == "auto":
        # the cluster that was last started here, even if it has been stopped since
        with suppress(ConnectionError):
            address = ray._private.services.get_ray_address_from_environment(address, None)
            meant = ", which 'auto' stands for here"
    found = re.fullmatch(r"\[?([^\[\]/]+?)\]?:(\d+)", address or "")
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=CONNECT_LIMIT).close()
    except OSError as error:
        raise ResourceError(
            f"No Ray cluster answers at '{address}'{meant}: {error.strerror or error}. Start one there "
            "with 'ray start --head', or leave --address out to run on this machine."
        ) from error


def check_resources(resources: ResourceSettings, setting: str = "workers") -> None:
    """Refuse more workers or decoders than the connected cluster can ever hold.

    Args:
        resources: the number of workers, and what each of them reserves.
        setting: name of the setting of their number.

    Raises:
        ResourceError: states the requested and the existing resources.
    """
    # of the idle cluster: resources that other jobs hold now may be free when workers start
    nodes, fitting = capacity(resources)
    if fitting < resources.workers:
        each = " and ".join(f"{amount:g} {kind}" for kind, amount in _reserved(resources).items())
        existing = "; ".join(
            f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes
        )
        raise ResourceError(
            f"{resources.workers} workers of {each} each do not fit: the cluster holds {fitting} "
            f"of them ({quantity(len(nodes), 'node')}: {existing}). "
            f"Ask for fewer {setting}, or less for each (resources.cpus_per_worker, "
            "resources.gpus_per_worker)."
        )
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    spare = cpus - resources.workers * resources.cpus_per_worker
    if spare < resources.decoders:
        raise ResourceError(
            f"{resources.decoders} decoders need a CPU each that no worker has: the cluster has "
            f"{max(spare, 0):g} of them. Ask for fewer resources.decoders; with 0, workers decode "
            "what they need."
        )


def run_on_worker(resources: ResourceSettings, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function on the connected cluster with the resources of a worker.

    Args:
        resources: what a worker reserves.
        function: importable on the cluster's nodes.
        arguments: of the function.

    Raises:
        ResourceError: the cluster lost the task repeatedly, or the function failed.
    """
    each = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker}
    try:
        result: T = ray.get(ray.remote(function).options(**each).remote(*arguments))
    except RayError as error:
        raise ResourceError(
            f"The hardware of the cluster's workers could not be examined: {_first_line(error)}."
        ) from error
    return result


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")


def check_store(needed: int, here: bool, remedy: str) -> None:
    """Refuse real images that do not fit into Ray's object store, which would spill them to disk.

    Args:
        needed: bytes that are in the store at a time.
        here: whether all of them are on the driver's node; else they are spread.
        remedy: advice other than giving the store more memory.

    Raises:
        ResourceError: states the required and the existing memory.
    """
    driver = ray.get_runtime_context().get_node_id()
    memory = 0
    for node in ray.nodes():
        if node["Alive"] and (not here or node["NodeID"] == driver):
            memory += int(node["Resources"].get("object_store_memory", 0))
    if needed > memory:
        raise ResourceError(
            f"{needed / 1e9:.3g} GB of real images would be in Ray's object store at a time, which "
            f"has {memory / 1e9:.3g} GB {'on this node' if here else 'on all nodes'}: {remedy}, or "
            "start Ray with more (ray start --object-store-memory)."
        )


def _reserved(resources: ResourceSettings) -> dict[str, float]:
    """Resources of a worker by kind, without those that are 0."""
    each = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {kind: amount for kind, amount in each.items() if amount > 0}


def capacity(resources: ResourceSettings) -> tuple[list[dict[str, float]], int]:
    """Resources of the nodes, and the number of workers that they hold when idle."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return nodes, sum(_fitting(node, resources) for node in nodes)


def _fitting(node: Mapping[str, float], resources: ResourceSettings) -> int:
    """Number of workers that a node with these resources holds."""
    each = _reserved(resources)
    counts = [_held(kind, node.get(kind, 0.0), amount) for kind, amount in each.items()]
    return min(counts, default=resources.workers)


def memory_to_ask(resources: ResourceSettings, wanted: int) -> int:
    """Bytes of memory that each worker requests from Ray, to be placed where there is enough.

    The need of a worker is an estimate, so it requests at most its share of any node that could
    hold it: a run that would fit is never refused. Workers of an elastic pool request none, as the
    nodes that will join are unknown.

    Args:
        resources: number of workers, and what else each reserves.
        wanted: estimated bytes that a worker will take; 0 if unknown.
    """
    if wanted <= 0 or resources.elastic:
        return 0
    shares = []
    # not a public interface of Ray; without it, workers request no memory
    with suppress(Exception):
        for node in ray._private.state.available_resources_per_node().values():
            count = min(_fitting(node, resources), resources.workers)
            if count > 0:
                shares.append(int(node.get("memory", 0) / count))
    return min(wanted, *shares) if shares else 0


def unused_gpus() -> float:
    """GPUs of the connected cluster that are not reserved."""
    return float(ray.available_resources().get("GPU", 0.0))


def _held(kind: str, existing: float, amount: float) -> int:
    """Number of times that an amount fits into a node; a fraction of a GPU must fit into one
    device.

    >>> _held("GPU", 4, 0.6), _held("CPU", 4, 0.6), _held("CPU", 0.3, 0.1)
    (4, 6, 3)
    """
    # the epsilon absorbs rounding: 0.3 / 0.1 is less than 3
    if kind == "GPU" and amount < 1:
        return int(existing) * int(1 / amount + 1e-9)
    return int(existing / amount + 1e-9)


def describe(address: str | None) -> str:
    """Join (or start) a cluster, describe its resources, and leave it.

    Raises:
        ResourceError: no cluster answers at the address, or none can be started.
    """
    joined = not ray.is_initialized()
    connect(address)
    count = sum(bool(node["Alive"]) for node in ray.nodes())
    where = "starts here" if address is None else f"at {address}"
    resources = amounts_text(ray.cluster_resources())
    if joined:
        ray.shutdown()
    return f"ray {ray.__version__} {where}: {quantity(count, 'node')}, {resources}"


def amounts_text(amounts: dict[str, float]) -> str:
    """Format amounts of CPU and GPU."""
    return ", ".join(f"{amounts.get(kind, 0.0):g} {kind}" for kind in ("CPU", "GPU"))


def log_directory() -> str | None:
    """Ray's log directory on this node, from a private attribute; None if Ray lacks it."""
    with suppress(AttributeError):
        return str(ray._private.worker._global_node.get_logs_dir_path())
    return None
