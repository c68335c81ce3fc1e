"""Construction of networks from settings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rayd.errors import ConfigError
from rayd.networks.registry import TIMM, TORCHVISION, find, given_options, refuse_options
from rayd.seeding import seeded
from rayd.transfer import send

if TYPE_CHECKING:
    from rayd.config import NetworkSettings
    from rayd.data.images import ImageShape


def build(
    spec: NetworkSettings, shape: ImageShape, classes: int, seed: int | None = None
) -> nn.Module:
    """Build a network with random weights, in train mode, on the CPU.

    Args:
        spec: name and options of the architecture.
        shape: (channels, height, width) of an image.
        classes: number of logits.
        seed: seed of the initial weights, drawn from a private stream that leaves torch's global
            generator unchanged; None draws them from the global generator.

    Raises:
        ConfigError: the network or an option does not exist, or the images are too small for it.
    """
    if classes < 1 or min(shape) < 1:
        raise ConfigError(
            "A network needs pixels and at least one class. "
            f"Got shape {tuple(shape)}, {classes} classes instead."
        )
    with seeded(seed, "network", spec.name) if seed is not None else nullcontext():
        if spec.name.startswith(TORCHVISION):
            from rayd.networks.torchvision_models import build_torchvision

            refuse_options(spec.name, given_options(spec))
            return build_torchvision(spec.name, shape, classes)
        if spec.name.startswith(TIMM):
            from rayd.networks.timm_models import build_timm

            refuse_options(spec.name, given_options(spec))
            return build_timm(spec.name, shape, classes)
        return find(spec.name).build(spec, shape, classes)


def uses_batch_statistics(network: nn.Module) -> bool:
    """Whether a layer uses batch statistics in training, i.e. is a batch normalisation."""
    return any(True for _ in _batch_normalizations(network))


def normalizes_by_batch(network: nn.Module) -> bool:
    """Whether a batch normalisation is in training mode, so that outputs depend on the batch."""
    return any(layer.training for layer in _batch_normalizations(network))


def normalize_by_batch(network: nn.Module) -> nn.Module:
    """Set batch normalisations to training mode and all else, such as dropout, to evaluation mode.

    Returns:
        The network.
    """
    network.eval()
    for layer in _batch_normalizations(network):
        layer.train()
    return network


def _batch_normalizations(network: nn.Module) -> Iterator[nn.Module]:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield module


@torch.no_grad()
def take_over(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights and buffers of the same architecture into a network, by name.

    Dtypes and memory layout of the network are kept. Tensors on the host are sent to a device in
    one asynchronous copy. Other tensors of the state are ignored.

    Raises:
        KeyError: a tensor is missing.
    """
    own = network.state_dict()
    given = [state[name] for name in own]
    device = next(iter(own.values())).device
    if given[0].device != device:
        given = send([tensor.cpu() for tensor in given], device)
    torch._foreach_copy_(list(own.values()), given)


def restore(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a network's `state_dict` from plain tensors by name.

    Some modules read the version of a state dict, which is not stored in its tensors; the network's
    own version is used.

    Raises:
        RuntimeError: a tensor is missing, unknown, or has another shape.
    """
    versioned = OrderedDict(state)
    versioned._metadata = getattr(network.state_dict(), "_metadata", OrderedDict())  # type: ignore[attr-defined]
    network.load_state_dict(versioned)
