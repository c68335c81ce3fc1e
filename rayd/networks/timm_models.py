"""Models of timm as `timm/<model>`, with random weights: DeiT-Tiny and a thousand others.

timm (Wightman, "PyTorch Image Models") is an optional dependency: `pip install 'rayd[timm]'`.
Models with a fixed image size, such as vision transformers, are built for the size of the data.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

import torch
from torch import nn

from rayd.errors import ConfigError
from rayd.networks.registry import TIMM as PREFIX
from rayd.networks.registry import require_timm

if TYPE_CHECKING:
    from rayd.data.images import ImageShape


def build_timm(name: str, shape: ImageShape, classes: int) -> nn.Module:
    """Build `timm/<model>` for images of `shape`; logits (N, classes).

    Raises:
        ConfigError: timm is not installed or has no such model, or the model cannot take images of
            this shape.
    """
    require_timm(name)
    import timm

    channels, height, width = shape

    model = name.removeprefix(PREFIX)
    if not timm.is_model(model):
        near = get_close_matches(model, timm.list_models(), n=1, cutoff=0.5)
        hint = f"; did you mean '{PREFIX}{near[0]}'?" if near else "."
        raise ConfigError(f"Unknown network '{name}'{hint} See timm.list_models() for all.")
    try:
        network = _built(model, channels, (height, width), classes)
        with torch.no_grad():
            network.eval()(torch.zeros(1, *shape))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"Network '{name}' cannot take images of {height}x{width} pixels: {reason}; "
            "choose another network or 'data.image_size'."
        ) from error
    return network.train()


def _built(model: str, channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    """Build the model for the image size, if it depends on one."""
    import timm

    options = {"pretrained": False, "num_classes": classes, "in_chans": channels}
    try:
        network: nn.Module = timm.create_model(model, **options, img_size=size)
    except TypeError:  # convolutional networks have no 'img_size'
        network = timm.create_model(model, **options)
    return network
