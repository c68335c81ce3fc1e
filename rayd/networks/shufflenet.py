"""ShuffleNetV2 0.5x for small images, with PyTorch's default initialisation.

Source: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (ECCV
2018).

This is the variant that G-VBSM and EDC use for images of 32x32 pixels (351,466 parameters for ten
classes). It differs from the paper: the stem is a 1x1 convolution of stride 1, not a 3x3 one of
stride 2, and is not followed by a max pool, so that the last map is 4x4.
`torchvision/shufflenet_v2_x0_5` is the paper's architecture.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rayd.networks.normalization import normalized_convolution
from rayd.networks.registry import architecture, require_side

if TYPE_CHECKING:
    from rayd.data.images import ImageShape

STEM = 24
LAST = 1024
"""Channels of the first and of the last convolution."""
STAGES = ((48, 3), (96, 7), (192, 3))
"""Channels of each stage, and number of blocks after the one that halves the side."""


def shuffled(maps: Tensor) -> Tensor:
    """Interleave the channel halves of maps (N, d, h, w): channels 0, d/2, 1, d/2 + 1, ...

    >>> shuffled(torch.arange(6).reshape(1, 6, 1, 1)).flatten().tolist()
    [0, 3, 1, 4, 2, 5]
    """
    n, d, h, w = maps.shape
    return maps.reshape(n, 2, d // 2, h, w).transpose(1, 2).reshape(n, d, h, w)


def _depthwise(channels: int, stride: int) -> nn.Module:
    layer: nn.Module = normalized_convolution(
        channels, channels, stride=stride, groups=channels, activation=False
    )
    return layer


def _pointwise(inputs: int, outputs: int) -> nn.Module:
    layer: nn.Module = normalized_convolution(inputs, outputs, kernel_size=1)
    return layer


class ShuffleBlock(nn.Module):
    """Convolve half of the channels, pass the other half through, and shuffle both.

    Maps (N, channels, h, w) to the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            _pointwise(half, half), _depthwise(half, stride=1), _pointwise(half, half)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, channels, h, w) to (N, channels, h, w)."""
        passing, convolved = maps.chunk(2, dim=1)
        return shuffled(torch.cat([passing, self.branch(convolved)], dim=1))


class HalvingBlock(nn.Module):
    """Two branches of stride 2, each with all channels as input, concatenated and shuffled.

    Maps (N, inputs, h, w) to (N, outputs, ceil(h/2), ceil(w/2)).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.shortcut = nn.Sequential(_depthwise(inputs, stride=2), _pointwise(inputs, half))
        self.branch = nn.Sequential(
            _pointwise(inputs, half), _depthwise(half, stride=2), _pointwise(half, half)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, inputs, h, w) to (N, outputs, h', w')."""
        return shuffled(torch.cat([self.shortcut(maps), self.branch(maps)], dim=1))


@architecture("shufflenet_v2")
def shufflenet_v2(shape: ImageShape, classes: int) -> nn.Sequential:
    """Three stages of shuffled blocks, global pooling; last map 1024x4x4 for 32x32 pixels."""
    require_side("shufflenet_v2", shape, 8)
    layers: list[nn.Module] = [normalized_convolution(shape[0], STEM, kernel_size=1)]
    inputs = STEM
    for width, blocks in STAGES:
        layers.append(HalvingBlock(inputs, width))
        layers += [ShuffleBlock(width) for _ in range(blocks)]
        inputs = width
    layers.append(_pointwise(inputs, LAST))
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(LAST, classes),
        )
    )
