"""Multi-layer perceptron of two layers of 128 units, as in Zhao et al. (ICLR 2021)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

from rayd.networks.registry import architecture

if TYPE_CHECKING:
    from rayd.data.images import ImageShape


@architecture("mlp")
def mlp(shape: ImageShape, classes: int, *, depth: int = 2, width: int = 128) -> nn.Sequential:
    """Build `depth` hidden layers of `width` units with ReLU, then the classifier."""
    channels, height, breadth = shape
    units = channels * height * breadth
    hidden: list[nn.Module] = []
    for _ in range(depth):
        hidden += [nn.Linear(units, width), nn.ReLU()]
        units = width
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden=nn.Sequential(*hidden),
            classifier=nn.Linear(units, classes),
        ),
    )
