"""What Ray tells of a run where its metrics are collected.

    rayd_rate                  work units a second, by stage
    rayd_wait_seconds_total    seconds that calls were waited for, by method; of `compute` the wait for gradients
    rayd_bytes_moved_total     bytes through the object store, by direction, seen from who asks
    rayd_restarts_total        workers that were started again

Where nobody collects them they cost next to nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge


def count(name: str, amount: float, **tags: str) -> None:
    """Add to a counter."""
    if amount > 0:
        _counter(name, *tags).inc(amount, tags=tags)


def rate(stage: str, value: float) -> None:
    """Publish the work units a second of a stage."""
    _rate().set(value, tags={"stage": stage})


@cache
def _counter(name: str, *tags: str) -> Any:
    return Counter(name, description=name.removeprefix("rayd_").replace("_", " "), tag_keys=tags)


@cache
def _rate() -> Any:
    return Gauge("rayd_rate", description="work units a second", tag_keys=("stage",))
