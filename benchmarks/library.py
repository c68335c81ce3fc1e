"""Overhead of the terms of `rayd.terms` in a user's loop, against a manual implementation.

    python -m benchmarks.library [--rounds 15]

One step is a forward pass of a ConvNet, the loss, and the gradient of 100 synthetic images of
CIFAR-10's size. The two forms alternate; each number is the median of ratios of processor time of
one thread, which depends little on the load of the machine. The target is at most 1.1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

import rayd
from rayd.config.choices import LayerRole
from rayd.data import ImageShape
from rayd.networks import FeatureExtractor
from rayd.networks.convnet import convnet

SHAPE = ImageShape(3, 32, 32)
CLASSES = 10
REAL = 256
IMAGES = 100
STEPS = 2
"""Number of consecutive steps of one form."""

Loss = Callable[[Tensor], Tensor]


def main() -> None:
    """Print the ratio of each term."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="Pairs of measurements.")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(IMAGES, *SHAPE)
    for name, by_hand, by_library in (_means(), _channels()):
        _seconds(by_hand, images)
        _seconds(by_library, images)
        ratios = [_seconds(by_library, images) / _seconds(by_hand, images) for _ in range(rounds)]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{name:<24} {median(ratios):.3f} ({spread})")


def _seconds(loss: Loss, images: Tensor) -> float:
    """Processor time of some steps."""
    began = time.process_time()
    for _ in range(STEPS):
        learned = images.clone().requires_grad_()
        loss(learned).backward()
    return time.process_time() - began


def _means() -> tuple[str, Loss, Loss]:
    """Means of the features of each class, as in DM."""
    network = convnet(SHAPE, CLASSES, width=64, depth=3)
    body = FeatureExtractor(network, {LayerRole.FEATURES}, SHAPE)
    labels = torch.arange(IMAGES) % CLASSES
    real_labels = torch.arange(REAL) % CLASSES
    with torch.no_grad():
        real = body(torch.randn(REAL, *SHAPE)).layers[LayerRole.FEATURES][0]
    term = rayd.terms.MeanMatching()

    def by_hand(images: Tensor) -> Tensor:
        features = body(images).layers[LayerRole.FEATURES][0]
        loss = features.new_zeros(())
        for label in range(CLASSES):
            theirs = real[real_labels == label].mean(0)
            ours = features[labels == label].mean(0)
            loss = loss + (theirs - ours).square().sum()
        return loss

    def by_library(images: Tensor) -> Tensor:
        features = body(images).layers[LayerRole.FEATURES][0]
        return term(real, features, real_labels, labels, classes=CLASSES)

    return "MeanMatching", by_hand, by_library


def _channels() -> tuple[str, Loss, Loss]:
    """Means and variances of the inputs of batch normalisations, as in SRe2L; both measure the real
    side once.
    """
    network = convnet(SHAPE, CLASSES, width=64, depth=3, norm="batch").eval()
    body = FeatureExtractor(network, {LayerRole.BN_INPUTS}, SHAPE)
    labels = torch.arange(IMAGES) % CLASSES
    real_labels = torch.arange(REAL) % CLASSES
    with torch.no_grad():
        real = body(torch.randn(REAL, *SHAPE)).layers[LayerRole.BN_INPUTS]
    term = rayd.terms.NormalizationMatching()
    measured = term.measure([(real, real_labels)], classes=CLASSES)
    known = [(one.mean((0, 2, 3)), one.var((0, 2, 3), unbiased=False)) for one in real]

    def by_hand(images: Tensor) -> Tensor:
        loss = images.new_zeros(())
        for maps, (mean, variance) in zip(
            body(images).layers[LayerRole.BN_INPUTS], known, strict=True
        ):
            ours = maps.mean((0, 2, 3))
            loss = loss + torch.linalg.vector_norm(ours - mean)
            loss = loss + torch.linalg.vector_norm(maps.var((0, 2, 3), unbiased=False) - variance)
        return loss

    def by_library(images: Tensor) -> Tensor:
        layers = body(images).layers[LayerRole.BN_INPUTS]
        return term(measured, layers, labels=labels)

    return "NormalizationMatching", by_hand, by_library


if __name__ == "__main__":
    main()
