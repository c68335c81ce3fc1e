"""Scores of real images from the training of a network: forgetting and early errors.

    forgetting(i)   number of times that image i turns from right to wrong between consecutive
    visits el2n(i)         || softmax(f(x_i)) - onehot(y_i) ||_2, f the network after a few epochs

Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning" (ICLR
2019), and Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021). An image that
is never classified correctly counts as forgotten in every epoch, more often than any that is
learned (the papers set its count to infinity). `rayd.data.selection` chooses by these scores.

**Differences from the papers**: images are not augmented, and few networks are trained for few
epochs (`ranking.count`, `ranking.epochs`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayd import devices, seeding
from rayd.config import RankingSettings
from rayd.errors import RunError
from rayd.training import single_images
from rayd.training.progress import EpochProgress
from rayd.training.sets import TrainingSet

Scores = dict[str, Tensor]
"""By name, `forgetting` and `el2n`: a score for each training image, float32 (N,)."""


def rank(
    network: nn.Module,
    training: TrainingSet,
    settings: RankingSettings,
    *,
    seed: int,
    device: torch.device,
) -> Iterator[EpochProgress | Scores]:
    """Train a network, and score the images during the training.

    Yields an `EpochProgress` after every epoch, then the scores.

    Args:
        network: with its initial weights; trained in place, on the device.
        training: the real images with hard labels, N of them.
        settings: the protocol; `network` and `count` are handled by the caller.
        seed: of the batches.
        device: where to train.

    Raises:
        RunError: the training diverged, so scores would be meaningless, or a batch of one image
            cannot be normalised.
    """
    devices.to_device(network, device)
    optimizer = torch.optim.SGD(
        network.parameters(),
        settings.learning_rate,
        settings.momentum,
        weight_decay=settings.weight_decay,
    )
    count = len(training)
    # counted on the device: a copy of every batch's answers would make it wait
    forgotten = torch.zeros(count, device=device)
    was_right = torch.zeros(count, dtype=torch.bool, device=device)
    ever_right = torch.zeros(count, dtype=torch.bool, device=device)
    errors = torch.zeros(count)
    for epoch in range(settings.epochs):
        draws = seeding.generator(seed, "ranking", epoch)
        network.train()
        dropout = seeding.seeded(seed, "ranking dropout", epoch, device=device)
        with dropout, devices.convolutions(device, "float32"):
            for rows in torch.split(torch.randperm(count, generator=draws), settings.batch_size):
                inputs, labels = _batch(training, rows, device)
                with single_images.explained("network", count, "ranking.batch_size"):
                    logits = network(inputs)
                loss = functional.cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                is_right = logits.argmax(1) == labels
                batch = rows.to(device)
                forgotten[batch] += (was_right[batch] & ~is_right).float()
                was_right[batch] = is_right
                ever_right[batch] |= is_right
        if epoch + 1 == settings.early:
            with devices.convolutions(device, "float32"):
                errors = _errors(network, training, settings.batch_size, device)
        # the last batch suffices: once the loss is not finite, it stays so
        last_loss = float(loss.detach())
        if not (math.isfinite(last_loss) and errors.isfinite().all()):
            raise RunError(
                f"A network that ranks the real images diverged in epoch {epoch + 1} of "
                f"{settings.epochs}; a smaller 'ranking.learning_rate' may help."
            )
        yield EpochProgress(
            index=epoch,
            total=settings.epochs,
            epoch=epoch + 1,
            epochs=settings.epochs,
            loss=last_loss,
            validation_accuracy=None,
        )
    forgotten[~ever_right] = settings.epochs
    yield {"forgetting": forgotten.cpu(), "el2n": errors}


@torch.no_grad()
def _errors(
    network: nn.Module, training: TrainingSet, batch_size: int, device: torch.device
) -> Tensor:
    """Lengths of the differences of probabilities and one-hot labels, (N,) on the CPU."""
    network.eval()
    found = []
    for rows in torch.split(torch.arange(len(training)), batch_size):
        inputs, labels = _batch(training, rows, device)
        probabilities = network(inputs).float().softmax(1)
        wanted = functional.one_hot(labels, probabilities.shape[1])
        found.append(torch.linalg.vector_norm(probabilities - wanted, dim=1).cpu())
    return torch.cat(found)


def _batch(training: TrainingSet, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Network input and class indices of some images."""
    return training.inputs(training.images[rows].to(device)), training.labels[rows].to(device)
