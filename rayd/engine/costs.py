"""Costs of the parts of a run, counted by running the run's own code on placeholder images.

Nothing here depends on methods: a step of the synthesis is a step of the `Synthesizer`, with any
terms, students, model pools or labels. Counts are kept in the store under everything that they
depend on, which excludes the values of images.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from rayd import methods, networks, synthetic
from rayd.artifacts import content_hash
from rayd.config import (
    NOT_OF_A_STUDENT,
    EvaluationSettings,
    ExpertSettings,
    NetworkGroup,
    NetworkSettings,
    Recipe,
    TrainingSettings,
)
from rayd.data import ImageData
from rayd.engine.aggregation import merged
from rayd.engine.counting import Count, Counting
from rayd.engine.gradients.feature_matching import GradientTask
from rayd.engine.gradients.model_pool import TrainTask
from rayd.engine.gradients.trajectory_matching import (
    TrajectoryTask,
    TrajectoryWorker,
)
from rayd.engine.network_ids import NetworkId, network_ids, teachers
from rayd.engine.observer import DatasetInfo, States
from rayd.engine.pool import LocalRef
from rayd.engine.stages.measure import shards
from rayd.engine.stand_ins import CountingPool, CountingWorker, FirstBatches, pixels, stand_in
from rayd.engine.store import Store
from rayd.engine.synthesize import BlockTask, Synthesizer
from rayd.engine.worker import Worker
from rayd.errors import ArtifactError, RunError
from rayd.networks.flat import FlatNetwork
from rayd.objectives.trajectory import Segment
from rayd.statistics.frequencies import evenly_spaced
from rayd.synthetic.learned_step_size import WithLearnedStepSize
from rayd.synthetic.rded import CHUNK
from rayd.training.batches import Draws
from rayd.training.experts import ExpertTrainer
from rayd.training.judging import TEST_BATCH, hits
from rayd.training.labels import TOGETHER, Teachers
from rayd.training.losses import Loss, cross_entropy, loss_of
from rayd.training.trainer import Trainer
from rayd.version import __version__

STAGE = "counts"
"""Folder of the store that holds counts."""
VERSION = 2
MANY = 800
"""Operations of a batch from which on those done once per epoch or shard are negligible."""
WHOLE = 4
"""Number of batches up to which an epoch is counted whole, in units of a batch of the teachers."""
CYCLE = 8
"""Most steps of a synthesis that are counted; fewer suffice if every architecture had its turn."""
STUDENT_STEPS = (2, 4)
"""Steps of a student that are counted; their difference gives the cost of one more."""

logging.getLogger("torch.fx").setLevel(logging.ERROR)


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


@dataclass(eq=False)
class Costs:
    """The costs of one run.

    Attributes:
        recipe: the run.
        data: its images; only their number, shape and labels are used.
        store: where counts are kept.
    """

    recipe: Recipe
    data: ImageData
    store: Store
    _known: dict[str, Any] = field(default_factory=dict)
    _statistics: dict[tuple[NetworkGroup, str], States] = field(default_factory=dict)
    """Statistics of one network of each architecture that was counted."""

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
        """A count from this process or the store, or else a new one."""
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
            return Count.from_json(self._cached(name, inputs, lambda: make().to_json()))
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
        """The cost of an epoch of a network's training.

        Args:
            network: its architecture.
            settings: the protocol.
            images: number of images.
            labels: `hard`, `online` or `stored`; soft labels that are part of the set cost the same
                as hard ones.
            real: whether images are pixels, or network input as in synthetic sets.
        """
        batch = min(settings.batch_size, images)
        # batches that teachers label at once
        together = -(-TOGETHER // batch) if labels == "online" else 1
        batches = -(-images // batch)

        not_counted = {"learning_rate", *NOT_OF_A_STUDENT}

        def epoch(limit: int | None) -> Count:
            inputs = {
                "network": network.model_dump(mode="json", exclude={"weights", "learning_rate"}),
                "settings": settings.model_dump(mode="json", exclude=not_counted),
                "teachers": self._teacher_inputs(),
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
            # the work of each epoch beyond its batches is negligible
            return few * (images / (batch * together))
        # otherwise two counts separate it from that of the batches
        more = epoch(2 * together)
        each = (more - few) * (1 / together)
        return few + each * (images / batch - together)

    def training_bytes(
        self,
        network: NetworkSettings,
        settings: TrainingSettings,
        images: int,
        labels: str = "hard",
        real: bool = True,
    ) -> float:
        """Memory that a network's training takes on its device, in bytes: weights, gradients and
        moments, what is saved for the backward pass, and the training set. The arguments are those
        of `training`.
        """
        saved = self.training(network, settings, images, labels, real).saved_bytes
        with Counting():
            weights = sum(parameter.nbytes for parameter in self._built(network).parameters())
            labelling = [self._built(one.architecture) for one in teachers(self.recipe)]
            if labels == "online":
                # teachers save nothing, but look at several batches at a time
                saved *= 2
                saved += sum(one.nbytes for net in labelling for one in net.parameters())
        copies = 2 + (1 if settings.optimizer == "sgd" else 2) + (settings.average is not None)
        each = math.prod(self.data.shape) * (4 if self._resident(images, real) else 1)
        held = 0 if real and self.data.train.streamed else images * each
        return float(saved + copies * weights + held)

    def _teacher_inputs(self) -> list[dict[str, Any]]:
        """Architectures of the teachers, for the key of a count."""
        return [
            teacher.architecture.model_dump(mode="json", exclude={"weights"})
            for teacher in teachers(self.recipe)
        ]

    def _resident(self, images: int, real: bool) -> bool:
        """Whether a set is normalised once, instead of batch by batch."""
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
        training = stand_in(self.data, images, real)
        if isinstance(settings, ExpertSettings):
            built = networks.build(network, self.data.shape, self.data.classes, seed=0)
            expert = ExpertTrainer(built, training, settings, 0, 0, self._device)
            expert._batches = FirstBatches(expert._batches, limit)
            return expert
        draws = Draws(settings, images, self.data.shape, 0)
        labellers = None
        loss: Loss = cross_entropy
        clean = False
        if isinstance(settings, EvaluationSettings):
            loss = loss_of(settings)
            clean = settings.clean_forward
        if labels == "online":
            labellers = Teachers(
                [self._built(teacher.architecture) for teacher in teachers(self.recipe)],
                self.recipe.labels.precision,
                settings.precision,
                self._device,
            )
        return Trainer(
            self._built(network),
            training,
            settings,
            FirstBatches(draws, limit, self.data.classes if labels == "stored" else None),
            loss,
            epochs=max(2, settings.epochs),
            seed=0,
            device=self._device,
            teachers=labellers,
            clean_forward=clean,
        )

    def _built(self, network: NetworkSettings) -> nn.Module:
        return networks.build(network, self.data.shape, self.data.classes, seed=0)

    def testing(self, network: NetworkSettings, precision: str, images: int) -> Count:
        """The cost of testing a network on some images."""
        batch = min(images, TEST_BATCH)
        inputs = {
            "network": network.model_dump(mode="json", exclude={"weights"}),
            "precision": precision,
            "batch": batch,
        }

        def work() -> Count:
            with Counting() as counting:
                built = self._built(network)
                judged = stand_in(self.data, batch, real=True)
                counting.take()
                hits(built, [built.state_dict()], judged, self._device, precision)
                return counting.take()

        return self._count("testing", inputs, work) * (images / batch)

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

    def _first_labels(self, count: int) -> str:
        """Hash of the labels of the first images, as the cost depends on the classes of a batch."""
        return content_hash({"labels": self.data.train.labels[:count].tolist()})

    def _identity(self) -> dict[str, Any]:
        """The settings that a synthesis depends on."""
        settings = self.recipe.identity()
        for name in ("data", "seed", "squeeze"):
            settings.pop(name)
        settings["synthesis"].pop("steps")
        return {"recipe": settings}

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
                network_id, states, 1
            )
            merged = counting.take()
            if first.number > MANY:
                # the work of each shard beyond its batches is negligible
                nothing = Count()
                return {"once": nothing, "shard": nothing, "batch": first, "merged": merged}
            # differences separate the work done once, per shard and per batch
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

    def _merged(self, network_id: NetworkId, part: States, batches: int) -> States:
        """Statistics of the first batches as the driver keeps them, for all classes."""
        rows = slice(0, batches * self.recipe.network_group(network_id.group).batch_size)
        labels = torch.tensor(self.data.train.labels[rows])
        return merged(
            self._worker._method.specs(network_id.group), None, part, labels, self.data.classes
        )

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
            cost, size = _counted_steps(self)
            return {"cost": cost.to_json(), "bytes": dict(size)}

        try:
            found = self._cached("step", inputs, make)
            return StepCost.from_json(found["cost"]), found["bytes"]
        except (KeyError, TypeError, ValueError):
            return _counted_steps(self)

    def student(self) -> tuple[Count, float]:
        """The cost of a student of trajectory matching, and its peak memory in bytes."""
        objective = methods.build(self.recipe).trajectory_objective
        assert objective is not None
        settings = objective.settings
        # parameters after every step, and the graph of one step or of all
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

    def start(self) -> synthetic.SyntheticSet:
        """A synthetic set before the first step; the source of its images does not affect costs."""
        labels = "hard" if self.recipe.synthetic.labels == "hard" else "random"
        cheap = self.recipe.synthetic.model_copy(update={"init": "noise", "labels": labels})
        return synthetic.initial(self.recipe.model_copy(update={"synthetic": cheap}), self.data)

    def labelling(self, images: int) -> Count:
        """The cost of stored labels for one epoch of a set."""
        settings = self.recipe.evaluation
        batch = min(images, settings.batch_size)
        count = min(images, batch * -(-TOGETHER // batch))
        inputs = {
            "settings": settings.model_dump(mode="json", exclude=set(NOT_OF_A_STUDENT)),
            "teachers": self._teacher_inputs(),
            "labels": self.recipe.labels.precision,
            "images": count,
        }

        def work() -> Count:
            with Counting() as counting:
                worker = Worker(self.recipe, self._facts, device=self._device)
                worker._teachers = [
                    self._built(teacher.architecture) for teacher in teachers(self.recipe)
                ]
                shared = LocalRef(torch.zeros(count, *self.data.shape))
                counting.take()
                worker.label((), (), shared, range(1))
                return counting.take()

        return self._count("labelling", inputs, work) * (images / count)

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


def _counted_steps(costs: Costs) -> tuple[StepCost, dict[NetworkGroup, int]]:
    """Count steps of the synthesizer until each architecture had its turn; see `Costs.step`."""
    recipe = costs.recipe
    method = methods.build(costs.recipe)
    steps = _cycle(recipe, method)
    # without checkpoints and log lines, and the last step is never reached
    quiet = {
        "steps": max(recipe.synthesis.steps, 2 * steps + 1),
        "checkpoint_every": 10**9,
        "log_every": 10**9,
    }
    longer = recipe.model_copy(update={"synthesis": recipe.synthesis.model_copy(update=quiet)})
    with Counting() as counting:
        pool = CountingPool(costs._worker, counting)
        measured, size = _measured(costs, method)
        learned = costs.start()
        parts = synthetic.blocks(learned.samples, recipe.synthesis.block, recipe.synthesis.order)
        labels = costs.data.train.labels
        train = (
            LocalRef((pixels(costs.data, len(labels)), labels))
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
        # the first steps are not counted: they build networks and fill caches, of which measuring
        # did most already
        warm = 1 if measured and recipe.observers.model_pool is None else steps
        synthesizer.advance(assignment, 0, warm)
        counting.take()
        pool.forget()
        synthesizer.advance(assignment, warm, warm + steps)
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


def _cycle(recipe: Recipe, method: methods.Method) -> int:
    """Steps until the turns of the architectures repeat, but at most `CYCLE`."""
    rounds = [1]
    for group in method.groups:
        settings = recipe.network_group(group)
        architectures = len(settings.networks)
        rounds.append(architectures // math.gcd(architectures, settings.per_step))
    return min(CYCLE, math.lcm(*rounds))


def _measured(
    costs: Costs, method: methods.Method
) -> tuple[dict[NetworkId, LocalRef], dict[NetworkGroup, int]]:
    """Statistics of the right size for all networks.

    Also returns the bytes of each group, for one network per architecture.
    """
    measured: dict[NetworkId, LocalRef] = {}
    size: dict[NetworkGroup, int] = dict.fromkeys(method.groups, 0)
    if costs.recipe.real == "sampled":
        return measured, size
    for group in method.groups:
        if not method.specs(group):
            continue
        known: dict[str, LocalRef] = {}
        for network_id in network_ids(costs.recipe, group):
            key = network_id.architecture.model_dump_json()
            if key not in known:
                states = costs._statistics.get((group, key)) or costs._merged(
                    network_id, costs._measure(network_id, 1), 1
                )
                for layers in states.values():
                    for layer in layers:
                        size[group] += sum(tensor.nbytes for tensor in layer.values())
                known[key] = LocalRef(states)
            measured[network_id] = known[key]
    return measured, size


def _sum(counts: Sequence[Count]) -> Count:
    total = Count()
    for count in counts:
        total = total + count
    return total
