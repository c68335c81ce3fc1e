"""The inner loop of the synthesis: the steps on one block of the synthetic set.

The loop over blocks is in `rayd.engine.stages.blocks`. A step (`Synthesizer._one_step`) shares the
images once, has the workers compute the work of every gradient source (`rayd.engine.gradients`),
sums the gradients in a fixed order, and takes one step of the optimizer. Checkpoints hold images,
optimizer state and the state of the sources; a synthesizer that is recreated, in a new process or
by Ray, continues from the newest one and repeats the same steps: with the same bits on the CPU,
while some GPU kernels add in no fixed order.

A set may be divided into blocks. A single block, and sequential blocks, are optimised by one
synthesizer that uses all workers; independent blocks are optimised in parallel, each by a
synthesizer inside a worker.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rayd import devices, methods, schedules, synthetic
from rayd.artifacts import read_tensors
from rayd.config import Recipe, SynthesisSettings
from rayd.config.synthesis import Parameter
from rayd.data import Normalization
from rayd.engine.checkpoint import newest, resumable, save_checkpoint
from rayd.engine.gradients.base import (
    GradientSource,
    SharedImages,
    Work,
    total,
    totals,
)
from rayd.engine.gradients.feature_matching import FeatureMatching, Memory
from rayd.engine.gradients.trajectory_matching import TrajectoryMatching
from rayd.engine.network_ids import NetworkId
from rayd.engine.pool import LocalPool, ObjectRef, WorkerPool
from rayd.engine.statistic_aggregation import Measuring, aggregate
from rayd.errors import ArtifactError, RunError
from rayd.states import under
from rayd.synthetic import SyntheticSet
from rayd.synthetic.learned_step_size import WithLearnedStepSize

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockTask:
    """The task of a synthesizer: one block of the synthetic set."""

    recipe: Recipe
    """The run."""
    key: str
    """Hash of everything that the synthesis depends on; stored in checkpoints."""
    normalization: Normalization
    """Normalisation of the real data, which gives the range of pixels for `synthesis.clip`."""
    block: int
    """Index of the block."""
    blocks: int
    """Number of blocks."""
    start: ObjectRef
    """State of the block before the first step."""
    checkpoints: Path
    """Directory of the block's checkpoints."""
    weights: Mapping[NetworkId, ObjectRef]
    """Trained weights; random networks have none."""
    accuracies: Mapping[NetworkId, float]
    """Accuracy of trained networks on the real training images, fractions."""
    measured: Mapping[NetworkId, ObjectRef]
    """Measured statistics; empty if real data are sampled."""
    train: ObjectRef | None
    """The whole training split as a `RealBatch`, if real data are sampled."""
    experts: tuple[Path, ...] = ()
    """Files of the experts, if trajectories are matched."""
    term_state: Mapping[NetworkId, Memory] = field(default_factory=dict)
    """State of the terms (`Context.memory`) before the first step; for sequential blocks, that
    after the previous block.
    """
    milestones: tuple[int, ...] = ()
    """Steps after which a callback gets the unfinished set; each has a checkpoint."""


@dataclass(frozen=True)
class Logged:
    """One logged step."""

    step: int
    """Steps done."""
    seconds: float
    """Seconds since the synthesizer started or resumed."""
    terms: dict[str, float]
    """The loss and the unweighted terms, averaged over the step's observers. For trajectory
    matching also the students' step size and the number of diverged students so far; no loss if all
    students of the step diverged.
    """


State = dict[str, Tensor]
"""A block's tensors by name."""


def synthesize(
    pool: WorkerPool, task: BlockTask, stop: int | None = None
) -> Iterator[Logged | State]:
    """Optimise a block from its newest checkpoint to its end: yields a line every `log_every`
    steps, then the block's state.

    The events and their order do not depend on interruptions; lines of steps that were done before
    have no terms.

    Args:
        pool: the workers.
        task: the block.
        stop: the step to end at, not before the newest checkpoint; None for the last step.
    """
    steps = stop or task.recipe.synthesis.steps
    every = task.recipe.synthesis.log_every
    synthesizer = Synthesizer(pool)
    # a restarted stream must repeat its events from the first one, so lines of steps that were done
    # before are yielded as well, without computing anything
    resumed = resumable(task.checkpoints, task.key)
    ends = [*range(every, steps, every), steps] if steps > 0 else []
    # the current position: to continue from an earlier step, the synthesizer returns to a
    # checkpoint
    since = resumed
    for until in ends:
        if until > resumed:
            yield from synthesizer.advance(task, since, until)
            since = until
        elif until % every == 0 or until == task.recipe.synthesis.steps:
            yield Logged(until, 0.0, {})
    yield synthesizer.state(task, steps)


