"""AlexNet for small images, without normalisation and with one linear layer.

Sources: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks"
(NeurIPS 2012); the cross-architecture comparison of Zhao et al. (ICLR 2021).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

from rayd.networks.registry import architecture, border_of, require_side

if TYPE_CHECKING:
    from rayd.data.images import ImageShape


@architecture("alexnet")
def alexnet(shape: ImageShape, classes: int) -> nn.Sequential:
    """Five convolutions and three 2x2 max pools; the last map is 192x4x4 for 32x32 images.

    Images of 28 to 31 pixels are padded by 2 more in the first convolution, as Zhao et al. do for
    MNIST (1,865,802 parameters there).
    """
    require_side("alexnet", shape, 8)
    channels, height, width = shape
    border = border_of(shape)
    height = height + 2 * border
    width = width + 2 * border
    features = nn.Sequential(
        nn.Conv2d(channels, 128, kernel_size=5, padding=2 + border),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=2),
        nn.Conv2d(128, 192, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=2),
        nn.Conv2d(192, 256, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 192, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(192, 192, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=2),
    )
    classifier = nn.Linear(192 * (height // 8) * (width // 8), classes)
    return nn.Sequential(
        OrderedDict(features=features, flatten=nn.Flatten(), classifier=classifier)
    )
