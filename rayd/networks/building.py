"""From settings to a network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rayd.errors import ConfigError
from rayd.networks.registry import TORCHVISION, find, given_options, refuse_options
from rayd.seeding import seeded
from rayd.transfer import send

if TYPE_CHECKING:
    from rayd.config import NetworkSettings
    from rayd.data.images import ImageShape


def build(
    spec: NetworkSettings, shape: ImageShape, classes: int, seed: int | None = None
) -> nn.Module:
    """A new network for images of `shape` = (channels, height, width), with random weights, in
    train mode, on the CPU.

    Args:
        spec: name and options of the architecture.
        shape: of one image.
        classes: number of logits.
        seed: of the initial weights, which come from a private stream and leave torch's global
            generator as it was; None draws them from the global generator.

    Raises:
        ConfigError: no such network, an option that it does not have, or images too small for it.
    """
    if classes < 1 or min(shape) < 1:
        raise ConfigError(
            f"A network needs pixels and at least one class. Got shape {tuple(shape)}, {classes} classes instead."
        )
    with seeded(seed, "network", spec.name) if seed is not None else nullcontext():
        if spec.name.startswith(TORCHVISION):
            from rayd.networks.torchvision_models import build_torchvision

            refuse_options(spec.name, given_options(spec))
            return build_torchvision(spec.name, shape, classes)
        return find(spec.name).build(spec, shape, classes)


def uses_batch_statistics(network: nn.Module) -> bool:
    """Whether a layer normalises with statistics of the batch in training (any batch
    normalisation).
    """
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


@torch.no_grad()
def take_over(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the weights and buffers of another one of its architecture, by name, in its
    own types and layout.

    From the host they come in one copy, which is not waited for. Other tensors of the state are
    left out.

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
    """Give a network the weights and buffers that its `state_dict` had, from plain tensors by name.

    Some modules ask for the version of a state dict, which is not among its tensors: it is this
    network's.

    Raises:
        RuntimeError: a tensor is missing, unknown or of another shape.
    """
    versioned = OrderedDict(state)
    versioned._metadata = getattr(network.state_dict(), "_metadata", OrderedDict())  # type: ignore[attr-defined]
    network.load_state_dict(versioned)
