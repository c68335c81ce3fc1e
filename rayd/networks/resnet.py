"""ResNet-18 for small images: 3x3 stem of stride 1, no max pooling, default initialisation.

Sources: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016); Zhao et al. (ICLR
2021) for small images and for the variant that replaces strides by average pooling.
`torchvision/resnet18` is the other variant in use: the same layers for images of up to 64 pixels, with
torchvision's initialisation.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rayd.networks.normalization import Norm, normalization
from rayd.networks.registry import architecture, require_side

if TYPE_CHECKING:
    from rayd.data.images import ImageShape

STAGES = ((1, 1), (2, 2), (4, 2), (8, 2))
"""Width, relative to the stem's, and spatial reduction of the four stages of two blocks each."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Maps (N, inputs, h, w) to (N, outputs, ceil(h / reduction), ceil(w / reduction)). The shortcut
    is the identity, or a 1x1 projection if the shape changes. With `pooled`, the reduction is done
    by average pooling after convolutions of stride 1 (and rounds down).
    """

    def __init__(
        self, inputs: int, outputs: int, reduction: int, norm: Norm, pooled: bool = False
    ) -> None:
        super().__init__()
        stride = 1 if pooled else reduction
        pool = [nn.AvgPool2d(reduction)] if pooled and reduction > 1 else []
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
            *normalization(norm, outputs, 0, 0),
            nn.ReLU(),
            *pool,
            nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False),
            *normalization(norm, outputs, 0, 0),
        )
        self.shortcut = nn.Sequential()
        if reduction > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
                *pool,
                *normalization(norm, outputs, 0, 0),
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, inputs, h, w) to (N, outputs, h', w')."""
        return torch.relu(self.residual(maps) + self.shortcut(maps))


def _features(channels: int, stem: int, norm: Norm, pooled: bool) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(channels, stem, kernel_size=3, padding=1, bias=False),
        *normalization(norm, stem, 0, 0),
        nn.ReLU(),
    ]
    inputs = stem
    for multiple, reduction in STAGES:
        outputs = multiple * stem
        layers += [
            BasicBlock(inputs, outputs, reduction, norm, pooled),
            BasicBlock(outputs, outputs, 1, norm, pooled),
        ]
        inputs = outputs
    return nn.Sequential(*layers)


@architecture("resnet18", norms=("batch", "instance", "group"))
def resnet18(
    shape: ImageShape, classes: int, *, width: int = 64, norm: Norm = "batch"
) -> nn.Sequential:
    """Eight basic blocks and global average pooling; the last map is 512x4x4 for 32x32 pixels.

    `width` is the width of the stem; the last blocks are eight times as wide.
    """
    return nn.Sequential(
        OrderedDict(
            features=_features(shape[0], width, norm, pooled=False),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(8 * width, classes),
        )
    )


@architecture("resnet18_pool4", norms=("batch", "instance", "group"))
def resnet18_pool4(
    shape: ImageShape, classes: int, *, width: int = 64, norm: Norm = "batch"
) -> nn.Sequential:
    """`resnet18` that averages 4x4 windows of its last map instead of all of it.

    The same for 32x32 pixels; for 64x64 the classifier reads 2048 features, as in the released code
    of IID (Deng et al., CVPR 2024).
    """
    channels, height, breadth = shape
    # three strides of 2 round up
    last = (-(-height // 8), -(-breadth // 8))
    window = (min(4, last[0]), min(4, last[1]))
    positions = (last[0] // window[0]) * (last[1] // window[1])
    return nn.Sequential(
        OrderedDict(
            features=_features(channels, width, norm, pooled=False),
            pool=nn.AvgPool2d(window),
            flatten=nn.Flatten(),
            classifier=nn.Linear(8 * width * positions, classes),
        )
    )


@architecture("resnet18_ap", norms=("batch", "instance", "group"))
def resnet18_ap(
    shape: ImageShape, classes: int, *, width: int = 64, norm: Norm = "batch"
) -> nn.Sequential:
    """ResNet-18 with average pooling instead of strides, and without global pooling."""
    require_side("resnet18_ap", shape, 8)
    channels, height, breadth = shape
    return nn.Sequential(
        OrderedDict(
            features=_features(channels, width, norm, pooled=True),
            flatten=nn.Flatten(),
            classifier=nn.Linear(8 * width * (height // 8) * (breadth // 8), classes),
        )
    )
