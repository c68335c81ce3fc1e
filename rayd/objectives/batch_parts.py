"""A batch of synthetic images whose parts are forwarded separately, possibly on different workers.

The network processes every image independently, so a term can be computed for each part as if it
had the whole batch: with the graph of the part's own images, and constants from the others. The sum
of the parts' gradients is the gradient of the whole batch. Logits and features are small and are
shared directly. For other layers, parts share the statistics that terms compare: they are sums over
images, so the parts' statistics, merged in the order of the parts, are those of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rayd.networks import LayerRole, Observation
from rayd.objectives.specification import StatisticSpec
from rayd.statistics import Moments, SampleMoments, Statistic
from rayd.transfer import upload


class PartSummary(NamedTuple):
    """Tensors of a part's images that terms need, detached."""

    logits: Tensor
    """Logits (n, classes)."""
    average_logits: Tensor | None
    """Logits of the moving average of the images, if a term needs them."""
    features: list[Tensor]
    """The features, if a term reads them: one tensor (n, d)."""
    statistics: dict[str, list[dict[str, Tensor]]]
    """Moments of every image, or the statistic of the part, by the key of the spec and by layer."""


@dataclass(frozen=True)
class OtherParts:
    """The other parts of a batch, for terms that are computed in one of them."""

    index: int
    """Index of this part."""
    rows: slice
    """Its images."""
    summaries: Sequence[PartSummary]
    """Summaries of all parts."""

    def joined(self, own: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Rows of the whole batch; those of this part keep their graph."""
        pieces = [upload(part, own.device).to(own.dtype) for part in parts]
        pieces[self.index] = own
        return torch.cat(pieces)

    def samples(self, spec: StatisticSpec, layer: int, own: SampleMoments) -> SampleMoments:
        """Moments of all images of the batch in a layer."""
        theirs = [summary.statistics[spec.key][layer] for summary in self.summaries]
        return SampleMoments(
            self.joined(own.mean, [part["mean"] for part in theirs]),
            self.joined(own.m2, [part["m2"] for part in theirs]),
            own.size,
        )

    def merged(self, spec: StatisticSpec, layer: int, own: Statistic) -> Statistic:
        """The statistic of the whole batch in a layer."""
        whole: Statistic | None = None
        for index, summary in enumerate(self.summaries):
            part = own
            if index != self.index:
                state = summary.statistics[spec.key][layer]
                part = type(own).from_state(_like(state, own.state()))
            whole = part if whole is None else whole.merge(part)
        assert whole is not None
        return whole


def part_of(images: int, part: int, parts: int) -> slice:
    """The rows of a part; sizes of parts differ by at most one image."""
    return slice(images * part // parts, images * (part + 1) // parts)


def whole(seen: Observation, others: OtherParts) -> Observation:
    """A network's output on a part, completed to that on the whole batch by those of the other
    parts.

    Logits and features get the rows of the other parts; for other layers, terms use the statistics
    of the whole batch (`Observation.others`).
    """
    logits = others.joined(seen.logits, [one.logits for one in others.summaries])
    layers = dict(seen.layers)
    if LayerRole.FEATURES in layers:
        (own,) = layers[LayerRole.FEATURES]
        features = [one.features[0] for one in others.summaries]
        layers[LayerRole.FEATURES] = (others.joined(own, features),)
    return replace(seen, logits=logits, layers=layers, others=others)


def summary(
    seen: Observation,
    labels: Tensor,
    specs: Sequence[StatisticSpec],
    real: Mapping[StatisticSpec, tuple[Statistic, ...]],
    average_logits: Tensor | None,
) -> PartSummary:
    """Summary of a part for the other parts.

    Args:
        seen: the network's output on the part's images.
        labels: their class indices (n,).
        specs: the statistics that terms compare.
        real: statistics of the real images, which determine classes and frequencies.
        average_logits: logits of the moving average of the images.
    """
    statistics = {}
    for spec in specs:
        if spec.layer_role != LayerRole.FEATURES:
            statistics[spec.key] = _states(seen, labels, spec, real[spec])
    features = [layer.detach() for layer in seen.layers.get(LayerRole.FEATURES, ())]
    return PartSummary(seen.logits.detach(), average_logits, features, statistics)


def _states(
    seen: Observation, labels: Tensor, spec: StatisticSpec, like: tuple[Statistic, ...]
) -> list[dict[str, Tensor]]:
    """Moments of every image, if these suffice for the statistic, or the statistic itself."""
    states = []
    if spec.kind.statistic is Moments:
        for maps in seen.layers[spec.layer_role]:
            mean, m2, _ = spec.transform.moments(maps)
            states.append({"mean": mean.detach(), "m2": m2.detach()})
        return states
    for statistic in spec.of(seen, labels, like):
        # constant fields, such as frequencies, need not be shared
        state = statistic.state()
        states.append({name: state[name].detach() for name in state.keys() - statistic.constant})
    return states


def _like(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move a statistic's tensors to the device and precision of this part's."""
    return {
        name: upload(state[name], tensor.device).to(tensor.dtype) if name in state else tensor
        for name, tensor in own.items()
    }
