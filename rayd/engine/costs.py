"""What the pieces of a run's work cost: each is counted once, by the very code that does it, on
stand-ins of its images.

Nothing here knows methods: a step of the synthesis is a step of the `Synthesizer`, whichever terms,
students, pools of networks or labels it has. Counts are kept in the store, by all that they depend
on but the images' values.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from rayd import methods, networks, synthetic
from rayd.artifacts import content_hash
from rayd.config import (
    EvaluationSettings,
    ExpertSettings,
    NetworkGroup,
    NetworkSettings,
    Recipe,
    TrainingSettings,
)
from rayd.data import ImageData
from rayd.engine.counting import Count, Counting
from rayd.engine.gradients.feature_matching import GradientTask
from rayd.engine.gradients.model_pool import TrainTask
from rayd.engine.gradients.trajectory_matching import (
    TrajectoryResult,
    TrajectoryTask,
    TrajectoryWorker,
)
from rayd.engine.network_ids import NetworkId, network_ids, teachers
from rayd.engine.observer import DatasetInfo, Observer, States
from rayd.engine.pool import LocalPool, LocalRef
from rayd.engine.stages.measure import merged, shards
from rayd.engine.store import Store
from rayd.engine.synthesize import BlockTask, Synthesizer
from rayd.engine.worker import Worker
from rayd.errors import ArtifactError, RunError
from rayd.networks.flat import FlatNetwork
from rayd.objectives.trajectory import Segment
from rayd.statistics.frequencies import evenly_spaced
from rayd.synthetic.learned_step_size import WithLearnedStepSize
from rayd.synthetic.rded import CHUNK
from rayd.training.batches import Batches, DrawnBatch, Draws
from rayd.training.experts import ExpertTrainer
from rayd.training.judging import TEST_BATCH, hits
from rayd.training.labels import TOGETHER, Teachers
from rayd.training.losses import Loss, cross_entropy, loss_of
from rayd.training.sets import TrainingSet
from rayd.training.trainer import Trainer
from rayd.version import __version__

STAGE = "counts"
"""Where the store keeps counts."""
VERSION = 1
MANY = 800
"""Operations of a batch beside which those done once an epoch, or once a shard, are few."""
WHOLE = 4
"""Batches of an epoch up to which it is counted whole, in units of those that teachers are asked
about together."""
CYCLE = 8
"""Steps of a synthesis that are counted, at most: as many as let each architecture have its
turn."""
STUDENT_STEPS = (2, 4)
"""Steps of a student that are counted; from their difference follows what another one takes."""

logging.getLogger("torch.fx").setLevel(logging.ERROR)


@dataclass(frozen=True)
class StepCost:
    """A step of the synthesis."""

    asked: Count
    """What observers and students compute, all together."""
    trained: Count
    """The training of networks of the pool."""
    driver: Count
    """What the synthesizer does itself."""
    asked_items: float
    """Work items of observers and students."""
    trained_items: float
    """Networks that are trained."""
    saved_bytes: float
    """What autograd keeps for the backward pass of one of them."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
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


