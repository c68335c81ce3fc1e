"""Parameterisations by their names in recipes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rayd.config import SyntheticSettings
from rayd.synthetic.base import SyntheticSet
from rayd.synthetic.hallucinated import PARTS, Hallucinated, Hallucinators
from rayd.synthetic.learned_step_size import WithLearnedStepSize
from rayd.synthetic.lowrank import LowRank
from rayd.synthetic.partitioned import Partitioned
from rayd.synthetic.pixels import Pixels

STEP_SIZE = "log_step_size"
INNER = "learned."
"""Name of the step size in the state of a set with one, and prefix of the other names."""


def restore(settings: SyntheticSettings, state: Mapping[str, Tensor]) -> SyntheticSet:
    """Restore a set from its `state_dict`."""
    if STEP_SIZE in state:
        inner = {
            name.removeprefix(INNER): tensor for name, tensor in state.items() if name != STEP_SIZE
        }
        return WithLearnedStepSize.restored(restore(settings, inner), state[STEP_SIZE])
    if settings.kind == "lowrank":
        return LowRank(state["left"], state["right"], state["bases"], state["labels"])
    if settings.kind == "partitioned":
        return Partitioned(state["images"], state["labels"], settings.factor)
    if settings.kind == "hallucinated":
        hallucinators = Hallucinators(*(state[name] for name in PARTS))
        return Hallucinated(state["images"], state["labels"], hallucinators)
    return Pixels(state["images"], state["labels"])
