"""Observers: networks that look at real and synthetic images and say how they differ.

`Observer` is one network with its taps. `Observers` is what a worker hosts: it makes observers when they are asked for, by
what they are (a member of the measured pool, or the fresh network of one step), keeps those that will be asked for again, and
answers work items. Both are plain classes; nothing here knows whether it runs in process or in an actor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rayd import devices, networks, seeding, synthetic
from rayd.config import Recipe
from rayd.data import ImageData, ImageShape, Normalization
from rayd.data.augmentation import Operation, augmentation
from rayd.engine.group import Shared
from rayd.methods import Method, build
from rayd.networks import Observation, Tapped
from rayd.objectives import Measured, Need
from rayd.statistics import Statistic
from rayd.synthetic import SyntheticSet

States = dict[str, list[dict[str, Tensor]]]
"""Statistics as they travel: need key, then layer, then the tensors of the statistic."""
RealBatch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Real images uint8 (N, C, H, W) and labels (N,)."""


@dataclass(frozen=True)
class Facts:
    """What a worker knows of the data without having them."""

    shape: ImageShape
    """Shape of an image."""
    classes: int
    """Number of classes."""
    normalization: Normalization
    """From pixels to network input."""

    @classmethod
    def of(cls, data: ImageData) -> Facts:
        """The facts of a data set."""
        return cls(data.shape, data.classes, data.normalization)


Augment = Callable[[Tensor, Tensor], Tensor]
"""From normalised images (N, C, H, W) and labels (N,) to augmented images: a fixed draw, the same for any batch."""


def unchanged(images: Tensor, labels: Tensor) -> Tensor:
    """No augmentation."""
    return images