@dataclass(eq=False)
class Costs:
    """The costs of one run.

    Attributes:
        recipe: the run.
        data: its images; only their number, shape and labels count.
        store: where counts are kept.
    """

    recipe: Recipe
    data: ImageData
    store: Store
    _known: dict[str, Any] = field(default_factory=dict)
    _seen: dict[tuple[NetworkGroup, str], States] = field(default_factory=dict)
    """Statistics of an observer of each architecture that was counted."""

    @property
    def _facts(self) -> DatasetInfo:
        return DatasetInfo.of(self.data)

    @property
    def _device(self) -> torch.device:
        # counted here, whatever device the run is for
        return torch.device("cpu")

    def _kept(
        self, name: str, inputs: Mapping[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """A count from this process, the store, or the making."""
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
                with suppress(RunError):
                    self.store.put_record(STAGE, described, found)
            self._known[key] = found
        return cast(dict[str, Any], self._known[key])

    def _count(self, name: str, inputs: Mapping[str, Any], make: Callable[[], Count]) -> Count:
        try:
            return Count.from_json(self._kept(name, inputs, lambda: make().to_json()))
        except (KeyError, TypeError, ValueError, ArtifactError):
            return make()

    def training(
        self,
        network: NetworkSettings,
        settings: TrainingSettings,
        images: int,
        labels: str = "hard",
        real: bool = True,
    ) -> Count:
        """An epoch of a network's training.

        Args:
            network: its architecture.
            settings: the protocol.
            images: of the set.
            labels: `hard`, `online` or `stored`; soft labels that are part of the set count as hard
                ones.
            real: whether the set has pixels, or network input as synthetic sets have.
        """
        batch = min(settings.batch_size, images)
        together = -(-TOGETHER // batch) if labels == "online" else 1
        batches = -(-images // batch)

        def epoch(limit: int | None) -> Count:
            inputs = {
                "network": network.model_dump(mode="json", exclude={"weights"}),
                "settings": settings.model_dump(mode="json", exclude={"epochs", "learning_rate"}),
                "teachers": [
                    one.architecture.model_dump(mode="json", exclude={"weights"})
                    for one in teachers(self.recipe)
                ],
                "labels": [labels, self.recipe.labels.precision],
                "images": images if limit is None else [limit, batch, self._resident(images, real)],
                "real": real,
            }
            return self._count(
                "training",
                inputs,
                lambda: self._epoch(network, settings, images, labels, real, limit),
            )

        if batches <= WHOLE * together:
            return epoch(None)
        few = epoch(together)
        if few.number > MANY:
            # what is done once an epoch is nothing beside a batch
            return few * (images / (batch * together))
        more = epoch(2 * together)
        each = (more - few) * (1 / together)
        return few + each * (images / batch - together)

    def _resident(self, images: int, real: bool) -> bool:
        """Whether a set is normalised once."""
        return not real or (
            not self.data.train.streamed and 4 * images * math.prod(self.data.shape) <= 2**28
        )

    def _epoch(
        self,
        network: NetworkSettings,
        settings: TrainingSettings,
        images: int,
        labels: str,
        real: bool,
        limit: int | None,
    ) -> Count:
        with Counting() as counting:
            trainer = self._trainer(network, settings, images, labels, real, limit)
            counting.take()
            trainer.advance()
            return counting.take()

    def _trainer(
        self,
        network: NetworkSettings,
        settings: TrainingSettings,
        images: int,
        labels: str,
        real: bool,
        limit: int | None,
    ) -> Trainer:
        training = _stand_in(self.data, images, real)
        if isinstance(settings, ExpertSettings):
            built = networks.build(network, self.data.shape, self.data.classes, seed=0)
            expert = ExpertTrainer(built, training, settings, 0, 0, self._device)
            expert._batches = _First(expert._batches, limit)
            return expert
        draws = Draws(settings, images, self.data.shape, 0)
        asked = None
        loss: Loss = cross_entropy
        clean = False
        if isinstance(settings, EvaluationSettings):
            loss = loss_of(settings)
            clean = settings.clean_forward
        if labels == "online":
            known = [self._built(one.architecture) for one in teachers(self.recipe)]
            asked = Teachers(known, self.recipe.labels.precision, settings.precision, self._device)
        return Trainer(
            self._built(network),
            training,
            settings,
            _First(draws, limit, self.data.classes if labels == "stored" else None),
            loss,
            epochs=max(2, settings.epochs),
            seed=0,
            device=self._device,
            teachers=asked,
            clean_forward=clean,
        )

    def _built(self, network: NetworkSettings) -> nn.Module:
        return networks.build(network, self.data.shape, self.data.classes, seed=0)

    def testing(self, network: NetworkSettings, precision: str, images: int) -> Count:
        """The judging of a network on some images."""
        batch = min(images, TEST_BATCH)
        inputs = {
            "network": network.model_dump(mode="json", exclude={"weights"}),
            "precision": precision,
            "batch": batch,
        }

        def work() -> Count:
            with Counting() as counting:
                built = self._built(network)
                judged = _stand_in(self.data, batch, real=True)
                counting.take()
                hits(built, [built.state_dict()], judged, self._device, precision)
                return counting.take()

        return self._count("testing", inputs, work) * (images / batch)

    def measuring(self, group: NetworkGroup, place: int) -> Count:
        """What measuring the training split takes for an observer of a panel's architecture."""
        images = len(self.data.train)
        batch = self.recipe.network_group(group).batch_size
        parts = len(shards(images))
        inputs = self._identity() | {
            "panel": group,
            "place": place,
            "labels": self._first_labels(2 * batch),
        }

        def make() -> dict[str, Any]:
            return {name: count.to_json() for name, count in self._shard(group, place).items()}

        found = self._kept("measuring", inputs, make)
        once, shard, each, merged = (
            Count.from_json(found[name]) for name in ("once", "shard", "batch", "merged")
        )
        return once + (shard + merged) * parts + each * (images / batch)

    def _first_labels(self, count: int) -> str:
        """Hash of the labels of the first images: how many classes a batch has decides what it
        costs.
        """
        return content_hash({"labels": self.data.train.labels[:count].tolist()})

    def _identity(self) -> dict[str, Any]:
        """The settings that a synthesis depends on."""
        settings = self.recipe.identity()
        for name in ("data", "seed", "squeeze"):
            settings.pop(name)
        settings["synthesis"].pop("steps")
        return {"recipe": settings}

    def _shard(self, group: NetworkGroup, place: int) -> dict[str, Count]:
        """What is done once, once a shard and once a batch when an observer measures, and for
        merging a shard.
        """
        network_id = network_ids(self.recipe, group)[place]
        with Counting() as counting:
            worker = self._worker
            worker._fixed_observer(network_id, None, self.recipe.network_group(group).precision)
            counting.take()
            states = self._look(network_id, 1)
            first = counting.take()
            self._seen[group, network_id.architecture.model_dump_json()] = self._merged(
                network_id, states, 1
            )
            merged = counting.take()
            if first.number > MANY:
                # what is done once a shard is nothing beside a batch, and the first look a part of
                # it
                nothing = Count()
                return {"once": nothing, "shard": nothing, "batch": first, "merged": merged}
            self._look(network_id, 1)
            again = counting.take()
            self._look(network_id, 2)
            each = counting.take() - again
        return {"once": first - again, "shard": again - each, "batch": each, "merged": merged}

    @cached_property
    def _worker(self) -> _StandIn:
        return _StandIn(self.recipe, self._facts, device=self._device)

    def _look(self, network_id: NetworkId, batches: int) -> States:
        """Statistics of some batches."""
        rows = slice(0, batches * self.recipe.network_group(network_id.group).batch_size)
        labels = self.data.train.labels[rows]
        shard = LocalRef((_pixels(self.data, len(labels)), labels))
        looks_first = any(need.looks_first for need in self._worker._method.needs(network_id.group))
        (part,) = self._worker.measure(
            ((network_id, None, self._first_look if looks_first else None),), shard
        )
        return part

    @cached_property
    def _first_look(self) -> LocalRef:
        rows = evenly_spaced(len(self.data.train)).numpy()
        return LocalRef((_pixels(self.data, len(rows)), self.data.train.labels[rows]))

    def _merged(self, network_id: NetworkId, part: States, batches: int) -> States:
        """The same as the driver keeps them, for all classes."""
        rows = slice(0, batches * self.recipe.network_group(network_id.group).batch_size)
        labels = torch.tensor(self.data.train.labels[rows])
        return merged(
            self._worker._method.needs(network_id.group), None, part, labels, self.data.classes
        )

    def step(self) -> tuple[StepCost, dict[NetworkGroup, int]]:
        """A step of the synthesis, on average over the architectures, and bytes of statistics of a
        member of each panel.
        """
        recipe = self.recipe
        inputs = self._identity() | {
            "steps": recipe.synthesis.steps > 0,
            "labels": self._first_labels(64),
        }

        def make() -> dict[str, Any]:
            cost, size = _counted_steps(self)
            return {"cost": cost.to_json(), "bytes": dict(size)}

        try:
            found = self._kept("step", inputs, make)
            return StepCost.from_json(found["cost"]), found["bytes"]
        except (KeyError, TypeError, ValueError):
            return _counted_steps(self)

    def student(self) -> tuple[Count, float]:
        """A student that follows an expert: all that it computes, and the bytes of its largest
        graph.
        """
        following = methods.build(self.recipe).following
        assert following is not None
        settings = following.settings
        lengths = [settings.steps] if settings.steps <= STUDENT_STEPS[-1] else list(STUDENT_STEPS)
        some = [self._student(steps) for steps in lengths]
        one = self._student(1)
        vectors = (settings.steps + 1) * self._parameter_bytes()
        graphs = one.saved_bytes * (settings.steps if settings.way == "full" else 1)
        if len(some) == 1:
            return some[0], graphs + vectors
        few, more = STUDENT_STEPS
        return some[0] + (some[1] - some[0]) * (
            (settings.steps - few) / (more - few)
        ), graphs + vectors

    def _student(self, steps: int) -> Count:
        return self._count(
            "student", self._identity() | {"student steps": steps}, lambda: self._pursued(steps)
        )

    def _parameter_bytes(self) -> float:
        with Counting():
            return 4.0 * FlatNetwork(self._built(self.recipe.experts.network)).size

    def _pursued(self, steps: int) -> Count:
        following = methods.build(self.recipe).following
        assert following is not None
        fewer = replace(
            following,
            settings=following.settings.model_copy(update={"steps": steps, "loss_limit": None}),
        )
        with Counting() as counting:
            learned = self.start()
            assert isinstance(learned, WithLearnedStepSize)
            size = FlatNetwork(self._built(self.recipe.experts.network)).size
            segment = Segment(torch.randn(size), torch.randn(size))
            pursuer = TrajectoryWorker(
                self.recipe, fewer, self.data.shape, self.data.classes, self._device
            )
            counting.take()
            pursuer.pursue(segment, learned, 0, 0)
            return counting.take()

    def start(self) -> synthetic.SyntheticSet:
        """A set as it is before the first step; where its images come from makes no difference to a
        step.
        """
        labels = "hard" if self.recipe.synthetic.labels == "hard" else "random"
        cheap = self.recipe.synthetic.model_copy(update={"init": "noise", "labels": labels})
        return synthetic.initial(self.recipe.model_copy(update={"synthetic": cheap}), self.data)

    def labelling(self, images: int) -> Count:
        """Labels of one epoch of a set of some images."""
        settings = self.recipe.evaluation
        batch = min(images, settings.batch_size)
        count = min(images, batch * -(-TOGETHER // batch))
        inputs = {
            "settings": settings.model_dump(
                mode="json", exclude={"epochs", "seeds", "networks", "whole_epochs", "baselines"}
            ),
            "teachers": [
                one.architecture.model_dump(mode="json", exclude={"weights"})
                for one in teachers(self.recipe)
            ],
            "labels": self.recipe.labels.precision,
            "images": count,
        }

        def work() -> Count:
            with Counting() as counting:
                worker = Worker(self.recipe, self._facts, device=self._device)
                worker._teachers = [self._built(one.architecture) for one in teachers(self.recipe)]
                shared = LocalRef(torch.zeros(count, *self.data.shape))
                counting.take()
                next(worker.label((), (), shared, 0, 1))
                return counting.take()

        return self._count("labelling", inputs, work) * (images / count)

    def scoring(self) -> Count:
        """The scoring of one candidate of the first images."""
        network_id = network_ids(self.recipe)[0]
        inputs = {
            "network": network_id.architecture.model_dump(mode="json", exclude={"weights"}),
            "settings": self.recipe.synthetic.model_dump(mode="json"),
        }

        def work() -> Count:
            with Counting() as counting:
                worker = self._worker
                worker._fixed_observer(network_id, None, "float32")
                counting.take()
                images = LocalRef(_pixels(self.data, CHUNK))
                next(worker.score(network_id, LocalRef(None), 0, images))
                return counting.take()

        return self._count("scoring", inputs, work) * (1 / CHUNK)


def _pixels(data: ImageData, count: int) -> Any:
    return np.zeros((count, *data.shape), np.uint8)


def _stand_in(data: ImageData, images: int, real: bool) -> TrainingSet:
    """A set of so many images without values."""
    # made under the mode: it has no memory
    dtype = torch.uint8 if real else torch.float32
    pixels = torch.zeros(1, dtype=torch.float32).expand(images, *data.shape).to(dtype, copy=True)
    return TrainingSet(pixels, torch.arange(images) % data.classes, data.normalization)


class _First:
    """The first batches of every epoch; with classes, each comes with logits, as stored ones do."""

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


class _StandIn(Worker):
    """A worker whose fixed observers are one network an architecture, with random weights, and
    whose students stand still.
    """

    def _fixed_observer(self, network_id: NetworkId, weights: Any, precision: str) -> Observer:
        return super()._fixed_observer(replace(network_id, index=0), None, precision)

    def _pursued(self, asked: TrajectoryTask) -> TrajectoryResult:
        replica = self._follow(asked.template, "now", asked.parameters)
        return TrajectoryResult(
            loss=torch.zeros(()),
            gradients={name: torch.zeros_like(value) for name, value in replica.named_parameters()},
            good=torch.tensor(True),
        )


class _CountingGroup(LocalPool):
    """A group in this process that counts each kind of work item by itself."""

    def __init__(self, worker: Worker, counting: Counting):
        self._threads = torch.get_num_threads()
        self._worker = worker
        self._counting = counting
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
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


def _counted_steps(costs: Costs) -> tuple[StepCost, dict[NetworkGroup, int]]:
    """Count steps of the synthesizer until each architecture had its turn; see `Costs.step`."""
    recipe = costs.recipe
    method = methods.build(costs.recipe)
    steps = _cycle(recipe, method)
    # neither checkpoints nor log lines, and the last step is never reached
    quiet = {
        "steps": max(recipe.synthesis.steps, 2 * steps + 1),
        "checkpoint_every": 10**9,
        "log_every": 10**9,
    }
    longer = recipe.model_copy(update={"synthesis": recipe.synthesis.model_copy(update=quiet)})
    with Counting() as counting:
        pool = _CountingGroup(costs._worker, counting)
        measured, size = _measured(costs, method)
        learned = costs.start()
        parts = synthetic.blocks(learned.samples, recipe.synthesis.block, recipe.synthesis.order)
        labels = costs.data.train.labels
        train = (
            LocalRef((_pixels(costs.data, len(labels)), labels))
            if recipe.real == "sampled"
            else None
        )
        assignment = BlockTask(
            recipe=longer,
            key="counted",
            normalization=costs.data.normalization,
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
        synthesizer = Synthesizer(pool)
        # observers that are measured were built for that; others are built, and caches filled, in
        # the first round
        warm = 1 if measured and recipe.observers.model_pool is None else steps
        synthesizer.advance(assignment, 0, warm)
        counting.take()
        pool.forget()
        synthesizer.advance(assignment, warm, warm + steps)
        driver = pool.driver + counting.take()
    share = 1 / steps
    questions = pool.items.get(GradientTask, [])
    growths = pool.items.get(TrainTask, [])
    students = pool.items.get(TrajectoryTask, [])
    cost = StepCost(
        asked=_sum([*questions]) * share,
        trained=_sum(growths) * share,
        driver=driver * share,
        asked_items=(len(questions) + len(students)) * share,
        trained_items=len(growths) * share,
        saved_bytes=max((one.saved_bytes for one in questions), default=0.0),
    )
    return cost, size


def _cycle(recipe: Recipe, method: methods.Method) -> int:
    rounds = [1]
    for group in method.groups:
        settings = recipe.network_group(group)
        architectures = len(settings.networks)
        rounds.append(architectures // math.gcd(architectures, settings.per_step))
    return min(CYCLE, math.lcm(*rounds))


def _measured(
    costs: Costs, method: methods.Method
) -> tuple[dict[NetworkId, LocalRef], dict[NetworkGroup, int]]:
    """Statistics of all who are measured, as large as they will be, and bytes of one of each
    architecture of a panel.
    """
    measured: dict[NetworkId, LocalRef] = {}
    size: dict[NetworkGroup, int] = dict.fromkeys(method.groups, 0)
    if costs.recipe.real == "sampled":
        return measured, size
    for group in method.groups:
        if not method.needs(group):
            continue
        known: dict[str, LocalRef] = {}
        for network_id in network_ids(costs.recipe, group):
            key = network_id.architecture.model_dump_json()
            if key not in known:
                states = costs._seen.get((group, key)) or costs._merged(
                    network_id, costs._look(network_id, 1), 1
                )
                size[group] += sum(
                    t.nbytes for layers in states.values() for one in layers for t in one.values()
                )
                known[key] = LocalRef(states)
            measured[network_id] = known[key]
    return measured, size


def _sum(counts: Sequence[Count]) -> Count:
    total = Count()
    for count in counts:
        total = total + count
    return total
