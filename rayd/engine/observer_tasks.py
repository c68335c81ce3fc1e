"""Tasks that a worker computes with its networks: gradients of a step, and statistics.

A single network is in `rayd.engine.observer`. `ObserverTasks` is the base of
`rayd.engine.worker.Worker`, a plain class, independent of whether it runs in process or in an
actor. Its networks are in `rayd.engine.worker_networks`, its copies of the synthetic set in
`rayd.engine.replicas`, and its random draws in `rayd.engine.task_draws`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rayd import devices, networks
from rayd.config import NetworkGroup, Recipe
from rayd.data.augmentation import ALL, Operation
from rayd.derived import known_on_host, on_host, rows_of
from rayd.engine.ascent import moved_uphill
from rayd.engine.gradients.feature_matching import GradientResult, GradientTask, Memory
from rayd.engine.gradients.model_pool import (
    Batches,
    ModelPoolTrainer,
    TrainResult,
    TrainTask,
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
    Observer,
    ResolvedKinds,
    States,
    StatisticAccumulator,
    measure_together,
)
from rayd.engine.pool import ObjectRef
from rayd.engine.replicas import Replicas
from rayd.engine.statistic_aggregation import merged, to_host
from rayd.engine.task_draws import TaskDraws
from rayd.engine.worker_networks import WorkerNetworks
from rayd.errors import ConfigError
from rayd.methods import build
from rayd.networks import Observation
from rayd.objectives import Context, RealStatistics, StatisticSpec
from rayd.objectives.batch_parts import OtherParts, PartSummary, part_of, summary, whole
from rayd.statistics import Statistic
from rayd.synthetic import SyntheticSet
from rayd.synthetic.learned_step_size import WithLearnedStepSize
from rayd.transfer import send, upload

KEPT_PARTS = 4
"""Maximum number of parts of a step (`synthesis.split`) whose forward pass a worker keeps for their
gradients; others are forwarded again.
"""


@dataclass(frozen=True, eq=False)
class _DeviceBatch:
    """A real mini-batch on the device."""

    images: Tensor
    """Network input (N, C, H, W)."""
    labels: Tensor
    """Class indices (N,)."""
    augment: Augment
    """The augmentation of the images."""


@dataclass(frozen=True, eq=False)
class _Part:
    """Forwarded synthetic images of a step, with their autograd graph."""

    replica: SyntheticSet
    """The parameters from which the graph starts."""
    labels: Tensor
    """Labels of all images of the step."""
    rows: slice
    """Rows of the images that are forwarded."""
    observer: Observer
    """The network."""
    real_batch: _DeviceBatch | None
    """The real mini-batch, if real data are sampled."""
    average_logits: Callable[[], Tensor]
    """Computes logits of the moving average of the part's images."""
    forward: Callable[[Tensor], Observation]
    """Forwards all images of the step with the same view and augmentation."""
    average_observation: Callable[[], Observation]
    """Computes the output for the moving average of the images."""
    output: Observation
    """The network's output."""


_PartKey = tuple[str, NetworkId, int, int]
"""Key of the parameters (which differs in every step), network, slot and part."""


