"""The normalisation layers of small-image networks, by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

from rayd.errors import ConfigError

Norm = Literal["instance", "batch", "group", "layer", "none"]
"""`instance` is one group a channel, `group` is four groups, `layer` spans channels and space."""

GROUPS = 4
"""Groups of `group`, as in the networks of Zhao et al. (2021)."""


def normalization(norm: Norm, channels: int, height: int, width: int) -> list[nn.Module]:
    """The layers, none or one, that normalise maps of shape (N, channels, height, width); all have
    a learned scale and shift.

    Instance normalisation is `GroupNorm` with one group a channel, because `InstanceNorm2d` refuses
    1x1 maps in training.

    Raises:
        ConfigError: `group`, and the channels do not divide into four groups.
    """
    match norm:
        case "instance":
            return [nn.GroupNorm(channels, channels)]
        case "batch":
            return [nn.BatchNorm2d(channels)]
        case "group":
            if channels % GROUPS:
                raise ConfigError(
                    f"The width of a network with norm 'group' must be a multiple of {GROUPS}. Got {channels} instead."
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
    """A convolution without bias that keeps the side (up to its stride), batch normalisation, and
    ReLU where one is wanted.

    The layers, their order and their names are those of torchvision's `Conv2dNormActivation`,
    without importing torchvision, which takes longer than torch itself.

    Args:
        inputs: channels that it reads.
        outputs: channels that it makes.
        kernel_size: side of the kernel, odd.
        stride: of the convolution.
        groups: of channels that are convolved apart.
        activation: whether ReLU comes last.
    """
    padding = (kernel_size - 1) // 2
    convolution = nn.Conv2d(
        inputs, outputs, kernel_size, stride, padding, groups=groups, bias=False
    )
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(outputs)]
    if activation:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
