"""Time of a step of CFM, as ratios within one run: against matching plain moments, and against
solving by LU.

    python -m benchmarks.cfm [--data cifar10] [--network resnet18] [--rounds 5]

Both references run in the same engine, with the same observer, images, views and optimizer. The
first matches means and variances of the inputs of batch normalisations (SRe2L). The second is a
straightforward implementation of spectral matching, as in the released code: layer by layer, with
`torch.linalg.solve` for both sides in every step, and autograd for the synthetic one; its
statistics and its measured real side are those of CFM.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.decoupled import initial_weights
from benchmarks.timing import ENDLESS, Steps, compare, in_process, rate
from rayd import methods, networks
from rayd.config import Recipe, merge
from rayd.data import ImageData, load
from rayd.engine.observer import DatasetInfo, Observer
from rayd.methods.cfm import CurriculumFrequencyMatching
from rayd.networks import FeatureExtractor, Observation
from rayd.objectives import (
    Context,
    CrossEntropy,
    CurriculumFilterMatching,
    RealStatistics,
    SpectralFilterDistance,
    SpectralFilterMatching,
    StatisticSpec,
    Term,
)
from rayd.recipes import assemble
from rayd.statistics import Covariance, LabelCorrelation, Statistic

STEPS = 2


class SolvedByLU(SpectralFilterDistance):
    """The same value, solving for both sides in every call."""

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Distances of inverses and of their products with the signals."""
        beta = cast(Any, self.filters(context).matrix).beta
        assert self._signals is not None
        matrices, signals = self._synthetic(real, seen, labels, context.class_counts)
        theirs = [one.covariance[0] for one in cast(tuple[Covariance, ...], real[self.matrices])]
        known = [one.correlation for one in cast(tuple[LabelCorrelation, ...], real[self._signals])]
        parts = []
        for their, signal, our, own in zip(theirs, known, matrices, signals, strict=True):
            one = torch.eye(len(our), dtype=our.dtype, device=our.device)
            parts.append(
                torch.linalg.norm(
                    torch.linalg.solve(our + beta * one, one)
                    - torch.linalg.solve(their + beta * one, one)
                )
            )
            filtered = [
                torch.linalg.solve(c + beta * one, s.to(c.dtype).T)
                for c, s in ((our, own), (their, signal))
            ]
            parts.append(torch.linalg.norm(filtered[0] - filtered[1]))
        return torch.stack(parts).sum()


class MatchedByLU(CurriculumFilterMatching):
    """CFM's term without caching between steps."""

    name = "spectral_filter"

    @cached_property
    def distance(self) -> SpectralFilterDistance:
        """Without means over blocks."""
        return SolvedByLU(self.filters)


class MatchingByLU(CurriculumFrequencyMatching):
    """CFM's objective without caching between steps."""

    name = "cfm-by-lu"

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """The same two terms."""
        return CrossEntropy(), MatchedByLU()


def recipe(method: str, data: str, network: str) -> Recipe:
    """One block of an image of each class; only the objective differs."""
    base = {
        "method": method,
        "data": {"name": data},
        "ipc": 1,
        "observers": {
            "networks": [{"name": network, "norm": "batch"} if network == "convnet" else network]
        },
        "resources": {"threads": 1},
    }
    shared = recipe("cfm", data, network).synthesis.model_dump() if method != "cfm" else {}
    never = {**ENDLESS, "block": None, "schedule": "constant"}
    return assemble(merge(base, {"synthesis": merge(shared, never)}))


class Matching:
    """The spectral term alone, forward and backward, on a fixed output of an observer."""

    def __init__(self, chosen: Recipe, data: ImageData):
        method = methods.build(chosen)
        facts = DatasetInfo.of(data)
        network = networks.build(
            chosen.observers.networks[0], data.shape, data.classes, seed=1
        ).eval()
        states = Observer(network, method, facts, torch.device("cpu"), "float32").measure(
            data.train.images, data.train.labels, batch_size=50
        )
        self._real: dict[StatisticSpec, tuple[Statistic, ...]] = {}
        for spec in method.specs():
            measured = (spec.kind.statistic.from_state(state) for state in states[spec.key])
            self._real[spec] = tuple(one.to(dtype=torch.float32) for one in measured)
        self._labels = torch.arange(data.classes)
        images = facts.normalization(torch.from_numpy(data.train.images[: data.classes]))
        seen = FeatureExtractor(network, method.layer_roles(), data.shape)(images)
        layers = {}
        self._features: list[Tensor] = []
        for role, tensors in seen.layers.items():
            layers[role] = tuple(tensor.detach().requires_grad_() for tensor in tensors)
            self._features += layers[role]
        self._seen = Observation(seen.logits.detach(), layers, seen.images)
        (self._term,) = [term for term in method.terms if isinstance(term, SpectralFilterMatching)]

    def value(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The term and its gradients."""
        value = self._term(self._real, self._seen, self._labels, Context())
        return value.detach(), torch.autograd.grad(value, self._features)

    def rate(self, times: int) -> float:
        """Values with gradients per second."""
        return rate(lambda: [self.value() for _ in range(times)], times)


def fewer(data: ImageData) -> ImageData:
    """Five hundred of the training images, as real statistics do not affect the speed of a step."""
    return replace(
        data, train=data.train.part(np.arange(0, len(data.train), len(data.train) // 500))
    )


def main() -> None:
    """Print every ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10")
    parser.add_argument(
        "--network", default="resnet18", help="name of an architecture with batch normalisation"
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    chosen = {
        name: recipe(name, options.data, options.network) for name in ("cfm", "sre2l", "cfm-by-lu")
    }
    data = fewer(load(chosen["cfm"].data))
    ours, theirs = (Matching(chosen[name], data) for name in ("cfm", "cfm-by-lu"))
    torch.testing.assert_close(ours.value(), theirs.value(), rtol=1e-2, atol=1e-4)
    print(
        f"{options.network} on {options.data}, a block of {data.classes} images, medians of {options.rounds} rounds"
    )
    for threads in (1, 2):
        torch.set_num_threads(threads)
        steps = {
            name: in_process(one, data, weights=initial_weights(one, data))
            for name, one in chosen.items()
        }
        where = f"{threads} thread{'s' if threads > 1 else ''}"

        def seconds(name: str, steps: dict[str, Steps] = steps) -> float:
            return 1 / steps[name].rate(STEPS)

        title = f"time of a step of CFM : of matching moments; {where}"
        compare(
            title, "at most 2.0", lambda: seconds("cfm"), lambda: seconds("sre2l"), options.rounds
        )
        title = f"time of a step solved by LU : of CFM; {where}"
        compare(
            title,
            "at least 1.3",
            lambda: seconds("cfm-by-lu"),
            lambda: seconds("cfm"),
            options.rounds,
        )
        title = f"the same, the spectral term alone; {where}"
        compare(
            title,
            "no target",
            lambda: 1 / theirs.rate(STEPS),
            lambda: 1 / ours.rate(STEPS),
            options.rounds,
        )


if __name__ == "__main__":
    main()
