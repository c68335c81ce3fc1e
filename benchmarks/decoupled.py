"""Speed of the decoupled methods' steps and statistics, as ratios within one run.

    python -m benchmarks.decoupled [--data cifar10] [--rounds 5]

The plain loop below is a straightforward implementation: hooks on every layer, observers one after
another in one process with all cores, classes in a Python loop. Everything else is equal: networks,
images, transforms and optimizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import ENDLESS, Steps, compare, in_process, rate
from rayd import networks
from rayd.config import Recipe, merge
from rayd.data import ImageData, ImageSet, load
from rayd.data.augmentation import draw_transform
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.open_pool import open_pool
from rayd.engine.pool import LocalRef
from rayd.recipes import assemble
from rayd.seeding import generator
from rayd.synthetic import initial

NETWORKS = [
    {"name": "convnet", "width": 64, "norm": "batch"},
    {"name": "convnet", "width": 64, "depth": 2, "norm": "batch"},
    {"name": "convnet", "width": 32, "norm": "batch"},
    {"name": "wrn16_2"},
]


def recipe(data: str, **settings: object) -> Recipe:
    """EDC with four networks in every step."""
    base = {
        "method": "edc",
        "data": {"name": data},
        "ipc": 10,
        "observers": {"networks": NETWORKS, "per_step": 4, "batch_size": 64},
        "synthesis": {**ENDLESS, "block": None},
        "resources": {"threads": 1},
    }
    return assemble(base, settings)


def initial_weights(chosen: Recipe, data: ImageData) -> dict[NetworkId, dict[str, Tensor]]:
    """Initial weights of the observers, as training does not affect their speed."""
    observers = network_ids(chosen)
    weights = {}
    for place, network_id in enumerate(observers):
        weights[network_id] = built(chosen, data, place).state_dict()
    return weights


def built(chosen: Recipe, data: ImageData, place: int) -> nn.Module:
    """A network with its initial weights."""
    network_id = network_ids(chosen)[place]
    return networks.build(
        network_id.architecture, data.shape, data.classes, seed=network_id.seed(chosen)
    )


def plain_loop(chosen: Recipe, data: ImageData) -> Callable[[int], float]:
    """EDC's step implemented by hand, with hooks, and zeros as real statistics."""
    settings = chosen.terms["moments"].model_dump()
    pool = [built(chosen, data, place).eval() for place in range(len(network_ids(chosen)))]
    images, labels = initial(chosen, data).batch()
    images = images.detach().requires_grad_()
    average = images.detach().clone()
    optimizer = torch.optim.Adam([images], 0.05, (0.5, 0.9))
    smoothed: dict[tuple[int, str, str], Tensor] = {}
    gaps: list[Tensor] = []

    def hear(key: tuple[int, str, str], value: Tensor) -> None:
        before = smoothed.get(key, torch.zeros_like(value))
        now = settings["momentum"] * before + (1 - settings["momentum"]) * value.detach()
        smoothed[key] = now
        gaps.append(torch.linalg.vector_norm(value - value.detach() + now))

    def compare_channels(place: int, name: str, maps: Tensor, share: float, who: str) -> None:
        hear((place, name, f"{who} mean"), share * maps.mean((0, 2, 3)))
        hear((place, name, f"{who} variance"), share * maps.var((0, 2, 3), unbiased=False))

    def compare_patches(place: int, name: str, maps: Tensor, share: float, who: str) -> None:
        side = settings["patch"]
        rows = -(-maps.shape[2] // side)
        columns = -(-maps.shape[3] // side)
        if maps.shape[2] % side or maps.shape[3] % side:
            maps = nn.functional.interpolate(maps, (rows * side, columns * side), mode="bilinear")
        tiles = maps.reshape(len(maps), maps.shape[1], rows, side, columns, side)
        hear((place, name, f"{who} patch mean"), share * tiles.mean((0, 1, 3, 5)).flatten())
        hear(
            (place, name, f"{who} patch variance"),
            share * tiles.var((0, 1, 3, 5), unbiased=False).flatten(),
        )

    def hook(place: int, name: str, patches: bool) -> Callable[..., None]:
        def listen(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            (maps,) = arguments
            for compare_ in (compare_channels, compare_patches) if patches else (compare_channels,):
                compare_(place, name, maps, settings["alpha"], "all")
                if settings["alpha"] < 1:
                    for label in range(data.classes):
                        rows = maps[labels == label]
                        compare_(
                            place,
                            name,
                            rows,
                            (1 - settings["alpha"]) / data.classes,
                            f"class {label}",
                        )

        return listen

    for place, network in enumerate(pool):
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.register_forward_pre_hook(hook(place, name, isinstance(module, nn.Conv2d)))

    def step(number: int) -> None:
        optimizer.zero_grad()
        for place, network in enumerate(pool):
            draws = generator(0, "benchmark", number, place)
            view = draw_transform(chosen.synthesis.transform, draws, len(images), *data.shape[1:])
            gaps.clear()
            logits = network(view(images))
            moments = torch.stack(gaps).sum()
            with torch.no_grad():
                calm = network(view(average))
            flat = nn.functional.kl_div(
                (calm / 4).log_softmax(1),
                (logits / 4).log_softmax(1),
                log_target=True,
                reduction="batchmean",
            )
            (nn.functional.cross_entropy(logits, labels) + 0.01 * moments + 0.25 * flat).backward()
        optimizer.step()
        average.lerp_(images.detach(), 0.01)

    return lambda steps: rate(lambda: [step(number) for number in range(steps)], steps)


def with_classes(data: ImageData, classes: int) -> ImageData:
    """The same images with artificial labels."""

    def relabelled(images: ImageSet) -> ImageSet:
        labels = np.arange(len(images), dtype=np.int64) % classes
        return ImageSet(images.images, labels, tuple(map(str, range(classes))))

    return ImageData(
        data.name, relabelled(data.train), None, relabelled(data.test), data.normalization
    )


def main() -> None:
    """Print every ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    data = load(recipe(options.data).data)
    cores = torch.get_num_threads()

    for title, settings in (
        ("EDC, float32", {}),
        ("EDC, bfloat16", {"synthesis": {"precision": "bfloat16"}}),
        ("statistics of all images alone, float32", {"terms": {"moments": {"alpha": 1.0}}}),
    ):
        spread = recipe(
            options.data, **merge(settings, {"resources": {"workers": 2, "threads": 1}})
        )
        plain = plain_loop(spread, data)
        with open_pool(spread.resources, ObserverTasks, spread, DatasetInfo.of(data)) as pool:
            ours = Steps(pool, spread, data, weights=initial_weights(spread, data))

            def by_hand(plain: Callable[[int], float] = plain) -> float:
                torch.set_num_threads(cores)
                try:
                    return plain(2)
                finally:
                    torch.set_num_threads(1)

            title = f"step rate, 2 workers : plain loop with hooks, {cores} threads; {title}"
            compare(title, "at least 1.5", lambda o=ours: o.rate(4), by_hand, options.rounds)

    torch.set_num_threads(1)
    hundred = with_classes(data, 100)
    by_class, over_all = (
        recipe(
            options.data,
            ipc=1,
            observers={"networks": NETWORKS[:3], "per_step": 3},
            terms={"moments": {"alpha": alpha}},
        )
        for alpha in (0.5, 1.0)
    )
    steps = [
        in_process(one, hundred, weights=initial_weights(one, hundred))
        for one in (by_class, over_all)
    ]
    title = "time of a step with statistics of 100 classes : of all images alone"
    compare(
        title,
        "at most 1.15",
        lambda: 1 / steps[0].rate(4),
        lambda: 1 / steps[1].rate(4),
        options.rounds,
    )

    observers = [
        ObserverTasks(by_class, DatasetInfo.of(known)) for known in (hundred, with_classes(data, 2))
    ]
    images = data.train.images[:1024]
    network_id = network_ids(by_class)[0]
    shards = [
        LocalRef((images, known.train.labels[:1024])) for known in (hundred, with_classes(data, 2))
    ]
    title = "time of the measuring pass with 100 classes : with 2"
    compare(
        title, "at most 1.15", lambda: 1 / rate(lambda: observers[0].measure_alone(network_id, None, shards[0]), 1024),
        lambda: 1 / rate(lambda: observers[1].measure_alone(network_id, None, shards[1]), 1024), options.rounds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
