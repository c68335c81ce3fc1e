"""A pool of networks of different training age, trained alongside the synthesis.

Settings (`ModelPoolSettings`) determine how networks enter and leave the pool, which of them
compute gradients, and which are trained on which images:

- IDM (Zhao, Li, Qin and Yu, "Improved Distribution Matching for Dataset Condensation", CVPR 2023):
  a queue. A random network is added every `push_every` steps, and the oldest leaves when the queue
  is full. One drawn at random computes the gradient; some are trained on real batches.
- DC (Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021): a single
  network. It computes the gradient, is trained on the synthetic images after the step, and is
  replaced by a fresh one after some steps.
- FRePo (Zhou, Nezhadarya and Ba, "Dataset Distillation using Neural Feature Regression", NeurIPS
  2022): a pool. One drawn at random computes the gradient, is trained on the synthetic images, and
  is replaced by a fresh one after `lifetime` trainings.
- HaBa (Liu et al., "Dataset Distillation via Factorization", NeurIPS 2022): an adversary. A single
  network, which is never replaced, learns to recognise images of the same basis.

All of this follows from the run's seed and the step. States of networks are sent with the tasks
that use them and are part of the synthesizer's checkpoints, so that losing a worker loses no state.
Training on real images runs in parallel with the gradients of the same step; training on synthetic
images follows the step. A network that will not be used any more is not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayd import devices, networks, seeding
from rayd.config import ModelPoolSettings, Recipe
from rayd.config.choices import LayerRole
from rayd.data import ImageShape
from rayd.data.augmentation import augmentation
from rayd.engine.network_ids import NetworkId
from rayd.engine.pool import ObjectRef, WorkerPool
from rayd.objectives.hallucinations import adversary_loss
from rayd.objectives.ridge import regression_loss, regression_targets
from rayd.states import load_state_tensors, state_tensors, under
from rayd.transfer import upload

MOMENTUM = "momentum."
"""Prefix of an optimizer's tensors in the state of a network."""


@dataclass(frozen=True)
class TrainTask:
    """The training of a network of the pool in one step."""

    network_id: NetworkId
    """Its architecture, and its number in the pool."""
    step: int
    """The step of the synthesis."""
    weights: ObjectRef | None
    """Its state, momentum included; None for a new one."""
    train: ObjectRef | None
    """The training split, images uint8 (N, C, H, W) and labels (N,); None for synthetic images."""
    template: ObjectRef | None = None
    """State of the block of synthetic images at the start."""
    parameters: ObjectRef | None = None
    """Current parameters of the block."""


