"""Hyperparameter sweeps of recipes with Ray Tune, in which trials share common work.

grid = tuning.sweep("edc-digits", samples=20, out="sweeps/edc")
tuning.summary("sweeps/edc").validation_accuracy
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tuning.domain import Domain
from tuning.settings import Space
from tuning.space import ResolvedSpace, load, names

if TYPE_CHECKING:
    from tuning.driver import Summary, Sweep, summary, sweep

__all__ = [
    "Domain",
    "ResolvedSpace",
    "Space",
    "Summary",
    "Sweep",
    "load",
    "names",
    "summary",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Import Ray Tune on first use."""
    if name in ("Summary", "Sweep", "summary", "sweep"):
        return getattr(import_module("tuning.driver"), name)
    raise AttributeError(f"module 'tuning' has no attribute '{name}'")
