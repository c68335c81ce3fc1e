"""Normalisation layers of networks for small images, by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

from rayd.errors import ConfigError

Norm = Literal["instance", "batch", "group", "layer", "none"]
"""`instance` is one group per channel, `group` is four groups, `layer` spans channels and space."""

GROUPS = 4
"""Number of groups of `group`, as in the networks of Zhao et al. (2021)."""


def normalization(norm: Norm, channels: int, height: int, width: int) -> list[nn.Module]:
    """Normalisation layers (none or one) for maps (N, channels, height, width), learned affine.

    Instance normalisation is `GroupNorm` with one group per channel, because `InstanceNorm2d`
    rejects 1x1 maps in training.

    Raises:
        ConfigError: `norm` is `group` and the channels are not divisible by four.
    """
    match norm:
        case "instance":
            return [nn.GroupNorm(channels, channels)]
        case "batch":
            return [nn.BatchNorm2d(channels)]
        case "group":
            if channels % GROUPS:
                raise ConfigError(
                    f"The width of a network with norm 'group' must be a multiple of {GROUPS}. "
                    f"Got {channels} instead."
                )
            return [nn.GroupNorm(GROUPS, channels)]
        case "layer":
            return [nn.LayerNorm([channels, height, width])]
        case "none":
            return []


def normalized_convolution(
    inputs: int,
    outputs: int,
    kernel_size: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    """Convolution without bias and with "same" padding, batch normalisation, and optional ReLU.

    Layers, their order and their names equal those of torchvision's `Conv2dNormActivation`;
    torchvision is not imported, as that takes longer than importing torch.

    Args:
        inputs: number of input channels.
        outputs: number of output channels.
        kernel_size: side of the kernel, odd.
        stride: stride of the convolution.
        groups: number of channel groups of the convolution.
        activation: whether to append ReLU.
    """
    padding = (kernel_size - 1) // 2
    convolution = nn.Conv2d(
        inputs, outputs, kernel_size, stride, padding, groups=groups, bias=False
    )
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(outputs)]
    if activation:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