@dataclass(frozen=True)
class Batches:
    """Images that a network is trained on."""

    count: int
    """Number of images."""
    batch: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Maps indices (n,) on the CPU to network input (n, C, H, W) and class indices (n,) or soft
    labels (n, classes), both on the device.
    """


TrainResult = tuple[dict[str, Tensor], Tensor]
"""The state of a network, momentum included, and its accuracy on its last mini-batches before each
step, a scalar. Both stay on the training device, without waiting for it.
"""


class ModelPool:
    """The states of the networks of a pool, and the choice of those that are used in a step.

    Args:
        recipe: the run.
        pool: shares states with its workers.
    """

    def __init__(self, recipe: Recipe, pool: WorkerPool):
        settings = recipe.observers.model_pool
        assert settings is not None
        self._recipe = recipe
        self._settings = settings
        self._pool = pool
        # by number of the network; networks that have not been trained have no entry
        self._states: dict[int, dict[str, Tensor]] = {}
        self._shared: dict[int, ObjectRef] = {}
        self._accuracy: dict[int, float | Tensor] = {}
        self._times: dict[int, int] = {}
        # numbers of the networks of a pool without `push_every`
        self._places = list(range(settings.start))

    @property
    def synthetic(self) -> bool:
        """Whether networks are trained on the synthetic images, after the step."""
        return self._settings.source == "synthetic"

    def active(self, step: int) -> Sequence[int]:
        """Numbers of the networks that are in the pool at a step, at most the next one."""
        if self._settings.push_every is None:
            return list(self._places)
        # computed from the step, so that a resumed run has the same networks without storing a list
        pushed = self._settings.start + step // self._settings.push_every + 1
        return range(max(0, pushed - self._settings.capacity), pushed)

    def network_id(self, number: int) -> NetworkId:
        """Identity of the network with a number."""
        return NetworkId(self._recipe.observers.network_of(number), number)

    def draw(self, step: int, slot: int) -> int:
        """Draw the number of the network that computes the gradient in a slot of a step."""
        active = self.active(step)
        draws = self._draws("queue looks", step, slot)
        return active[int(torch.randint(len(active), (1,), generator=draws))]

    def train_tasks(
        self,
        step: int,
        train: ObjectRef | None,
        template: ObjectRef | None = None,
        parameters: ObjectRef | None = None,
    ) -> list[TrainTask]:
        """Training tasks of a step, omitting networks that leave the pool before the next one.

        Args:
            step: of the synthesis.
            train: the training split; None where networks are trained on synthetic images.
            template: state of the block of synthetic images at the start.
            parameters: current parameters of the block.
        """
        active = self.active(step)
        after = self.active(step + 1)
        if self._settings.trained == "used":
            # redrawn instead of remembered from the gradients: the same seed gives the same
            # networks
            drawn = [self.draw(step, slot) for slot in range(self._recipe.observers.per_step)]
            # a network that was drawn twice is trained once
            chosen = list(dict.fromkeys(drawn))
        else:
            order = torch.randperm(len(active), generator=self._draws("queue grows", step))
            chosen = [active[i] for i in order[: self._settings.trained_per_step].tolist()]
        return [
            TrainTask(
                network_id=self.network_id(number),
                step=step,
                weights=self.weights(number),
                train=train,
                template=template,
                parameters=parameters,
            )
            for number in chosen
            if number in after
        ]

    def weights(self, number: int) -> ObjectRef | None:
        """The shared state of a network; None for a new one."""
        return self._shared.get(number)

    def accuracy(self, number: int) -> float | Tensor:
        """Accuracy of a network in its last training on real images; 0 without any."""
        return 0.0 if self.synthetic else self._accuracy.get(number, 0.0)

    def update(self, train_task: TrainTask, train_result: TrainResult) -> None:
        """Save the state of a network, replace it at the end of its lifetime, and drop old ones."""
        number = train_task.network_id.index
        self._save(number, *train_result, self._times.get(number, self._head_start(number)) + 1)
        if self._times[number] == self._settings.lifetime:
            self._places[self._places.index(number)] = number + self._settings.start
        active = self.active(train_task.step)
        # a state is as large as the network, and twice that with momentum
        for gone in [known for known in self._states if known not in active]:
            del self._states[gone], self._shared[gone], self._accuracy[gone], self._times[gone]

    def _head_start(self, number: int) -> int:
        """Number of trainings with which a new network starts.

        It differs between networks of the initial pool, so that they are not all replaced at once.
        """
        lifetime = self._settings.lifetime
        start = self._settings.start
        return number * lifetime // start if lifetime is not None and number < start else 0

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        tensors: dict[str, Tensor] = {}
        for number, state in self._states.items():
            for name, tensor in state.items():
                tensors[f"{number}.{name}"] = tensor
        for number in self._states:
            # float64 holds counts exactly; no tensor of a network has an empty name
            facts = [float(self._accuracy[number]), self._times[number]]
            tensors[f"{number}."] = torch.tensor(facts, dtype=torch.float64)
        if self._settings.lifetime is not None:
            tensors["places"] = torch.tensor(self._places)
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        states: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key == "places":
                self._places = tensor.tolist()
                continue
            number, _, name = key.partition(".")
            states.setdefault(int(number), {})[name] = tensor
        for known, state in states.items():
            accuracy, times = state.pop("").tolist()
            self._save(known, state, accuracy, int(times))

    def _save(
        self, number: int, state: dict[str, Tensor], accuracy: float | Tensor, times: int
    ) -> None:
        self._states[number] = state
        self._accuracy[number] = accuracy
        self._times[number] = times
        self._shared[number] = self._pool.share(state)

    def _draws(self, purpose: str, *indices: int) -> torch.Generator:
        return seeding.generator(self._recipe.seed, purpose, *indices)


def initial_seed(recipe: Recipe, network_id: NetworkId) -> int:
    """Seed of the initial weights of a network of the pool."""
    return seeding.derive(recipe.seed, "queue network", network_id.index)


class ModelPoolTrainer:
    """Trains networks of the pool in a worker; keeps one network per architecture.

    Args:
        recipe: the run.
        shape: of an image.
        classes: number of classes.
        device: where to compute.
    """

    def __init__(self, recipe: Recipe, shape: ImageShape, classes: int, device: torch.device):
        self._recipe = recipe
        self._shape = shape
        self._classes = classes
        self._device = device
        self._networks: dict[str, tuple[nn.Module, torch.memory_format]] = {}

    def _network(
        self, train_task: TrainTask, before: Mapping[str, Tensor]
    ) -> tuple[nn.Module, torch.memory_format]:
        """A network with the weights of one in the pool, and its memory format."""
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

    def train(self, train_task: TrainTask, supply: Batches) -> TrainResult:
        """Train a network for some steps of its optimizer, or some epochs.

        Args:
            train_task: the network, its state, and the step of the synthesis.
            supply: the images that it is trained on.
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
        count = 0
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
                    if settings.loss == "contrast":
                        logits, loss = self._contrast(network, inputs, target, rows)
                    else:
                        logits = network(inputs)
                        loss = _loss(logits, target, settings.loss)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                classes = target.argmax(1) if target.is_floating_point() else target
                right = right + (logits.argmax(1) == classes).sum()
                count = count + len(rows)
        # copies, as the network will be loaded with other weights next
        state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        for name, tensor in state_tensors(optimizer, list(parameters)).items():
            state[MOMENTUM + name] = tensor
        return state, right.to(_exact(device)) / count

    def _contrast(
        self, network: nn.Module, inputs: Tensor, target: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits and loss of HaBa's adversary; the basis of an image follows from its row."""
        extractor = networks.FeatureExtractor(network, {LayerRole.FEATURES}, self._shape)
        seen = extractor(inputs)
        (features,) = seen.layers[LayerRole.FEATURES]
        bases = upload(rows // self._recipe.synthetic.per_basis, inputs.device)
        # autocast is for the network: products of features of norm 1 are divided by the temperature,
        # which needs more digits than bfloat16 has
        with devices.autocast(self._device, "float32"):
            loss = adversary_loss(seen.logits.float(), features.float(), target, bases)
        return seen.logits, loss


def _exact(device: torch.device) -> torch.dtype:
    """The most precise floating-point type of a device; MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _batches(count: int, settings: ModelPoolSettings, draws: torch.Generator) -> Iterator[Tensor]:
    """Indices of the images of each step."""
    if settings.train_epochs is None:
        for _ in range(settings.train_steps):
            yield torch.randperm(count, generator=draws)[: settings.batch_size]
        return
    for _ in range(settings.train_epochs):
        yield from torch.split(torch.randperm(count, generator=draws), settings.batch_size)


def _loss(logits: Tensor, target: Tensor, name: str) -> Tensor:
    if name == "mse":
        return regression_loss(logits, regression_targets(target, logits.shape[1]))
    return nn.functional.cross_entropy(logits, target)


def _optimizer(
    parameters: Mapping[str, Tensor], settings: ModelPoolSettings, before: Mapping[str, Tensor]
) -> torch.optim.Optimizer:
    """The optimizer of a network, with the momentum in its state."""
    optimizer: torch.optim.Optimizer
    rate = settings.learning_rate
    decay = settings.weight_decay
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam(
            parameters.values(), rate, (settings.momentum, 0.999), weight_decay=decay
        )
    else:
        optimizer = torch.optim.SGD(
            parameters.values(), rate, settings.momentum, weight_decay=decay, fused=True
        )
    if memory := under(MOMENTUM, before):
        load_state_tensors(optimizer, list(parameters), memory)
    return optimizer
