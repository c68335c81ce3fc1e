"""Sweeps: search for better settings of a recipe with Ray Tune, sharing all that trials have in common.

grid = tuning.sweep("edc-digits", samples=20, out="sweeps/edc")
tuning.summary("sweeps/edc").validation_accuracy
"""

from tuning.driver import Summary, summary, sweep
from tuning.space import Domain, Space, load, names

__all__ = ["Domain", "Space", "Summary", "load", "names", "summary", "sweep"]
