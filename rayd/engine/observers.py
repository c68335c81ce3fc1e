"""The observers of a worker.

`Observers` is what a worker hosts: it makes observers when they are asked for, by what they are (a fixed member, random or
squeezed, or the fresh network of one step), keeps those that will be asked for again, and answers work items. It is a plain
class; nothing here knows whether it runs in process or in an actor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from rayd import devices, networks, schedules, seeding, synthetic
from rayd.config import NetworkSettings, Panel, Recipe
from rayd.data.augmentation import ALL, ByClass, Operation, Rows, augmentation, draw_transform
from rayd.derived import known_on_host, on_host
from rayd.engine.group import Shared
from rayd.engine.members import Member
from rayd.engine.observer import Augment, Facts, Lengths, Measuring, Observer, States, measure_together, unchanged
from rayd.engine.pursuit import Pursued, Pursuer, Pursuit
from rayd.engine.queue import Grown, Growth, Supply, Trainees, initial_seed
from rayd.methods import build
from rayd.objectives import Context, Measured, Need
from rayd.statistics import Statistic
from rayd.synthetic import SyntheticSet
from rayd.synthetic.paced import Paced
from rayd.transfer import send, upload


@dataclass(frozen=True)
class Question:
    """What an observer is asked in a step."""

    member: Member
    """Who looks: which panel, and which architecture if the network is fresh."""
    block: int
    """Which block of the synthetic set."""
    blocks: int
    """Blocks in all."""
    step: int
    """The step, from 0."""
    slot: int
    """Which of the step's observers of the panel."""
    template: Shared
    """State of the block at the start (`SyntheticSet.state_dict`): what the replica is made of."""
    parameters: Shared
    """Its parameters now."""
    average: Shared | None
    """Their moving average, where a term looks at it."""
    weights: Shared | None
    """The observer's trained weights; None for a random one."""
    accuracy: float | Tensor
    """How well it knows the real training images, a fraction: a number, or a scalar where it was trained."""
    real: Shared | None
    """The observer's measured statistics (`States`), or a `RealBatch` when the real side is sampled; None if not needed."""
    memory: Shared
    """What the terms kept at this observer's last answer: term, then name, then tensor."""


