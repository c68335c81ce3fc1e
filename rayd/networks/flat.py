"""Networks as functions of one vector of parameters.

Matching trajectories is geometry in the space of a network's parameters. A point there is one
vector (P,): all parameters, each in row-major order, one after another in the order of
`named_parameters`.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rayd.errors import ConfigError


class FlatNetwork:
    """A network as a pure function of its parameters and of images, in the vector's precision and
    on its device.

    Args:
        network: must keep no statistics and draw nothing: what it says must depend on parameters
            and images alone.

    Raises:
        ConfigError: it has buffers, such as running statistics of batch normalisation, or dropout.
    """

    def __init__(self, network: nn.Module):
        kept = next((name for name, _ in network.named_buffers()), None)
        if kept is not None:
            raise ConfigError(
                "The networks of trajectories must keep nothing but parameters: use the norm 'instance', 'group', 'layer' or "
                f"'none'. Got {type(network).__name__} with '{kept}' instead."
            )
        if any(
            isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
            for module in network.modules()
        ):
            raise ConfigError(
                f"The networks of trajectories must be without dropout. Got {type(network).__name__} instead."
            )
        self._network = network
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        self.shapes: dict[str, tuple[int, ...]] = shapes
        """Of every parameter, by name, in the order of the vector."""
        self._sizes = [prod(shape) for shape in shapes.values()]
        self.size = sum(self._sizes)
        """P, the number of all parameters."""

    def __call__(self, vector: Tensor, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) with the parameters (P,); differentiable in
        both, as often as wished.
        """
        logits: Tensor = functional_call(self._network, self.parameters(vector), (images,))
        return logits

    def parameters(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of the vector (P,)."""
        parts = zip(self.shapes.items(), torch.split(vector, self._sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    @torch.no_grad()
    def vector(self) -> Tensor:
        """A copy of the network's own parameters (P,)."""
        return torch.cat([parameter.reshape(-1) for parameter in self._network.parameters()])

    @torch.no_grad()
    def load(self, vector: Tensor) -> None:
        """Give the network itself the parameters (P,)."""
        for name, part in self.parameters(vector).items():
            self._network.get_parameter(name).copy_(part)
