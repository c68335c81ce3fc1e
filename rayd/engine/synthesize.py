"""The synthesize stage: the `Synthesizer` owns the synthetic set, gathers gradients from the
observers, and steps.

A step shares the parameters once, asks every observer of the step for its gradient of them,
averages in the observers' order, and lets the optimizer move. Checkpoints hold parameters,
optimizer state and what terms remember; a synthesizer that is made again, in a new process or by
Ray, goes on from the newest one and repeats the same steps to the same bits.

A set may be cut into blocks. A single block, and blocks that follow one another, are optimised by
one synthesizer that asks all workers; blocks that do not know of each other go side by side, each
with a synthesizer inside a worker that asks its own observers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rayd import devices, methods, schedules, seeding, synthetic
from rayd.artifacts import read_tensors
from rayd.config import NetworkGroup, Recipe, SynthesisSettings
from rayd.config.synthesis import Parameter
from rayd.data import Normalization
from rayd.engine.checkpoint import newest, resumable, save_checkpoint
from rayd.engine.model_pool import ModelPool, TrainTask
from rayd.engine.network_ids import NetworkId, network_ids, turn
from rayd.engine.observer import RealBatch
from rayd.engine.observers import GradientResult, GradientTask, Memory
from rayd.engine.pool import LocalPool, ObjectRef, WorkerPool
from rayd.engine.trajectory_matching import DivergenceGuard, TrajectoryTask, pursuits
from rayd.errors import ArtifactError, RunError
from rayd.synthetic import SyntheticSet
from rayd.synthetic.learned_step_size import WithLearnedStepSize

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockTask:
    """What a synthesizer works on: one block of the synthetic set."""

    recipe: Recipe
    """The run."""
    key: str
    """Hash of all that the synthesis depends on; checkpoints carry it."""
    normalization: Normalization
    """Of the real data: where the range of pixels lies for `synthesis.clip`."""
    block: int
    """Which block."""
    blocks: int
    """Blocks in all."""
    start: ObjectRef
    """State of the block before the first step."""
    checkpoints: Path
    """Directory of the block's checkpoints."""
    weights: Mapping[NetworkId, ObjectRef]
    """Trained weights; those of random networks are missing."""
    accuracies: Mapping[NetworkId, float]
    """How well trained networks know the real training images, fractions."""
    measured: Mapping[NetworkId, ObjectRef]
    """Measured statistics; empty when the real side is sampled."""
    train: ObjectRef | None
    """The whole training split as a `RealBatch`, when the real side is sampled."""
    experts: tuple[Path, ...] = ()
    """Files of the experts that students follow, where they do."""
    remembered: Mapping[NetworkId, Memory] = field(default_factory=dict)
    """What terms find in their memory before the first step: where blocks follow one another, what
    the one before left.
    """
    pauses: tuple[int, ...] = ()
    """Steps after which the set is looked at before it goes on: a checkpoint is kept there."""


@dataclass(frozen=True)
class Logged:
    """One logged step."""

    step: int
    """Steps done."""
    seconds: float
    """Since the synthesizer began or resumed."""
    terms: dict[str, float]
    """The loss and the unweighted terms, averaged over the step's observers. Of students: their
    step size, how many diverged so far, and no loss where all of the step did.
    """


State = dict[str, Tensor]
"""A block's tensors by name."""


def synthesize(
    pool: WorkerPool, assignment: BlockTask, stop: int | None = None
) -> Iterator[Logged | State]:
    """Optimise a block from its newest checkpoint to its end: yields a line every `log_every`
    steps, then the block's state.

    With `stop`, that is its end. A checkpoint beyond it is not gone back from.

    However often it is interrupted, the events and their order are the same; lines of steps that
    were done before carry no terms.
    """
    steps = stop or assignment.recipe.synthesis.steps
    every = assignment.recipe.synthesis.log_every
    synthesizer = Synthesizer(pool)
    resumed = resumable(assignment.checkpoints, assignment.key)
    for until in [*range(every, steps, every), steps][:steps]:
        if until <= resumed:
            yield Logged(until, 0.0, {})
        else:
            yield from synthesizer.advance(assignment, max(resumed, until - every), until)
    yield synthesizer.state(assignment, steps)