class Observer:
    """One frozen network with its taps, on a device, in one precision, looking through one augmentation."""

    def __init__(
        self,
        network: nn.Module,
        method: Method,
        facts: Facts,
        device: torch.device,
        precision: str,
        augment: Augment = unchanged,
    ):
        """Freeze the network and listen to what the method's terms need."""
        self._dtype, self._augment = devices.dtype(precision), augment
        self._method, self._facts, self._device = method, facts, device
        self._tapped = Tapped(network.requires_grad_(False), method.taps, facts.shape).to(device, self._dtype)

    def see(self, images: Tensor, labels: Tensor) -> Observation:
        """Augment and forward normalised images (N, C, H, W) with labels (N,)."""
        return self._tapped(self._augment(images, labels).to(self._dtype))

    def empty(self, need: Need, device: torch.device) -> tuple[Statistic, ...]:
        """Neutral elements for a need, one a layer."""
        kinds = need.empty(self._facts.classes, self._tapped.dimensions(need.tap))
        return tuple(kind.to(device) for kind in kinds)

    @torch.no_grad()
    def measure(self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], batch_size: int) -> States:
        """Statistics of real images for every need of the method, accumulated in float64 over batches."""
        home = torch.device("cpu") if self._device.type == "mps" else self._device  # MPS has no float64
        into = {need: self.empty(need, home) for need in self._method.needs}
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            pixels, some = (torch.tensor(array[rows], device=self._device) for array in (images, labels))
            seen = self.see(self._facts.normalization(pixels), some)
            heard = Observation(seen.logits, {tap: tuple(t.to(home) for t in layers) for tap, layers in seen.taps.items()})
            for need, statistics in into.items():
                need.update(statistics, heard, some.to(home))
        return {need.key: [statistic.state() for statistic in statistics] for need, statistics in into.items()}

    @torch.no_grad()
    def sample(self, images: Tensor, labels: Tensor, chunk: int) -> Measured:
        """Statistics of one real batch in working precision.

        Networks with batch statistics see the batch whole; others in chunks that bound the memory.
        """
        needs = self._method.needs
        empty = {need: tuple(kind.to(dtype=torch.float32) for kind in self.empty(need, self._device)) for need in needs}
        step = len(images) if networks.uses_batch_statistics(self._tapped.network) else chunk
        total = dict(empty)
        for start in range(0, len(images), step):
            some = labels[start : start + step]
            seen = self.see(images[start : start + step], some)
            for need in needs:
                part = need.of(seen, some, empty[need])
                total[need] = tuple(a.merge(b) for a, b in zip(total[need], part, strict=True))
        return total

    def compare(self, real: Measured, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on synthetic images, and the value of each term; differentiable in the images."""
        seen = self.see(images, labels)
        values = {term.name: term(real, seen, labels) for term in self._method.terms}
        loss = torch.stack([self._method.weight(term) * values[term.name] for term in self._method.terms]).sum()
        return loss, {name: value.detach() for name, value in values.items()}


class Observers:
    """The observers of one worker, answering work items. Every answer depends on the item alone."""

    def __init__(self, recipe: Recipe, facts: Facts):
        """Know the recipe and the facts of the data; make nothing yet."""
        self._recipe, self._facts = recipe, facts
        self._method = build(recipe)
        self._device = devices.choose(recipe.resources)
        self._augmentation = augmentation(recipe.observers.augmentation)
        self._pool: dict[tuple[int, str], Observer] = {}
        self._real: dict[str, Measured] = {}
        self._replica: tuple[str, SyntheticSet] | None = None

    def measure(self, member: int, shard: Shared) -> States:
        """Statistics of one shard of the real data, seen by one member of the pool."""
        images, labels = shard.get()
        settings = self._recipe.observers
        return self._member(member, settings.precision).measure(images, labels, settings.batch_size)

    def gradient(
        self, step: int, slot: int, template: Shared, parameters: Shared, real: Shared
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Values of the terms, and the objective's gradient by parameter of the synthetic set, for one observer of one step.

        Args:
            step: the step, from 0.
            slot: which of the step's observers.
            template: state of the synthetic set at the start (`synthetic.state`): what the replica is made of.
            parameters: its parameters now.
            real: the observer's measured statistics (`States`), or a `RealBatch` when the real side is sampled.
        """
        replica = self._follow(template, parameters)
        images, labels = replica.batch()
        precision = self._recipe.synthesis.precision
        if self._recipe.real == "measured":
            observer = self._member(pool_member(self._recipe, step, slot), precision)
            against = self._measured(real)
        else:
            seed = seeding.derive(self._recipe.seed, "fresh observer", step, slot)
            observer = self._observer(seed, precision, partial(self._by_class, step, slot))
            against = self._sampled(observer, real.get())
        loss, values = observer.compare(against, images, labels)
        names, tensors = zip(*replica.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, tensors)
        return {"loss": loss.detach(), **values}, dict(zip(names, gradients, strict=True))

    def _member(self, member: int, precision: str) -> Observer:
        if (member, precision) not in self._pool:
            settings, (_, height, width) = self._recipe.observers, self._facts.shape
            draws = seeding.generator(settings.seed, "pool augmentation", member)
            operations = self._augmentation.draw(draws, 1, height, width)
            seed = seeding.derive(settings.seed, "pool observer", member)
            self._pool[member, precision] = self._observer(seed, precision, partial(_apply, operations))
        return self._pool[member, precision]

    def _observer(self, seed: int, precision: str, augment: Augment) -> Observer:
        network = networks.build(self._recipe.observers.network, self._facts.shape, self._facts.classes, seed=seed)
        return Observer(network, self._method, self._facts, self._device, precision, augment)

    def _follow(self, template: Shared, parameters: Shared) -> SyntheticSet:
        if self._replica is None or self._replica[0] != template.key:
            self._replica = (template.key, synthetic.restore(self._recipe.synthetic, template.get()).to(self._device))
        replica = self._replica[1]
        replica.assign(parameters.get())
        return replica

    def _measured(self, real: Shared) -> Measured:
        if real.key not in self._real:
            states: States = real.get()
            self._real[real.key] = {
                need: tuple(
                    need.statistic.from_state(state).to(dtype=torch.float32).to(self._device) for state in states[need.key]
                )
                for need in self._method.needs
            }
        return self._real[real.key]

    def _sampled(self, observer: Observer, batch: RealBatch) -> Measured:
        pixels, labels = (torch.tensor(array, device=self._device) for array in batch)
        return observer.sample(self._facts.normalization(pixels), labels, self._recipe.observers.batch_size)

    def _by_class(self, step: int, slot: int, images: Tensor, labels: Tensor) -> Tensor:
        """Each class draws one operation and its parameters, as in the released code of DM."""
        if not self._augmentation.operations:
            return images
        augmented, places = [], []
        for label in torch.unique(labels).tolist():
            rows = (labels == label).nonzero().squeeze(1)
            draws = seeding.generator(self._recipe.seed, "siamese augmentation", step, slot, label)
            augmented.append(self._augmentation(images[rows], draws, siamese=True))
            places.append(rows)
        return torch.cat(augmented)[torch.cat(places).argsort()]


def _apply(operations: Sequence[Operation], images: Tensor, labels: Tensor) -> Tensor:
    for operation in operations:
        images = operation(images)
    return images


def pool_member(recipe: Recipe, step: int, slot: int) -> int:
    """Which member of the measured pool looks in a slot of a step: round robin."""
    return (step * recipe.observers.per_step + slot) % recipe.observers.pool
