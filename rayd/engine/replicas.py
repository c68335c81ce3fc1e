"""Copies of the synthetic set in a worker, which are assigned the parameters of each step."""

from __future__ import annotations

import torch

from rayd import synthetic
from rayd.config import SyntheticSettings
from rayd.engine.pool import ObjectRef
from rayd.synthetic import SyntheticSet


class Replicas:
    """Copies of blocks of the synthetic set: built once, then only assigned to.

    Args:
        settings: parameterisation of the set.
        device: where the copies are.
    """

    def __init__(self, settings: SyntheticSettings, device: torch.device):
        self._settings = settings
        self._device = device
        self._replicas: dict[str, SyntheticSet] = {}
        # keys of the current parameters of the replicas
        self._assigned: dict[str, str] = {}

    def get(self, template: ObjectRef, which: str, parameters: ObjectRef) -> SyntheticSet:
        """The copy of a block with these parameters.

        Args:
            template: state of the block at the start.
            which: `now` or `average`; a copy is kept for each.
            parameters: to be assigned.
        """
        key = f"{template.key} {which}"
        if key not in self._replicas:
            # a worker computes one block at a time, so copies of earlier ones only take memory
            for old in [name for name in self._replicas if not name.startswith(template.key)]:
                del self._replicas[old]
            replica = synthetic.restore(self._settings, template.get())
            self._replicas[key] = replica.to(self._device)
            self._assigned.pop(key, None)
        # parts of one step share the replica: their graphs need its parameters unchanged
        if self._assigned.get(key) != parameters.key:
            self._replicas[key].assign(parameters.get())
            self._assigned[key] = parameters.key
        return self._replicas[key]