Memory = dict[str, dict[str, Tensor]]
"""What terms keep from call to call: term, then name, then tensor."""
Answer = tuple[dict[str, Tensor], dict[str, Tensor], Memory]
"""Values of the loss and its terms, gradients by parameter, and the memory."""


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

    def __init__(self, recipe: Recipe, facts: Facts, device: torch.device | None = None):
        """Know the recipe and the facts of the data; make nothing yet. Without a device, compute where the resources say."""
        self._recipe, self._facts = recipe, facts
        self._method = build(recipe)
        self._device = device or devices.choose(recipe.resources)
        devices.use_layout(recipe.resources)
        self._augmentations = {panel: augmentation(recipe.panel(panel).augmentation) for panel in self._method.panels}
        self._kept: dict[tuple[Panel, NetworkSettings], tuple[str, Observer]] = {}
        self._trainees = Trainees(recipe, facts.shape, facts.classes, self._device)
        self._class_counts = torch.tensor(facts.class_counts)
        self._pursuer: Pursuer | None = None
        self._pool: dict[tuple[Member, str], Observer] = {}
        self._lengths: dict[tuple[Member, str], Lengths] = {}
        self._real: dict[str, Measured] = {}
        self._replicas: dict[str, SyntheticSet] = {}

    def measure(
        self, team: tuple[tuple[Member, Shared | None, Shared | None], ...], shard: Shared, lean: bool = False
    ) -> list[States]:
        """Statistics of one shard of the real data, seen by observers of a panel, for whom streamed images are decoded once.

        See `Observer.measure`.

        Args:
            team: who looks, its trained weights, and the `RealBatch` that needs look at first, the same for all shards.
            shard: a `RealBatch`.
            lean: leave out what is the same for all shards.
        """
        images, labels = shard.get()
        settings = self._recipe.panel(team[0][0].panel)
        looking = []
        for member, weights, first in team:
            observer = self._member(member, weights, settings.precision)
            augment, draws = self._fixed_augment(member), partial(self._fixed_draws, member)
            if first is not None and (found := (member, first.key)) not in self._lengths:
                self._lengths[found] = observer.lengths(first.get(), settings.batch_size, augment)
            lengths = self._lengths[member, first.key] if first is not None else None
            looking.append(Measuring(observer, labels, augment, draws, lengths))
        with devices.convolutions(self._device, settings.precision):
            seen = measure_together(looking, images, settings.batch_size)
        for need in self._method.needs(team[0][0].panel) if lean else ():
            for state in (state for states in seen for state in states[need.key]):
                for name in need.statistic.constant:
                    del state[name]
        return seen

    def measuring(
        self, team: tuple[tuple[Member, Shared | None, Shared | None], ...], shard: Shared, lean: bool = False
    ) -> Iterator[list[States]]:
        """The same as the only event of a stream."""
        yield self.measure(team, shard, lean)

    def measure_alone(self, member: Member, weights: Shared | None, shard: Shared, first: Shared | None = None) -> States:
        """Statistics of a `RealBatch` with rows for all classes, seen by one observer."""
        (states,) = self.measure(((member, weights, first),), shard)
        labels = torch.tensor(shard.get()[1])
        return {
            need.key: [
                need.spread((need.statistic.from_state(state),), labels, self._facts.classes)[0].state()
                for state in states[need.key]
            ]
            for need in self._method.needs(member.panel)
        }

    def hear(
        self, member: Member, weights: Shared | None, batch: Shared, need: Need
    ) -> tuple[list[str], tuple[Statistic, ...]]:
        """Names of the layers that a need listens to, and its statistics of images as they are.

        Args:
            member: who looks.
            weights: its trained weights.
            batch: network inputs (N, C, H, W) and class indices (N,).
            need: which statistic.
        """
        images, labels = batch.get()
        observer = self._member(member, weights, self._recipe.panel(member.panel).precision)
        settings = self._recipe.panel(member.panel)
        with devices.convolutions(self._device, settings.precision):
            return observer.layers(need), observer.hear(images, labels, need, settings.batch_size)

    def answer(self, asked: Question | Growth | Pursuit) -> Answer | Grown | Pursued:
        """Work of a step: the gradient that one observer or one student gives, or the training of a network of the queue."""
        with devices.convolutions(self._device, self._recipe.synthesis.precision):
            if isinstance(asked, Pursuit):
                return self._pursued(asked)
            if isinstance(asked, Growth):
                return self._trainees.grow(asked, self._supply(asked))
            return self.gradient(asked)

    def _supply(self, growth: Growth) -> Supply:
        """The images that a network of the queue is trained on."""
        if growth.train is None:
            if growth.template is None or growth.parameters is None:
                raise RuntimeError("No images came to train on.")
            made, classes = (one.detach() for one in self._follow(growth.template, "now", growth.parameters).batch())

            def of_synthetic(rows: Tensor) -> tuple[Tensor, Tensor]:
                there = upload(rows, made.device)
                return made[there], classes[there]

            return Supply(len(made), of_synthetic)
        images, labels = growth.train.get()

        def of_real(rows: Tensor) -> tuple[Tensor, Tensor]:
            pixels, numbers = torch.tensor(images[rows.numpy()]), torch.tensor(labels[rows.numpy()])
            return self._facts.normalization(upload(pixels, self._device)), upload(numbers, self._device)

        return Supply(len(labels), of_real)

    def _pursued(self, asked: Pursuit) -> Pursued:
        if self._pursuer is None:
            following = self._method.following
            assert following is not None
            self._pursuer = Pursuer(self._recipe, following, self._facts.shape, self._facts.classes, self._device)
        replica = self._follow(asked.template, "now", asked.parameters)
        assert isinstance(replica, Paced)
        return self._pursuer.answer(asked, replica)

    def gradient(self, asked: Question) -> Answer:
        """Values of the terms, and the objective's gradient by parameter of the synthetic set, for one observer of one step."""
        replica = self._follow(asked.template, "now", asked.parameters)
        images, labels = replica.batch()
        view = self._view(asked, len(images))
        observer, fixed = self._asked(asked)
        drawn: dict[int, Sequence[Operation]] = {}
        sampled = self._sampled(asked, fixed, drawn)
        augment = fixed or self._by_class(asked, self._classes(labels), drawn)
        terms = self._method.terms_of(asked.member.panel)
        batch = None
        if sampled is not None and self._method.needs_batch(asked.member.panel):
            size = self._recipe.panel(asked.member.panel).batch_size
            batch = observer.batch(sampled.images, sampled.labels, size, sampled.augment)
        before: Memory = asked.memory.get()
        memory: Memory = {term.name: dict(before.get(term.name, {})) for term in terms}

        def average_logits() -> Tensor:
            if asked.average is None:
                raise RuntimeError("No moving average came with the question.")
            averaged = self._follow(asked.template, "average", asked.average).batch()[0]
            with torch.no_grad():
                return observer.logits(augment(view(averaged), ALL))

        contexts = {
            term.name: Context(
                lambda purpose: seeding.generator(self._recipe.seed, purpose, asked.block, asked.step, asked.slot),
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
        return {"loss": loss.detach(), **values}, dict(zip(names, gradients, strict=True)), memory

    def _asked(self, asked: Question) -> tuple[Observer, Augment | None]:
        """The observer that a question is for, and the augmentation through which it looks; None if each class has its own."""
        member, precision, queue = asked.member, self._recipe.synthesis.precision, self._recipe.observers.queue
        drawn = None if self._augmentations[member.panel].operations else unchanged
        if member.panel == "guides" or self._recipe.real == "measured" or self._recipe.observers.trained:
            measured = self._recipe.real == "measured" and self._method.needs(member.panel)
            return self._member(member, asked.weights, precision), self._fixed_augment(member) if measured else drawn
        if queue is not None:
            return self._grown(member, asked.weights), drawn
        seed = seeding.derive(self._recipe.seed, "fresh observer", asked.step, asked.slot)
        return self._changing(member, str(seed), lambda: self._untrained(member, seed)), drawn

    def _grown(self, member: Member, weights: Shared | None) -> Observer:
        """A network of the queue."""
        seed = initial_seed(self._recipe, member)
        key = weights.key if weights is not None else member.label
        return self._changing(member, key, lambda: self._network(member, weights, seed=seed), weights)

    def _changing(self, member: Member, key: str, build: Callable[[], nn.Module], weights: Shared | None = None) -> Observer:
        """An observer that is kept for an architecture, while its weights are others at every step.

        Args:
            member: who looks.
            key: of the weights; those that the observer has already are not made again.
            build: makes the network with these weights, on the CPU.
            weights: the state of that network, where it is known without building it.
        """
        place = member.panel, member.network
        if place not in self._kept:
            observer = self._observer(build(), self._recipe.synthesis.precision, member.panel)
            self._kept[place] = key, observer
        known, observer = self._kept[place]
        if known != key:
            observer.load(weights.get() if weights is not None else build().state_dict())
            self._kept[place] = key, observer
        return observer

    def _untrained(self, member: Member, seed: int) -> nn.Module:
        """A network with random weights, on the CPU; those that normalise by the batch do so."""
        network = networks.build(member.network, self._facts.shape, self._facts.classes, seed=seed)
        return network if networks.uses_batch_statistics(network) else network.eval()

    def _sampled(self, asked: Question, fixed: Augment | None, drawn: dict[int, Sequence[Operation]]) -> _Sampled | None:
        """The real mini-batch of a question; None where there is none."""
        if asked.real is None or self._recipe.real == "measured":
            return None
        pixels, classes = (torch.tensor(array) for array in asked.real.get())
        images, labels = send((pixels, classes), self._device)
        known_on_host(labels, classes)
        augment = fixed or self._by_class(asked, classes, drawn)
        return _Sampled(self._facts.normalization(images), labels, augment)

    def _real_side(self, asked: Question, observer: Observer, sampled: _Sampled | None) -> Measured:
        """Statistics of the real images, as the observer sees them."""
        if asked.real is None or not self._method.needs(asked.member.panel):
            return {}
        if sampled is None:
            return self._measured(asked.real, asked.member.panel)
        batch_size = self._recipe.panel(asked.member.panel).batch_size
        draws = partial(self._drawn, asked)
        return observer.sample(sampled.images, sampled.labels, batch_size, sampled.augment, draws)

    def _drawn(self, asked: Question, need: Need) -> torch.Generator:
        return seeding.generator(self._recipe.seed, f"frequencies {need.key}", asked.step, asked.slot)

    def _fixed_draws(self, member: Member, need: Need) -> torch.Generator:
        """The draws that a measured observer keeps for good."""
        seed = self._recipe.panel(member.panel).seed
        return seeding.generator(seed, f"frequencies {need.key} {member.network.label}", member.copy)

    def _view(self, asked: Question, count: int) -> Callable[[Tensor], Tensor]:
        """The random view through which an observer sees the synthetic images of a step."""
        settings, (_, height, width) = self._recipe.synthesis, self._facts.shape
        draws = seeding.generator(self._recipe.seed, "synthetic view", asked.block, asked.step, asked.slot)
        least = None
        if settings.transform.crop is not None:
            progress = asked.step / settings.steps
            least = schedules.crop_floor(settings.curriculum, settings.transform.crop[0], progress, settings.curriculum_end)
        view = draw_transform(settings.transform, draws, count, height, width, least)
        return partial(view, normalization=self._facts.normalization)

    def _member(self, member: Member, weights: Shared | None, precision: str) -> Observer:
        if (member, precision) not in self._pool:
            place = self._place(member) if weights is not None and self._recipe.panel(member.panel).interpolate else 0.0
            network = self._network(member, weights, place)
            self._pool[member, precision] = self._observer(network, precision, member.panel)
        return self._pool[member, precision]

    def _fixed_augment(self, member: Member) -> Augment:
        """The draw of the augmentation that a measured observer keeps for good."""
        _, height, width = self._facts.shape
        draws = seeding.generator(self._recipe.panel(member.panel).seed, "pool augmentation", member.copy)
        return partial(_apply, self._augmentations[member.panel].draw(draws, 1, height, width))

    def _place(self, member: Member) -> float:
        """Where a member stands between its trained weights, 0, and its initial ones, 1."""
        seed = self._recipe.panel(member.panel).seed
        draws = seeding.generator(seed, f"interpolation {member.network.label}", member.copy)
        return float(torch.rand((), generator=draws))

    def _network(self, member: Member, weights: Shared | None, initial: float = 0.0, seed: int | None = None) -> nn.Module:
        """A member's network; `initial` is the share of its initial weights, drawn from `seed` or the member's own."""
        first = member.seed(self._recipe) if seed is None else seed
        network = networks.build(member.network, self._facts.shape, self._facts.classes, seed=first)
        if weights is not None:
            state, before = weights.get(), {name: value.clone() for name, value in network.state_dict().items()}
            networks.restore(network, {name: state[name] for name in before})
            if initial > 0:
                with torch.no_grad():
                    for name, parameter in network.named_parameters():
                        parameter.lerp_(before[name], initial)
        # without batch statistics it differs from training in dropout alone, which a fixed observer must not have
        return network.eval()

    def _observer(self, network: nn.Module, precision: str, panel: Panel) -> Observer:
        return Observer(network, self._method, self._facts, self._device, precision, panel)

    def _follow(self, template: Shared, which: str, parameters: Shared) -> SyntheticSet:
        """The replica of a block, now or on average, with these parameters."""
        key = f"{template.key} {which}"
        if key not in self._replicas:
            for old in [name for name in self._replicas if not name.startswith(template.key)]:
                del self._replicas[old]
            self._replicas[key] = synthetic.restore(self._recipe.synthetic, template.get()).to(self._device)
        self._replicas[key].assign(parameters.get())
        return self._replicas[key]

    def _measured(self, real: Shared, panel: Panel) -> Measured:
        if real.key not in self._real:
            states: States = real.get()
            self._real[real.key] = {
                need: tuple(
                    need.statistic.from_state(state).to(dtype=torch.float32).to(self._device) for state in states[need.key]
                )
                for need in self._method.needs(panel)
            }
        return self._real[real.key]

    def _by_class(self, asked: Question, classes: Tensor, drawn: dict[int, Sequence[Operation]]) -> Augment:
        """The augmentation of a batch of classes (N,), on the CPU, as in the released code of DM.

        Each class draws one operation and its parameters, which its real and its synthetic images share.

        Args:
            asked: whose step and slot are drawn for.
            classes: of the images.
            drawn: what was drawn for a class before; what is missing is added.
        """
        strategy = self._augmentations[asked.member.panel]
        _, height, width = self._facts.shape
        for label in np.unique(classes.numpy()).tolist():
            if label not in drawn:
                draws = seeding.generator(self._recipe.seed, "siamese augmentation", asked.step, asked.slot, label)
                drawn[label] = strategy.draw(draws, 1, height, width)
        return ByClass(drawn, classes, self._device)

    def _classes(self, labels: Tensor) -> Tensor:
        """Classes (N,) of the synthetic images, on the CPU; the device is waited for once, or where labels are learned."""
        if labels.is_floating_point():
            return labels.detach().argmax(1).cpu()
        return on_host(labels)


def _apply(operations: Sequence[Operation], images: Tensor, rows: Rows) -> Tensor:
    for operation in operations:
        images = operation(images)
    return images
