"""Applications of distilled sets: each is a function, a command and a chart.

- `rayd.applications.ranking`: does the set rank architectures as the whole data do?
- `rayd.applications.continual`: can a network learn classes that arrive in groups, from a memory of
  a few images per class?
- `rayd.applications.slimming`: which channels of a network can be pruned, without the real data?

They are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayd.applications import continual, ranking, slimming

__all__ = ["continual", "ranking", "slimming"]


def __getattr__(name: str) -> Any:
    """Import an application on first use."""
    if name in __all__:
        return import_module(f"rayd.applications.{name}")
    raise AttributeError(f"module 'rayd.applications' has no attribute '{name}'")
