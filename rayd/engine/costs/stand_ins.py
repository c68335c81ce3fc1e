"""Placeholders for data, networks and workers, used while operations are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from rayd.data import ImageData
from rayd.engine.counting import Count, Counting
from rayd.engine.gradients.trajectory_matching import TrajectoryResult, TrajectoryTask
from rayd.engine.network_ids import NetworkId
from rayd.engine.observer import Observer
from rayd.engine.pool import LocalPool
from rayd.engine.worker import Worker
from rayd.engine.worker_networks import WorkerNetworks
from rayd.training.batches import Batches, DrawnBatch, Draws
from rayd.training.sets import TrainingSet


def pixels(data: ImageData, count: int) -> Any:
    """Black images uint8 (count, C, H, W) of the shape of the data."""
    return np.zeros((count, *data.shape), np.uint8)


def stand_in(data: ImageData, images: int, real: bool) -> TrainingSet:
    """A set of placeholder images."""
    # created while operations are counted, so it takes no memory
    dtype = torch.uint8 if real else torch.float32
    pixels = torch.zeros(1, dtype=torch.float32).expand(images, *data.shape).to(dtype, copy=True)
    return TrainingSet(pixels, torch.arange(images) % data.classes, data.normalization)


class FirstBatches:
    """The first batches of every epoch.

    Args:
        batches: of whole epochs.
        limit: number of batches; None for all.
        classes: gives each batch logits (n, classes), as stored labels do.
    """

    def __init__(self, batches: Batches, limit: int | None, classes: int | None = None):
        self._batches = batches
        self._limit = limit
        self._classes = classes

    def epoch(self, epoch: int) -> Iterator[DrawnBatch]:
        """The batches of one epoch."""
        for batch in islice(self._batches.epoch(epoch), self._limit):
            if self._classes is None:
                yield batch
            else:
                count = batch.size(self._draws.sizes[0])
                yield replace(batch, logits=torch.zeros(count, self._classes))

    @property
    def _draws(self) -> Draws:
        assert isinstance(self._batches, Draws)
        return self._batches


class _RandomNetworks(WorkerNetworks):
    """One random network per architecture."""

    def fixed(self, network_id: NetworkId, weights: Any, precision: str) -> Observer:
        """The first network of its architecture, untrained."""
        return super().fixed(replace(network_id, index=0), None, precision)

    def trained(self, network_id: NetworkId, weights: Any) -> Observer:
        """The same network; trained weights have the same cost."""
        return self.fixed(network_id, weights, "float32")


class CountingWorker(Worker):
    """A worker with one random network per architecture that does not take students' steps."""

    def _new_networks(self) -> WorkerNetworks:
        return _RandomNetworks(self._recipe, self._method, self._facts, self._device)

    def _match_trajectory(self, task: TrajectoryTask) -> TrajectoryResult:
        replica = self._replicas.get(task.template, "now", task.parameters)
        return TrajectoryResult(
            loss=torch.zeros(()),
            gradients={name: torch.zeros_like(value) for name, value in replica.named_parameters()},
            good=torch.tensor(True),
        )


class CountingPool(LocalPool):
    """A pool in this process that counts each kind of task, and the driver, separately."""

    def __init__(self, worker: Worker, counting: Counting):
        self._threads = torch.get_num_threads()
        self._worker = worker
        self._counting = counting
        self.forget()

    def forget(self) -> None:
        """Discard all counts."""
        self.items: dict[type, list[Count]] = {}
        self.driver = Count()

    def map(
        self, method: str, items: Sequence[tuple[Any, ...]], affinity: Sequence[int] | None = None
    ) -> Iterator[Any]:
        """See `WorkerPool`."""
        for item in items:
            self.driver = self.driver + self._counting.take()
            result = getattr(self._worker, method)(*item)
            self.items.setdefault(type(item[0]), []).append(self._counting.take())
            yield result
