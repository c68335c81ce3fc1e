"""Facts of this machine that decide how work is done fastest, measured once and kept.

Which precision, memory layout or batching is fastest depends on the processor, so nothing of the
kind is written down in the code: a short measurement is made when the answer is first needed, and
kept in

    $RAYD_MACHINE/<hash of the machine>.json        ($RAYD_MACHINE is ~/.cache/rayd/machine unless set)

The hash covers the processor (or GPU), the instruction sets that torch uses, the number of torch
threads and torch's version, so that machines which share a home directory measure for themselves.
The folder is not part of the cache that runs share (`$RAYD_CACHE`): all runs of a user on a machine
must find the same facts, whichever cache they use.

Measurements decide how fast a run is. Where they also decide what it computes (the precision), the
choice is written into the recipe before anything else sees it, so that it is part of every cache
key.
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

from rayd.artifacts import content_hash, read_json, write_json
from rayd.errors import ArtifactError, RunError


def folder() -> Path:
    """Where facts are kept: `$RAYD_MACHINE`, else `~/.cache/rayd/machine`."""
    given = os.environ.get("RAYD_MACHINE")
    return Path(given) if given else Path.home() / ".cache" / "rayd" / "machine"


@lru_cache
def processor() -> str:
    """The model name of this machine's processor, as the operating system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def identity(device: torch.device, threads: int | None = None) -> dict[str, str | int]:
    """All that a measurement on a device depends on.

    Args:
        device: where work is done; a GPU is identified by its name, the CPU by its model and
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
        # oneDNN, which computes convolutions, can be held back on its own
        "onednn": os.environ.get("DNNL_MAX_CPU_ISA", os.environ.get("ONEDNN_MAX_CPU_ISA", "")),
    }


def fact(
    name: str, device: torch.device, measure: Callable[[], float], anew: bool = False
) -> float:
    """A number that was measured on this machine, measured now if it is not known yet.

    Args:
        name: what is measured, with everything besides the machine that it depends on.
        device: where it is measured.
        measure: makes the measurement.
        anew: measure even if the number is known.

    Returns:
        The number. If the folder cannot be written the measurement counts for this process, and is
        made again in the next.
    """
    path = _path(device)
    if not anew:
        known = _MEASURED.get((str(path), name), _known(path).get(name))
        if known is not None:
            return known
    value = measure()
    # the file is read again: another process may have added its own facts meanwhile
    remember({name: value}, device)
    return value


def facts(device: torch.device, threads: int | None = None) -> dict[str, float]:
    """All that was measured on this machine so far, by name.

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
"""Measurements of this process, by the file they belong in and their name."""


def _known(path: Path) -> dict[str, float]:
    try:
        facts = read_json(path).get("facts", {})
    except ArtifactError:
        return {}
    if not isinstance(facts, dict):
        return {}
    return {name: float(value) for name, value in facts.items() if isinstance(value, int | float)}


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Seconds of one call: the least of some repeats after a warm-up, as the least is what other
    programs disturb least.

    Args:
        work: called `repeats + 1` times.
        device: is waited for, so that queued work counts.
        repeats: timed calls.
    """
    best = float("inf")
    for call in range(repeats + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
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
    """How many times as long as the second the first takes: the least of either, called in turn
    after a warm-up.

    On the CPU both run on one thread and its processor time is compared, which other programs on a
    busy machine hardly change.

    Args:
        first: the work that is judged.
        second: what it is compared with.
        device: where both compute.
        repeats: timed calls of each.
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
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                elapsed = clock() - began
                if call > 0:
                    best[index] = min(best[index], elapsed)
    finally:
        torch.set_num_threads(threads)
    return best[0] / best[1]
