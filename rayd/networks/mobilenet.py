"""MobileNetV2 for small images, with PyTorch's default initialisation.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018).

This is the variant customary for images of 32x32 pixels. It differs from the paper: the stem and
the second stage have stride 1, so that the last map is 4x4; every block of stride 1 has a shortcut,
a 1x1 projection where the channels change (the paper has none there); the first block, too, has an
expansion; and ReLU replaces ReLU6, which is meant for low-precision arithmetic.
`torchvision/mobilenet_v2` is the paper's architecture.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import Tensor, nn

from rayd.networks.normalization import normalized_convolution
from rayd.networks.registry import architecture, require_side

if TYPE_CHECKING:
    from rayd.data.images import ImageShape

STEM = 32
LAST = 1280
"""Channels of the first and of the last convolution."""
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks, and stride of the first block (Table 2), except two strides of 1."""


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and linear bottleneck.

    Maps (N, inputs, h, w) to (N, outputs, ceil(h/stride), ceil(w/stride)). With stride 1 the result
    is added to the input, or to its 1x1 projection if the channels change.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.residual = nn.Sequential(
            normalized_convolution(inputs, hidden, kernel_size=1),
            normalized_convolution(hidden, hidden, stride=stride, groups=hidden),
            normalized_convolution(hidden, outputs, kernel_size=1, activation=False),
        )
        self.shortcut: nn.Module | None = nn.Identity() if stride == 1 else None
        if stride == 1 and inputs != outputs:
            self.shortcut = normalized_convolution(inputs, outputs, kernel_size=1, activation=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, inputs, h, w) to (N, outputs, h', w')."""
        residual: Tensor = self.residual(maps)
        return residual if self.shortcut is None else residual + self.shortcut(maps)


@architecture("mobilenet_v2")
def mobilenet_v2(shape: ImageShape, classes: int) -> nn.Sequential:
    """Seventeen inverted residuals, global average pooling; last map 1280x4x4 for 32x32 pixels."""
    require_side("mobilenet_v2", shape, 8)
    layers: list[nn.Module] = [normalized_convolution(shape[0], STEM)]
    inputs = STEM
    for expansion, width, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(InvertedResidual(inputs, width, expansion, stride if block == 0 else 1))
            inputs = width
    layers.append(normalized_convolution(inputs, LAST, kernel_size=1))
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(LAST, classes),
        )
    )
