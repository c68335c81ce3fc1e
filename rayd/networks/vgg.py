"""VGG-11 for small images, with one linear layer, as in the comparison of Zhao et al. (ICLR 2021).

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(ICLR 2015).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

from rayd.networks.normalization import Norm, normalization
from rayd.networks.registry import architecture, border_of, require_side

if TYPE_CHECKING:
    from rayd.data.images import ImageShape

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))
"""Widths of the convolutions between max pools."""


@architecture("vgg11", norms=("instance", "batch"))
def vgg11(shape: ImageShape, classes: int, *, norm: Norm = "instance") -> nn.Sequential:
    """Eight 3x3 convolutions and five 2x2 max pools; the last map is 512x1x1 for 32x32 pixels.

    Images of 28 to 31 pixels are padded by 2 more in the first convolution, as Zhao et al. do for
    MNIST, so that the last map is not empty.
    """
    require_side("vgg11", shape, 28)
    channels, height, breadth = shape
    border = border_of(shape)
    height = height + 2 * border
    breadth = breadth + 2 * border
    layers: list[nn.Module] = []
    for stage in STAGES:
        for width in stage:
            layers += [
                nn.Conv2d(channels, width, kernel_size=3, padding=1 if layers else 1 + border),
                *normalization(norm, width, height, breadth),
                nn.ReLU(),
            ]
            channels = width
        layers.append(nn.MaxPool2d(kernel_size=2))
        height = height // 2
        breadth = breadth // 2
    classifier = nn.Linear(channels * height * breadth, classes)
    return nn.Sequential(
        OrderedDict(features=nn.Sequential(*layers), flatten=nn.Flatten(), classifier=classifier)
    )
