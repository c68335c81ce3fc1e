"""The networks of a worker, which are built when a task first needs them, and cached.

The recipe determines the kind of network that a task uses:

    fixed       random or trained, the same in all steps (`real: measured`, trained observers,
                classifiers); where weights climb, another one for each block
    pooled      of the model pool, with the weights that it has at the step
    fresh       random, of one step alone
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from rayd import networks, seeding, synthetic
from rayd.config import NetworkGroup, NetworkSettings, Recipe
from rayd.engine.ascent import climb
from rayd.engine.gradients.feature_matching import GradientTask
from rayd.engine.gradients.model_pool import initial_seed
from rayd.engine.network_ids import NetworkId
from rayd.engine.observer import DatasetInfo, Observer
from rayd.engine.pool import ObjectRef
from rayd.methods import Method


class WorkerNetworks:
    """Builds and caches networks.

    Args:
        recipe: the run.
        method: the run's method.
        facts: properties of the data.
        device: where networks compute.
    """

    def __init__(self, recipe: Recipe, method: Method, facts: DatasetInfo, device: torch.device):
        self._recipe = recipe
        self._method = method
        self._facts = facts
        self._device = device
        # by network and precision
        self._fixed: dict[tuple[NetworkId, str], Observer] = {}
        # networks with trained weights, if those in `_fixed` are interpolated
        self._trained: dict[NetworkId, Observer] = {}
        # with the key of the block on whose images the weights climbed
        self._climbed: dict[NetworkId, tuple[str, Observer]] = {}
        # one network per architecture, with the key of its current weights
        self._reloaded: dict[tuple[NetworkGroup, NetworkSettings], tuple[str, Observer]] = {}

    def of_task(self, task: GradientTask) -> Observer:
        """The network that computes a gradient."""
        network_id = task.network_id
        if (
            network_id.group == "classifiers"
            or self._recipe.real == "measured"
            or self._recipe.observers.trained
        ):
            return self._matching(task)
        if self._recipe.observers.model_pool is not None:
            return self._pooled(network_id, task.weights)
        # seeded by step and slot, so that a repeated task gets the same network on any worker
        seed = seeding.derive(self._recipe.seed, "fresh observer", task.step, task.slot)
        return self._reload(network_id, str(seed), lambda: self._untrained(network_id, seed))

    def fixed(self, network_id: NetworkId, weights: ObjectRef | None, precision: str) -> Observer:
        """A fixed network, built when it is first needed in a precision.

        Args:
            network_id: which network.
            weights: its trained weights; None leaves the initial ones.
            precision: of its computation.
        """
        if (network_id, precision) not in self._fixed:
            initial = 0.0
            if weights is not None and self._recipe.network_group(network_id.group).interpolate:
                initial = self._interpolation(network_id)
            network = self.build(network_id, weights, initial)
            self._fixed[network_id, precision] = self._observer(
                network, precision, network_id.group
            )
        return self._fixed[network_id, precision]

    def trained(self, network_id: NetworkId, weights: ObjectRef) -> Observer:
        """A network with its trained weights, in float32, even if observers are interpolated."""
        if not self._recipe.network_group(network_id.group).interpolate:
            return self.fixed(network_id, weights, "float32")
        if network_id not in self._trained:
            network = self.build(network_id, weights)
            self._trained[network_id] = self._observer(network, "float32", network_id.group)
        return self._trained[network_id]

    def _matching(self, task: GradientTask) -> Observer:
        """The fixed network of a task; if weights climb, that of the task's block."""
        network_id = task.network_id
        precision = self._recipe.synthesis.precision
        settings = self._recipe.observers
        if network_id.group != "observers" or settings.ascent_steps == 0:
            return self.fixed(network_id, task.weights, precision)
        block, observer = self._climbed.get(network_id, ("", None))
        if observer is None or block != task.template.key:
            network = self.build(network_id, task.weights).to(self._device)
            first = synthetic.restore(self._recipe.synthetic, task.template.get())
            images, labels = (tensor.detach() for tensor in first.to(self._device).batch())
            # on the initial images of the block, as in DWA; weights are then fixed for all of its
            # steps
            climb(network, images, labels, settings.ascent_steps, settings.ascent_length)
            observer = self._observer(network, precision, network_id.group)
            # a worker computes one block at a time
            self._climbed[network_id] = task.template.key, observer
        return observer

    def _pooled(self, network_id: NetworkId, weights: ObjectRef | None) -> Observer:
        """A network of the model pool."""
        seed = initial_seed(self._recipe, network_id)
        key = weights.key if weights is not None else network_id.label
        return self._reload(
            network_id, key, lambda: self.build(network_id, weights, seed=seed), weights
        )

    def _reload(
        self,
        network_id: NetworkId,
        key: str,
        build: Callable[[], nn.Module],
        weights: ObjectRef | None = None,
    ) -> Observer:
        """An observer that is cached by architecture, and loaded with new weights in every step.

        Args:
            network_id: which network.
            key: key of the weights, which are not reloaded while it is the same.
            build: builds the network with these weights, on the CPU.
            weights: its state, where that is known without building it.
        """
        kind = network_id.group, network_id.architecture
        if kind not in self._reloaded:
            observer = self._observer(build(), self._recipe.synthesis.precision, network_id.group)
            self._reloaded[kind] = key, observer
        known, observer = self._reloaded[kind]
        if known != key:
            # into the existing network, to keep its hooks, layout and memory
            observer.load(weights.get() if weights is not None else build().state_dict())
            self._reloaded[kind] = key, observer
        return observer

    def _untrained(self, network_id: NetworkId, seed: int) -> nn.Module:
        """A network with random weights, on the CPU, in evaluation mode except that batch
        normalisation uses batch statistics.
        """
        network = networks.build(
            network_id.architecture, self._facts.shape, self._facts.classes, seed=seed
        )
        # running statistics of an untrained network are meaningless; dropout would draw from the
        # global generator, so that results would differ between workers
        return networks.normalize_by_batch(network)

    def _interpolation(self, network_id: NetworkId) -> float:
        """Position of a network between its trained weights, 0, and its initial ones, 1."""
        seed = self._recipe.network_group(network_id.group).seed
        draws = seeding.generator(
            seed, f"interpolation {network_id.architecture.label}", network_id.index
        )
        return float(torch.rand((), generator=draws))

    def build(
        self,
        network_id: NetworkId,
        weights: ObjectRef | None,
        initial: float = 0.0,
        seed: int | None = None,
    ) -> nn.Module:
        """A network in evaluation mode, on the CPU.

        Args:
            network_id: which network.
            weights: its trained weights; None leaves the initial ones.
            initial: share of the initial weights in a linear interpolation.
            seed: of the initial weights; None uses the network's own.
        """
        network = networks.build(
            network_id.architecture,
            self._facts.shape,
            self._facts.classes,
            seed=network_id.seed(self._recipe) if seed is None else seed,
        )
        if weights is not None:
            state = weights.get()
            before = {name: value.clone() for name, value in network.state_dict().items()}
            # by the names of this network, as states of the model pool also contain the optimizer's
            # momentum
            networks.restore(network, {name: state[name] for name in before})
            if initial > 0:
                with torch.no_grad():
                    for name, parameter in network.named_parameters():
                        # only parameters; buffers are those of the trained network, which normalise
                        # its features
                        parameter.lerp_(before[name], initial)
        # without batch statistics, training mode would only enable dropout, which a fixed observer
        # must not have
        return network.eval()

    def _observer(self, network: nn.Module, precision: str, group: NetworkGroup) -> Observer:
        return Observer(network, self._method, self._facts, self._device, precision, group)
