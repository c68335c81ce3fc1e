"""An observer: one network with its taps, which looks at real and at synthetic images and says how
they differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
from rayd.methods import Method
from rayd.networks import FeatureExtractor, Observation
from rayd.objectives import Batch, Context, RealStatistics, StatisticSpec
from rayd.statistics import Statistic, StatisticKind
from rayd.statistics.frequencies import evenly_spaced
from rayd.transfer import send, upload

TILE_BYTES = 4 * 2**20
"""Largest map of a forward pass without gradient on the CPU, for each thread: one that a core's
share of the cache holds.
"""
SMALLEST_TILE = 4
"""Images; fewer leave too little work to each layer, and a single one takes other kernels."""
KEPT_SHARE = 4
"""Maps are forwarded in tiles where what is kept of them is at most this part of the largest."""

States = dict[str, list[dict[str, Tensor]]]
"""Statistics as they travel: need key, then layer, then the tensors of the statistic."""
RealBatch = tuple[ImageArray, npt.NDArray[np.int64]]
"""Real images uint8 (N, C, H, W), which may be streamed, and labels (N,)."""


@dataclass(frozen=True)
class DatasetInfo:
    """What a worker knows of the data without having them."""

    shape: ImageShape
    """Shape of an image."""
    class_names: tuple[str, ...]
    """One name per class, in label order."""
    normalization: Normalization
    """From pixels to network input."""
    class_counts: tuple[int, ...] = ()
    """Real training images of each class."""

    @classmethod
    def of(cls, data: ImageData) -> DatasetInfo:
        """The facts of a data set."""
        return cls(
            data.shape, data.class_names, data.normalization, tuple(data.train.counts.tolist())
        )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


Augment = Callable[[Tensor, Rows], Tensor]
"""From normalised images (n, C, H, W), at some rows of a batch, to augmented ones: a fixed draw,
the same at every call.
"""


Lengths = Mapping[StatisticSpec, tuple[StatisticKind, ...]]
"""What `StatisticSpec.resolved` found, one a layer, of needs that look at real images first."""
Draws = Callable[[StatisticSpec], torch.Generator]
"""The generator of a need that draws; the same draws at every call."""


def unchanged(images: Tensor, rows: Rows = ALL) -> Tensor:
    """No augmentation."""
    return images


def no_draws(need: StatisticSpec) -> torch.Generator:
    """For observers of which no need draws."""
    raise RuntimeError(f"No draws were given for the need '{need.key}'.")


class Observer:
    """One frozen network with its taps, on a device, in one precision."""

    def __init__(
        self,
        network: nn.Module,
        method: Method,
        facts: DatasetInfo,
        device: torch.device,
        precision: str,
        group: NetworkGroup = "observers",
    ):
        """Freeze the network and listen to what the terms that look through the panel need."""
        self._dtype = devices.dtype(precision)
        self._method = method
        self._facts = facts
        self._device = device
        self._panel = group
        optional = method.optional_taps(group)
        tapped = FeatureExtractor(
            network.requires_grad_(False), method.taps(group), facts.shape, optional=optional
        )
        self._tapped = tapped.to(device, self._dtype)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.float()  # running statistics need more digits than bfloat16 has
        self._layout = devices.to_device(network, device)
        self._tile = self._tile_size()
        self._neutral: dict[StatisticSpec, tuple[Statistic, ...]] = {}

    def _tile_size(self) -> int | None:
        """Images of a forward pass without gradient on the CPU; None where a batch is better
        forwarded whole.

        Maps that fit into the processor's cache are read from there by the next layer, and memory
        of that size is used again where larger pieces are asked of the operating system each time:
        a ConvNet is twice as fast. What a network says of an image is the same in any company,
        unless it normalises by the batch; maps that are kept need their memory anyway.
        """
        by_batch = self.network.training and networks.uses_batch_statistics(self.network)
        kept = sum(
            math.prod(shape)
            for tap in self._method.taps(self._panel)
            for shape in self._tapped.dimensions(tap)
        )
        if self._device.type != "cpu" or by_batch or KEPT_SHARE * kept > self._tapped.largest:
            return None
        size = self._tapped.largest * self._dtype.itemsize
        return max(SMALLEST_TILE, TILE_BYTES * torch.get_num_threads() // size)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights and buffers of another network of the same architecture, by name; other
        tensors are left out.
        """
        networks.take_over(self.network, state)

    @property
    def network(self) -> nn.Module:
        """The network that looks."""
        return self._tapped.network

    def see(self, images: Tensor, augment: Augment = unchanged, rows: Rows = ALL) -> Observation:
        """Augment and forward normalised images (n, C, H, W), which lie at some rows of a batch."""
        seen = self._forward(self._laid(augment(images, rows)))
        return Observation(seen.logits.float(), seen.taps, seen.images)

    def _forward(self, images: Tensor) -> Observation:
        """Forward network inputs, a few at a time where that is faster; the result is the same to
        the bit.
        """
        return _joined([self._tapped(tile) for tile in self._tiles(images)], images)

    def _tiles(self, images: Tensor) -> Sequence[Tensor]:
        """Images, as few at a time as they are forwarded fastest; see `_tile_size`."""
        if torch.is_grad_enabled() or self._tile is None:
            return (images,)
        # of almost equal sizes: a single image left over would be computed by other kernels
        return torch.tensor_split(images, max(1, len(images) // self._tile))

    def _laid(self, images: Tensor) -> Tensor:
        return images.to(self._dtype).contiguous(memory_format=self._layout)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """What the network says of images as they are, float32 (N, classes)."""
        parts = [self._tapped.network(tile) for tile in self._tiles(self._laid(images))]
        return torch.cat(parts).float()

    def empty(
        self,
        need: StatisticSpec,
        device: torch.device,
        draws: Draws = no_draws,
        lengths: Lengths | None = None,
        classes: int | None = None,
    ) -> tuple[Statistic, ...]:
        """Neutral elements for a need, one a layer; `draws` and `lengths` are for needs that draw
        and that look first.

        They are of so many classes (absent: of all).
        """
        generator = draws(need) if need.draws else None
        rows = self._facts.classes if classes is None else classes
        kinds = need.empty(
            rows, self._tapped.dimensions(need.layer_role), generator, (lengths or {}).get(need)
        )
        return tuple(kind.to(device) for kind in kinds)

    def measure(
        self,
        images: ImageArray,
        labels: npt.NDArray[np.int64],
        batch_size: int,
        augment: Augment = unchanged,
        draws: Draws = no_draws,
        lengths: Lengths | None = None,
    ) -> States:
        """Statistics of real images for every need of the terms, accumulated in float64 over
        batches.

        Their rows are the classes among the labels, in order: what is not there takes no memory and
        does not travel. `StatisticSpec.spread` and `StatisticSpec.add` put them in their places.

        Args:
            images: what is measured.
            labels: their classes.
            batch_size: images of one forward pass.
            augment: through which they are seen.
            draws: the generator of a need that draws, a new one at every call.
            lengths: what needs that look first found, the same for all parts of what is measured.
        """
        (states,) = measure_together(
            [Measuring(self, labels, augment, draws, lengths)], images, batch_size
        )
        return states

    @torch.no_grad()
    def lengths(self, real: RealBatch, batch_size: int, augment: Augment = unchanged) -> Lengths:
        """What the needs that look first find in some real images."""
        images, labels = real
        starts = range(0, len(labels), batch_size) if self._looks_first else ()
        parts = [slice(start, start + batch_size) for start in starts]
        home = torch.device("cpu")
        return self._lengths([self._heard(images[rows], home, augment) for rows in parts])

    def _lengths(self, seen: Sequence[Observation]) -> Lengths:
        return {need: need.resolved(seen) for need in self._looks_first}

    @property
    def _looks_first(self) -> list[StatisticSpec]:
        return [need for need in self._needs if need.looks_first]

    def layers(self, need: StatisticSpec) -> list[str]:
        """The modules that a need listens to."""
        return self._tapped.layers(need.layer_role)

    @torch.no_grad()
    def record(
        self, images: Tensor, labels: Tensor, need: StatisticSpec, batch_size: int
    ) -> tuple[Statistic, ...]:
        """A need's statistics of normalised images (N, C, H, W) as they are, in float64, on the
        CPU.
        """
        statistics = self.empty(need, torch.device("cpu"))
        for some, them in zip(
            torch.split(images, batch_size), torch.split(labels, batch_size), strict=True
        ):
            seen = self.see(some.to(self._device))
            taps = {need.layer_role: tuple(layer.cpu() for layer in seen.taps[need.layer_role])}
            need.update(statistics, Observation(seen.logits, taps, seen.images), them.cpu())
        return statistics

    def _heard(self, images: Pixels, home: torch.device, augment: Augment) -> Observation:
        """What is heard of real images, where statistics are accumulated."""
        inputs = self._facts.normalization(upload(torch.tensor(images), self._device))
        seen = self.see(inputs, augment)
        taps = {tap: tuple(t.to(home) for t in layers) for tap, layers in seen.taps.items()}
        return Observation(seen.logits, taps, seen.images)

    @torch.no_grad()
    def sample(
        self,
        images: Tensor,
        labels: Tensor,
        chunk: int,
        augment: Augment = unchanged,
        draws: Draws = no_draws,
    ) -> RealStatistics:
        """Statistics of one real batch in working precision.

        Networks with batch statistics see the batch whole; others in chunks that bound the memory.
        Needs that look first see images from all over the batch.
        """
        step = len(images) if networks.uses_batch_statistics(self._tapped.network) else chunk
        parts = [slice(start, start + step) for start in range(0, len(images), step)]
        whole = [self.see(images, augment)] if len(parts) == 1 else []
        lengths = self._lengths(whole or list(self._glances(images, step, augment)))
        empty = {need: self._fresh(need, draws, lengths) for need in self._needs}
        total = dict(empty)
        for rows in parts:
            classes = rows_of(labels, rows)
            seen = whole[0] if whole else self.see(images[rows], augment, rows)
            for need in self._needs:
                part = need.of(seen, classes, empty[need])
                total[need] = tuple(a.merge(b) for a, b in zip(total[need], part, strict=True))
        return total

    def _glances(self, images: Tensor, chunk: int, augment: Augment) -> Iterator[Observation]:
        """What is seen of images from all over a batch, where a need looks first."""
        for rows in torch.split(evenly_spaced(len(images)), chunk) if self._looks_first else ():
            yield self.see(images[rows.to(images.device)], augment, rows)

    @torch.no_grad()
    def batch(
        self, images: Tensor, labels: Tensor, chunk: int, augment: Augment = unchanged
    ) -> Batch:
        """One real batch as the network sees it; it is forwarded, as in `sample`, only if a term
        looks.
        """
        inputs = self._laid(augment(images, ALL))
        step = len(images) if networks.uses_batch_statistics(self._tapped.network) else chunk

        @torch.no_grad()
        def look() -> Observation:
            seen = _joined([self._forward(some) for some in torch.split(inputs, step)], inputs)
            return Observation(seen.logits.float(), seen.taps, inputs)

        return Batch(inputs, labels, look)

    def _fresh(self, need: StatisticSpec, draws: Draws, lengths: Lengths) -> tuple[Statistic, ...]:
        """Neutral elements in working precision; those that draw nothing are always the same."""
        if need in self._neutral:
            return self._neutral[need]
        # to float32 first: MPS has no float64
        kinds = [
            kind.to(dtype=torch.float32)
            for kind in self.empty(need, torch.device("cpu"), draws, lengths)
        ]
        states = [kind.state() for kind in kinds]
        sent = iter(send([tensor for state in states for tensor in state.values()], self._device))
        made = tuple(
            kind.from_state({name: next(sent) for name in state})
            for kind, state in zip(kinds, states, strict=True)
        )
        if not need.draws:
            self._neutral[need] = made
        return made

    def compare(
        self,
        real: RealStatistics,
        images: Tensor,
        labels: Tensor,
        contexts: Mapping[str, Context],
        augment: Augment = unchanged,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The panel's part of the objective on synthetic images, and the value of each term;
        differentiable in the images.

        Args:
            real: statistics of the real images.
            images: normalised, (N, C, H, W).
            labels: class indices (N,).
            contexts: of every term, by its name.
            augment: through which the images are seen.
        """
        seen = self.see(images, augment)
        terms = self._method.terms_of(self._panel)
        values = {term.name: term(real, seen, labels, contexts[term.name]) for term in terms}
        loss = torch.stack([self._method.weight(term) * values[term.name] for term in terms]).sum()
        return loss, {name: value.detach() for name, value in values.items()}

    @property
    def _needs(self) -> tuple[StatisticSpec, ...]:
        return self._method.needs(self._panel)


class Measuring:
    """Statistics of real images that an observer is shown batch after batch; see
    `Observer.measure`.
    """

    @torch.no_grad()
    def __init__(
        self,
        observer: Observer,
        labels: npt.NDArray[np.int64],
        augment: Augment = unchanged,
        draws: Draws = no_draws,
        lengths: Lengths | None = None,
    ):
        """Nothing seen yet of images with these labels."""
        # MPS has no float64
        self._home = torch.device("cpu") if observer._device.type == "mps" else observer._device
        self._observer = observer
        self._labels = labels
        self._augment = augment
        there, self._places = np.unique(labels, return_inverse=True)
        self._into = {
            need: observer.empty(need, self._home, draws, lengths, len(there))
            for need in observer._needs
        }

    @torch.no_grad()
    def see(self, rows: slice, images: Pixels) -> None:
        """Add the images at some rows."""
        heard = self._observer._heard(images, self._home, self._augment)
        places = uploaded(torch.tensor(self._places[rows]), self._home)
        for need, statistics in self._into.items():
            need.update(statistics, heard, places)

    def states(self) -> States:
        """What was seen."""
        return {
            need.key: [statistic.state() for statistic in statistics]
            for need, statistics in self._into.items()
        }


def _joined(parts: Sequence[Observation], images: Tensor) -> Observation:
    """What a network says about images that it was shown in parts."""
    if len(parts) == 1:
        return Observation(parts[0].logits, parts[0].taps, images)
    layers = {tap: zip(*(part.taps[tap] for part in parts), strict=True) for tap in parts[0].taps}
    taps = {tap: tuple(torch.cat(pieces) for pieces in heard) for tap, heard in layers.items()}
    return Observation(torch.cat([part.logits for part in parts]), taps, images)


def measure_together(
    team: Sequence[Measuring], images: ImageArray, batch_size: int
) -> list[States]:
    """What each of a team sees of images, of which every batch is decoded once."""
    slices = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    for rows, decoded in batches(images, slices):
        for one in team:
            one.see(rows, decoded)
    return [one.states() for one in team]
