"""Accuracy of networks on a set."""

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
"""Images per forward pass while testing; affects speed and memory, and results by rounding only."""


def hits(
    network: nn.Module,
    weights: Sequence[Weights],
    judged: TrainingSet,
    device: torch.device,
    precision: str,
) -> list[Tensor]:
    """Whether each image is classified correctly; see `predictions`.

    Returns:
        For each set of weights a boolean tensor (n,), on the CPU.
    """
    predicted = predictions(network, weights, judged, device, precision)
    return [classes == judged.labels for classes in predicted]


@torch.no_grad()
def predictions(
    network: nn.Module,
    weights: Sequence[Weights],
    judged: TrainingSet,
    device: torch.device,
    precision: str,
) -> list[Tensor]:
    """Predicted classes of images, by a network with each of several sets of weights.

    The images are processed in a single pass. The network is left in eval mode, its own weights
    unchanged.

    Args:
        network: the architecture.
        weights: one or more sets of weights; missing buffers are the network's own.
        judged: images with hard labels.
        device: device of the network.
        precision: arithmetic of the forward pass.

    Returns:
        For each set of weights class indices int64 (n,), on the CPU.
    """
    network.eval()
    predicted: list[list[Tensor]] = [[] for _ in weights]
    slices = [slice(start, start + TEST_BATCH) for start in range(0, len(judged), TEST_BATCH)]
    for _, batch in taken(judged.images, slices, lambda rows: rows, device):
        images = judged.inputs(upload(batch, device))
        with convolutions(device, precision), autocast(device, precision):
            for state, classes in zip(weights, predicted, strict=True):
                classes.append(functional_call(network, dict(state), (images,)).argmax(1))
    return [torch.cat(classes).cpu() for classes in predicted]


def accuracy(hit: Tensor) -> float:
    """Fraction of correct images."""
    return int(hit.sum()) / len(hit)
