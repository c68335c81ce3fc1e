"""Metrics of a run, exported by Ray.

    rayd_rate                  work units per second, by stage
    rayd_wait_seconds_total    seconds spent waiting for calls, by method; `compute` is gradients
    rayd_bytes_moved_total     bytes through the object store, by direction, seen from the caller
    rayd_restarts_total        restarts of workers

Their cost is negligible where they are not collected.
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
    """Publish the rate of a stage, in work units per second."""
    _rate().set(value, tags={"stage": stage})


@cache
def _counter(name: str, *tags: str) -> Any:
    return Counter(name, description=name.removeprefix("rayd_").replace("_", " "), tag_keys=tags)


@cache
def _rate() -> Any:
    return Gauge("rayd_rate", description="work units a second", tag_keys=("stage",))
