"""A plain training loop, for analyses and applications that need trained weights.

Students of an evaluation follow a protocol, with augmentation, teachers and checkpoints
(`rayd.evaluation.student`); this is just SGD with momentum on shuffled batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rayd import seeding
from rayd.errors import RunError
from rayd.training import single_images


def fit(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 300,
    batch_size: int = 128,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    seed: int = 0,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train a network on labelled images for a number of steps, with one cosine decay to zero.

    Args:
        network: trained in place, on its own device; left in eval mode.
        images: network input (n, C, H, W).
        labels: class indices (n,), or soft labels (n, classes).
        steps: optimizer steps; the last batch of a pass over the images may be smaller.
        batch_size: maximum number of images per batch.
        learning_rate: initial step size.
        momentum: of SGD.
        weight_decay: of SGD.
        seed: seed of the order of images, and of dropout.
        penalty: computes a scalar that is added to the cross-entropy.
        on_step: called with the number of steps done, before each step and after the last.

    Returns:
        The network.

    Raises:
        RunError: the loss is not finite, or a batch of one image cannot be normalised.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> images = torch.tensor([[0.0, 0, 1, 1], [1, 1, 0, 0]]).view(2, 1, 2, 2)
        >>> fit(network, images, torch.tensor([0, 1]), steps=50)(images).argmax(1)
        tensor([0, 1])
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.SGD(
        network.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    network.train()
    batches = _shuffled(len(images), batch_size, seed)
    for done, rows in enumerate(itertools.islice(batches, steps)):
        if on_step is not None:
            on_step(done)
            # in case the callback has evaluated the network
            network.train()
        # dropout can only draw from the global generator
        dropout = seeding.seeded(seed, "fit dropout", done, device=device)
        with dropout, single_images.explained("network", len(images), "batch_size"):
            logits = network(images[rows].to(device))
        loss = cross_entropy(logits, labels[rows].to(device))
        if penalty is not None:
            loss = loss + penalty(network)
        if not loss.isfinite():
            raise RunError(
                f"Training diverged: the loss is {loss.item()} after {done} steps; use a "
                "smaller step size."
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    if on_step is not None:
        on_step(steps)
    return network.eval()


def _shuffled(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Rows (n,) of shuffled batches, pass after pass over `count` images, without end."""
    for epoch in itertools.count():
        order = torch.randperm(count, generator=seeding.generator(seed, "fit", epoch))
        yield from torch.split(order, batch_size)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 512) -> float:
    """Fraction of images that a network classifies correctly.

    Args:
        network: used in its current mode.
        images: network input (n, C, H, W).
        labels: class indices (n,).
        batch_size: images of a forward pass.
    """
    device = next(network.parameters()).device
    right = 0
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        predicted = network(images[part].to(device)).argmax(1).cpu()
        right += int((predicted == labels[part]).sum())
    return right / len(images)
