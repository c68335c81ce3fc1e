"""The network that selects frequencies adversarially (NCFM's sampling network), and its training
step.

Wang et al., "Dataset Distillation with Neural Characteristic Function: A Minmax Perspective", CVPR
2025:

    min over S  max over psi   E_{t ~ F(t; psi)} gap(t)         gap  distance of the characteristic functions at t (M,)

The paper lets a network psi turn noise into frequencies. Here psi is the density of F over the
kernel's spectrum L, from which M frequencies are drawn once (or once a step):

    F(dt; psi) = w_psi(t) L(dt)       w_j = exp(b h(t_j)) / sum_k exp(b h(t_k))       E_F gap = sum_j w_j gap(t_j)

    t_j  frequencies (M, d)         h  three linear stages with leaky ReLU (0.2), the last one Tanh, so in (-1, 1)
    w    weights (M,), sum 1        b  `spread`: no frequency counts more than e^(2 b) times another

so that the real side can be measured once: frequencies are fixed, only their weights change. The
frequencies are distinct by construction, and none can take all the weight. Every call takes one
ascent step of Adam, then the synthesis descends the weighted sum, so that both sides alternate. The
network maximises sum_j w_j gap_j / mean gap, whose step size does not shrink with the gap.

**Paper and released code differ.** The code's network gets four rows of noise, each repeated
sixteen times, so it generates four distinct frequencies regardless of their configured number; its
scheduler is attached to the optimizer of the images; and all released configurations switch it off.
So it is off by default here, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayd.states import load_state_tensors, state_tensors

State = dict[str, Tensor]
"""Tensors by name: the state of a network and its optimizer between steps."""


class FrequencyNetwork(nn.Module):
    """Weights of frequencies (M, d): (M,), positive, of sum 1."""

    def __init__(self, dimension: int, width: int = 64, spread: float = 2.0):
        """Start with random stages; see `draw` for initialisation by a generator."""
        super().__init__()
        self.spread = spread
        self.stages = nn.Sequential(
            nn.Linear(dimension, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )

    def draw(self, generator: torch.Generator) -> None:
        """Redraw all parameters, with torch's distribution, from a generator on the CPU."""
        for stage in self.stages:
            if isinstance(stage, nn.Linear):
                bound = stage.in_features**-0.5
                for parameter in stage.parameters():
                    drawn = torch.rand(parameter.shape, generator=generator) * 2 - 1
                    parameter.data.copy_(bound * drawn)

    def forward(self, frequencies: Tensor) -> Tensor:
        """Weights of frequencies, which are first divided by their median norm, so that the weights
        do not depend on their scale.
        """
        norms = frequencies.norm(dim=1, keepdim=True)
        # norm sqrt(d), as that of standard normal rows; longer rows of heavy tails are compressed
        # by a square root
        scaled = (
            frequencies
            / norms.median()
            * (norms / norms.median()).clamp(min=1).rsqrt()
            * frequencies.shape[1] ** 0.5
        )
        heights: Tensor = self.stages(scaled).squeeze(1).tanh()
        return (self.spread * heights).softmax(0)


def ascend(
    network: FrequencyNetwork, optimizer: torch.optim.Optimizer, frequencies: Tensor, gaps: Tensor
) -> Tensor:
    """One step of the network towards frequencies with large gaps; returns the weights after it,
    without graph (M,).

    Args:
        network: changed in place.
        optimizer: optimizer of its parameters, which minimises.
        frequencies: (M, d).
        gaps: contribution of each to the distance (M,), at least 0.
    """
    gaps = gaps.detach()
    optimizer.zero_grad()
    with torch.enable_grad():
        gain = (network(frequencies) * gaps).sum() / gaps.mean().clamp(
            min=torch.finfo(gaps.dtype).tiny
        )
        (-gain).backward()
    optimizer.step()
    with torch.no_grad():
        weights: Tensor = network(frequencies)
    return weights


@dataclass(frozen=True)
class FrequencyAdversary:
    """A frequency network whose state is kept in a term's memory: every call continues from the
    last one.
    """

    learning_rate: float = 1e-3
    """Of its Adam."""
    width: int = 64
    """Number of units of its stages."""
    spread: float = 2.0
    """Bound of the logarithm of its unnormalised weights."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "width", "spread"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"The '{name}' of FrequencyAdversary must be above 0. Got {getattr(self, name)} instead."
                )

    def step(
        self,
        frequencies: Tensor,
        gaps: Tensor,
        memory: State,
        generator: Callable[[], torch.Generator],
    ) -> tuple[Tensor, State]:
        """Weights of the frequencies after one step of ascent, and the state for the next one.

        Args:
            frequencies: (M, d), in the precision and on the device of the computation.
            gaps: contribution of each to the distance (M,).
            memory: state returned by the last step, empty at first; not modified.
            generator: draws the initial weights of the network.
        """
        with torch.device("meta"):
            network = FrequencyNetwork(frequencies.shape[1], self.width, self.spread)
        network = network.to_empty(device=frequencies.device).to(frequencies.dtype)
        optimizer = torch.optim.Adam(network.parameters(), self.learning_rate)
        names = [name for name, _ in network.named_parameters()]
        if memory:
            for name, parameter in network.named_parameters():
                parameter.data.copy_(memory[f"network.{name}"])
            kept = {
                name: tensor for name, tensor in memory.items() if not name.startswith("network.")
            }
            load_state_tensors(optimizer, names, kept)
        else:
            network.draw(generator())
        weights = ascend(network, optimizer, frequencies, gaps)
        after = {
            f"network.{name}": parameter.detach() for name, parameter in network.named_parameters()
        }
        return weights, after | state_tensors(optimizer, names)
