"""Choices that settings of methods share with the mathematics that they configure.

They stand here, and not beside their formulas in `rayd.objectives` and `rayd.statistics`, so that a
recipe can be read, checked and refused without importing torch.
"""

from __future__ import annotations

from typing import Literal

Kernel = Literal["gaussian", "laplace", "isotropic-laplace", "matern", "rational-quadratic"]
"""Name of a shift-invariant kernel; see `rayd.statistics.frequencies`."""
Scale = float | Literal["median"]
"""Length of a kernel in units of the features, or the median distance of real ones."""

Category = Literal["class", "instance", "batch"]
"""Which variance stands for a class; see `rayd.objectives.moments`."""

Split = Literal["uniform", "median", "rank", "continuous"]
"""Name of a rule that tells head classes from tail classes; see `rayd.objectives.head_and_tail`."""
OverClasses = Literal["mean", "sum"]
"""How the values of classes become one; see `rayd.objectives.characteristic_function`."""

Signal = Literal["class", "mean"]
"""What a filter is applied to: features by class, or their mean; see `rayd.objectives.spectral_filter`."""

Direction = Literal["current", "average"]
"""Whose distribution stands first in KL(p || q), p log(p / q): that of the images now, or of their
average.
"""

RELATIVE_RIDGE = 1e-6
"""Default ridge of a regression, relative to the mean eigenvalue of the kernel matrix; see
`rayd.objectives.ridge`.
"""
