"""Facts of this machine that decide how work is done fastest, measured once and kept.

Which precision, memory layout or batching is fastest depends on the processor, so nothing of the kind is written down in the
code: a short measurement is made when the answer is first needed and kept under the cache,

    <cache>/machine/<hash of the machine>.json

The hash covers the processor (or GPU), the instruction sets that torch uses, the number of torch threads and torch's version:
another machine on the same shared file system measures for itself.

Measurements decide how fast a run is. Where they also decide what it computes (the precision), the choice is written into the
recipe before anything else sees it, so that it is part of every cache key.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from rayd.artifacts import content_hash, default_root, read_json, write_json
from rayd.errors import ArtifactError, RunError

FOLDER = "machine"
"""Where facts are kept under the cache."""


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


def identity(device: torch.device) -> dict[str, str | int]:
    """All that a measurement on a device depends on.

    Args:
        device: where work is done; a GPU is identified by its name, the CPU by its model and instruction sets.
    """
    common: dict[str, str | int] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device.type}
    if device.type == "cuda":
        return common | {"name": torch.cuda.get_device_name(device)}
    return common | {
        "name": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        # oneDNN, which computes convolutions, can be held back on its own
        "onednn": os.environ.get("DNNL_MAX_CPU_ISA", os.environ.get("ONEDNN_MAX_CPU_ISA", "")),
    }


def fact(name: str, device: torch.device, measure: Callable[[], float], root: Path | None = None, anew: bool = False) -> float:
    """A number that was measured on this machine, measured now if it is not known yet.

    Args:
        name: what is measured, with everything besides the machine that it depends on.
        device: where it is measured.
        measure: makes the measurement.
        root: root of the cache; absent: `$RAYD_CACHE`, else `~/.cache/rayd/store`.
        anew: measure even if the number is known.

    Returns:
        The number. If the cache cannot be written the measurement still counts; it is then made again next time.
    """
    described = identity(device)
    path = (root or default_root()) / FOLDER / f"{content_hash(described)}.json"
    known = _known(path)
    if name in known and not anew:
        return known[name]
    value = measure()
    with suppress(RunError):
        # read again: another process may have added its own facts meanwhile
        write_json(path, {"machine": described, "facts": _known(path) | {name: value}})
    return value


def _known(path: Path) -> dict[str, float]:
    try:
        facts = read_json(path).get("facts", {})
    except ArtifactError:
        return {}
    if not isinstance(facts, dict):
        return {}
    return {name: float(value) for name, value in facts.items() if isinstance(value, int | float)}


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Seconds of one call: the least of some repeats after a warm-up, as the least is what other programs disturb least.

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
