"""What is minimised: terms over statistics and observations, in pure torch, one family a module."""

from rayd.objectives.gaps import squared_mean_gap
from rayd.objectives.terms import Discrepancy, Measured, Need, Term

__all__ = ["Discrepancy", "Measured", "Need", "Term", "squared_mean_gap"]
