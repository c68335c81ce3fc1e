"""The observers of a worker.

`Observers` is what a worker hosts: it makes observers when they are asked for, by what they are (a
fixed member, random or squeezed, or the fresh network of one step), keeps those that will be asked
for again, and answers work items. It is a plain class; nothing here knows whether it runs in
process or in an actor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from rayd import devices, networks, schedules, seeding, synthetic
from rayd.config import NetworkGroup, NetworkSettings, Recipe
from rayd.data.augmentation import ALL, ByClass, Operation, Rows, augmentation, draw_transform
from rayd.derived import known_on_host, on_host
from rayd.engine.gradients.feature_matching import GradientResult, GradientTask, Memory
from rayd.engine.gradients.model_pool import (
    Batches,
    ModelPoolTrainer,
    TrainResult,
    TrainTask,
    initial_seed,
)
from rayd.engine.gradients.trajectory_matching import (
    TrajectoryResult,
    TrajectoryTask,
    TrajectoryWorker,
)
from rayd.engine.network_ids import NetworkId
from rayd.engine.observer import (
    Augment,
    DatasetInfo,
    Lengths,
    Measuring,
    Observer,
    States,
    measure_together,
    unchanged,
)
from rayd.engine.pool import ObjectRef
from rayd.methods import build
from rayd.objectives import Context, RealStatistics, StatisticSpec
from rayd.statistics import Statistic
from rayd.synthetic import SyntheticSet
from rayd.synthetic.learned_step_size import WithLearnedStepSize
from rayd.transfer import send, upload


@dataclass(frozen=True, eq=False)
class _Sampled:
    """A real mini-batch on the device."""

    images: Tensor
    """Network input (N, C, H, W)."""
    labels: Tensor
    """Class indices (N,)."""
    augment: Augment
    """Through which the images are seen."""


class Observers:
    """The observers of one worker, answering work items. Every answer depends on the item alone."""

    def __init__(self, recipe: Recipe, facts: DatasetInfo, device: torch.device | None = None):
        """Know the recipe and the facts of the data; make nothing yet. Without a device, compute
        where the resources say.
        """
        self._recipe = recipe
        self._facts = facts
        self._method = build(recipe)
        self._device = device or devices.choose(recipe.resources)
        devices.use_layout(recipe.resources)
        self._augmentations = {
            group: augmentation(recipe.network_group(group).augmentation)
            for group in self._method.groups
        }
        self._kept: dict[tuple[NetworkGroup, NetworkSettings], tuple[str, Observer]] = {}
        self._trainees = ModelPoolTrainer(recipe, facts.shape, facts.classes, self._device)
        self._class_counts = torch.tensor(facts.class_counts)
        self._pursuer: TrajectoryWorker | None = None
        self._fixed: dict[tuple[NetworkId, str], Observer] = {}
        self._lengths: dict[tuple[NetworkId, str], Lengths] = {}
        self._real: dict[str, RealStatistics] = {}
        self._replicas: dict[str, SyntheticSet] = {}

    def measure(
        self,
        team: tuple[tuple[NetworkId, ObjectRef | None, ObjectRef | None], ...],
        shard: ObjectRef,
        lean: bool = False,
    ) -> list[States]:
        """Statistics of one shard of the real data, seen by observers of a panel, for whom streamed
        images are decoded once.

        See `Observer.measure`.

        Args:
            team: who looks, its trained weights, and the `RealBatch` that needs look at first, the
                same for all shards.
            shard: a `RealBatch`.
            lean: leave out what is the same for all shards.
        """
        images, labels = shard.get()
        settings = self._recipe.network_group(team[0][0].group)
        looking = []
        for network_id, weights, first in team:
            observer = self._fixed_observer(network_id, weights, settings.precision)
            augment = self._fixed_augment(network_id)
            draws = partial(self._fixed_draws, network_id)
            if first is not None and (found := (network_id, first.key)) not in self._lengths:
                self._lengths[found] = observer.lengths(first.get(), settings.batch_size, augment)
            lengths = self._lengths[network_id, first.key] if first is not None else None
            looking.append(Measuring(observer, labels, augment, draws, lengths))
        with devices.convolutions(self._device, settings.precision):
            seen = measure_together(looking, images, settings.batch_size)
        for need in self._method.needs(team[0][0].group) if lean else ():
            for state in (state for states in seen for state in states[need.key]):
                for name in need.kind.statistic.constant:
                    del state[name]
        return seen

    def measuring(
        self,
        team: tuple[tuple[NetworkId, ObjectRef | None, ObjectRef | None], ...],
        shard: ObjectRef,
        lean: bool = False,
    ) -> Iterator[list[States]]:
        """The same as the only event of a stream."""
        yield self.measure(team, shard, lean)

    def measure_alone(
        self,
        network_id: NetworkId,
        weights: ObjectRef | None,
        shard: ObjectRef,
        first: ObjectRef | None = None,
    ) -> States:
        """Statistics of a `RealBatch` with rows for all classes, seen by one observer."""
        (states,) = self.measure(((network_id, weights, first),), shard)
        labels = torch.tensor(shard.get()[1])
        return {
            need.key: [
                need.spread((need.kind.statistic.from_state(state),), labels, self._facts.classes)[
                    0
                ].state()
                for state in states[need.key]
            ]
            for need in self._method.needs(network_id.group)
        }

    def record(
        self,
        network_id: NetworkId,
        weights: ObjectRef | None,
        batch: ObjectRef,
        need: StatisticSpec,
    ) -> tuple[list[str], tuple[Statistic, ...]]:
        """Names of the layers that a need listens to, and its statistics of images as they are.

        Args:
            network_id: who looks.
            weights: its trained weights.
            batch: network inputs (N, C, H, W) and class indices (N,).
            need: which statistic.
        """
        images, labels = batch.get()
        observer = self._fixed_observer(
            network_id, weights, self._recipe.network_group(network_id.group).precision
        )
        settings = self._recipe.network_group(network_id.group)
        with devices.convolutions(self._device, settings.precision):
            return observer.layers(need), observer.record(images, labels, need, settings.batch_size)

    def compute(
        self, asked: GradientTask | TrainTask | TrajectoryTask
    ) -> GradientResult | TrainResult | TrajectoryResult:
        """Work of a step: the gradient that one observer or one student gives, or the training of a
        network of the queue.
        """
        with devices.convolutions(self._device, self._recipe.synthesis.precision):
            if isinstance(asked, TrajectoryTask):
                return self._pursued(asked)
            if isinstance(asked, TrainTask):
                return self._trainees.grow(asked, self._supply(asked))
            return self.gradient(asked)

    def _supply(self, growth: TrainTask) -> Batches:
        """The images that a network of the queue is trained on."""
        if growth.train is None:
            if growth.template is None or growth.parameters is None:
                raise RuntimeError("No images came to train on.")
            made, classes = (
                one.detach()
                for one in self._follow(growth.template, "now", growth.parameters).batch()
            )

            def of_synthetic(rows: Tensor) -> tuple[Tensor, Tensor]:
                there = upload(rows, made.device)
                return made[there], classes[there]

            return Batches(len(made), of_synthetic)
        images, labels = growth.train.get()

        def of_real(rows: Tensor) -> tuple[Tensor, Tensor]:
            pixels = torch.tensor(images[rows.numpy()])
            numbers = torch.tensor(labels[rows.numpy()])
            return self._facts.normalization(upload(pixels, self._device)), upload(
                numbers, self._device
            )

        return Batches(len(labels), of_real)

    def _pursued(self, asked: TrajectoryTask) -> TrajectoryResult:
        if self._pursuer is None:
            following = self._method.following
            assert following is not None
            self._pursuer = TrajectoryWorker(
                self._recipe, following, self._facts.shape, self._facts.classes, self._device
            )
        replica = self._follow(asked.template, "now", asked.parameters)
        assert isinstance(replica, WithLearnedStepSize)
        return self._pursuer.answer(asked, replica)

    def gradient(self, asked: GradientTask) -> GradientResult:
        """Values of the terms, and the objective's gradient by parameter of the synthetic set, for
        one observer of one step.
        """
        replica = self._follow(asked.template, "now", asked.parameters)
        images, labels = replica.batch()
        view = self._view(asked, len(images))
        observer, fixed = self._asked(asked)
        drawn: dict[int, Sequence[Operation]] = {}
        sampled = self._sampled(asked, fixed, drawn)
        augment = fixed or self._by_class(asked, self._classes(labels), drawn)
        terms = self._method.terms_of(asked.network_id.group)
        batch = None
        if sampled is not None and self._method.needs_batch(asked.network_id.group):
            size = self._recipe.network_group(asked.network_id.group).batch_size
            batch = observer.batch(sampled.images, sampled.labels, size, sampled.augment)
        before: Memory = asked.memory.get()
        memory: Memory = {
            term.name: dict(before.get(term.name) or before.get(term.former_name, {}))
            for term in terms
        }

        def average_logits() -> Tensor:
            if asked.average is None:
                raise RuntimeError("No moving average came with the question.")
            averaged = self._follow(asked.template, "average", asked.average).batch()[0]
            with torch.no_grad():
                return observer.logits(augment(view(averaged), ALL))

        contexts = {
            term.name: Context(
                lambda purpose: seeding.generator(
                    self._recipe.seed, purpose, asked.block, asked.step, asked.slot
                ),
                memory[term.name],
                average_logits,
                asked.accuracy,
                asked.step / self._recipe.synthesis.steps,
                asked.block,
                asked.blocks,
                self._class_counts,
                observer.network,
                batch,
            )
            for term in terms
        }
        real = self._real_side(asked, observer, sampled)
        loss, values = observer.compare(real, view(images), labels, contexts, augment)
        names, tensors = zip(*replica.named_parameters(), strict=True)
        # a step size that is learned beside the images is nothing to them
        gradients = torch.autograd.grad(loss, tensors, materialize_grads=True)
        return GradientResult(
            values={"loss": loss.detach(), **values},
            gradients=dict(zip(names, gradients, strict=True)),
            memory=memory,
        )

    def _asked(self, asked: GradientTask) -> tuple[Observer, Augment | None]:
        """The observer that a question is for, and the augmentation through which it looks; None if
        each class has its own.
        """
        network_id = asked.network_id
        precision = self._recipe.synthesis.precision
        queue = self._recipe.observers.model_pool
        drawn = None if self._augmentations[network_id.group].operations else unchanged
        if (
            network_id.group == "classifiers"
            or self._recipe.real == "measured"
            or self._recipe.observers.trained
        ):
            measured = self._recipe.real == "measured" and self._method.needs(network_id.group)
            return self._fixed_observer(network_id, asked.weights, precision), self._fixed_augment(
                network_id
            ) if measured else drawn
        if queue is not None:
            return self._grown(network_id, asked.weights), drawn
        seed = seeding.derive(self._recipe.seed, "fresh observer", asked.step, asked.slot)
        return self._changing(
            network_id, str(seed), lambda: self._untrained(network_id, seed)
        ), drawn

    def _grown(self, network_id: NetworkId, weights: ObjectRef | None) -> Observer:
        """A network of the queue."""
        seed = initial_seed(self._recipe, network_id)
        key = weights.key if weights is not None else network_id.label
        return self._changing(
            network_id, key, lambda: self._network(network_id, weights, seed=seed), weights
        )

    def _changing(
        self,
        network_id: NetworkId,
        key: str,
        build: Callable[[], nn.Module],
        weights: ObjectRef | None = None,
    ) -> Observer:
        """An observer that is kept for an architecture, while its weights are others at every step.

        Args:
            network_id: who looks.
            key: of the weights; those that the observer has already are not made again.
            build: makes the network with these weights, on the CPU.
            weights: the state of that network, where it is known without building it.
        """
        place = network_id.group, network_id.architecture
        if place not in self._kept:
            observer = self._observer(build(), self._recipe.synthesis.precision, network_id.group)
            self._kept[place] = key, observer
        known, observer = self._kept[place]
        if known != key:
            observer.load(weights.get() if weights is not None else build().state_dict())
            self._kept[place] = key, observer
        return observer

    def _untrained(self, network_id: NetworkId, seed: int) -> nn.Module:
        """A network with random weights, on the CPU; those that normalise by the batch do so."""
        network = networks.build(
            network_id.architecture, self._facts.shape, self._facts.classes, seed=seed
        )
        return network if networks.uses_batch_statistics(network) else network.eval()

    def _sampled(
        self, asked: GradientTask, fixed: Augment | None, drawn: dict[int, Sequence[Operation]]
    ) -> _Sampled | None:
        """The real mini-batch of a question; None where there is none."""
        if asked.real is None or self._recipe.real == "measured":
            return None
        pixels, classes = (torch.tensor(array) for array in asked.real.get())
        images, labels = send((pixels, classes), self._device)
        known_on_host(labels, classes)
        augment = fixed or self._by_class(asked, classes, drawn)
        return _Sampled(self._facts.normalization(images), labels, augment)

    def _real_side(
        self, asked: GradientTask, observer: Observer, sampled: _Sampled | None
    ) -> RealStatistics:
        """Statistics of the real images, as the observer sees them."""
        if asked.real is None or not self._method.needs(asked.network_id.group):
            return {}
        if sampled is None:
            return self._measured(asked.real, asked.network_id.group)
        batch_size = self._recipe.network_group(asked.network_id.group).batch_size
        draws = partial(self._drawn, asked)
        return observer.sample(sampled.images, sampled.labels, batch_size, sampled.augment, draws)

    def _drawn(self, asked: GradientTask, need: StatisticSpec) -> torch.Generator:
        return seeding.generator(
            self._recipe.seed, f"frequencies {need.key}", asked.step, asked.slot
        )

    def _fixed_draws(self, network_id: NetworkId, need: StatisticSpec) -> torch.Generator:
        """The draws that a measured observer keeps for good."""
        seed = self._recipe.network_group(network_id.group).seed
        return seeding.generator(
            seed, f"frequencies {need.key} {network_id.architecture.label}", network_id.index
        )

    def _view(self, asked: GradientTask, count: int) -> Callable[[Tensor], Tensor]:
        """The random view through which an observer sees the synthetic images of a step."""
        settings = self._recipe.synthesis
        (_, height, width) = self._facts.shape
        draws = seeding.generator(
            self._recipe.seed, "synthetic view", asked.block, asked.step, asked.slot
        )
        least = None
        if settings.transform.crop is not None:
            progress = asked.step / settings.steps
            least = schedules.crop_floor(
                settings.curriculum, settings.transform.crop[0], progress, settings.curriculum_end
            )
        view = draw_transform(settings.transform, draws, count, height, width, least)
        return partial(view, normalization=self._facts.normalization)

    def _fixed_observer(
        self, network_id: NetworkId, weights: ObjectRef | None, precision: str
    ) -> Observer:
        if (network_id, precision) not in self._fixed:
            place = (
                self._place(network_id)
                if weights is not None and self._recipe.network_group(network_id.group).interpolate
                else 0.0
            )
            network = self._network(network_id, weights, place)
            self._fixed[network_id, precision] = self._observer(
                network, precision, network_id.group
            )
        return self._fixed[network_id, precision]

    def _fixed_augment(self, network_id: NetworkId) -> Augment:
        """The draw of the augmentation that a measured observer keeps for good."""
        _, height, width = self._facts.shape
        draws = seeding.generator(
            self._recipe.network_group(network_id.group).seed, "pool augmentation", network_id.index
        )
        return partial(_apply, self._augmentations[network_id.group].draw(draws, 1, height, width))

    def _place(self, network_id: NetworkId) -> float:
        """Where a member stands between its trained weights, 0, and its initial ones, 1."""
        seed = self._recipe.network_group(network_id.group).seed
        draws = seeding.generator(
            seed, f"interpolation {network_id.architecture.label}", network_id.index
        )
        return float(torch.rand((), generator=draws))

    def _network(
        self,
        network_id: NetworkId,
        weights: ObjectRef | None,
        initial: float = 0.0,
        seed: int | None = None,
    ) -> nn.Module:
        """A member's network; `initial` is the share of its initial weights, drawn from `seed` or
        the member's own.
        """
        first = network_id.seed(self._recipe) if seed is None else seed
        network = networks.build(
            network_id.architecture, self._facts.shape, self._facts.classes, seed=first
        )
        if weights is not None:
            state = weights.get()
            before = {name: value.clone() for name, value in network.state_dict().items()}
            networks.restore(network, {name: state[name] for name in before})
            if initial > 0:
                with torch.no_grad():
                    for name, parameter in network.named_parameters():
                        parameter.lerp_(before[name], initial)
        # without batch statistics it differs from training in dropout alone, which a fixed observer
        # must not have
        return network.eval()

    def _observer(self, network: nn.Module, precision: str, group: NetworkGroup) -> Observer:
        return Observer(network, self._method, self._facts, self._device, precision, group)

    def _follow(self, template: ObjectRef, which: str, parameters: ObjectRef) -> SyntheticSet:
        """The replica of a block, now or on average, with these parameters."""
        key = f"{template.key} {which}"
        if key not in self._replicas:
            for old in [name for name in self._replicas if not name.startswith(template.key)]:
                del self._replicas[old]
            self._replicas[key] = synthetic.restore(self._recipe.synthetic, template.get()).to(
                self._device
            )
        self._replicas[key].assign(parameters.get())
        return self._replicas[key]

    def _measured(self, real: ObjectRef, group: NetworkGroup) -> RealStatistics:
        if real.key not in self._real:
            states: States = real.get()
            self._real[real.key] = {
                need: tuple(
                    need.kind.statistic.from_state(state).to(dtype=torch.float32).to(self._device)
                    for state in states[need.key]
                )
                for need in self._method.needs(group)
            }
        return self._real[real.key]

    def _by_class(
        self, asked: GradientTask, classes: Tensor, drawn: dict[int, Sequence[Operation]]
    ) -> Augment:
        """The augmentation of a batch of classes (N,), on the CPU, as in the released code of DM.

        Each class draws one operation and its parameters, which its real and its synthetic images
        share.

        Args:
            asked: whose step and slot are drawn for.
            classes: of the images.
            drawn: what was drawn for a class before; what is missing is added.
        """
        strategy = self._augmentations[asked.network_id.group]
        _, height, width = self._facts.shape
        for label in np.unique(classes.numpy()).tolist():
            if label not in drawn:
                draws = seeding.generator(
                    self._recipe.seed, "siamese augmentation", asked.step, asked.slot, label
                )
                drawn[label] = strategy.draw(draws, 1, height, width)
        return ByClass(drawn, classes, self._device)

    def _classes(self, labels: Tensor) -> Tensor:
        """Classes (N,) of the synthetic images, on the CPU; the device is waited for once, or where
        labels are learned.
        """
        if labels.is_floating_point():
            return labels.detach().argmax(1).cpu()
        return on_host(labels)


def _apply(operations: Sequence[Operation], images: Tensor, rows: Rows) -> Tensor:
    for operation in operations:
        images = operation(images)
    return images
