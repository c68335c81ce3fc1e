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
    """The layers, none or one, that normalise maps of shape (N, channels, height, width); all have a learned scale and shift.

    Instance normalisation is `GroupNorm` with one group a channel, because `InstanceNorm2d` refuses 1x1 maps in training.

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
