"""Costs of the parts of a run, counted by running the run's own code on placeholder images.

Nothing here depends on methods: a step of the synthesis is a step of the `Synthesizer`, with any
terms, students, model pools or labels. Counts are kept in the store under everything that they
depend on, which excludes the values of images.

    kept       counts in the store
    training   networks that are trained, tested, or label images
    measuring  networks that process real images
    synthesis  a step of the synthesis
    stand_ins  placeholders for data, networks and workers
"""

from __future__ import annotations

from dataclasses import dataclass

from rayd.engine.costs.synthesis import StepCost, SynthesisCosts
from rayd.engine.costs.training import TrainingCosts

__all__ = ["Costs", "StepCost"]


@dataclass(eq=False)
class Costs(TrainingCosts, SynthesisCosts):
    """The costs of one run."""