class Synthesizer:
    """Optimises one block of a synthetic set."""

    def __init__(self, pool: WorkerPool):
        """Have observers to ask; the work comes with every call, so that a synthesizer made anew
        can go on with it.
        """
        self._pool = pool
        self._at: tuple[str, int, int] | None = None

    def advance(self, assignment: BlockTask, since: int, until: int) -> list[Logged]:
        """Go from step `since` to step `until` and report the logged steps between; repeatable
        after any interruption.

        Raises:
            RunError: the loss is not finite any more.
        """
        self._take(assignment, since)
        logged = []
        while self._step < until:
            terms = self._one_step()
            if self._step > since and self._due(self._settings.log_every):
                logged.append(
                    Logged(self._step, time.monotonic() - self._began, self._checked(terms))
                )
            # while students diverge, what they diverged from must not push out what was there
            # before
            kept = self._due(self._settings.checkpoint_every) or self._step in assignment.pauses
            if kept and not (self._divergence and self._divergence.steps):
                self._save()
        return logged

    def state(self, assignment: BlockTask, step: int) -> State:
        """The block after a step."""
        self.advance(assignment, step, step)
        return {
            name: tensor.detach().cpu().clone() for name, tensor in self._set.state_dict().items()
        }

    def remembered(self, assignment: BlockTask, step: int) -> dict[NetworkId, Memory]:
        """What terms have in their memory after a step."""
        self.advance(assignment, step, step)
        return self._memory

    @property
    def _step(self) -> int:
        return self._at[2] if self._at is not None else 0

    def _take(self, assignment: BlockTask, since: int) -> None:
        """Be at step `since` of the assignment, or before it at the newest checkpoint, or at its
        start.
        """
        if self._at == (assignment.key, assignment.block, since):
            return
        self._assignment = assignment
        self._recipe = assignment.recipe
        self._settings, self._method = self._recipe.synthesis, methods.build(self._recipe)
        self._averaging = self._method.averaging
        self._groups = {group: network_ids(self._recipe, group) for group in self._method.groups}
        self._train = assignment.train
        self._real_batches = (
            RealBatches(assignment.train.get()) if assignment.train is not None else None
        )
        try:
            tensors, metadata = read_tensors(
                newest(assignment.checkpoints, assignment.key, at_most=since)
            )
        except ArtifactError:
            tensors = {f"set.{name}": tensor for name, tensor in assignment.start.get().items()}
            metadata = {"step": 0}
        self._at = (assignment.key, assignment.block, int(metadata["step"]))
        self._load(tensors)
        self._began = time.monotonic()

    def _due(self, every: int) -> bool:
        return self._step % every == 0 or self._step == self._settings.steps

    def _one_step(self) -> dict[str, Tensor]:
        parameters = self._pool.share(_detached(self._set))
        average = self._pool.share(_detached(self._average)) if self._average is not None else None
        real = self._sampled()
        questions = [
            self._question(group, slot, parameters, average, real)
            for group in self._groups
            for slot in range(self._recipe.network_group(group).per_step)
        ]
        model_pool = self._model_pool
        step = self._step
        train_tasks = (
            model_pool.train_tasks(step, self._train)
            if model_pool is not None and not model_pool.synthetic
            else []
        )
        following = self._pursuits(parameters)
        work: list[GradientTask | TrainTask | TrajectoryTask] = [
            *questions,
            *train_tasks,
            *following,
        ]
        homes = [
            item.slot if isinstance(item, TrajectoryTask) else self._home(item.network_id)
            for item in work
        ]
        answered = list(self._pool.map("answer", [(item,) for item in work], homes))
        answers: list[GradientResult] = answered[: len(questions)]
        for question, (_, _, memory) in zip(questions, answers, strict=True):
            self._memory[question.network_id] = memory
        if model_pool is not None:
            for train_task, train_result in zip(
                train_tasks,
                answered[len(questions) : len(questions) + len(train_tasks)],
                strict=True,
            ):
                model_pool.take(train_task, train_result)
        by_panel = [
            [
                answer
                for question, answer in zip(questions, answers, strict=True)
                if question.network_id.group == group
            ]
            for group in self._groups
        ]
        gradients = [_means([gradient for _, gradient, _ in some]) for some in by_panel]
        values = [_means([values for values, _, _ in some]) for some in by_panel]
        terms: dict[str, Tensor] = {}
        if self._divergence is not None:
            good = self._divergence.take(answered[len(work) - len(following) :], self._step + 1)
            terms |= self._told(self._divergence)
            if not good:
                self._advance()
                return terms
            gradients.append(_means([student.gradients for student in good]))
            values.append({"loss": _mean([student.loss for student in good])})
        self._move(
            {name: _sum([gradient[name] for gradient in gradients]) for name in gradients[0]}
        )
        if model_pool is not None and model_pool.synthetic:
            self._grow(model_pool, step)
        together = {name: value for some in values for name, value in some.items()}
        return together | {"loss": _sum([some["loss"] for some in values])} | terms

    def _pursuits(self, parameters: ObjectRef) -> list[TrajectoryTask]:
        """The students of this step."""
        if self._method.following is None:
            return []
        return pursuits(
            self._recipe,
            self._method.following,
            self._assignment.experts,
            self._step,
            self._template,
            parameters,
        )

    def _told(self, divergence: DivergenceGuard) -> dict[str, Tensor]:
        """What is logged of students beside their loss."""
        assert isinstance(self._set, WithLearnedStepSize)
        return {
            "step_size": self._set.step_size.detach(),
            "skipped": torch.tensor(divergence.skipped),
        }

    def _grow(self, model_pool: ModelPool, step: int) -> None:
        """Train networks of the queue on the images as they are after a step."""
        train_tasks = model_pool.train_tasks(
            step, None, self._template, self._pool.share(_detached(self._set))
        )
        homes = [self._home(train_task.network_id) for train_task in train_tasks]
        for train_task, train_result in zip(
            train_tasks,
            self._pool.map("answer", [(train_task,) for train_task in train_tasks], homes),
            strict=True,
        ):
            model_pool.take(train_task, train_result)

    def _question(
        self,
        group: NetworkGroup,
        slot: int,
        parameters: ObjectRef,
        average: ObjectRef | None,
        real: list[ObjectRef | None],
    ) -> GradientTask:
        """What the member of a panel whose turn it is in a slot is asked."""
        assigned = self._assignment
        if group == "observers" and self._model_pool is not None:
            number = self._model_pool.looks(self._step, slot)
            network_id = self._model_pool.network_id(number)
            weights = self._model_pool.weights(number)
            accuracy = self._model_pool.accuracy(number)
        else:
            network_id = self._groups[group][turn(self._recipe, self._step, slot, group)]
            weights = assigned.weights.get(network_id)
            accuracy = assigned.accuracies.get(network_id, 0.0)
        return GradientTask(
            network_id,
            assigned.block,
            assigned.blocks,
            self._step,
            slot,
            self._template,
            parameters,
            average,
            weights,
            accuracy,
            self._real(group, network_id, real[slot % len(real)]),
            self._pool.share(self._memory.get(network_id, {})),
        )

    def _real(
        self, group: NetworkGroup, network_id: NetworkId, sampled: ObjectRef | None
    ) -> ObjectRef | None:
        """What a member must know of the real images."""
        if self._train is not None:
            return sampled if self._method.samples(group) else None
        return self._assignment.measured[network_id] if self._method.needs(group) else None

    def _home(self, network_id: NetworkId) -> int:
        """Where a member's work goes by preference; panels are shifted so that those of one step
        meet different workers.
        """
        return network_id.index * len(self._recipe.network_group(network_id.group).networks) + list(
            self._groups
        ).index(network_id.group)

    def _move(self, gradients: Mapping[str, Tensor]) -> None:
        """One step of the optimizer."""
        for name, parameter in self._set.named_parameters():
            parameter.grad = gradients[name].to(parameter.device)
        if self._settings.clip_gradient is not None:
            torch.nn.utils.clip_grad_norm_(self._set.parameters(), self._settings.clip_gradient)
        if self._settings.schedule == "cosine":
            for pool in self._optimizer.param_groups:
                pool["lr"] = pool["first"] * schedules.half_cosine(
                    self._step / self._settings.steps
                )
        self._optimizer.step()
        if self._range is not None:
            self._set.clip(*self._range)
        if self._average is not None and self._averaging is not None:
            now = dict(self._set.named_parameters())
            for name, parameter in self._average.named_parameters():
                parameter.data.lerp_(now[name].detach(), 1 - self._averaging)
        self._advance()

    def _advance(self) -> None:
        assert self._at is not None
        self._at = (*self._at[:2], self._step + 1)

    def _sampled(self) -> list[ObjectRef | None]:
        """A real mini-batch for every slot of the observers, where the real side is sampled and
        needed.
        """
        if self._real_batches is None or not any(
            self._method.samples(group) for group in self._groups
        ):
            return [None]
        slots = range(self._recipe.observers.per_step)
        return [
            self._pool.share(self._real_batches.draw(self._recipe, self._step, slot))
            for slot in slots
        ]

    def _checked(self, terms: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(value) for name, value in terms.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise self._not_finite()
        return values

    def _not_finite(self) -> RunError:
        return RunError(
            f"The loss is not finite at step {self._step}; lower synthesis.learning_rate."
        )

    def _load(self, tensors: dict[str, Tensor]) -> None:
        # One process on one device needs no copies in host memory.
        local = isinstance(self._pool, LocalPool)
        device = devices.choose(self._recipe.resources) if local else torch.device("cpu")
        state = _under("set.", tensors)
        self._set = synthetic.restore(self._recipe.synthetic, state).to(device)
        self._template = self._pool.share(state)
        self._average: SyntheticSet | None = None
        if self._averaging is not None:
            self._average = synthetic.restore(
                self._recipe.synthetic, _under("average.", tensors) or state
            ).to(device)
        self._memory: dict[NetworkId, Memory] = (
            dict(self._assignment.remembered) if self._step == 0 else {}
        )
        for name, tensor in _under("memory.", tensors).items():
            group, place, term, kept = name.split(".", 3)
            # as the group was called in the version before
            group = "classifiers" if group == "guides" else group
            network_id = self._groups[cast(NetworkGroup, group)][int(place)]
            self._memory.setdefault(network_id, {}).setdefault(term, {})[kept] = tensor
        self._model_pool = (
            ModelPool(self._recipe, self._pool)
            if self._recipe.observers.model_pool is not None
            else None
        )
        if self._model_pool is not None:
            self._model_pool.restore(_under("queue.", tensors))
        self._divergence = (
            DivergenceGuard(self._method.following) if self._method.following is not None else None
        )
        if self._divergence is not None:
            self._divergence.restore(_under("divergence.", tensors))
        self._range: tuple[Tensor, Tensor] | None = None
        if self._settings.clip:
            images, _ = self._set.batch()
            darkest = torch.zeros(1, *images.shape[1:], dtype=torch.uint8, device=device)
            normalization = self._assignment.normalization
            self._range = normalization(darkest), normalization(darkest + 255)
        self._optimizer = optimizer(self._set, self._settings)
        for index, parameter in enumerate(self._set.parameters()):
            if kept_state := _under(f"optimizer.{index}.", tensors):
                self._optimizer.state[parameter] = {
                    n: t if n == "step" else t.to(device) for n, t in kept_state.items()
                }

    def _save(self) -> None:
        tensors = {f"set.{name}": tensor for name, tensor in self._set.state_dict().items()}
        # terms on a GPU do not say at once that they failed, and what is not finite must not push
        # out what was there before
        if not torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).all():
            raise self._not_finite()
        if self._average is not None:
            tensors |= {
                f"average.{name}": tensor for name, tensor in self._average.state_dict().items()
            }
        for group, pool in self._groups.items():
            for place, network_id in enumerate(pool):
                for term, kept in self._memory.get(network_id, {}).items():
                    tensors |= {
                        f"memory.{group}.{place}.{term}.{name}": tensor
                        for name, tensor in kept.items()
                    }
        if self._model_pool is not None:
            tensors |= {
                f"queue.{name}": tensor for name, tensor in self._model_pool.state().items()
            }
        if self._divergence is not None:
            tensors |= {
                f"divergence.{name}": tensor for name, tensor in self._divergence.state().items()
            }
        for index, parameter in enumerate(self._set.parameters()):
            moments = self._optimizer.state.get(parameter, {})
            tensors |= {
                f"optimizer.{index}.{name}": torch.as_tensor(value)
                for name, value in moments.items()
                if value is not None
            }
        save_checkpoint(self._assignment.checkpoints, self._assignment.key, self._step, tensors)


