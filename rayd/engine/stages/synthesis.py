"""The synthesize stage: all steps of the synthetic set, as one work item.

Blocks of the set and their steps are in `rayd.engine.stages.blocks`, a step in
`rayd.engine.synthesizer`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from rayd import synthetic
from rayd.artifacts import content_hash
from rayd.config import ObserverNetworkSettings, Recipe
from rayd.engine.counting import Count, Counting
from rayd.engine.job import Job
from rayd.engine.milestones import WarmStart
from rayd.engine.network_ids import groups
from rayd.engine.pool import TaskStream
from rayd.engine.stage import ItemProgress, Stage
from rayd.engine.stage_cost import Part, StageCost
from rayd.engine.work_queue import WorkQueue
from rayd.errors import ArtifactError, ConfigError
from rayd.networks import weights as given
from rayd.shown import quantity
from rayd.synthetic import SyntheticSet

if TYPE_CHECKING:
    from rayd.engine.costs import Costs, StepCost

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Synthesized:
    """A synthetic set after its last step."""

    learned: SyntheticSet
    """The set."""
    observers: list[dict[str, Any]]
    """Properties of the trained observers for the set's card."""
    seconds: float
    """Duration of the synthesis in seconds, in whichever run computed it."""
    origin: dict[str, Any] = field(default_factory=dict)
    """The part of the card that describes where it was computed: `hardware` and `devices`."""


class Synthesis(Stage[str, Synthesized]):
    """Optimises the synthetic set; the only item is the hash of everything that it depends on."""

    name = "synthesize"
    folder = "synthesis"
    unit = "steps"
    noun = "set"

    optimize: Callable[[], Synthesized] | None = None
    """Runs all steps from the newest checkpoint on, and shows progress; set by the driver once the
    inputs of the steps are available.
    """

    def __init__(self, job: Job, warm_start: WarmStart | None = None):
        """Optimise from the initial set, or from the state of a warm start."""
        super().__init__(job)
        history = () if warm_start is None else warm_start.history
        self.hash = synthesis_hash(job, history)
        self.write: Callable[[Callable[[], None]], None] = lambda work: work()
        """Calls what writes the set into the store; the driver has that done while labels are made
        and students are trained.
        """

    def items(self) -> Sequence[str]:
        """The hash; empty if the initial set is the result."""
        return [self.hash] if self.job.recipe.synthesis.steps > 0 else []

    def key(self, item: str) -> Mapping[str, Any]:
        """The hash and the kind of device."""
        return {"version": 1, "synthesis": item, "device": self.job.device}

    def is_stored(self) -> bool:
        """Whether the store has a file of the set, readable or not."""
        return any(
            self.job.store.has(self.folder, self.key(item), "safetensors") for item in self.items()
        )

    def cost(self, costs: Costs) -> StageCost:
        """Cost of all steps of all blocks: gradients in parallel, the rest in the synthesizer."""
        recipe = self.job.recipe
        trajectories = self.job.method.trajectory_objective
        with Counting():
            start = costs.start()
            blocks = len(
                synthetic.blocks(start.samples, recipe.synthesis.block, recipe.synthesis.order)
            )
        is_cached = self.is_stored()
        parts: tuple[Part, ...] = ()
        trained = 0.0
        if self.items():
            step, _ = costs.step()
            trained = step.trained_items
            gradients = step.asked
            if trajectories is not None:
                student, _ = costs.student()
                gradients = gradients + student * trajectories.settings.per_step
            if not is_cached:
                parts = self._parts(step, gradients, blocks)
        return StageCost(
            name=self.name,
            work=self._work(len(start), blocks, trained),
            cached="cached" if is_cached else "not cached",
            parts=parts,
        )

    def _work(self, images: int, blocks: int, trained: float) -> str:
        """Description of the work of the steps.

        Args:
            images: number of images that the set decodes to.
            blocks: number of blocks.
            trained: number of networks of the model pool that a step trains.
        """
        recipe = self.job.recipe
        method = self.job.method
        trajectories = method.trajectory_objective
        through = []
        for group in method.groups:
            noun = group.removesuffix("s")
            through.append(quantity(recipe.network_group(group).per_step, noun))
        if trajectories is not None:
            chosen = trajectories.settings
            students = quantity(chosen.per_step, "student")
            through.append(f"{students} of {chosen.steps} steps ({chosen.way})")
        networks = " and ".join(through) or "no observers"
        cut = f" in {blocks} blocks" if blocks > 1 else ""
        if blocks > 1 and method.sequential:
            cut += " one after another"
        has_real = bool(method.groups) or trajectories is None
        real = f", real side {recipe.real}" if has_real else ""
        alongside = f", {quantity(trained, 'network')} trained alongside" if trained else ""
        return (
            f"{recipe.synthesis.steps:,} steps of {networks} on {images:,} images"
            f"{cut}{real}{alongside}"
        )

    def _parts(self, step: StepCost, gradients: Count, blocks: int) -> tuple[Part, ...]:
        """Parts of the cost: that of a step times the number of steps and blocks."""
        job = self.job
        recipe = job.recipe
        models = recipe.observers.model_pool
        times = recipe.synthesis.steps * blocks
        if blocks > 1 and not job.method.sequential:
            together = job.parallel(blocks)
            apart = together
            alone = together
        else:
            is_after = models is not None and models.source == "synthetic"
            # a part of the images (`synthesis.split`) takes two sequential calls
            asked = step.asked_items / (2 if recipe.synthesis.split > 1 else 1)
            items = asked if is_after else asked + step.trained_items
            together = job.parallel(math.ceil(items))
            apart = job.parallel(math.ceil(step.trained_items)) if is_after else together
            alone = 1
        decoded = 0.0
        is_sampled = recipe.real == "sampled"
        if is_sampled and any(job.method.samples(group) for group in job.method.groups):
            drawn = recipe.observers.real_batch * job.data.classes * recipe.observers.per_step
            decoded = job.decoded(drawn * times)
        settings = "synthesis.steps"
        if job.method.trajectory_objective is not None:
            settings = "synthesis.steps and objective.steps"
        parts = [
            Part(f"{times:,} steps", settings, gradients * times, together, decoded),
            Part(
                what=f"what {times:,} steps do beside their gradients",
                settings="synthesis.steps",
                count=step.driver * times,
                parallel=alone,
            ),
        ]
        if step.trained.calls:
            by_epochs = models is not None and models.train_epochs is not None
            name = "train_epochs" if by_epochs else "train_steps"
            part = Part(
                what="the training of the model pool",
                settings=f"observers.model_pool.{name}",
                count=step.trained * times,
                parallel=apart,
            )
            parts.append(part)
        return tuple(parts)

    def compute(self, pool: TaskStream, queue: WorkQueue[str], progress: ItemProgress[str]) -> None:
        """Run all steps, unless another run does."""
        for item in queue:
            assert self.optimize is not None
            found = self.optimize()
            self._results[item] = found
            self.write(partial(self._write, item, found, queue.hand_over(item)))

    def _write(self, item: str, found: Synthesized, claim: ExitStack) -> None:
        """Write the set, and release its lock for runs that wait for it."""
        with claim:
            self.save(item, found)

    def save(self, item: str, result: Synthesized) -> Synthesized:
        """Save the set's tensors, and everything else as metadata."""
        note = {
            "observers": result.observers,
            "seconds": result.seconds,
            "origin": result.origin,
        }
        tensors = result.learned.state_dict()
        self.job.store.put_tensors(self.folder, self.key(item), tensors, note)
        return result

    def find(self, item: str) -> Synthesized | None:
        """The set of a run with the same settings."""
        store = self.job.store
        tensors = store.tensors(self.folder, self.key(item))
        if tensors is None:
            return None
        try:
            learned = synthetic.restore(self.job.recipe.synthetic, tensors)
            note = store.note(self.folder, self.key(item))
            # entries of older versions only have the kind of device
            origin = note.get("origin") or {"hardware": {"device": self.device(item)}}
            return Synthesized(learned, note["observers"], float(note["seconds"]), origin)
        except (ArtifactError, ConfigError, KeyError, TypeError, ValueError) as error:
            log.warning("%s Recomputing it.", error)
            return None


