"""Weights of amplitude and phase of characteristic functions, by the size of the class.

CSDM (see `rayd.methods.csdm`) weights amplitudes by a in head classes, which have enough images to
be diverse, and by 1 - a in tail classes; phases have one minus these weights. The paper does not
state which classes are head classes; with n_c the number of real images of class c, the rules are:

    uniform      a_c = a for every class
    median       head if n_c is at least the median of n
    rank         head are the ceil(C / 2) largest classes, the first of those that are equally large
    continuous   a_c = (1 - a) + (2 a - 1) u_c,   u_c = log(n_c / n_min) / log(n_max / n_min)

so that the continuous rule agrees with the others for the largest and the smallest class. The
profile of `data.imbalance` is exponential, so u_c decreases by the same step from class to class.
If all classes are equally large, all are head classes, except by rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

import torch
from torch import Tensor

from rayd.config.choices import Split


def amplitude_weights(counts: Tensor, head_weight: float, split: Split) -> Tensor:
    """Weights of the amplitudes (C,), in [0, 1], from the classes' numbers of real images (C,).

    Classes without images do not take part in finding the split; they count as tail.

    Raises:
        ValueError: the weight or the rule is out of range.

    >>> amplitude_weights(torch.tensor([100.0, 10.0, 1.0]), 0.75, "continuous")
    tensor([0.7500, 0.5000, 0.2500])
    """
    check(head_weight, split)
    return (1 - head_weight) + (2 * head_weight - 1) * _SHARES[split](
        counts if counts.is_floating_point() else counts.to(torch.get_default_dtype())
    )


def check(head_weight: float, split: str) -> None:
    """Validate weight and rule.

    Raises:
        ValueError: the weight is outside [0, 1], or there is no such rule.
    """
    if not 0 <= head_weight <= 1:
        raise ValueError(f"The head amplitude weight must be in [0, 1]. Got {head_weight} instead.")
    if split not in get_args(Split):
        raise ValueError(
            f"The split of head and tail must be one of {get_args(Split)}. Got '{split}' instead."
        )


def _uniform(counts: Tensor) -> Tensor:
    return torch.ones_like(counts)


def _by_median(counts: Tensor) -> Tensor:
    there = counts[counts > 0]
    if not len(there):
        return torch.zeros_like(counts)
    return (counts >= there.quantile(0.5)).to(counts)


def _by_rank(counts: Tensor) -> Tensor:
    order = counts.argsort(descending=True, stable=True)
    shares = torch.zeros_like(counts)
    shares[order[: (int((counts > 0).sum()) + 1) // 2]] = 1
    return shares


def _continuous(counts: Tensor) -> Tensor:
    there = counts[counts > 0]
    if not len(there) or there.min() == there.max():
        return (counts > 0).to(counts)
    logarithms = (counts.clamp(min=1).log() - there.min().log()) / (there.max() / there.min()).log()
    return logarithms.clamp(0, 1) * (counts > 0)


_SHARES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "uniform": _uniform,
    "median": _by_median,
    "rank": _by_rank,
    "continuous": _continuous,
}
"""Rules by name: the degree (C,), from 0 to 1, to which each class is a head class."""
