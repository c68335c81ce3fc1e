r"""Data-parallel training: one process, or several that each compute a part of every batch.

With a batch of n images split into parts of :math:`n_k` for N processes, process k minimises
:math:`w_k` times its mean loss, :math:`w_k = N n_k / n`, so that the mean over processes, of losses
as of gradients, equals that over the whole batch. Draws do not depend on the number of processes,
so N processes train the same network as one, up to rounding and to

- batch normalisation: on CUDA its statistics are those of the whole batch (torch has
  `SyncBatchNorm` for CUDA only); otherwise each process normalises its own part, and the stored
  running statistics are those of the first process;
- dropout, which each process draws separately.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rayd.training.batches import DrawnBatch

LEAST = 2
"""Minimum number of images of a part, as batch normalisation needs (if the batch has them)."""


@dataclass(frozen=True, eq=False)
class BatchPart:
    """Part of a batch that one process computes."""

    batch: DrawnBatch
    """Draws of its images."""
    whole: int
    """Number of images of the whole batch."""
    weight: float = 1.0
    """Factor of its mean loss that makes the mean over processes that of the whole batch."""


class Parallelism:
    """Training in a single process."""

    leads = True
    """Whether this process writes checkpoints, evaluates the network and reports progress."""
    indices: tuple[int, ...] = ()
    """Part of the key of dropout's draws, different in each process."""

    def part(self, batch: DrawnBatch, count: int) -> BatchPart:
        """Part of a batch, of a set of `count` images, for this process."""
        return BatchPart(batch, batch.size(count))

    def joined(self, network: nn.Module) -> nn.Module:
        """Wrap a network so that its gradients are averaged over all processes."""
        return network

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a scalar over all processes."""
        return value

    def agree(self, value: int) -> bool:
        """Whether all processes pass the same number."""
        return True


SINGLE_PROCESS = Parallelism()
"""Training in a single process."""


class DataParallel(Parallelism):
    """Training by all processes of torch's default process group.

    All of them must call the same methods.

    Args:
        device: device of this process.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._rank = dist.get_rank()
        self._size = dist.get_world_size()
        self.leads = self._rank == 0
        self.indices = (self._rank,) if self._rank else ()

    def part(self, batch: DrawnBatch, count: int) -> BatchPart:
        """Consecutive images of the batch, with sizes that differ by at most one over processes.

        A batch too small for that is split into fewer parts, some computed by several processes.
        """
        images = batch.size(count)
        positions, weight = share(images, self._rank, self._size)
        indices = torch.arange(positions.start, positions.stop)
        return BatchPart(batch.part(indices), images, weight)

    def joined(self, network: nn.Module) -> nn.Module:
        """Wrap a network in `DistributedDataParallel`, with separate buffers per process."""
        devices = None
        if self._device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
            devices = [self._device]
        return DistributedDataParallel(
            network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a scalar over all processes, the same in each."""
        total = value.clone()
        dist.all_reduce(total)
        return total / self._size

    def agree(self, value: int) -> bool:
        """Whether all processes pass the same number."""
        bounds = torch.tensor([value, -value], device=self._device)
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        return int(bounds[0]) == -int(bounds[1])


def share(images: int, rank: int, size: int) -> tuple[range, float]:
    """Images of a batch for one of `size` processes, and the weight of its mean loss.

    >>> share(5, 0, 2), share(5, 1, 2)
    ((range(0, 2), 0.8), (range(2, 5), 1.2))
    >>> share(3, 0, 2), share(3, 1, 2)
    ((range(0, 3), 1.0), (range(0, 3), 1.0))
    """
    parts = max(1, min(size, images // LEAST))
    index = rank % parts
    taken = range(images * index // parts, images * (index + 1) // parts)
    # number of processes that compute the same part
    replicas = len(range(index, size, parts))
    return taken, size * len(taken) / (images * replicas)
