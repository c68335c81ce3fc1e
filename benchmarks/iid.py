"""Speed of IID on DM, as ratios measured in one run: `python -m benchmarks.iid [--data cifar10]
[--threads 2]`.

Every step has 10 images per class and the paper's ConvNet; classifiers are ResNet-18s of full width
with random weights, as their values do not affect the speed. Each ratio compares two
implementations of the same work, timed alternately; the median of the rounds' ratios is printed
with minimum and maximum. Nothing is asserted, as timed tests are unreliable on a shared machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import ENDLESS, Steps, compare, in_process, rate
from rayd import networks, seeding
from rayd.config import NetworkSettings, Recipe
from rayd.data import ImageData, load
from rayd.data.augmentation import augmentation
from rayd.engine.network_ids import network_ids
from rayd.networks import FeatureExtractor, LayerRole
from rayd.recipes import assemble
from rayd.synthetic import initial

ALONE = {"terms": {"centralization": {"weight": 0}}}


def recipe(data: str, threads: int, **settings: object) -> Recipe:
    """IID on DM in the paper's configuration."""
    base = {
        "method": "iid-dm",
        "data": {"name": data},
        "ipc": 10,
        "observers": {"pool": 2, "batch_size": 64},
        "classifiers": {"pool": 1},
        "synthesis": ENDLESS,
        "resources": {"threads": threads},
    }
    return assemble(base, settings)


def stepping(chosen: Recipe, data: ImageData) -> Steps:
    """Steps in this process, with classifiers of random weights."""
    weights = {}
    for network_id in network_ids(chosen, "classifiers"):
        weights[network_id] = built(chosen, data, network_id.architecture).state_dict()
    return in_process(chosen, data, weights=weights)


def built(chosen: Recipe, data: ImageData, network: NetworkSettings) -> nn.Module:
    """A network with random weights."""
    return networks.build(network, data.shape, data.classes, seed=0).eval().requires_grad_(False)


def gap(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Tensor:
    """Distances of DM and of covariance matching for one class."""
    return (ours[0] - theirs[0]).square().sum() + 0.01 * (ours[1] - theirs[1]).square().sum()


def statistics_of(tapped: FeatureExtractor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the features and covariance of the local descriptors of one class, as defined in the
    paper.
    """
    seen = tapped(images)
    maps = seen.layers[LayerRole.LAST_MAP][0].flatten(2)
    centred = maps - maps.mean(0, keepdim=True)
    return seen.layers[LayerRole.FEATURES][0].mean(0), (centred @ centred.transpose(1, 2)).mean(0)


def by_hand(chosen: Recipe, data: ImageData, constant: bool) -> Callable[[int], float]:
    """A step implemented class by class (without classifiers), or, with constants for the real
    side, in one batch.
    """
    tapped = FeatureExtractor(
        built(chosen, data, chosen.observers.networks[0]),
        {LayerRole.FEATURES, LayerRole.LAST_MAP},
        data.shape,
    )
    images, labels = initial(chosen, data).batch()
    images = images.detach().requires_grad_()
    optimizer = torch.optim.SGD([images], chosen.synthesis.learning_rate, chosen.synthesis.momentum)
    augment = augmentation(chosen.observers.augmentation)
    rows = data.train.class_index
    draws = torch.Generator().manual_seed(0)
    ipc = chosen.ipc
    operations = [
        augment.draw(seeding.generator(0, "pool augmentation", one), 1, *data.shape[1:])
        for one in range(2)
    ]
    with torch.no_grad():
        seen = [statistics_of(tapped, images[labels == c]) for c in range(data.classes)]
    real = [torch.randn_like(torch.stack(parts)) for parts in zip(*seen, strict=True)]

    def with_constants(index: int) -> Tensor:
        view: Tensor = images
        for operation in operations[index % 2]:
            view = operation(view)
        seen = tapped(view)
        maps = seen.layers[LayerRole.LAST_MAP][0].flatten(2).unflatten(0, (data.classes, ipc))
        centred = (maps - maps.mean(1, keepdim=True)).transpose(2, 3).flatten(1, 2)
        means = seen.layers[LayerRole.FEATURES][0].unflatten(0, (data.classes, ipc)).mean(1)
        return gap((means, centred.transpose(1, 2) @ centred / ipc), (real[0], real[1]))

    def class_by_class(index: int) -> Tensor:
        total = torch.zeros(())
        for c in range(data.classes):
            chosen_rows = np.random.default_rng(index).permutation(rows[c])[
                : chosen.observers.real_batch
            ]
            theirs = data.normalization(torch.from_numpy(data.train.images[chosen_rows]))
            seed = int(torch.randint(1 << 30, (), generator=draws))
            theirs, ours = (
                augment(some, torch.Generator().manual_seed(seed), siamese=True)
                for some in (theirs, images[c * ipc : c * ipc + ipc])
            )
            with torch.no_grad():
                wanted = statistics_of(tapped, theirs)
            total = total + gap(statistics_of(tapped, ours), wanted)
        return total

    def step(index: int) -> None:
        optimizer.zero_grad()
        (with_constants if constant else class_by_class)(index).backward()
        optimizer.step()

    return lambda steps: rate(lambda: [step(index) for index in range(steps)], steps)


def ratios(
    data: ImageData, name: str, threads: int
) -> Iterator[tuple[str, str, Callable[[], float], Callable[[], float]]]:
    """Comparisons: title, expected ratio, and the two rates."""
    measured = stepping(recipe(name, threads, **ALONE), data)
    constants = by_hand(recipe(name, threads, **ALONE), data, constant=True)
    yield (
        "time of a measured step : bare step with constants",
        "at most 1.05",
        lambda: constants(8),
        lambda: measured.rate(8),
    )
    sampled = stepping(recipe(name, threads, real="sampled", **ALONE), data)
    yield (
        "step rate, measured : sampled, without centralization",
        "printed",
        lambda: measured.rate(8),
        lambda: sampled.rate(1),
    )
    guided = stepping(recipe(name, threads), data)
    both = stepping(recipe(name, threads, real="sampled"), data)
    yield (
        "step rate, measured : sampled, with centralization",
        "printed",
        lambda: guided.rate(1),
        lambda: both.rate(1),
    )
    loop = by_hand(recipe(name, threads, **ALONE), data, constant=False)
    yield (
        "step rate, sampled : class by class",
        "at least 1.3",
        lambda: sampled.rate(1),
        lambda: loop(1),
    )


def main() -> None:
    """Print every ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="a word in the titles of the ratios to measure")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load(recipe(options.data, options.threads).data, options.data_root)
    print(
        f"{options.data}: {len(data.train):,} images, torch {torch.__version__}, {options.threads} threads"
    )
    for title, wanted, left, right in ratios(data, options.data, options.threads):
        if options.only in title:
            compare(title, wanted, left, right, options.rounds)


if __name__ == "__main__":
    main()