class ObserverTasks:
    """Tasks on the networks of one worker. Every result depends only on its task.

    Args:
        recipe: the run.
        facts: properties of the data.
        device: where to compute; None follows the recipe's resources.
    """

    def __init__(self, recipe: Recipe, facts: DatasetInfo, device: torch.device | None = None):
        self._recipe = recipe
        self._facts = facts
        self._method = build(recipe)
        self._device = device or devices.choose(recipe.resources)
        # before any network is built, as the layout is applied when a network is moved to the
        # device
        devices.use_layout(recipe.resources)
        self._draws = TaskDraws(recipe, facts, tuple(self._method.groups), self._device)
        self._class_counts = torch.tensor(facts.class_counts)
        self.forget()

    def forget(self) -> None:
        """Drop all networks, statistics and replicas; tasks that need them recreate them."""
        self._model_pool_trainer = ModelPoolTrainer(
            self._recipe, self._facts.shape, self._facts.classes, self._device
        )
        self._trajectory_worker: TrajectoryWorker | None = None
        self._networks = self._new_networks()
        self._replicas = Replicas(self._recipe.synthetic, self._device)
        # by network, and key of the images on which they were resolved
        self._resolved: dict[tuple[NetworkId, str], ResolvedKinds] = {}
        # by key of the shared object
        self._real: dict[str, RealStatistics] = {}
        self._parts: dict[_PartKey, _Part] = {}

    def _new_networks(self) -> WorkerNetworks:
        return WorkerNetworks(self._recipe, self._method, self._facts, self._device)

    def measure(
        self,
        team: tuple[tuple[NetworkId, ObjectRef | None, ObjectRef | None], ...],
        shard: ObjectRef,
        lean: bool = False,
    ) -> list[States]:
        """Compute statistics of one shard of the real data by several networks of a group.

        Streamed images are decoded once for all of them; see `Observer.measure`.

        Args:
            team: the networks, each with its trained weights and the `RealBatch` on which
                statistics are resolved, the same for all shards.
            shard: a `RealBatch`.
            lean: omit tensors that are equal for all shards.
        """
        images, labels = shard.get()
        group = team[0][0].group
        settings = self._recipe.network_group(group)
        accumulators = []
        for network_id, weights, first in team:
            observer = self._networks.fixed(network_id, weights, settings.precision)
            augment = self._draws.fixed_augment(network_id)
            draws = partial(self._draws.fixed_frequencies, network_id)
            resolved = None
            if first is not None:
                key = (network_id, first.key)
                if key not in self._resolved:
                    with devices.convolutions(self._device, settings.precision):
                        self._resolved[key] = observer.resolve(
                            first.get(), settings.batch_size, augment
                        )
                resolved = self._resolved[key]
            accumulators.append(StatisticAccumulator(observer, labels, augment, draws, resolved))
        with devices.convolutions(self._device, settings.precision):
            results = measure_together(accumulators, images, settings.batch_size)
        if lean:
            for spec in self._method.specs(group):
                for states in results:
                    for state in states[spec.key]:
                        for name in spec.kind.statistic.constant:
                            # constant tensors, such as frequencies, can be larger than all measured
                            # ones
                            del state[name]
        return results

    def measure_all(
        self,
        network: tuple[NetworkId, ObjectRef | None, ObjectRef | None],
        shards: Sequence[ObjectRef],
    ) -> States:
        """Compute statistics of all shards by one network, merged in order, with rows for all
        classes.

        Args:
            network: as in `measure`.
            shards: each a `RealBatch`.
        """
        specs = self._method.specs(network[0].group)
        states: States | None = None
        for index, shard in enumerate(shards):
            (part,) = self.measure((network,), shard, lean=index > 0)
            labels = torch.tensor(shard.get()[1])
            # on the host, like parts that are sent to the synthesizer, as rounding on a GPU may
            # differ
            states = merged(specs, states, to_host(part), labels, self._facts.classes)
        assert states is not None
        return states

    def measuring(
        self,
        team: tuple[tuple[NetworkId, ObjectRef | None, ObjectRef | None], ...],
        shard: ObjectRef,
        lean: bool = False,
    ) -> Iterator[list[States]]:
        """The result of `measure` as the only event of a stream."""
        yield self.measure(team, shard, lean)

    def measure_alone(
        self,
        network_id: NetworkId,
        weights: ObjectRef | None,
        shard: ObjectRef,
        first: ObjectRef | None = None,
    ) -> States:
        """Statistics of a `RealBatch` by one network, with rows for all classes."""
        return self.measure_all((network_id, weights, first), [shard])

    def record(
        self,
        network_id: NetworkId,
        weights: ObjectRef | None,
        batch: ObjectRef,
        spec: StatisticSpec,
    ) -> tuple[list[str], tuple[Statistic, ...]]:
        """Compute a statistic of images without augmentation; also return the names of its layers.

        Args:
            network_id: the network.
            weights: its trained weights.
            batch: network inputs (N, C, H, W) and class indices (N,).
            spec: which statistic.
        """
        images, labels = batch.get()
        settings = self._recipe.network_group(network_id.group)
        observer = self._networks.fixed(network_id, weights, settings.precision)
        with devices.convolutions(self._device, settings.precision):
            return observer.layers(spec), observer.record(images, labels, spec, settings.batch_size)

    def compute(
        self, task: GradientTask | TrainTask | TrajectoryTask
    ) -> GradientResult | TrainResult | TrajectoryResult:
        """Compute a task of a step: a gradient, or the training of a network of the model pool."""
        with devices.convolutions(self._device, self._recipe.synthesis.precision):
            if isinstance(task, TrajectoryTask):
                return self._match_trajectory(task)
            if isinstance(task, TrainTask):
                return self._model_pool_trainer.train(task, self._training_batches(task))
            return self.gradient(task)

    def _training_batches(self, task: TrainTask) -> Batches:
        """Images on which a network of the model pool is trained."""
        if task.train is None:
            if task.template is None or task.parameters is None:
                raise RuntimeError("A task of the model pool must come with images.")
            replica = self._replicas.get(task.template, "now", task.parameters)
            # decoded once for all steps, as training does not change the images
            made, classes = (tensor.detach() for tensor in replica.batch())

            def synthetic_batch(rows: Tensor) -> tuple[Tensor, Tensor]:
                index = upload(rows, made.device)
                return made[index], classes[index]

            return Batches(len(made), synthetic_batch)
        images, labels = task.train.get()

        def real_batch(rows: Tensor) -> tuple[Tensor, Tensor]:
            # one batch at a time, as the training split need not fit on the device
            pixels = upload(torch.tensor(images[rows.numpy()]), self._device)
            targets = upload(torch.tensor(labels[rows.numpy()]), self._device)
            return self._facts.normalization(pixels), targets

        return Batches(len(labels), real_batch)

    def _match_trajectory(self, task: TrajectoryTask) -> TrajectoryResult:
        if self._trajectory_worker is None:
            objective = self._method.trajectory_objective
            assert objective is not None
            self._trajectory_worker = TrajectoryWorker(
                self._recipe, objective, self._facts.shape, self._facts.classes, self._device
            )
        replica = self._replicas.get(task.template, "now", task.parameters)
        assert isinstance(replica, WithLearnedStepSize)
        return self._trajectory_worker.run(task, replica)

    def summarize(self, task: GradientTask) -> PartSummary:
        """Summarise a part of the images for the gradients of the other parts.

        The forward pass is kept for the gradient of this part, which is usually computed here as
        well.
        """
        with devices.convolutions(self._device, self._recipe.synthesis.precision):
            part = self._forward_part(task)
            # graphs take most of a step's memory, and those of earlier steps are no longer needed
            for key in [key for key in self._parts if key[0] != task.parameters.key]:
                del self._parts[key]
            # graphs are large: beyond this number, recompute the forward pass rather than run out
            # of memory
            if len(self._parts) < KEPT_PARTS:
                self._parts[_part_key(task)] = part
            average = part.average_logits() if self._method.averaging is not None else None
            specs = self._method.specs(task.network_id.group)
            real = self._real_statistics(task, part.observer, None)
            labels = rows_of(part.labels, part.rows)
            context = Context(
                progress=task.step / self._recipe.synthesis.steps,
                block=task.block,
                blocks=task.blocks,
            )
            output = part.output
            for term in self._method.terms_of(task.network_id.group):
                output = term.precise(real, output, context)
            return summary(output, labels, specs, real, average)

    def _forward_part(self, task: GradientTask) -> _Part:
        """Forward the images of a task, or a part of them."""
        replica = self._replicas.get(task.template, "now", task.parameters)
        images, labels = replica.batch()
        rows = ALL if task.parts == 1 else part_of(len(images), task.part, task.parts)
        # drawn for all images even if only a part is forwarded, so that the parts add up to the
        # whole
        view = self._draws.view(task, len(images))
        observer = self._networks.of_task(task)
        specs = self._method.specs(task.network_id.group)
        is_measured = self._recipe.real == "measured" and bool(specs)
        fixed = self._draws.augment_for_all(task.network_id, is_measured)
        if task.parts > 1 and networks.normalizes_by_batch(observer.network):
            raise ConfigError(
                "The network normalises by the batch, so that it needs all images of a step at "
                "once: set 'synthesis.split: 1'."
            )
        # operations by class, which a class's real and synthetic images share
        drawn: dict[int, Sequence[Operation]] = {}
        real_batch = self._real_batch(task, fixed, drawn)
        augment = fixed or self._draws.by_class(task, _classes(labels), drawn)

        def seen(images: Tensor) -> Tensor:
            return view(images) if task.parts == 1 else view(images)[rows]

        def averaged() -> Tensor:
            if task.average is None:
                raise RuntimeError("The task came without a moving average.")
            return seen(self._replicas.get(task.template, "average", task.average).batch()[0])

        @torch.no_grad()
        def average_logits() -> Tensor:
            return observer.logits(augment(averaged(), rows))

        @torch.no_grad()
        def average_observation() -> Observation:
            return observer.forward(averaged(), augment, rows)

        def forward(images: Tensor) -> Observation:
            return observer.forward(seen(images), augment, rows)

        return _Part(
            replica=replica,
            labels=labels,
            rows=rows,
            observer=observer,
            real_batch=real_batch,
            average_logits=average_logits,
            forward=forward,
            average_observation=average_observation,
            output=forward(images),
        )

    def gradient(self, task: GradientTask) -> GradientResult:
        """Compute the terms through one network, and their gradients by the set's parameters."""
        group = task.network_id.group
        # kept by `summarize`, unless that ran on another worker or the part was dropped
        part = self._parts.pop(_part_key(task), None) or self._forward_part(task)
        observer = part.observer
        output = part.output
        average_logits = part.average_logits
        if task.summaries is not None:
            summaries: list[PartSummary] = task.summaries.get()
            output = whole(output, OtherParts(task.part, part.rows, summaries))

            def average_logits() -> Tensor:
                averages = [one.average_logits for one in summaries]
                return torch.cat([upload(one, self._device) for one in averages if one is not None])

        terms = self._method.terms_of(group)
        batch = None
        if part.real_batch is not None and self._method.needs_batch(group):
            size = self._recipe.network_group(group).batch_size
            real_batch = part.real_batch
            batch = observer.batch(real_batch.images, real_batch.labels, size, real_batch.augment)
        # sent with the task rather than kept here, as another worker may have used the network last
        before: Memory = task.memory.get()

        real = self._real_statistics(task, observer, part.real_batch)

        def compared(
            output: Observation, labels: Tensor
        ) -> tuple[Tensor, dict[str, Tensor], Memory]:
            """Loss and terms of an output, and the new memory of the terms."""
            memory: Memory = {}
            for term in terms:
                # checkpoints of earlier versions have the former names of terms
                known = before.get(term.name) or before.get(term.former_name, {})
                memory[term.name] = dict(known)
            contexts = {
                term.name: Context(
                    generator=partial(self._draws.of_step, task),
                    memory=memory[term.name],
                    average_logits=average_logits,
                    average_observation=part.average_observation,
                    accuracy=task.accuracy,
                    progress=task.step / self._recipe.synthesis.steps,
                    step=task.step,
                    block=task.block,
                    blocks=task.blocks,
                    class_counts=self._class_counts,
                    network=observer.network,
                    batch=batch,
                )
                for term in terms
            }
            return *observer.compare_output(real, output, labels, contexts), memory

        names, tensors = zip(*part.replica.named_parameters(), strict=True)
        loss, values, memory = compared(output, part.labels)
        # a learned step size does not affect the images, so its gradient is zero
        gradients = torch.autograd.grad(loss, tensors, materialize_grads=True)
        radius = self._recipe.synthesis.sam_radius
        if radius > 0:
            # sharpness-aware: use the gradient at the worst point nearby, with the same draws
            with moved_uphill(tensors, gradients, radius):
                images, labels = part.replica.batch()
                # its memory is dropped, as memory should be that of the images themselves
                higher, _, _ = compared(part.forward(images), labels)
                gradients = torch.autograd.grad(higher, tensors, materialize_grads=True)
        return GradientResult(
            values={"loss": loss.detach(), **values},
            gradients=dict(zip(names, gradients, strict=True)),
            memory=memory,
        )

    def _real_batch(
        self, task: GradientTask, fixed: Augment | None, drawn: dict[int, Sequence[Operation]]
    ) -> _DeviceBatch | None:
        """The real mini-batch of a task; None if statistics are measured."""
        if task.real is None or self._recipe.real == "measured":
            return None
        pixels, classes = (torch.tensor(array) for array in task.real.get())
        images, labels = send((pixels, classes), self._device)
        known_on_host(labels, classes)
        augment = fixed or self._draws.by_class(task, classes, drawn)
        return _DeviceBatch(self._facts.normalization(images), labels, augment)

    def _real_statistics(
        self, task: GradientTask, observer: Observer, batch: _DeviceBatch | None
    ) -> RealStatistics:
        """Statistics of the real images: measured ones, or those of the mini-batch."""
        group = task.network_id.group
        if task.real is None or not self._method.specs(group):
            return {}
        if batch is None:
            return self._measured_statistics(task.real, group)
        batch_size = self._recipe.network_group(group).batch_size
        draws = partial(self._draws.step_frequencies, task)
        return observer.sample(batch.images, batch.labels, batch_size, batch.augment, draws)

    def _measured_statistics(self, real: ObjectRef, group: NetworkGroup) -> RealStatistics:
        """Measured statistics on the device, in working precision."""
        if real.key not in self._real:
            states: States = real.get()
            statistics = {}
            for spec in self._method.specs(group):
                # to float32 before they reach the device: MPS has no float64
                statistics[spec] = tuple(
                    spec.kind.statistic.from_state(state).to(dtype=torch.float32).to(self._device)
                    for state in states[spec.key]
                )
            # cached by key for all steps, as reading and transferring them takes longer than a step
            self._real[real.key] = statistics
        return self._real[real.key]


def _classes(labels: Tensor) -> Tensor:
    """Classes (N,) of the synthetic images, on the CPU.

    Waits for the device once, or every time if labels are learned.
    """
    if labels.is_floating_point():
        return labels.detach().argmax(1).cpu()
    return on_host(labels)


def _part_key(task: GradientTask) -> _PartKey:
    return task.parameters.key, task.network_id, task.slot, task.part
