"""Discrepancies of two statistics: pure functions of the real and the synthetic one."""

from __future__ import annotations

from torch import Tensor

from rayd.statistics import Moments


def squared_mean_gap(real: Moments, synthetic: Moments) -> Tensor:
    """Sum over classes of the squared distance of feature means (Zhao and Bilen 2023, Eq. 4).

    sum_c ||mean_c(real) - mean_c(synthetic)||^2, a scalar. Classes that either side holds no sample
    of are left out.
    """
    both = (real.count > 0) & (synthetic.count > 0)
    return ((real.mean - synthetic.mean).square().sum(-1) * both).sum()
