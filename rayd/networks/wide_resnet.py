"""Wide ResNet for small images: pre-activation blocks without dropout, default initialisation.

Source: Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016). WRN-d-k has d layers, that is
6n + 4 for n blocks in each of its three stages, which are k times as wide as 16, 32 and 64
channels.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import Tensor, nn

from rayd.errors import ConfigError
from rayd.networks.registry import architecture, require_side

if TYPE_CHECKING:
    from rayd.data.images import ImageShape

STEM = 16
"""Channels of the first convolution."""
STAGES = ((16, 1), (32, 2), (64, 2))
"""Channels at width 1, and stride of the first block."""


class PreActivationBlock(nn.Module):
    """Normalisation, ReLU and a 3x3 convolution, twice, and a shortcut.

    Maps (N, inputs, h, w) to (N, outputs, ceil(h/stride), ceil(w/stride)). The result is added to
    the input, or, if the channels change, to a 1x1 projection of the first activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False),
        )
        self.projection: nn.Module | None = None
        if inputs != outputs:
            self.projection = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, inputs, h, w) to (N, outputs, h', w')."""
        active = self.activation(maps)
        residual: Tensor = self.residual(active)
        return residual + (maps if self.projection is None else self.projection(active))


@architecture("wide_resnet")
def wide_resnet(
    shape: ImageShape, classes: int, *, depth: int = 16, width: int = 2
) -> nn.Sequential:
    """WRN-`depth`-`width` with global average pooling; the last map is (64 width)x8x8 for 32x32.

    Raises:
        ConfigError: `depth` is not 6n + 4 for an integer n >= 1, or the images are too small.
    """
    require_side("wide_resnet", shape, 4)
    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest:
        raise ConfigError(
            "The depth of network 'wide_resnet' must be 6n + 4: 10, 16, 22, 28, ... "
            f"Got {depth} instead."
        )
    layers: list[nn.Module] = [nn.Conv2d(shape[0], STEM, kernel_size=3, padding=1, bias=False)]
    inputs = STEM
    for channels, stride in STAGES:
        outputs = channels * width
        layers.append(PreActivationBlock(inputs, outputs, stride))
        layers += [PreActivationBlock(outputs, outputs, stride=1) for _ in range(blocks - 1)]
        inputs = outputs
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU()),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(inputs, classes),
        )
    )


@architecture("wrn16_2")
def wrn16_2(shape: ImageShape, classes: int) -> nn.Sequential:
    """WRN-16-2, a common small teacher and observer."""
    require_side("wrn16_2", shape, 4)
    return wide_resnet(shape, classes, depth=16, width=2)
