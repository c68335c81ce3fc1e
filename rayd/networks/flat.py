"""Networks as functions of one parameter vector.

Trajectory matching works in the space of a network's parameters. A point is one vector (P,): all
parameters, each in row-major order, concatenated in the order of `named_parameters`.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rayd.errors import ConfigError


class FlatNetwork:
    """A network as a pure function of parameters and images, with the vector's dtype and device.

    Args:
        network: a network without buffers and randomness, whose output depends only on parameters
            and images.

    Raises:
        ConfigError: it has buffers, such as running statistics of batch normalisation, dropout, or
            stochastic depth.
    """

    def __init__(self, network: nn.Module):
        buffer = next((name for name, _ in network.named_buffers()), None)
        if buffer is not None:
            raise ConfigError(
                "The networks of trajectories must have no state except parameters: use the norm "
                "'instance', 'group', 'layer' or 'none'. "
                f"Got {type(network).__name__} with '{buffer}' instead."
            )
        if any(map(_is_random, network.modules())):
            raise ConfigError(
                "The networks of trajectories must not use dropout or stochastic depth. "
                f"Got {type(network).__name__} instead."
            )
        self._network = network
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        self.shapes: dict[str, tuple[int, ...]] = shapes
        """Shape of every parameter, by name, in the order of the vector."""
        self._sizes = [prod(shape) for shape in shapes.values()]
        self.size = sum(self._sizes)
        """P, the number of all parameters."""

    def __call__(self, vector: Tensor, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) with the parameters (P,); differentiable."""
        logits: Tensor = functional_call(self._network, self.parameters(vector), (images,))
        return logits

    def parameters(self, vector: Tensor) -> dict[str, Tensor]:
        """Parameters by name, as views of the vector (P,)."""
        parts = zip(self.shapes.items(), torch.split(vector, self._sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    @torch.no_grad()
    def vector(self) -> Tensor:
        """Copy the network's parameters into a vector (P,)."""
        return torch.cat([parameter.reshape(-1) for parameter in self._network.parameters()])

    @torch.no_grad()
    def load(self, vector: Tensor) -> None:
        """Copy the parameters (P,) into the network."""
        for name, part in self.parameters(vector).items():
            self._network.get_parameter(name).copy_(part)


def _is_random(module: nn.Module) -> bool:
    """Whether a layer draws at random in training."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout)
    # stochastic depth of torchvision and timm is recognised by name, as importing them is slow
    names = {"StochasticDepth": "p", "DropPath": "drop_prob"}
    probability = getattr(module, names.get(type(module).__name__, ""), None)
    return bool(probability)