class Synthesizer:
    """Merges statistics of the real data, and optimises a block of the synthetic set."""

    def __init__(self, pool: WorkerPool):
        """Use the workers of a pool; every call passes the task, so that a recreated synthesizer
        can continue with it.
        """
        self._pool = pool
        # current position: task, block and step, as a restarted synthesizer may be called for any
        # step
        self._at: tuple[str, int, int] | None = None

    def measure(self, measuring: Measuring) -> Iterator[tuple[int, int]]:
        """Merge statistics that workers measure; see `rayd.engine.statistic_aggregation`."""
        yield from aggregate(self._pool, measuring)

    def advance(self, task: BlockTask, since: int, until: int) -> list[Logged]:
        """Advance from step `since` to step `until` and return the logged steps between; repeatable
        after any interruption.

        Raises:
            RunError: the loss is not finite any more.
        """
        self._go_to(task, since)
        logged = []
        while self._step < until:
            metrics = self._one_step()
            # converting metrics to floats waits for the device, so it is only done for logged steps
            if self._step > since and self._is_due(self._settings.log_every):
                seconds = time.monotonic() - self._began
                logged.append(Logged(self._step, seconds, self._checked(metrics)))
            due = self._is_due(self._settings.checkpoint_every) or self._step in task.milestones
            # while students diverge, earlier checkpoints must be kept
            if due and all(source.is_sound for source in self._sources):
                self._save()
        return logged

    def state(self, task: BlockTask, step: int) -> State:
        """The block after a step."""
        self.advance(task, step, step)
        # clones, as the optimizer will change the parameters in place
        state = self._set.state_dict()
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def term_state(self, task: BlockTask, step: int) -> dict[NetworkId, Memory]:
        """State of the terms after a step."""
        self.advance(task, step, step)
        states: dict[NetworkId, Memory] = {}
        for source in self._sources:
            if isinstance(source, FeatureMatching):
                states |= source.memory
        return states

    @property
    def _step(self) -> int:
        return self._at[2] if self._at is not None else 0

    def _go_to(self, task: BlockTask, since: int) -> None:
        """Move to step `since` of a task, to the newest checkpoint before it, or to the start."""
        if self._at == (task.key, task.block, since):
            return
        self._task = task
        self._recipe = task.recipe
        self._settings = task.recipe.synthesis
        self._method = methods.build(task.recipe)
        try:
            # a checkpoint beyond `since` cannot be used, as the caller has not seen the lines of
            # its steps
            path = newest(task.checkpoints, task.key, at_most=since)
            tensors, metadata = read_tensors(path)
        except ArtifactError:
            tensors = {f"set.{name}": tensor for name, tensor in task.start.get().items()}
            metadata = {"step": 0}
        self._at = (task.key, task.block, int(metadata["step"]))
        self._load(tensors)
        # seconds of a resumed run count from here, as earlier ones are in the log already
        self._began = time.monotonic()

    def _is_due(self, every: int) -> bool:
        return self._step % every == 0 or self._step == self._settings.steps

    def _one_step(self) -> dict[str, Tensor]:
        """Collect gradients, step the optimizer, and train the model pool; return the metrics."""
        step = self._step
        images = self._share()
        work = [source.work(step, images) for source in self._sources]
        # one call for the work of all sources, so that workers do not wait between them
        results = self._compute([one for part in work for one in part])
        updates = []
        for source, part in zip(self._sources, work, strict=True):
            updates.append(source.update(step, results[: len(part)]))
            results = results[len(part) :]
        metrics = {name: value for update in updates for name, value in update.metrics.items()}
        gradients = [update.gradients for update in updates if update.gradients is not None]
        # if one source has no gradient, the whole step is skipped, or the images would follow only
        # the others; it counts as a step, so that the next one has different draws
        if len(gradients) < len(updates):
            self._count_step()
            return metrics
        self._update_images(totals(gradients))
        self._count_step()
        for source in self._sources:
            if source.has_work_after:
                source.update_after(self._compute(source.work_after(step, self._share())))
        metrics["loss"] = total([update.metrics["loss"] for update in updates])
        return metrics

    def _share(self) -> SharedImages:
        """Share the current images with the workers."""
        average = None if self._average is None else self._pool.share(_detached(self._average))
        return SharedImages(self._template, self._pool.share(_detached(self._set)), average)

    def _compute(self, work: Sequence[Work]) -> list[Any]:
        """Compute tasks on the workers; results are in the order of the tasks."""
        tasks = [(one.task,) for one in work]
        return list(self._pool.map("compute", tasks, [one.affinity for one in work]))

    def _update_images(self, gradients: Mapping[str, Tensor]) -> None:
        """One step of the optimizer on the set, and of the moving average of its parameters."""
        self._assign_gradients(gradients)
        self._schedule_step_sizes()
        self._optimizer.step()
        if self._range is not None:
            self._set.clip(*self._range)
        self._update_average()

    def _assign_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Assign each parameter its gradient; the total norm is at most `clip_gradient`."""
        for name, parameter in self._set.named_parameters():
            parameter.grad = gradients[name].to(parameter.device)
        if self._settings.clip_gradient is not None:
            torch.nn.utils.clip_grad_norm_(self._set.parameters(), self._settings.clip_gradient)

    def _schedule_step_sizes(self) -> None:
        """Set the step sizes of the next step.

        They are computed from the step rather than by a stateful scheduler, so that checkpoints
        only need the step.
        """
        progress = self._step / self._settings.steps
        factor = schedules.step_size_factor(self._settings.schedule, progress)
        for group in self._optimizer.param_groups:
            group["lr"] = group["first"] * factor

    def _update_average(self) -> None:
        """Update the moving average of the parameters, where a term needs it."""
        if self._average is None or self._method.averaging is None:
            return
        now = dict(self._set.named_parameters())
        for name, parameter in self._average.named_parameters():
            parameter.data.lerp_(now[name].detach(), 1 - self._method.averaging)

    def _count_step(self) -> None:
        assert self._at is not None
        self._at = (*self._at[:2], self._step + 1)

    def _checked(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(value) for name, value in metrics.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise self._not_finite()
        return values

    def _not_finite(self) -> RunError:
        rates = "synthesis.learning_rate"
        if self._recipe.observers.model_pool is not None:
            # networks of the pool that diverged also cause such a loss
            rates += " or observers.model_pool.learning_rate"
        return RunError(f"The loss is not finite at step {self._step}; lower {rates}.")

    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from the tensors of a checkpoint."""
        # in a single process on one device, no copies in host memory are needed
        local = isinstance(self._pool, LocalPool)
        device = devices.choose(self._recipe.resources) if local else torch.device("cpu")
        state = under("set.", tensors)
        self._set = synthetic.restore(self._recipe.synthetic, state).to(device)
        # not those of a checkpoint: weights climb the loss of the initial images (DWA), even after
        # a resume
        self._template = self._task.start
        self._average: SyntheticSet | None = None
        if self._method.averaging is not None:
            # before the first checkpoint, the average is the initial set
            average = under("average.", tensors) or state
            self._average = synthetic.restore(self._recipe.synthetic, average).to(device)
        self._sources = self._gradient_sources()
        for source in self._sources:
            source.load_state_dict(tensors)
        self._range = self._pixel_range(device) if self._settings.clip else None
        # groups are recreated, as a warm start may have other step sizes; checkpoints only hold
        # moments
        self._optimizer = optimizer(self._set, self._settings)
        moments = {
            index: under(f"optimizer.{index}.", tensors)
            for index, _ in enumerate(self._set.parameters())
        }
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})

    def _gradient_sources(self) -> list[GradientSource]:
        """Create the gradient sources of the method."""
        task = self._task
        sources: list[GradientSource] = []
        if self._method.groups:
            sources.append(
                FeatureMatching(
                    recipe=self._recipe,
                    method=self._method,
                    pool=self._pool,
                    block=task.block,
                    blocks=task.blocks,
                    weights=task.weights,
                    accuracies=task.accuracies,
                    measured=task.measured,
                    train=task.train,
                    # later, the memory of the terms is in the checkpoint
                    memory=task.term_state if self._step == 0 else {},
                )
            )
        if self._method.trajectory_objective is not None:
            assert isinstance(self._set, WithLearnedStepSize)
            objective = self._method.trajectory_objective
            sources.append(TrajectoryMatching(self._recipe, objective, task.experts, self._set))
        return sources

    def _pixel_range(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Range of pixels as network input: black and white."""
        images, _ = self._set.batch()
        black = torch.zeros(1, *images.shape[1:], dtype=torch.uint8, device=device)
        normalization = self._task.normalization
        return normalization(black), normalization(black + 255)

    def _save(self) -> None:
        """Write a checkpoint."""
        tensors = {f"set.{name}": tensor for name, tensor in self._set.state_dict().items()}
        # losses on a GPU are not checked in every step, but values that are not finite must not
        # replace earlier checkpoints
        if not torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).all():
            raise self._not_finite()
        if self._average is not None:
            for name, tensor in self._average.state_dict().items():
                tensors[f"average.{name}"] = tensor
        for source in self._sources:
            tensors |= source.state_dict()
        # SGD without momentum has a None in its state, which cannot be saved
        for index, moments in self._optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        save_checkpoint(self._task.checkpoints, self._task.key, self._step, tensors)


def _detached(module: SyntheticSet) -> State:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def optimizer(learned: SyntheticSet, settings: SynthesisSettings) -> torch.optim.Optimizer:
    """Create the optimizer of the synthetic set's parameters, each with its own step size, which
    its group also stores as `first`.
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
