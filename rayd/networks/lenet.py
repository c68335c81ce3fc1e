"""LeNet-5 with ReLU and max pooling, as in the comparison of Zhao et al. (ICLR 2021).

Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition" (Proceedings of the
IEEE, 1998).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

from rayd.networks.registry import architecture, require_side

if TYPE_CHECKING:
    from rayd.data.images import ImageShape


@architecture("lenet")
def lenet(shape: ImageShape, classes: int) -> nn.Sequential:
    """Two 5x5 convolutions and three linear layers; below 32 pixels, images are padded by 2."""
    require_side("lenet", shape, 12)
    channels, height, width = shape
    padding = 2 if min(height, width) < 32 else 0
    maps = [((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width)]
    features = nn.Sequential(
        nn.Conv2d(channels, 6, kernel_size=5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=2),
    )
    hidden = nn.Sequential(
        nn.Linear(16 * maps[0] * maps[1], 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()
    )
    return nn.Sequential(
        OrderedDict(
            features=features,
            flatten=nn.Flatten(),
            hidden=hidden,
            classifier=nn.Linear(84, classes),
        ),
    )