def synthesis_hash(job: Job, history: Sequence[Mapping[str, Any]] = ()) -> str:
    """Hash of everything that a synthesis depends on.

    Args:
        job: the run.
        history: history of a warm start.
    """
    recipe = job.recipe
    networks: list[ObserverNetworkSettings] = []
    for group in groups(recipe):
        networks += recipe.network_group(group).networks
    inputs: dict[str, Any] = {
        "version": _version(recipe),
        "data": job.data.fingerprint,
        "settings": recipe.identity(),
        "weights": [given.fingerprint(network) for network in networks],
    }
    if job.method.version:
        inputs["method"] = job.method.version
    # only if there is one, so that keys of all other runs are unchanged
    if history:
        inputs["history"] = list(history)
    return content_hash(inputs)


def _version(recipe: Recipe) -> int:
    """Version of the computation, which is raised for recipes whose results have changed."""
    by_default = recipe.classifiers is None and "classifiers" in groups(recipe)
    if by_default and recipe.classifier_settings.order == "random":
        return 7  # they took turns in earlier versions, which the key does not show
    return 6 if _scales_mappers(recipe) else 4


def _scales_mappers(recipe: Recipe) -> bool:
    """Whether step sizes of low-rank mappers are those of `LowRank.step_scales`."""
    settings = recipe.synthesis
    both_given = {"left", "right"} <= settings.learning_rates.keys()
    return recipe.synthetic.kind == "lowrank" and settings.optimizer == "sgd" and not both_given
