"""The queue: networks that grow beside the synthesis, so that young and old ones look at the
images.

Who comes, who leaves, who looks, who is trained, and on what, are settings (`ModelPoolSettings`):

- IDM (Zhao, Li, Qin and Yu, "Improved Distribution Matching for Dataset Condensation", CVPR 2023):
  one more random network every so many steps, the oldest leaves when the queue is full; one drawn
  at random looks, some are trained on real batches.
- DC (Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021): a queue of
  one. It looks, is trained on the synthetic images when these have moved, and leaves after some
  steps for a fresh one.
- FRePo (Zhou, Nezhadarya and Ba, "Dataset Distillation using Neural Feature Regression", NeurIPS
  2022): a pool. One drawn at random looks, is trained on the synthetic images, and is renewed when
  it has been trained on so many times.

Who is in the queue, who looks, who is trained and on which images follow from the run's seed and
the steps so far. What a network has become travels with the work item that trains it on or looks
through it, and lies in the synthesizer's checkpoints: a worker that is lost takes nothing with it.
Training on real images does not wait for the gradient of the same step, nor the other way round;
training on synthetic images comes after the step. A network that nobody will see again is not
trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayd import devices, networks, seeding
from rayd.config import ModelPoolSettings, Recipe
from rayd.data import ImageShape
from rayd.data.augmentation import augmentation
from rayd.engine.network_ids import NetworkId
from rayd.engine.pool import ObjectRef, WorkerPool
from rayd.objectives.ridge import regression_loss, regression_targets

MOMENTUM = "momentum."
"""What the names of an optimizer's memory begin with in the state of a network."""


@dataclass(frozen=True)
class TrainTask:
    """A network of the queue that is to be trained on."""

    network_id: NetworkId
    """Its architecture, and which network of the queue it is."""
    step: int
    """The step of the synthesis."""
    weights: ObjectRef | None
    """Its state so far, momentum included; None for a new one."""
    train: ObjectRef | None
    """The training split, images uint8 (N, C, H, W) and labels (N,); None where the images are
    synthetic.
    """
    template: ObjectRef | None = None
    """State of the block of synthetic images at the start."""
    parameters: ObjectRef | None = None
    """Its parameters now."""


