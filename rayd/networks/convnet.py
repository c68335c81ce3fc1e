"""ConvNet, the standard observer and student of dataset distillation.

Each block is a 3x3 convolution with bias, a normalisation, ReLU and 2x2 average pooling; a linear
classifier reads the last map. "ConvNetD3" has three blocks of width 128 with instance
normalisation: on 32x32 pixels, a last map of 128x4x4, 2,048 features. Images of 28 to 31 pixels
are padded by 2 more in the first convolution, as in the released code of Zhao et al. (317,706
parameters on MNIST), so that their maps are those of 32x32 pixels.

Sources: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting" (CVPR 2018);
Zhao et al., "Dataset Condensation with Gradient Matching" (ICLR 2021).
"""

from __future__ import annotations

from collections import OrderedDict
from math import ceil, log2
from typing import TYPE_CHECKING

from torch import nn

from rayd.networks.normalization import Norm, normalization
from rayd.networks.registry import architecture, border_of, require_side

if TYPE_CHECKING:
    from rayd.data.images import ImageShape


def default_depth(side: int) -> int:
    """Number of blocks customary for images of `side` pixels: 3 up to 32, 4 up to 64, and so on.

    Below 8 pixels, the number of blocks that leaves a map of one pixel.

    >>> [default_depth(side) for side in (4, 8, 28, 32, 64, 128, 224)]
    [2, 3, 3, 3, 4, 5, 6]
    """
    return min(int(log2(side)), max(3, ceil(log2(side)) - 2))


@architecture("convnet", norms=("instance", "batch", "group", "layer", "none"))
def convnet(
    shape: ImageShape,
    classes: int,
    *,
    depth: int | None = None,
    width: int = 128,
    norm: Norm = "instance",
) -> nn.Sequential:
    """Build `depth` blocks of `width` channels and a linear classifier; logits (N, classes)."""
    channels, height, breadth = shape
    border = border_of(shape)
    height = height + 2 * border
    breadth = breadth + 2 * border
    least = 2 ** (depth or 1)
    if min(height, breadth) < least:
        require_side("convnet", shape, least)
    blocks: list[nn.Module] = []
    for _ in range(depth or default_depth(min(height, breadth))):
        blocks += [
            nn.Conv2d(channels, width, kernel_size=3, padding=1 if blocks else 1 + border),
            *normalization(norm, width, height, breadth),
            nn.ReLU(),
            nn.AvgPool2d(kernel_size=2),
        ]
        channels = width
        height = height // 2
        breadth = breadth // 2
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*blocks),
            flatten=nn.Flatten(),
            classifier=nn.Linear(channels * height * breadth, classes),
        )
    )
