"""The synthesize stage: the `Synthesizer` owns the synthetic set, gathers gradients from the observers, and steps.

A step shares the parameters once, asks every observer of the step for its gradient of them, averages in the observers' order,
and lets the optimizer move. Checkpoints hold parameters and optimizer state; a synthesizer that is made again, in a new
process or by Ray, goes on from the newest one and repeats the same steps to the same bits.
"""

from __future__ import annotations

import logging
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayd import devices, seeding, synthetic
from rayd.artifacts import read_tensors, write_tensors
from rayd.config import Recipe, SynthesisSettings
from rayd.data import Normalization
from rayd.engine.group import Group, Shared
from rayd.engine.observer import RealBatch, pool_member
from rayd.errors import ArtifactError, RunError

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Assignment:
    """What a synthesizer works on."""

    recipe: Recipe
    """The run."""
    key: str
    """Hash of all that the synthesis depends on; checkpoints carry it."""
    normalization: Normalization
    """Of the real data: where the range of pixels lies for `synthesis.clip`."""
    checkpoints: Path
    """Directory of the checkpoints; holds at least that of step 0."""
    measured: tuple[Shared, ...] | None
    """Measured statistics by member of the pool, or None when the real side is sampled."""
    train: Shared | None
    """The whole training split as a `RealBatch`, when the real side is sampled."""


@dataclass(frozen=True)
class Logged:
    """One logged step."""

    step: int
    """Steps done."""
    seconds: float
    """Since the synthesizer began or resumed."""
    terms: dict[str, float]
    """The loss and the unweighted terms, averaged over the step's observers."""


