"""Costs of the synthesis: a step, and a student of trajectory matching."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rayd import methods, synthetic
from rayd.config import NetworkGroup, Recipe
from rayd.engine.costs.measuring import MeasuringCosts
from rayd.engine.costs.stand_ins import CountingPool, pixels
from rayd.engine.counting import Count, Counting
from rayd.engine.gradients.feature_matching import GradientTask
from rayd.engine.gradients.model_pool import TrainTask
from rayd.engine.gradients.trajectory_matching import TrajectoryTask, TrajectoryWorker
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.pool import LocalRef
from rayd.engine.synthesizer import BlockTask, Synthesizer
from rayd.networks.flat import FlatNetwork
from rayd.objectives.trajectory import Segment
from rayd.synthetic.learned_step_size import WithLearnedStepSize

CYCLE = 8
"""Maximum number of steps to count; fewer suffice once every architecture has had its turn."""
STUDENT_STEPS = (2, 4)
"""Steps of a student that are counted; their difference gives the cost of one more."""


@dataclass(frozen=True)
class StepCost:
    """The cost of a step of the synthesis."""

    asked: Count
    """Operations of all gradient tasks."""
    trained: Count
    """Operations of all training tasks of the model pool."""
    driver: Count
    """Operations of the synthesizer itself."""
    asked_items: float
    """Number of gradient tasks."""
    trained_items: float
    """Number of training tasks."""
    saved_bytes: float
    """Bytes that autograd saves for the backward pass of a gradient task, at most."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        counts = {name: getattr(self, name).to_json() for name in ("asked", "trained", "driver")}
        return counts | {
            name: getattr(self, name) for name in ("asked_items", "trained_items", "saved_bytes")
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StepCost:
        """The inverse of `to_json`."""
        return cls(
            asked=Count.from_json(content["asked"]),
            trained=Count.from_json(content["trained"]),
            driver=Count.from_json(content["driver"]),
            asked_items=content["asked_items"],
            trained_items=content["trained_items"],
            saved_bytes=content["saved_bytes"],
        )


class SynthesisCosts(MeasuringCosts):
    """Costs of the synthesis, counted with untrained networks of the right size."""

    def start(self) -> synthetic.SyntheticSet:
        """The synthetic set before the first step; costs do not depend on its initial images."""
        labels = "hard" if self.recipe.synthetic.labels == "hard" else "random"
        # initial sets of real images or with predicted labels would need data and experts
        cheap = self.recipe.synthetic.model_copy(update={"init": "noise", "labels": labels})
        return synthetic.initial(self.recipe.model_copy(update={"synthetic": cheap}), self.data)

    def step(self) -> tuple[StepCost, dict[NetworkGroup, int]]:
        """The cost of a step of the synthesis, averaged over a cycle of the networks.

        Also returns the bytes of statistics of each group, for one network per architecture.
        """
        recipe = self.recipe
        inputs = self._identity() | {
            "steps": recipe.synthesis.steps > 0,
            "labels": self._first_labels(64),
        }

        def make() -> dict[str, Any]:
            cost, size = self._counted_steps()
            return {"cost": cost.to_json(), "bytes": dict(size)}

        try:
            found = self._cached("step", inputs, make)
            return StepCost.from_json(found["cost"]), found["bytes"]
        except (KeyError, TypeError, ValueError):
            return self._counted_steps()

    def _counted_steps(self) -> tuple[StepCost, dict[NetworkGroup, int]]:
        """Count steps of the synthesizer until each architecture has had its turn; see `step`."""
        recipe = self.recipe
        method = methods.build(recipe)
        steps = _cycle(recipe, method)
        with Counting() as counting:
            pool = CountingPool(self._worker, counting)
            measured, size = self._measured(method)
            block = self._block(measured, 2 * steps)
            synthesizer = Synthesizer(pool)
            # the first steps are not counted: they build networks and fill caches, most of which is
            # already part of measuring
            warm = 1 if measured and recipe.observers.model_pool is None else steps
            synthesizer.advance(block, 0, warm)
            counting.take()
            pool.forget()
            synthesizer.advance(block, warm, warm + steps)
            driver = pool.driver + counting.take()
        share = 1 / steps
        gradients = pool.items.get(GradientTask, [])
        trainings = pool.items.get(TrainTask, [])
        students = pool.items.get(TrajectoryTask, [])
        cost = StepCost(
            asked=_sum(gradients) * share,
            trained=_sum(trainings) * share,
            driver=driver * share,
            asked_items=(len(gradients) + len(students)) * share,
            trained_items=len(trainings) * share,
            saved_bytes=max((count.saved_bytes for count in gradients), default=0.0),
        )
        return cost, size

    def _block(self, measured: dict[NetworkId, LocalRef], steps: int) -> BlockTask:
        """The first block of the set, with more steps than are counted."""
        recipe = self.recipe
        # without checkpoints and log lines, and with a last step that is never reached
        quiet = {
            "steps": max(recipe.synthesis.steps, steps + 1),
            "checkpoint_every": 10**9,
            "log_every": 10**9,
        }
        longer = recipe.model_copy(update={"synthesis": recipe.synthesis.model_copy(update=quiet)})
        learned = self.start()
        parts = synthetic.blocks(learned.samples, recipe.synthesis.block, recipe.synthesis.order)
        train = None
        if recipe.real == "sampled":
            labels = self.data.train.labels
            train = LocalRef((pixels(self.data, len(labels)), labels))
        return BlockTask(
            recipe=longer,
            key="counted",
            normalization=self.data.normalization,
            block=0,
            blocks=len(parts),
            start=LocalRef(dict(learned.part(parts[0]).state_dict())),
            checkpoints=Path("counted"),
            weights={},
            accuracies={},
            measured=measured,
            train=train,
            experts=tuple(Path(f"expert-{index}") for index in range(recipe.experts.count)),
        )

    def _measured(
        self, method: methods.Method
    ) -> tuple[dict[NetworkId, LocalRef], dict[NetworkGroup, int]]:
        """Statistics of the right size for all networks.

        Also returns the bytes of each group, for one network per architecture.
        """
        measured: dict[NetworkId, LocalRef] = {}
        size: dict[NetworkGroup, int] = dict.fromkeys(method.groups, 0)
        if self.recipe.real == "sampled":
            return measured, size
        for group in method.groups:
            if not method.specs(group):
                continue
            known: dict[str, LocalRef] = {}
            for network_id in network_ids(self.recipe, group):
                key = network_id.architecture.model_dump_json()
                if key not in known:
                    states = self._statistics.get((group, key)) or self._merged(
                        network_id, self._measure(network_id, 1)
                    )
                    for layers in states.values():
                        for layer in layers:
                            size[group] += sum(tensor.nbytes for tensor in layer.values())
                    known[key] = LocalRef(states)
                measured[network_id] = known[key]
        return measured, size

    def student(self) -> tuple[Count, float]:
        """The cost of a student of trajectory matching, and its peak memory in bytes."""
        objective = methods.build(self.recipe).trajectory_objective
        assert objective is not None
        settings = objective.settings
        # parameters after every step, and the graph of one step or of all steps
        vectors = (settings.steps + 1) * self._parameter_bytes()
        graphs = self._student(1).saved_bytes * (settings.steps if settings.way == "full" else 1)
        size = graphs + vectors
        few, more = STUDENT_STEPS
        if settings.steps <= more:
            return self._student(settings.steps), size
        base = self._student(few)
        # linear in the number of steps
        further = (self._student(more) - base) * ((settings.steps - few) / (more - few))
        return base + further, size

    def _student(self, steps: int) -> Count:
        return self._count(
            "student",
            self._identity() | {"student steps": steps},
            lambda: self._count_student(steps),
        )

    def _parameter_bytes(self) -> float:
        with Counting():
            return 4.0 * FlatNetwork(self._built(self.recipe.experts.network)).size

    def _count_student(self, steps: int) -> Count:
        objective = methods.build(self.recipe).trajectory_objective
        assert objective is not None
        # no loss limit: the loss of a placeholder is meaningless
        settings = objective.settings.model_copy(update={"steps": steps, "loss_limit": None})
        shortened = replace(objective, settings=settings)
        with Counting() as counting:
            learned = self.start()
            assert isinstance(learned, WithLearnedStepSize)
            size = FlatNetwork(self._built(self.recipe.experts.network)).size
            segment = Segment(torch.randn(size), torch.randn(size))
            worker = TrajectoryWorker(
                self.recipe, shortened, self.data.shape, self.data.classes, self._device
            )
            counting.take()
            worker.gradient(segment, learned, 0, 0)
            return counting.take()


def _cycle(recipe: Recipe, method: methods.Method) -> int:
    """Steps until the turns of the architectures repeat, but at most `CYCLE`."""
    rounds = [1]
    for group in method.groups:
        settings = recipe.network_group(group)
        architectures = len(settings.networks)
        rounds.append(architectures // math.gcd(architectures, settings.per_step))
    return min(CYCLE, math.lcm(*rounds))


def _sum(counts: Sequence[Count]) -> Count:
    total = Count()
    for count in counts:
        total = total + count
    return total