@dataclass(frozen=True)
class Batches:
    """What a network is trained on."""

    count: int
    """Number of images."""
    batch: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Network input (n, C, H, W) of the images at some indices (n,) on the CPU, and their class
    indices (n,) or soft labels (n, classes), both on the device.
    """


TrainResult = tuple[dict[str, Tensor], Tensor]
"""The state of a network, momentum included, and the fraction of its last mini-batches that it got
right before each step, a scalar: both on the device where it was trained, so that nothing waits for
it.
"""


class ModelPool:
    """What has become of the networks."""

    def __init__(self, recipe: Recipe, pool: WorkerPool):
        """An empty record; networks that nobody has trained need none."""
        settings = recipe.observers.model_pool
        assert settings is not None
        self._recipe = recipe
        self._settings = settings
        self._pool = pool
        self._states: dict[int, dict[str, Tensor]] = {}
        self._shared: dict[int, ObjectRef] = {}
        self._accuracy: dict[int, float | Tensor] = {}
        self._times: dict[int, int] = {}
        self._places = list(range(settings.start))

    @property
    def synthetic(self) -> bool:
        """Whether networks are trained on the synthetic images, after the step."""
        return self._settings.source == "synthetic"

    def ids(self, step: int) -> Sequence[int]:
        """Numbers of the networks that are in the queue at a step, the next one at most."""
        if self._settings.push_every is None:
            return list(self._places)
        pushed = self._settings.start + step // self._settings.push_every + 1
        return range(max(0, pushed - self._settings.capacity), pushed)

    def network_id(self, number: int) -> NetworkId:
        """A network by its number."""
        return NetworkId(self._recipe.observers.network_of(number), number)

    def looks(self, step: int, slot: int) -> int:
        """Number of the network that looks in a slot of a step."""
        there = self.ids(step)
        return there[
            int(torch.randint(len(there), (1,), generator=self._draws("queue looks", step, slot)))
        ]

    def train_tasks(
        self,
        step: int,
        train: ObjectRef | None,
        template: ObjectRef | None = None,
        parameters: ObjectRef | None = None,
    ) -> list[TrainTask]:
        """Who is trained on in a step, but for those who have left by the next one."""
        there = self.ids(step)
        after = self.ids(step + 1)
        if self._settings.trained == "looking":
            looking = [self.looks(step, slot) for slot in range(self._recipe.observers.per_step)]
            chosen = list(dict.fromkeys(looking))
        else:
            drawn = torch.randperm(len(there), generator=self._draws("queue grows", step))
            chosen = [there[i] for i in drawn[: self._settings.trained_per_step].tolist()]
        return [
            TrainTask(
                self.network_id(number), step, self.weights(number), train, template, parameters
            )
            for number in chosen
            if number in after
        ]

    def weights(self, number: int) -> ObjectRef | None:
        """What a network has become; None for a new one."""
        return self._shared.get(number)

    def accuracy(self, number: int) -> float | Tensor:
        """Fraction of the real images that a network got right when it was trained on; 0 for one
        that has not seen any.
        """
        return 0.0 if self.synthetic else self._accuracy.get(number, 0.0)

    def take(self, train_task: TrainTask, train_result: TrainResult) -> None:
        """Note what a network has become, renew it if its time has come, and forget those that have
        left.
        """
        number = train_task.network_id.index
        self._note(number, *train_result, self._times.get(number, self._head_start(number)) + 1)
        if self._times[number] == self._settings.lifetime:
            self._places[self._places.index(number)] = number + self._settings.start
        for gone in [one for one in self._states if one not in self.ids(train_task.step)]:
            del self._states[gone], self._shared[gone], self._accuracy[gone], self._times[gone]

    def _head_start(self, number: int) -> int:
        """Times that a new network counts as trained on: those at the beginning end one after
        another.
        """
        lifetime = self._settings.lifetime
        start = self._settings.start
        return number * lifetime // start if lifetime is not None and number < start else 0

    def state(self) -> dict[str, Tensor]:
        """All that must be kept to go on."""
        kept = {
            f"{number}.{name}": tensor
            for number, state in self._states.items()
            for name, tensor in state.items()
        }
        facts = {
            f"{number}.": torch.tensor(
                [float(self._accuracy[number]), self._times[number]], dtype=torch.float64
            )
            for number in self._states
        }
        renewed = (
            {"places": torch.tensor(self._places)} if self._settings.lifetime is not None else {}
        )
        return kept | facts | renewed

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        states: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key == "places":
                self._places = tensor.tolist()
                continue
            number, _, name = key.partition(".")
            states.setdefault(int(number), {})[name] = tensor
        for one, state in states.items():
            accuracy, times = state.pop("").tolist()
            self._note(one, state, accuracy, int(times))

    def _note(
        self, number: int, state: dict[str, Tensor], accuracy: float | Tensor, times: int
    ) -> None:
        self._states[number] = state
        self._accuracy[number] = accuracy
        self._times[number] = times
        self._shared[number] = self._pool.share(state)

    def _draws(self, purpose: str, *indices: int) -> torch.Generator:
        return seeding.generator(self._recipe.seed, purpose, *indices)


def initial_seed(recipe: Recipe, network_id: NetworkId) -> int:
    """Seed of the initial weights of a network of the queue."""
    return seeding.derive(recipe.seed, "queue network", network_id.index)


class ModelPoolTrainer:
    """Networks in a worker that take the weights of those of the queue to be trained: one for each
    architecture.
    """

    def __init__(self, recipe: Recipe, shape: ImageShape, classes: int, device: torch.device):
        """Make none yet.

        Args:
            recipe: the run.
            shape: of an image.
            classes: number of classes.
            device: where to compute.
        """
        self._recipe = recipe
        self._shape = shape
        self._classes = classes
        self._device = device
        self._networks: dict[str, tuple[nn.Module, torch.memory_format]] = {}

    def _network(
        self, train_task: TrainTask, before: Mapping[str, Tensor]
    ) -> tuple[nn.Module, torch.memory_format]:
        """A network with the weights of one of the queue, and its layout."""
        kind = train_task.network_id.architecture
        if not before or kind.label not in self._networks:
            seed = initial_seed(self._recipe, train_task.network_id)
            network = networks.build(kind, self._shape, self._classes, seed=seed)
            if kind.label not in self._networks:
                self._networks[kind.label] = network, devices.to_device(network, self._device)
            else:
                networks.take_over(self._networks[kind.label][0], network.state_dict())
        network, layout = self._networks[kind.label]
        if before:
            networks.take_over(network, before)
        return network, layout

    def grow(self, train_task: TrainTask, supply: Batches) -> TrainResult:
        """Train a network on: some steps of its optimizer, or some passes over all images.

        Args:
            train_task: which network, and when.
            supply: what it is trained on.
        """
        recipe = self._recipe
        device = self._device
        settings = self._recipe.observers.model_pool
        assert settings is not None
        before = train_task.weights.get() if train_task.weights is not None else {}
        network, layout = self._network(train_task, before)
        parameters = dict(network.named_parameters())
        optimizer = _optimizer(parameters, settings, before)
        draws = seeding.generator(
            recipe.seed, "queue batch", train_task.network_id.index, train_task.step
        )
        augment = augmentation(settings.augmentation)
        right = torch.zeros((), device=device)
        seen = 0
        network.train()
        with seeding.seeded(
            recipe.seed,
            "queue dropout",
            train_task.network_id.index,
            train_task.step,
            device=device,
        ):
            for rows in _batches(supply.count, settings, draws):
                images, target = supply.batch(rows)
                inputs = augment(images, draws).contiguous(memory_format=layout)
                with devices.autocast(device, recipe.synthesis.precision):
                    logits = network(inputs)
                    loss = _loss(logits, target, settings.loss)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                named = target.argmax(1) if target.is_floating_point() else target
                right = right + (logits.argmax(1) == named).sum()
                seen = seen + len(rows)
        # copies: the network will take other weights
        state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        return state | _memory(parameters, optimizer), right.to(_exact(device)) / seen


def _exact(device: torch.device) -> torch.dtype:
    """The finest type of a device; MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _batches(count: int, settings: ModelPoolSettings, draws: torch.Generator) -> Iterator[Tensor]:
    """Indices of the images of each step."""
    if settings.train_epochs is None:
        for _ in range(settings.train_steps):
            yield torch.randperm(count, generator=draws)[: settings.batch_size]
        return
    for _ in range(settings.train_epochs):
        yield from torch.randperm(count, generator=draws).split(settings.batch_size)  # type: ignore[no-untyped-call]


