"""Hyperparameter sweeps of recipes with Ray Tune, in which trials share work.

grid = tuning.sweep("edc-digits", samples=20, out="sweeps/edc")
tuning.summary("sweeps/edc").validation_accuracy

    settings, domain       the file of a space; what a setting is drawn from
    space, space_check     a space with its recipes; whether its values fit them
    search                 which points are tried: grids, random draws, Optuna
    driver                 a sweep from its start to its results
    trial                  one trial
    live, table, results, summaries, charts, page
                           what it leaves: tables, the best recipe, charts, a page
    study                  a study's table beside the paper's
    spaces                 the spaces and studies that come with rayd
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
