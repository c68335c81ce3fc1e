"""Processor time of a training step of several students, one by one and combined in one network.

    python -m benchmarks.students_together [--students 3] [--images 10] [--width 64] [--side 8]
    [--threads 1]

Four ways to take one step (forward pass, cross-entropy, backward pass, SGD) of several ConvNets,
each on its own images:

- `single`: one after another, as students are trained;
- `vmap`: `torch.func.vmap` over their stacked weights;
- `groups`: one network whose convolutions and normalisations have one group per student, with a
  batched product as classifier;
- `equal groups`: groups for the convolutions with 16 input channels or more, which oneDNN computes
  in the same order as it does alone; first convolution, classifier and loss one by one.

It prints each way's share of the time of `single` (median over rounds that alternate between the
ways), and the deviation of the weights from those of `single` after 20 steps. Only a deviation of
0, bit for bit, would leave cached results of single students valid.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from rayd.allocator import keep_freed_memory
from rayd.config import NetworkSettings
from rayd.data.images import ImageShape
from rayd.networks import build

CLASSES = 10
STEPS = 20
ROUNDS = 15

Step = Callable[[], None]
Weights = Callable[[], dict[str, Tensor]]


def optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of the students of the quick start."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)


def detached(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights to compare, without their graph."""
    return {name: value.detach() for name, value in weights.items()}


def loss_of_each(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Sum over students of the mean cross-entropy."""
    losses = [F.cross_entropy(one, labels) for one in logits]
    return torch.stack(losses).sum()


def single(networks: list[nn.Module], images: Tensor, labels: Tensor) -> tuple[Step, Weights]:
    """One after another."""
    optimizers = [optimizer(list(network.parameters())) for network in networks]

    def step() -> None:
        for network, of_network, one in zip(networks, optimizers, images, strict=True):
            of_network.zero_grad()
            F.cross_entropy(network(one), labels).backward()
            of_network.step()

    def weights() -> dict[str, Tensor]:
        return detached(stack_module_state(networks)[0])

    return step, weights


def stacked_weights(networks: list[nn.Module]) -> dict[str, Tensor]:
    """Weights of all networks in tensors that can be trained."""
    stacked, _ = stack_module_state(networks)
    return {name: value.detach().requires_grad_() for name, value in stacked.items()}


def mapped(networks: list[nn.Module], images: Tensor, labels: Tensor) -> tuple[Step, Weights]:
    """Step of all students by `vmap` over stacked weights."""
    stacked = stacked_weights(networks)
    of_all = optimizer(list(stacked.values()))
    skeleton = networks[0]

    def forward(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(skeleton, weights, (one,))

    def step() -> None:
        of_all.zero_grad()
        loss_of_each(list(vmap(forward)(stacked, images)), labels).backward()
        of_all.step()

    return step, lambda: detached(stacked)


def grouped(
    networks: list[nn.Module], images: Tensor, labels: Tensor, equal: bool
) -> tuple[Step, Weights]:
    """Step of all students as groups of one network; `equal`: only for bit-identical results."""
    count = len(networks)
    stacked = stacked_weights(networks)
    of_all = optimizer(list(stacked.values()))
    convolutions = [
        name for name, module in networks[0].named_modules() if isinstance(module, nn.Conv2d)
    ]
    normalisations = [
        name for name, module in networks[0].named_modules() if isinstance(module, nn.GroupNorm)
    ]
    # (n, students * channels, H, W): student by student along the channels
    together = images.transpose(0, 1).flatten(1, 2)

    def convolve(name: str, maps: Tensor) -> Tensor:
        weight = stacked[f"{name}.weight"]
        bias = stacked[f"{name}.bias"]
        if equal and weight.shape[2] < 16:
            parts = zip(maps.chunk(count, 1), weight, bias, strict=True)
            return torch.cat([F.conv2d(part, w, b, padding=1) for part, w, b in parts], dim=1)
        return F.conv2d(maps, weight.flatten(0, 1), bias.flatten(), padding=1, groups=count)

    def classify(features: Tensor) -> list[Tensor]:
        weight = stacked["classifier.weight"]
        bias = stacked["classifier.bias"]
        each = features.view(len(features), count, -1).transpose(0, 1)
        if equal:
            return [F.linear(*one) for one in zip(each, weight, bias, strict=True)]
        return list(torch.baddbmm(bias[:, None], each, weight.transpose(1, 2)))

    def step() -> None:
        maps = together
        for convolution, normalisation in zip(convolutions, normalisations, strict=True):
            maps = convolve(convolution, maps)
            scale = stacked[f"{normalisation}.weight"].flatten()
            shift = stacked[f"{normalisation}.bias"].flatten()
            maps = F.avg_pool2d(F.relu(F.group_norm(maps, len(scale), scale, shift)), 2)
        of_all.zero_grad()
        loss_of_each(classify(maps.flatten(1)), labels).backward()
        of_all.step()

    return step, lambda: detached(stacked)


def main() -> None:
    """Time and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {
        "students": 3,
        "images": 10,
        "width": 64,
        "side": 8,
        "channels": 1,
        "depth": 2,
        "threads": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()

    shape = ImageShape(chosen.channels, chosen.side, chosen.side)
    settings = NetworkSettings(name="convnet", depth=chosen.depth, width=chosen.width)
    images = torch.randn(
        chosen.students, chosen.images, *shape, generator=torch.Generator().manual_seed(0)
    )
    labels = torch.arange(chosen.images) % CLASSES

    def networks() -> list[nn.Module]:
        return [build(settings, shape, CLASSES, seed=seed) for seed in range(chosen.students)]

    ways = {
        "single": single(networks(), images, labels),
        "vmap": mapped(networks(), images, labels),
        "groups": grouped(networks(), images, labels, equal=False),
        "equal groups": grouped(networks(), images, labels, equal=True),
    }
    for step, _ in ways.values():
        for _ in range(STEPS):
            step()
    reference = ways["single"][1]()
    differences = {}
    for name, (_, weights) in ways.items():
        found = weights()
        each = (found[key] - reference[key] for key in reference)
        differences[name] = max(float(difference.abs().max()) for difference in each)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (step, _) in ways.items():
            began = time.process_time()
            for _ in range(STEPS):
                step()
            seconds[name].append(time.process_time() - began)
    for name in ways:
        share = median(
            mine / alone for mine, alone in zip(seconds[name], seconds["single"], strict=True)
        )
        least = 1000 * min(seconds[name]) / STEPS
        print(
            f"{name:>12}: {share:.2f} of single, {least:.2f} ms per step, "
            f"largest difference {differences[name]:.1e}"
        )


if __name__ == "__main__":
    main()
