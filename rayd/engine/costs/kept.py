"""Counts of operations that are kept in the store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from rayd import networks
from rayd.artifacts import content_hash
from rayd.config import NetworkSettings, Recipe
from rayd.data import ImageData
from rayd.engine.counting import Count
from rayd.engine.observer import DatasetInfo
from rayd.engine.store import Store
from rayd.errors import ArtifactError, RunError
from rayd.version import __version__

STAGE = "counts"
"""Folder of the store that holds counts."""
VERSION = 2
MANY = 800
"""Operations of a batch from which on those done once per epoch or shard are negligible."""

logging.getLogger("torch.fx").setLevel(logging.ERROR)


@dataclass(eq=False)
class KeptCounts:
    """Counts of one run, from this process or the store where they are known.

    Attributes:
        recipe: the run.
        data: its images, of which only number, shape and labels are used.
        store: where counts are kept.
    """

    recipe: Recipe
    data: ImageData
    store: Store
    _known: dict[str, Any] = field(default_factory=dict)

    @property
    def _facts(self) -> DatasetInfo:
        return DatasetInfo.of(self.data)

    @property
    def _device(self) -> torch.device:
        # placeholders are CPU tensors, whatever the device of the run
        return torch.device("cpu")

    def _cached(
        self, name: str, inputs: Mapping[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """A count from this process or the store, computed if it is in neither."""
        shape = {
            "shape": list(self.data.shape),
            "classes": self.data.classes,
            "normalization": self.data.normalization.kind,
        }
        versions = {"version": VERSION, "rayd": __version__, "torch": torch.__version__}
        described = {"count": name, **inputs, **shape, **versions}
        key = content_hash(described)
        if key not in self._known:
            found = self.store.record(STAGE, described)
            if found is None:
                found = make()
                # a full disk must not end a plan
                with suppress(RunError):
                    self.store.put_record(STAGE, described, found)
            self._known[key] = found
        return cast(dict[str, Any], self._known[key])

    def _count(self, name: str, inputs: Mapping[str, Any], make: Callable[[], Count]) -> Count:
        try:
            return Count.from_json(self._cached(name, inputs, lambda: make().to_json()))
        # written by another version, or edited by hand
        except (KeyError, TypeError, ValueError, ArtifactError):
            return make()

    def _built(self, network: NetworkSettings) -> nn.Module:
        return networks.build(network, self.data.shape, self.data.classes, seed=0)
