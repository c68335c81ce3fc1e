r"""Who trains a network: one process, or several that each take a part of every batch.

With a batch of n images cut into parts of :math:`n_k` for N processes, process k minimises
:math:`w_k` times its mean loss, :math:`w_k = N n_k / n`, so that the mean over the processes, of
losses as of gradients, is that over the whole batch. What is drawn for a batch does not depend on
who takes part, so N processes train the network of one, but for rounding and for

- batch normalisation: on CUDA it knows the whole batch (torch has `SyncBatchNorm` for CUDA only);
  elsewhere each process normalises by its own part, and the running statistics that are kept are
  those of the first process;
- dropout, which every process draws for itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rayd.training.batches import DrawnBatch

LEAST = 2
"""Fewest images of a part, if the batch has them: what batch normalisation needs."""


@dataclass(frozen=True, eq=False)
class Part:
    """What one process does of a batch."""

    batch: DrawnBatch
    """What is drawn for its images."""
    whole: int
    """Number of images of the whole batch."""
    weight: float = 1.0
    """Factor of its mean loss, so that the mean over the processes is that over the batch."""


class Parallelism:
    """One process that trains on its own."""

    leads = True
    """Whether this process keeps checkpoints, judges the network and tells how it goes."""
    indices: tuple[int, ...] = ()
    """What tells its draws of dropout from those of others."""

    def part(self, batch: DrawnBatch, count: int) -> Part:
        """What this process does of a batch of a set of `count` images."""
        return Part(batch, batch.size(count))

    def joined(self, network: nn.Module) -> nn.Module:
        """The network as it is to be called in training: with the mean of the gradients over all
        processes.
        """
        return network

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all processes."""
        return value

    def agree(self, value: int) -> bool:
        """Whether all processes come with the same number."""
        return True


SINGLE_PROCESS = Parallelism()
"""One process that trains on its own."""


class DataParallel(Parallelism):
    """One of the processes of torch's default process group, which train together; all of them must
    call the same methods.

    Args:
        device: where this one computes.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._rank = dist.get_rank()
        self._size = dist.get_world_size()
        self.leads = self._rank == 0
        self.indices = (self._rank,) if self._rank else ()

    def part(self, batch: DrawnBatch, count: int) -> Part:
        """A run of the batch's images, as many as the other processes have, or one more or less.

        A batch too small for that is cut into fewer parts, some of which several processes work on.
        """
        images = batch.size(count)
        places, weight = share(images, self._rank, self._size)
        return Part(batch.part(torch.arange(places.start, places.stop)), images, weight)

    def joined(self, network: nn.Module) -> nn.Module:
        """The network in `DistributedDataParallel`; its buffers stay each process's own."""
        devices = None
        if self._device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
            devices = [self._device]
        return DistributedDataParallel(
            network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all processes, the same in each."""
        total = value.clone()
        dist.all_reduce(total)
        return total / self._size

    def agree(self, value: int) -> bool:
        """Whether all processes come with the same number."""
        bounds = torch.tensor([value, -value], device=self._device)
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        return int(bounds[0]) == -int(bounds[1])


def share(images: int, rank: int, size: int) -> tuple[range, float]:
    """Which images of a batch one of `size` processes takes, and the weight of its mean loss.

    >>> share(5, 0, 2), share(5, 1, 2)
    ((range(0, 2), 0.8), (range(2, 5), 1.2))
    >>> share(3, 0, 2), share(3, 1, 2)
    ((range(0, 3), 1.0), (range(0, 3), 1.0))
    """
    parts = max(1, min(size, images // LEAST))
    mine = rank % parts
    taken = range(images * mine // parts, images * (mine + 1) // parts)
    twins = len(range(mine, size, parts))
    return taken, size * len(taken) / (images * twins)
