"""Choices shared by settings of methods and the mathematics that they configure.

They are defined here, not next to their formulas in `rayd.objectives` and `rayd.statistics`, so
that recipes can be validated without importing torch.
"""

from __future__ import annotations

from typing import Literal

Kernel = Literal["gaussian", "laplace", "isotropic-laplace", "matern", "rational-quadratic"]
"""Name of a shift-invariant kernel; see `rayd.statistics.frequencies`."""
Scale = float | Literal["median"]
"""Length scale of a kernel in units of the features, or the median distance of real ones."""

Category = Literal["class", "instance", "batch"]
"""Variance that represents a class; see `rayd.objectives.moments`."""

Split = Literal["uniform", "median", "rank", "continuous"]
"""Rule that divides classes into head and tail; see `rayd.objectives.head_and_tail`."""
OverClasses = Literal["mean", "sum"]
"""Reduction over classes; see `rayd.objectives.spectral_distance`."""

Signal = Literal["class", "mean"]
"""Input of a filter: features by class, or their mean; see `rayd.objectives.spectral`."""

Direction = Literal["current", "average"]
"""First argument p of KL(p || q): the distribution of the current images, or of their average."""

RELATIVE_RIDGE = 1e-6
"""Default ridge of a regression, relative to the mean eigenvalue of the kernel matrix; see
`rayd.objectives.ridge`.
"""
