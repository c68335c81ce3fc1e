"""Costs of networks that process real images: measuring and scoring."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from rayd.artifacts import content_hash
from rayd.config import NetworkGroup
from rayd.engine.costs.kept import MANY, KeptCounts
from rayd.engine.costs.stand_ins import CountingWorker, pixels
from rayd.engine.counting import Count, Counting
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.observer import States
from rayd.engine.pool import LocalRef
from rayd.engine.stages.measure import shards
from rayd.engine.statistic_aggregation import merged
from rayd.statistics.frequencies import evenly_spaced
from rayd.synthetic.rded import CHUNK


@dataclass(eq=False)
class MeasuringCosts(KeptCounts):
    """Costs of networks that process real images."""

    _statistics: dict[tuple[NetworkGroup, str], States] = field(default_factory=dict)
    """Statistics of one network of each architecture that was counted."""

    def measuring(self, group: NetworkGroup, index: int) -> Count:
        """The cost of measuring the training split with a network of a group.

        Args:
            group: of the network.
            index: of its architecture in the group.
        """
        images = len(self.data.train)
        batch = self.recipe.network_group(group).batch_size
        parts = len(shards(images))
        inputs = self._identity() | {
            "panel": group,
            "place": index,
            "labels": self._first_labels(2 * batch),
        }

        def make() -> dict[str, Any]:
            return {name: count.to_json() for name, count in self._shard(group, index).items()}

        found = self._cached("measuring", inputs, make)
        once, shard, each, merged = (
            Count.from_json(found[name]) for name in ("once", "shard", "batch", "merged")
        )
        return once + (shard + merged) * parts + each * (images / batch)

    def scoring(self) -> Count:
        """The cost of scoring one candidate for the initial images."""
        network_id = network_ids(self.recipe)[0]
        inputs = {
            "network": network_id.architecture.model_dump(mode="json", exclude={"weights"}),
            "settings": self.recipe.synthetic.model_dump(mode="json"),
        }

        def work() -> Count:
            with Counting() as counting:
                worker = self._worker
                worker._networks.fixed(network_id, None, "float32")
                counting.take()
                images = LocalRef(pixels(self.data, CHUNK))
                next(worker.score(network_id, LocalRef(None), 0, images))
                return counting.take()

        return self._count("scoring", inputs, work) * (1 / CHUNK)

    def _identity(self) -> dict[str, Any]:
        """The settings that a synthesis depends on."""
        settings = self.recipe.identity()
        for name in ("data", "seed", "squeeze"):
            settings.pop(name)
        settings["synthesis"].pop("steps")
        return {"recipe": settings}

    def _first_labels(self, count: int) -> str:
        """Hash of the first images' labels, as the cost depends on the classes in a batch."""
        return content_hash({"labels": self.data.train.labels[:count].tolist()})

    def _shard(self, group: NetworkGroup, index: int) -> dict[str, Count]:
        """Costs of measuring, done once, per shard and per batch, and of merging a shard."""
        network_id = network_ids(self.recipe, group)[index]
        with Counting() as counting:
            worker = self._worker
            worker._networks.fixed(network_id, None, self.recipe.network_group(group).precision)
            counting.take()
            states = self._measure(network_id, 1)
            first = counting.take()
            self._statistics[group, network_id.architecture.model_dump_json()] = self._merged(
                network_id, states
            )
            merged = counting.take()
            if first.number > MANY:
                # apart from its batches, the work per shard is negligible
                nothing = Count()
                return {"once": nothing, "shard": nothing, "batch": first, "merged": merged}
            # differences of these counts separate the work done once, per shard and per batch
            self._measure(network_id, 1)
            again = counting.take()
            self._measure(network_id, 2)
            each = counting.take() - again
        return {"once": first - again, "shard": again - each, "batch": each, "merged": merged}

    @cached_property
    def _worker(self) -> CountingWorker:
        return CountingWorker(self.recipe, self._facts, device=self._device)

    def _measure(self, network_id: NetworkId, batches: int) -> States:
        """Statistics of the first batches by one network."""
        rows = slice(0, batches * self.recipe.network_group(network_id.group).batch_size)
        labels = self.data.train.labels[rows]
        shard = LocalRef((pixels(self.data, len(labels)), labels))
        first = None
        if any(spec.data_dependent for spec in self._worker._method.specs(network_id.group)):
            first = self._first_images
        (part,) = self._worker.measure(((network_id, None, first),), shard)
        return part

    @cached_property
    def _first_images(self) -> LocalRef:
        """The images on which statistics are resolved."""
        rows = evenly_spaced(len(self.data.train)).numpy()
        return LocalRef((pixels(self.data, len(rows)), self.data.train.labels[rows]))

    def _merged(self, network_id: NetworkId, part: States) -> States:
        """Statistics of the first batch in the merged form, with rows for all classes."""
        batch_size = self.recipe.network_group(network_id.group).batch_size
        labels = torch.tensor(self.data.train.labels[:batch_size])
        return merged(
            self._worker._method.specs(network_id.group), None, part, labels, self.data.classes
        )
