"""Torchvision's classification models as `torchvision/<model>`, with random weights.

ResNets of any depth get a 3x3 stem of stride 1 without max pooling for images of up to 64 pixels,
as in SRe2L (Yin et al., NeurIPS 2023), RDED (Sun et al., CVPR 2024) and their successors on CIFAR
and Tiny-ImageNet; `resnet18` has that stem for images of any size. All other layers are
torchvision's, except for the input channels of the first convolution, and the classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from torch import nn
from torch.func import functional_call

from rayd.errors import ConfigError
from rayd.networks.registry import TORCHVISION as PREFIX
from rayd.networks.registry import require_side

if TYPE_CHECKING:
    from rayd.data.images import ImageShape

SMALL_SIDE = 64
"""Largest side in pixels for which ResNets get the small stem."""
LARGEST_SIDE = 1024
"""Upper end of the search for the smallest side that a model accepts."""


def build_torchvision(name: str, shape: ImageShape, classes: int) -> nn.Module:
    """Build `torchvision/<model>` for images of `shape`; logits (N, classes), no auxiliary heads.

    Raises:
        ConfigError: torchvision has no such classification model, or the images are too small for
            it or have an unsupported side.
    """
    model = name.removeprefix(PREFIX)
    known = torchvision.models.list_models(module=torchvision.models)
    if model not in known:
        near = get_close_matches(model, known, n=1, cutoff=0.5)
        hint = f"; did you mean '{PREFIX}{near[0]}'?" if near else "."
        raise ConfigError(
            f"Unknown network '{name}'{hint} "
            "See torchvision.models.list_models() for the known ones."
        )
    _require_grain(name, model, shape)
    network = _fitted(model, shape, classes)
    if not _accepts(network, *shape):
        require_side(name, shape, _least_side(lambda side: _accepts(network, shape[0], side, side)))
    return network


def _fitted(model: str, shape: ImageShape, classes: int) -> nn.Module:
    channels, height, width = shape
    options: dict[str, Any] = {}
    if model.startswith("vit_"):
        options["image_size"] = height
    elif model.startswith("maxvit_"):
        options["input_size"] = (height, width)
    elif model in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    network: nn.Module = torchvision.models.get_model(
        model, weights=None, num_classes=classes, **options
    )
    if isinstance(network, torchvision.models.ResNet) and min(height, width) <= SMALL_SIDE:
        network.set_submodule(
            "conv1", nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
        )
        network.set_submodule("maxpool", nn.Identity())
    elif channels != 3:
        _set_input_channels(network, channels)
    return network


def _set_input_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by one that differs only in its input channels."""
    name, first = next(
        (name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    )
    shape: dict[str, Any] = {
        "kernel_size": first.kernel_size,
        "stride": first.stride,
        "padding": first.padding,
    }
    network.set_submodule(
        name, nn.Conv2d(channels, first.out_channels, **shape, bias=first.bias is not None)
    )


def _require_grain(name: str, model: str, shape: ImageShape) -> None:
    """Check that the images divide into the fixed grid of a vision transformer."""
    _, height, width = shape
    if model.startswith("vit_"):
        grain = int(model.rsplit("_", 1)[1])
    elif model.startswith("maxvit_"):
        grain = 224
    else:
        return
    if height != width or height % grain:
        raise ConfigError(
            f"Network '{name}' needs square images whose side is a multiple of {grain}. "
            f"Got {height}x{width} instead."
        )


def _accepts(network: nn.Module, channels: int, height: int, width: int) -> bool:
    """Whether a forward pass on the meta device succeeds for images of this size."""
    state = {
        name: tensor.to("meta")
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }
    try:
        with torch.no_grad():
            functional_call(
                network.eval(), state, torch.zeros(1, channels, height, width, device="meta")
            )
    except RuntimeError:
        return False
    finally:
        network.train()
    return True


def _least_side(accepts: Callable[[int], bool]) -> int:
    """Smallest side from which on images are accepted, by bisection."""
    low = 0
    high = LARGEST_SIDE
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if accepts(middle) else (middle, high)
    return high