def _loss(logits: Tensor, target: Tensor, name: str) -> Tensor:
    if name == "mse":
        return regression_loss(logits, regression_targets(target, logits.shape[1]))
    return nn.functional.cross_entropy(logits, target)


def _optimizer(
    parameters: Mapping[str, Tensor], settings: ModelPoolSettings, before: Mapping[str, Tensor]
) -> torch.optim.Optimizer:
    """The optimizer of a network, with what it remembers."""
    made: torch.optim.Optimizer
    rate = settings.learning_rate
    decay = settings.weight_decay
    if settings.optimizer == "adam":
        made = torch.optim.Adam(
            parameters.values(), rate, (settings.momentum, 0.999), weight_decay=decay
        )
    else:
        made = torch.optim.SGD(
            parameters.values(), rate, settings.momentum, weight_decay=decay, fused=True
        )
    for key, tensor in before.items():
        if key.startswith(MOMENTUM):
            kind, _, name = key.removeprefix(MOMENTUM).partition(".")
            # a copy: what came is read-only
            kept = tensor.clone() if kind == "step" else tensor.to(parameters[name], copy=True)
            made.state[parameters[name]][kind] = kept
    return made


def _memory(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """What an optimizer remembers, under names for the state of a network."""
    return {
        f"{MOMENTUM}{kind}.{name}": kept
        for name, parameter in parameters.items()
        for kind, kept in optimizer.state[parameter].items()
        if kept is not None
    }
