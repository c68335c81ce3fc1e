"""How many images a network gets right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rayd.devices import autocast, convolutions
from rayd.training.sets import TrainingSet, taken
from rayd.training.trainer import Weights
from rayd.transfer import upload

TEST_BATCH = 512
"""Images of one forward pass while testing; changes speed and memory, results only by rounding."""


@torch.no_grad()
def hits(
    network: nn.Module,
    weights: Sequence[Weights],
    judged: TrainingSet,
    device: torch.device,
    precision: str,
) -> list[Tensor]:
    """Whether each image is classified rightly, by a network with each of some weights in turn.

    The images are passed over once. The network is left in eval mode, its own weights as they are.

    Args:
        network: the architecture.
        weights: one or more; buffers that one lacks are the network's own.
        judged: images with hard labels.
        device: where the network is.
        precision: arithmetic of the forward pass.

    Returns:
        For each weights bool (n,), on the CPU.
    """
    network.eval()
    predicted: list[list[Tensor]] = [[] for _ in weights]
    slices = [slice(start, start + TEST_BATCH) for start in range(0, len(judged), TEST_BATCH)]
    for _, some in taken(judged.images, slices, lambda rows: rows, device):
        images = judged.inputs(upload(some, device))
        with convolutions(device, precision), autocast(device, precision):
            for each, classes in zip(weights, predicted, strict=True):
                classes.append(functional_call(network, dict(each), (images,)).argmax(1))
    return [torch.cat(classes).cpu() == judged.labels for classes in predicted]


def accuracy(hit: Tensor) -> float:
    """The fraction of the images that are right."""
    return int(hit.sum()) / len(hit)