def _detached(module: SyntheticSet) -> State:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> State:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


class RealBatches:
    """Real mini-batches from a training split, sorted by class."""

    def __init__(self, train: RealBatch):
        """Know the rows of every class."""
        self._images, self._labels = train
        by_class = np.argsort(self._labels, kind="stable")
        self._rows = np.split(by_class, np.cumsum(np.bincount(self._labels))[:-1])

    def draw(self, recipe: Recipe, step: int, slot: int) -> RealBatch:
        """`observers.real_batch` images of every class for one observer of one step; smaller
        classes with replacement.
        """
        draws = seeding.generator(recipe.seed, "real batch", step, slot)
        rows = np.concatenate(
            [rows[_choice(len(rows), recipe.observers.real_batch, draws)] for rows in self._rows]
        )
        return self._images[rows], self._labels[rows]


def _choice(population: int, wanted: int, draws: torch.Generator) -> Any:
    if population >= wanted:
        return torch.randperm(population, generator=draws)[:wanted].numpy()
    return torch.randint(population, (wanted,), generator=draws).numpy()


def _mean(tensors: list[Tensor]) -> Tensor:
    """Mean in the given order: a sum whose rounding does not depend on who was first."""
    return _sum(tensors) / len(tensors) if len(tensors) > 1 else tensors[0]


def _sum(tensors: list[Tensor]) -> Tensor:
    """Sum in the given order."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def _means(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of every entry."""
    return {name: _mean([part[name] for part in parts]) for name in parts[0]}


def optimizer(learned: SyntheticSet, settings: SynthesisSettings) -> torch.optim.Optimizer:
    """The optimizer of the synthetic set's parameters, each with its own step size, which its group
    keeps as `first`, too.
    """
    # Adam's steps do not depend on the size of gradients
    scales = learned.step_scales if settings.optimizer == "sgd" else {}
    groups = []
    for name, parameter in learned.named_parameters():
        part = name.rpartition(".")[2]
        usual = settings.learning_rate * scales.get(part, 1.0)
        rate = settings.learning_rates.get(cast(Parameter, part), usual)
        groups.append({"params": [parameter], "lr": rate, "first": rate})
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.learning_rate, settings.momentum)
    return torch.optim.Adam(
        groups, settings.learning_rate, (settings.momentum, settings.second_momentum)
    )
