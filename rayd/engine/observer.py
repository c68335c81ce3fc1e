"""A frozen network with hooks: statistics of real images, and the loss of synthetic ones.

The tasks of a worker, which hosts several observers, are in `rayd.engine.observer_tasks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rayd import devices, networks
from rayd.config import NetworkGroup
from rayd.data import ImageData, ImageShape, Normalization
from rayd.data.augmentation import ALL, Rows
from rayd.data.images import ImageArray, Pixels
from rayd.data.streaming import batches
from rayd.derived import rows_of, uploaded
from rayd.errors import RunError
from rayd.methods import Method
from rayd.networks import FeatureExtractor, Observation
from rayd.objectives import Batch, Context, RealStatistics, StatisticSpec
from rayd.statistics import Statistic, StatisticKind
from rayd.statistics.frequencies import evenly_spaced
from rayd.transfer import send, upload

TILE_BYTES = 4 * 2**20
"""Bytes per thread of the largest map of a forward pass without gradient on the CPU: a core's share
of the cache.
"""
SMALLEST_TILE = 4
"""Minimum number of images per tile; fewer leave too little work per layer, and a single one uses
other kernels.
"""
KEPT_SHARE = 4
"""Images are forwarded in tiles if the recorded maps are at most this fraction of the largest."""

States = dict[str, list[dict[str, Tensor]]]
"""Serialised statistics: key of the spec, then layer, then the tensors of the statistic."""
RealBatch = tuple[ImageArray, npt.NDArray[np.int64]]
"""Real images uint8 (N, C, H, W), which may be streamed, and labels (N,)."""


@dataclass(frozen=True)
class DatasetInfo:
    """Properties of a data set that workers need without its images."""

    shape: ImageShape
    """Shape of an image."""
    class_names: tuple[str, ...]
    """One name per class, in label order."""
    normalization: Normalization
    """Map from pixels to network input."""
    class_counts: tuple[int, ...] = ()
    """Number of real training images of each class."""

    @classmethod
    def of(cls, data: ImageData) -> DatasetInfo:
        """The properties of a data set."""
        return cls(
            shape=data.shape,
            class_names=data.class_names,
            normalization=data.normalization,
            class_counts=tuple(data.train.counts.tolist()),
        )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


Augment = Callable[[Tensor, Rows], Tensor]
"""Augments normalised images (n, C, H, W) at some rows of a batch; the draw is fixed."""


ResolvedKinds = Mapping[StatisticSpec, tuple[StatisticKind, ...]]
"""Kinds of statistics with arguments resolved on real images, one per layer."""
Draws = Callable[[StatisticSpec], torch.Generator]
"""The generator of a spec with random frequencies; the same draws at every call."""


def unchanged(images: Tensor, rows: Rows = ALL) -> Tensor:
    """No augmentation."""
    return images


def no_draws(spec: StatisticSpec) -> torch.Generator:
    """The default `Draws`, for observers without random frequencies."""
    raise RuntimeError(f"No draws were given for the statistic '{spec.key}'.")


class Observer:
    """A frozen network with hooks, on a device, in one precision.

    Args:
        network: frozen and moved to the device.
        method: its terms determine the layers and statistics that are recorded.
        info: properties of the data.
        device: where to compute.
        precision: of the forward pass.
        group: the network group that the observer belongs to.
    """

    def __init__(
        self,
        network: nn.Module,
        method: Method,
        info: DatasetInfo,
        device: torch.device,
        precision: str,
        group: NetworkGroup = "observers",
    ):
        self._dtype = devices.dtype(precision)
        self._method = method
        self._info = info
        self._device = device
        self._group = group
        optional = method.optional_layer_roles(group)
        extractor = FeatureExtractor(
            network.requires_grad_(False), method.layer_roles(group), info.shape, optional=optional
        )
        # weights are in the precision of the forward pass as well, or autocast would convert them
        # in every step
        self._extractor = extractor.to(device, self._dtype)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.float()  # running statistics need more precision than bfloat16
        self._layout = devices.to_device(network, device)
        self._tile = self._tile_size()
        self._neutral: dict[StatisticSpec, tuple[Statistic, ...]] = {}

    def _tile_size(self) -> int | None:
        """Number of images per forward pass without gradient on the CPU; None to forward whole
        batches.

        Maps that fit into the processor's cache are read from it by the next layer, and their
        memory is reused, while larger blocks are requested from the operating system each time.
        That makes a ConvNet twice as fast. The output for an image does not depend on the others,
        unless the network normalises by the batch; recorded maps need their memory in any case.
        """
        by_batch = networks.normalizes_by_batch(self.network)
        recorded = 0
        for role in self._method.layer_roles(self._group):
            for shape in self._extractor.dimensions(role):
                recorded += math.prod(shape)
        largest = self._extractor.largest
        if self._device.type != "cpu" or by_batch or KEPT_SHARE * recorded > largest:
            return None
        size = largest * self._dtype.itemsize
        return max(SMALLEST_TILE, TILE_BYTES * torch.get_num_threads() // size)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load weights and buffers of the same architecture by name; other tensors are ignored."""
        networks.take_over(self.network, state)

    @property
    def network(self) -> nn.Module:
        """The network without hooks."""
        return self._extractor.network

    def forward(
        self, images: Tensor, augment: Augment = unchanged, rows: Rows = ALL
    ) -> Observation:
        """Augment and forward normalised images (n, C, H, W) at some rows of a batch."""
        # augmented in the precision of the images, as positions need more precision than bfloat16
        output = self._forward(self._laid_out(augment(images, rows)))
        # losses exponentiate logits, which needs more precision than bfloat16
        return Observation(output.logits.float(), output.layers, output.images)

    def _forward(self, images: Tensor) -> Observation:
        """Forward network inputs, in tiles if that is faster; results are bit-identical."""
        return _joined([self._extractor(tile) for tile in self._tiles(images)], images)

    def _tiles(self, images: Tensor) -> Sequence[Tensor]:
        """Images in the tiles in which they are forwarded; see `_tile_size`."""
        if torch.is_grad_enabled() or self._tile is None:
            return (images,)
        # of almost equal sizes, as a single remaining image would be computed by different kernels
        return torch.tensor_split(images, max(1, len(images) // self._tile))

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.to(self._dtype).contiguous(memory_format=self._layout)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits of network inputs, float32 (N, classes), without augmentation."""
        tiles = self._tiles(self._laid_out(images))
        return torch.cat([self._extractor.network(tile) for tile in tiles]).float()

    def empty(
        self,
        spec: StatisticSpec,
        device: torch.device,
        draws: Draws = no_draws,
        resolved: ResolvedKinds | None = None,
        classes: int | None = None,
    ) -> tuple[Statistic, ...]:
        """Neutral elements of a statistic, one per layer.

        Args:
            spec: the statistic.
            device: device of the tensors.
            draws: generators of random frequencies.
            resolved: kinds that were resolved on real images.
            classes: number of rows; None for all classes.
        """
        generator = draws(spec) if spec.draws else None
        rows = self._info.classes if classes is None else classes
        kinds = (resolved or {}).get(spec)
        dimensions = self._extractor.dimensions(spec.layer_role)
        layers = spec.empty(rows, dimensions, generator, kinds)
        return tuple(layer.to(device) for layer in layers)

    def measure(
        self,
        images: ImageArray,
        labels: npt.NDArray[np.int64],
        batch_size: int,
        augment: Augment = unchanged,
        draws: Draws = no_draws,
        resolved: ResolvedKinds | None = None,
    ) -> States:
        """Compute the statistics of real images for all terms, accumulated in float64 over batches.

        Rows correspond to the classes present in `labels`, sorted; absent classes are omitted to
        save memory and bandwidth. `StatisticSpec.spread` and `StatisticSpec.add` restore them.

        Args:
            images: real images.
            labels: their classes.
            batch_size: images of one forward pass.
            augment: the augmentation of the images.
            draws: generators of random frequencies, a new one at every call.
            resolved: kinds resolved on real images, equal for all parts that are merged.
        """
        accumulator = StatisticAccumulator(self, labels, augment, draws, resolved)
        (states,) = measure_together([accumulator], images, batch_size)
        return states

    @torch.no_grad()
    def resolve(
        self, real: RealBatch, batch_size: int, augment: Augment = unchanged
    ) -> ResolvedKinds:
        """Determine arguments of statistics that depend on real images, e.g. median lengths."""
        images, labels = real
        parts = []
        if self._deferred_specs:
            for start in range(0, len(labels), batch_size):
                rows = slice(start, start + batch_size)
                parts.append(self._forward_real(images[rows], torch.device("cpu"), augment))
        return self._resolved(parts)

    def _resolved(self, outputs: Sequence[Observation]) -> ResolvedKinds:
        return {spec: spec.resolved(outputs) for spec in self._deferred_specs}

    @property
    def _deferred_specs(self) -> list[StatisticSpec]:
        return [spec for spec in self._specs if spec.data_dependent]

    def layers(self, spec: StatisticSpec) -> list[str]:
        """Names of the modules whose activations a statistic uses."""
        return self._extractor.layers(spec.layer_role)

    @torch.no_grad()
    def record(
        self, images: Tensor, labels: Tensor, spec: StatisticSpec, batch_size: int
    ) -> tuple[Statistic, ...]:
        """Compute a statistic of normalised images (N, C, H, W), in float64 on the CPU."""
        statistics = self.empty(spec, torch.device("cpu"))
        pieces = torch.split(images, batch_size)
        for batch, classes in zip(pieces, torch.split(labels, batch_size), strict=True):
            output = self.forward(batch.to(self._device))
            maps = tuple(layer.cpu() for layer in output.layers[spec.layer_role])
            seen = Observation(output.logits, {spec.layer_role: maps}, output.images)
            spec.update(statistics, seen, classes.cpu())
        return statistics

    def _forward_real(self, images: Pixels, home: torch.device, augment: Augment) -> Observation:
        """Forward pixels; recorded layers are moved to the device of their statistics."""
        inputs = self._info.normalization(upload(torch.tensor(images), self._device))
        output = self.forward(inputs, augment)
        # before they are summed, as statistics are accumulated in float64, which MPS lacks
        moved = {}
        for role, layers in output.layers.items():
            moved[role] = tuple(maps.to(home) for maps in layers)
        return Observation(output.logits, moved, output.images)

    @torch.no_grad()
    def sample(
        self,
        images: Tensor,
        labels: Tensor,
        chunk: int,
        augment: Augment = unchanged,
        draws: Draws = no_draws,
    ) -> RealStatistics:
        """Compute the statistics of one real batch in working precision.

        Networks with batch statistics forward the batch whole; others in chunks that bound the
        memory. Kinds are resolved on images spread evenly over the batch.
        """
        step = len(images) if networks.uses_batch_statistics(self._extractor.network) else chunk
        parts = [slice(start, start + step) for start in range(0, len(images), step)]
        whole = [self.forward(images, augment)] if len(parts) == 1 else []
        resolved = self._resolved(whole or list(self._preview(images, step, augment)))
        empty = {spec: self._fresh(spec, draws, resolved) for spec in self._specs}
        total = dict(empty)
        for rows in parts:
            classes = rows_of(labels, rows)
            output = whole[0] if whole else self.forward(images[rows], augment, rows)
            for spec in self._specs:
                part = spec.of(output, classes, empty[spec])
                # a left fold in the order of the chunks, as over shards
                total[spec] = tuple(a.merge(b) for a, b in zip(total[spec], part, strict=True))
        return total

    def _preview(self, images: Tensor, chunk: int, augment: Augment) -> Iterator[Observation]:
        """Forward images spread evenly over a batch, if kinds have to be resolved."""
        if not self._deferred_specs:
            return
        for rows in torch.split(evenly_spaced(len(images)), chunk):
            yield self.forward(images[rows.to(images.device)], augment, rows)

    @torch.no_grad()
    def batch(
        self, images: Tensor, labels: Tensor, chunk: int, augment: Augment = unchanged
    ) -> Batch:
        """One real batch as network input; forwarded, as in `sample`, only on demand."""
        inputs = self._laid_out(augment(images, ALL))
        step = len(images) if networks.uses_batch_statistics(self._extractor.network) else chunk

        @torch.no_grad()
        def forward() -> Observation:
            output = _joined([self._forward(part) for part in torch.split(inputs, step)], inputs)
            return Observation(output.logits.float(), output.layers, inputs)

        return Batch(inputs, labels, forward)

    def _fresh(
        self, spec: StatisticSpec, draws: Draws, resolved: ResolvedKinds
    ) -> tuple[Statistic, ...]:
        """Neutral elements in working precision; cached unless their frequencies are random."""
        if spec in self._neutral:
            return self._neutral[spec]
        # to float32 before the transfer, as MPS has no float64
        layers = [
            layer.to(dtype=torch.float32)
            for layer in self.empty(spec, torch.device("cpu"), draws, resolved)
        ]
        states = [layer.state() for layer in layers]
        # one transfer for the tensors of all layers
        sent = iter(send([tensor for state in states for tensor in state.values()], self._device))
        made = []
        for layer, state in zip(layers, states, strict=True):
            on_device = {name: next(sent) for name in state}
            made.append(layer.from_state(on_device))
        neutral = tuple(made)
        if not spec.draws:
            self._neutral[spec] = neutral
        return neutral

    def compare(
        self,
        real: RealStatistics,
        images: Tensor,
        labels: Tensor,
        contexts: Mapping[str, Context],
        augment: Augment = unchanged,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the group's part of the objective on synthetic images, and the value of each
        term.

        The former is differentiable with respect to the images.

        Args:
            real: statistics of the real images.
            images: normalised, (N, C, H, W).
            labels: class indices (N,).
            contexts: by the name of the term.
            augment: the augmentation of the images.
        """
        return self.compare_output(real, self.forward(images, augment), labels, contexts)

    def compare_output(
        self,
        real: RealStatistics,
        output: Observation,
        labels: Tensor,
        contexts: Mapping[str, Context],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same for images that were forwarded."""
        terms = self._method.terms_of(self._group)
        values = {}
        # torch counts in-place changes of a tensor, except for inference tensors
        is_counted = not output.images.is_inference()
        changes = output.images._version if is_counted else 0
        for term in terms:
            value = term(real, output, labels, contexts[term.name])
            values[term.name] = _scalar(value, term.name)
            if is_counted and output.images._version != changes:
                raise RunError(
                    f"Term '{term.name}' changed 'seen.images', which other terms read: it must "
                    "compute with a copy, 'seen.images.clone()'."
                )
        loss = torch.stack([self._method.weight(term) * values[term.name] for term in terms]).sum()
        if torch.is_grad_enabled() and output.images.requires_grad and not loss.requires_grad:
            names = " and ".join(f"'{name}'" for name in values)
            raise RunError(
                f"No term has a gradient for the images: {names} must not detach them, and must "
                "compute with torch."
            )
        return loss, {name: value.detach() for name, value in values.items()}

    @property
    def _specs(self) -> tuple[StatisticSpec, ...]:
        return self._method.specs(self._group)


def _scalar(value: Any, term: str) -> Tensor:
    """Check the value of a term, which must be a scalar tensor.

    Raises:
        RunError: it is something else, which terms from outside the package may return.
    """
    if isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point():
        return value
    got = type(value).__name__
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        got = f"a tensor {kind} {tuple(value.shape)}"
    raise RunError(
        f"Term '{term}' must return a scalar, a tensor without dimensions of floating-point numbers. "
        f"Got {got} instead."
    )


class StatisticAccumulator:
    """Accumulates an observer's statistics of real images, batch by batch.

    Args:
        observer: computes the features.
        labels: classes of all images that will be added.
        augment: the augmentation of the images.
        draws: generators of random frequencies.
        resolved: kinds that were resolved on real images.
    """

    @torch.no_grad()
    def __init__(
        self,
        observer: Observer,
        labels: npt.NDArray[np.int64],
        augment: Augment = unchanged,
        draws: Draws = no_draws,
        resolved: ResolvedKinds | None = None,
    ):
        # MPS has no float64
        self._home = torch.device("cpu") if observer._device.type == "mps" else observer._device
        self._observer = observer
        self._augment = augment
        # rows of the statistics are the classes that are present
        present, self._rows = np.unique(labels, return_inverse=True)
        self._statistics = {
            spec: observer.empty(spec, self._home, draws, resolved, len(present))
            for spec in observer._specs
        }

    @torch.no_grad()
    def update(self, rows: slice, images: Pixels) -> None:
        """Add the images at some rows."""
        output = self._observer._forward_real(images, self._home, self._augment)
        targets = uploaded(torch.tensor(self._rows[rows]), self._home)
        for spec, statistics in self._statistics.items():
            spec.update(statistics, output, targets)

    def states(self) -> States:
        """The accumulated statistics."""
        states = {}
        for spec, statistics in self._statistics.items():
            states[spec.key] = [statistic.state() for statistic in statistics]
        return states


def _joined(parts: Sequence[Observation], images: Tensor) -> Observation:
    """Concatenate the outputs for images that were forwarded in parts."""
    if len(parts) == 1:
        return Observation(parts[0].logits, parts[0].layers, images)
    joined = {}
    for role in parts[0].layers:
        layers = zip(*(part.layers[role] for part in parts), strict=True)
        joined[role] = tuple(torch.cat(pieces) for pieces in layers)
    return Observation(torch.cat([part.logits for part in parts]), joined, images)


def measure_together(
    accumulators: Sequence[StatisticAccumulator], images: ImageArray, batch_size: int
) -> list[States]:
    """Compute statistics of the same images by several observers, decoding every batch once."""
    slices = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    for rows, decoded in batches(images, slices):
        # batch by batch through all observers, so that each batch is decoded only once
        for accumulator in accumulators:
            accumulator.update(rows, decoded)
    return [accumulator.states() for accumulator in accumulators]
