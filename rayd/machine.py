"""Measured properties of this machine that determine how to compute fastest, cached on disk.

The fastest precision, memory layout or batching depends on the processor, so none is hard-coded: a
short measurement is made when the value is first needed, and stored in

    $RAYD_MACHINE/<hash of the machine>.json    ($RAYD_MACHINE defaults to ~/.cache/rayd/machine)

The hash covers the processor (or GPU), the instruction sets that torch uses, the number of torch
threads and torch's version, so that machines that share a home directory measure separately. The
folder is not part of the store shared by runs (`$RAYD_CACHE`): all runs of a user on a machine must
use the same measurements, whichever store they use.

Measurements affect the speed of a run. Where they also affect its results (the precision), the
choice is written into the recipe first, so that it is part of every cache key.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from rayd import devices
from rayd.artifacts import content_hash, read_json, write_json
from rayd.errors import ArtifactError, RunError


def folder() -> Path:
    """Folder of measurements: `$RAYD_MACHINE`, else `~/.cache/rayd/machine`."""
    given = os.environ.get("RAYD_MACHINE")
    return Path(given) if given else Path.home() / ".cache" / "rayd" / "machine"


@lru_cache
def processor() -> str:
    """Model name of this machine's processor according to the operating system."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def identity(device: torch.device, threads: int | None = None) -> dict[str, str | int]:
    """Everything that a measurement on a device depends on.

    Args:
        device: device of the measurement; a GPU is identified by its name, the CPU by its model and
            instruction sets.
        threads: of torch; None: as many as it has.
    """
    threads = torch.get_num_threads() if threads is None else threads
    common: dict[str, str | int] = {
        "torch": torch.__version__,
        "threads": threads,
        "device": device.type,
    }
    if device.type == "cuda":
        return common | {"name": torch.cuda.get_device_name(device)}
    return common | {
        "name": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        # oneDNN, which computes convolutions, can be restricted separately
        "onednn": os.environ.get("DNNL_MAX_CPU_ISA", os.environ.get("ONEDNN_MAX_CPU_ISA", "")),
    }


def fact(
    name: str, device: torch.device, measure: Callable[[], float], anew: bool = False
) -> float:
    """Return a measurement of this machine, made now unless it is cached.

    Args:
        name: name of the measurement, including all inputs besides the machine.
        device: device of the measurement.
        measure: makes the measurement.
        anew: measure even if the value is cached.

    Returns:
        The value. If the folder is not writable, it is cached for this process only.
    """
    path = _path(device)
    if not anew:
        known = _MEASURED.get((str(path), name), _known(path).get(name))
        if known is not None:
            return known
    value = measure()
    # `remember` reads the file again: another process may have added measurements meanwhile
    remember({name: value}, device)
    return value


def facts(device: torch.device, threads: int | None = None) -> dict[str, float]:
    """All measurements on this machine so far, by name.

    Args:
        device: where it was measured.
        threads: of torch; None: as many as it has.
    """
    path = _path(device, threads)
    mine = {name: value for (place, name), value in _MEASURED.items() if place == str(path)}
    return _known(path) | mine


def remember(
    measured: Mapping[str, float], device: torch.device, threads: int | None = None
) -> None:
    """Keep numbers that were measured on this machine, as `fact` does, many at once.

    Args:
        measured: by name.
        device: where they were measured.
        threads: of torch; None: as many as it has.
    """
    path = _path(device, threads)
    _MEASURED.update({(str(path), name): value for name, value in measured.items()})
    with suppress(RunError):
        if measured:
            write_json(
                path, {"machine": identity(device, threads), "facts": _known(path) | dict(measured)}
            )


def _path(device: torch.device, threads: int | None = None) -> Path:
    return folder() / f"{content_hash(identity(device, threads))}.json"


_MEASURED: dict[tuple[str, str], float] = {}
"""Measurements of this process, by file and name."""


def _known(path: Path) -> dict[str, float]:
    try:
        facts = read_json(path).get("facts", {})
    except ArtifactError:
        return {}
    if not isinstance(facts, dict):
        return {}
    return {name: float(value) for name, value in facts.items() if isinstance(value, int | float)}


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Seconds of one call: the minimum over repeats after a warm-up, least affected by other load.

    Args:
        work: called `repeats + 1` times.
        device: device that is synchronised, so that queued work counts.
        repeats: number of timed calls.
    """
    best = float("inf")
    for call in range(repeats + 1):
        began = time.perf_counter()
        work()
        devices.synchronize(device)
        elapsed = time.perf_counter() - began
        if call > 0:
            best = min(best, elapsed)
    return best


def ratio(
    first: Callable[[], object],
    second: Callable[[], object],
    device: torch.device,
    repeats: int = 3,
) -> float:
    """Ratio of the times of two functions: minima over alternating calls after a warm-up.

    On the CPU both run on one thread and their processor times are compared, which other load
    hardly affects.

    Args:
        first: numerator.
        second: denominator.
        device: device of both.
        repeats: number of timed calls of each.
    """
    clock = time.perf_counter if device.type != "cpu" else time.thread_time
    threads = torch.get_num_threads()
    best = [float("inf"), float("inf")]
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        for call in range(repeats + 1):
            for index, work in enumerate((first, second)):
                began = clock()
                work()
                devices.synchronize(device)
                elapsed = clock() - began
                if call > 0:
                    best[index] = min(best[index], elapsed)
    finally:
        torch.set_num_threads(threads)
    return best[0] / best[1]
