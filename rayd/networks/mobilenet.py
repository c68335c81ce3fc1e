"""MobileNetV2 of half width for small images, with PyTorch's default initialisation.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018).

This is the variant that G-VBSM and EDC use for images of 32x32 pixels (697,546 parameters for ten
classes). It differs from the paper: all layers but the last convolution have half the channels, the
second stage has stride 1, so that the last map is 2x2, the first block has an expansion, too, and
ReLU replaces ReLU6, which is meant for low-precision arithmetic. The released code also draws the
initial weights differently. `torchvision/mobilenet_v2` is the paper's architecture.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import Tensor, nn

from rayd.networks.normalization import normalized_convolution
from rayd.networks.registry import architecture, require_side

if TYPE_CHECKING:
    from rayd.data.images import ImageShape

STEM = 16
LAST = 1280
"""Channels of the first and of the last convolution."""
STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
"""Expansion, channels (half those of the paper's Table 2), blocks, and stride of the first block;
the second stage has stride 1 instead of 2.
"""


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and linear bottleneck.

    Maps (N, inputs, h, w) to (N, outputs, ceil(h/stride), ceil(w/stride)). The result is added to
    the input if both have the same shape.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.residual = nn.Sequential(
            normalized_convolution(inputs, hidden, kernel_size=1),
            normalized_convolution(hidden, hidden, stride=stride, groups=hidden),
            normalized_convolution(hidden, outputs, kernel_size=1, activation=False),
        )
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, inputs, h, w) to (N, outputs, h', w')."""
        residual: Tensor = self.residual(maps)
        return maps + residual if self.adds_input else residual


@architecture("mobilenet_v2")
def mobilenet_v2(shape: ImageShape, classes: int) -> nn.Sequential:
    """Seventeen inverted residuals, global average pooling; last map 1280x2x2 for 32x32 pixels."""
    require_side("mobilenet_v2", shape, 8)
    layers: list[nn.Module] = [normalized_convolution(shape[0], STEM, stride=2)]
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
