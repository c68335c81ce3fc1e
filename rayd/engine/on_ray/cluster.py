"""The cluster: joining one or starting a private one, and whether what is asked for fits into
it.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from rayd.config import ResourceSettings
from rayd.errors import ResourceError

T = TypeVar("T")

KNOCK_LIMIT = 5.0
"""Seconds that a cluster's address may take to accept a connection."""


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or start a private one on this machine; nothing when connected
    already.

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
    nodes, fitting = room(resources)
    if fitting < resources.workers:
        asked = " and ".join(f"{amount:g} {kind}" for kind, amount in _wanted(resources).items())
        there = "; ".join(
            f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes
        )
        raise ResourceError(
            f"{resources.workers} workers of {asked} each do not fit: the cluster holds {fitting} of them "
            f"({len(nodes)} node{'s' if len(nodes) != 1 else ''}: {there}). "
            f"Ask for fewer {setting}, or less for each (resources.cpus_per_worker, resources.gpus_per_worker)."
        )
    spare = (
        sum(node.get("CPU", 0.0) for node in nodes) - resources.workers * resources.cpus_per_worker
    )
    if spare < resources.decoders:
        raise ResourceError(
            f"{resources.decoders} decoders need a CPU each that no worker has: the cluster has {max(spare, 0):g} of them. "
            "Ask for fewer resources.decoders; with 0, workers decode what they need."
        )


def ask_worker(resources: ResourceSettings, function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns where a worker of the connected cluster would run, with what a worker
    reserves.

    Args:
        resources: what a worker reserves.
        function: importable on the cluster's nodes.
        arguments: of the function.

    Raises:
        ResourceError: the cluster lost the task again and again, or the function failed there.
    """
    each = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker}
    try:
        answer: T = ray.get(ray.remote(function).options(**each).remote(*arguments))
    except RayError as error:
        raise ResourceError(
            f"No worker of the cluster could be asked about its hardware: {_first_line(error)}."
        ) from error
    return answer


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")


def check_store(needed: int, here: bool, remedy: str) -> None:
    """Refuse at once real images that Ray's object store does not hold: it would write them to
    disks, again and again.

    Args:
        needed: bytes that are in it at a time.
        here: whether all of them are on the driver's node; else they are spread.
        remedy: what to do instead of giving it more memory.

    Raises:
        ResourceError: says what is needed and what there is.
    """
    driver = ray.get_runtime_context().get_node_id()
    nodes = [
        node for node in ray.nodes() if node["Alive"] and (not here or node["NodeID"] == driver)
    ]
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


def room(resources: ResourceSettings) -> tuple[list[dict[str, float]], int]:
    """What the nodes have, and how many of the workers they could hold were they empty."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    each = _wanted(resources).items()
    return nodes, sum(
        min(
            (int(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in each),
            default=resources.workers,
        )
        for node in nodes
    )


def census(address: str | None) -> str:
    """Join (or start) a cluster, tell in words what it holds, and leave it.

    Raises:
        ResourceError: no cluster answers at the address, or none can be started.
    """
    joined = not ray.is_initialized()
    connect(address)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    told = (
        f"ray {ray.__version__} starts here"
        if address is None
        else f"ray {ray.__version__} at {address}"
    )
    told += f": {len(nodes)} node{'s' if len(nodes) != 1 else ''}, {words(ray.cluster_resources())}"
    if joined:
        ray.shutdown()
    return told


def words(amounts: dict[str, float]) -> str:
    """Amounts of CPU and GPU."""
    return ", ".join(f"{amounts.get(kind, 0.0):g} {kind}" for kind in ("CPU", "GPU"))


def log_directory() -> str | None:
    """Where Ray logs on this node. Ray tells nobody, so that this is nothing to rely on."""
    with suppress(AttributeError):
        return str(ray._private.worker._global_node.get_logs_dir_path())
    return None