class Synthesizer:
    """Optimises one synthetic set."""

    def __init__(self, group: Group):
        """Have observers to ask; the work comes with every call, so that a synthesizer made anew can go on with it."""
        self._group = group
        self._key: str | None = None
        self._step = 0

    def advance(self, assignment: Assignment, since: int, until: int) -> list[Logged]:
        """Go from step `since` to step `until` and report the logged steps between; repeatable after any interruption.

        Raises:
            RunError: the loss is not finite any more.
        """
        self._take(assignment, since)
        logged = []
        while self._step < until:
            terms = self._one_step()
            if self._step > since and self._due(self._recipe.synthesis.log_every):
                logged.append(Logged(self._step, time.monotonic() - self._began, self._checked(terms)))
            if self._due(self._recipe.synthesis.checkpoint_every):
                self._save()
        return logged

    def state(self, assignment: Assignment, step: int) -> dict[str, Tensor]:
        """The synthetic set after a step."""
        self.advance(assignment, step, step)
        return {name: tensor.detach().cpu().clone() for name, tensor in self._set.state_dict().items()}

    def _take(self, assignment: Assignment, since: int) -> None:
        """Be at step `since` of the assignment, or before it at the newest checkpoint."""
        if self._key == assignment.key and self._step == since:
            return
        self._key, self._assignment, self._recipe = assignment.key, assignment, assignment.recipe
        self._train = RealBatches(assignment.train.get()) if assignment.train is not None else None
        self._load(newest(assignment.checkpoints, assignment.key, at_most=since))

    def _due(self, every: int) -> bool:
        return self._step % every == 0 or self._step == self._recipe.synthesis.steps

    def _one_step(self) -> dict[str, Tensor]:
        slots = range(self._recipe.observers.per_step)
        parameters = self._group.share({name: p.detach() for name, p in self._set.named_parameters()})
        members = [pool_member(self._recipe, self._step, slot) for slot in slots]
        items = [
            (self._step, slot, self._template, parameters, self._real(slot, member))
            for slot, member in zip(slots, members, strict=True)
        ]
        answers = list(self._group.map("gradient", items, members))
        for name, parameter in self._set.named_parameters():
            parameter.grad = _mean([gradient[name].to(parameter.device) for _, gradient in answers])
        self._optimizer.step()
        if self._range is not None:
            self._set.clip(*self._range)
        self._step += 1
        return {name: _mean([values[name] for values, _ in answers]) for name in answers[0][0]}

    def _real(self, slot: int, member: int) -> Shared:
        if self._train is not None:
            return self._group.share(self._train.draw(self._recipe, self._step, slot))
        assert self._assignment.measured is not None
        return self._assignment.measured[member]

    def _checked(self, terms: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(value) for name, value in terms.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise RunError(f"The loss is not finite at step {self._step}; lower synthesis.learning_rate.")
        return values

    def _load(self, path: Path) -> None:
        tensors, metadata = read_tensors(path)
        state = {name.removeprefix("set."): t for name, t in tensors.items() if name.startswith("set.")}
        # One process on one device needs no copies in host memory.
        device = devices.choose(self._recipe.resources) if self._recipe.resources.workers == 0 else torch.device("cpu")
        self._set = synthetic.restore(self._recipe.synthetic, state).to(device)
        self._template = self._group.share(state)
        self._range: tuple[Tensor, Tensor] | None = None
        if self._recipe.synthesis.clip:
            images, _ = self._set.batch()
            darkest = torch.zeros(1, *images.shape[1:], dtype=torch.uint8, device=device)
            normalization = self._assignment.normalization
            self._range = normalization(darkest), normalization(darkest + 255)
        self._optimizer = optimizer(self._set, self._recipe.synthesis)
        for index, parameter in enumerate(self._set.parameters()):
            prefix = f"optimizer.{index}."
            kept = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            if kept:
                self._optimizer.state[parameter] = {n: t if n == "step" else t.to(device) for n, t in kept.items()}
        self._step, self._began = int(metadata["step"]), time.monotonic()

    def _save(self) -> None:
        tensors = {f"set.{name}": tensor for name, tensor in self._set.state_dict().items()}
        for index, parameter in enumerate(self._set.parameters()):
            kept = self._optimizer.state.get(parameter, {})
            tensors |= {
                f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in kept.items() if value is not None
            }
        save_checkpoint(self._assignment.checkpoints, self._assignment.key, self._step, tensors)


class RealBatches:
    """Real mini-batches from a training split, sorted by class."""

    def __init__(self, train: RealBatch):
        """Know the rows of every class."""
        self._images, self._labels = train
        by_class = np.argsort(self._labels, kind="stable")
        self._rows = np.split(by_class, np.cumsum(np.bincount(self._labels))[:-1])

    def draw(self, recipe: Recipe, step: int, slot: int) -> RealBatch:
        """`observers.real_batch` images of every class for one observer of one step; smaller classes with replacement."""
        draws = seeding.generator(recipe.seed, "real batch", step, slot)
        rows = np.concatenate([rows[_choice(len(rows), recipe.observers.real_batch, draws)] for rows in self._rows])
        return self._images[rows], self._labels[rows]


def _choice(population: int, wanted: int, draws: torch.Generator) -> Any:
    if population >= wanted:
        return torch.randperm(population, generator=draws)[:wanted].numpy()
    return torch.randint(population, (wanted,), generator=draws).numpy()


def _mean(tensors: list[Tensor]) -> Tensor:
    """Mean in the given order: a sum whose rounding does not depend on who was first."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total / len(tensors) if len(tensors) > 1 else total


def optimizer(module: torch.nn.Module, settings: SynthesisSettings) -> torch.optim.Optimizer:
    """The optimizer of the synthetic set's parameters."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(module.parameters(), settings.learning_rate, settings.momentum)
    return torch.optim.Adam(module.parameters(), settings.learning_rate, (settings.momentum, 0.999))


def save_checkpoint(directory: Path, key: str, step: int, tensors: dict[str, Tensor]) -> None:
    """Write `step-<step>.safetensors` and drop all but the newest ones before it."""
    write_tensors(directory / f"step-{step:08d}.safetensors", tensors, {"key": key, "step": step})
    for path in _by_step(directory):
        # a later one is a damaged leftover: newest() would have gone on from it
        if _step_of(path) > step:
            path.unlink(missing_ok=True)
    for path in _by_step(directory)[:-KEPT_CHECKPOINTS]:
        path.unlink(missing_ok=True)


def newest(directory: Path, key: str, at_most: int | None = None) -> Path:
    """The newest readable checkpoint that belongs to `key`, up to a step.

    Raises:
        ArtifactError: there is none.
    """
    for path in reversed(_by_step(directory)):
        if at_most is not None and _step_of(path) > at_most:
            continue
        try:
            if read_tensors(path)[1].get("key") == key:
                return path
        except ArtifactError as error:
            log.warning("%s An older checkpoint is used.", error)
    raise ArtifactError(f"'{directory}' holds no checkpoint of this run.")


def foreign(directory: Path, key: str) -> bool:
    """Whether a readable checkpoint of another run lies in the directory."""
    for path in _by_step(directory):
        try:
            if read_tensors(path)[1].get("key") != key:
                return True
        except ArtifactError:
            continue
    return False


def _by_step(directory: Path) -> list[Path]:
    return sorted((path for path in directory.glob("step-*.safetensors")), key=_step_of)


def _step_of(path: Path) -> int:
    found = re.fullmatch(r"step-(\d+)\.safetensors", path.name)
    return int(found.group(1)) if found else -1
