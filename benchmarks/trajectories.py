"""Memory and speed of trajectory gradients: `python -m benchmarks.trajectories [--rounds 5]
[--clock wall]`.

As in `timing.py`, results are ratios of two implementations of the same work, timed alternately,
with minimum and maximum over the rounds; nothing is asserted. Peak memory is that of a separate
process, excluding its memory after setup.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.csdm import in_a_process, kilobytes
from benchmarks.timing import COLUMNS, compare, rate
from rayd import networks
from rayd.config import NetworkSettings
from rayd.data.arrays import ImageShape
from rayd.data.augmentation import augmentation
from rayd.networks.flat import FlatNetwork
from rayd.objectives.trajectory import Segment, Way, inner_steps, trajectory_loss

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SHAPE = ImageShape(3, 32, 32)
CLASSES = 10
WIDTH = 64


def gradient(way: Way, steps: int, images: int) -> Callable[[], tuple[Tensor, ...]]:
    """The gradient with respect to images, soft labels and step size, for a ConvNet of half width
    that takes a number of steps on all images.
    """
    network = networks.build(NetworkSettings(name="convnet", width=WIDTH), SHAPE, CLASSES, seed=0)
    student = FlatNetwork(network)
    draws = torch.Generator().manual_seed(0)
    start = student.vector().detach()
    segment = Segment(start, start + 0.01 * torch.randn(start.shape, generator=draws))
    pixels = torch.randn(images, *SHAPE, generator=draws).requires_grad_()
    logits = torch.randn(images, CLASSES, generator=draws).requires_grad_()
    step_size = torch.tensor(0.01, requires_grad=True)
    drawn = inner_steps(
        images,
        None,
        steps,
        SHAPE[1:],
        draws,
        augmentation("color_crop_cutout_flip_scale_rotate"),
    )

    def once() -> tuple[Tensor, ...]:
        loss = trajectory_loss(
            student, segment, drawn, pixels, logits.softmax(1), step_size, way=way
        )
        return torch.autograd.grad(loss, (pixels, logits, step_size))

    return once


def peak(way: Way, steps: int, found: multiprocessing.SimpleQueue[float]) -> None:
    """Peak memory of a separate process in MB, excluding its memory before the work."""
    torch.set_num_threads(1)
    once = gradient(way, steps, 100)
    before = kilobytes("VmRSS")
    once()
    found.put((kilobytes("VmHWM") - before) * 1024 / 1e6)


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    timed = partial(compare, rounds=options.rounds)
    torch.set_num_threads(1)
    print(
        f"ConvNet of depth 3 and width {WIDTH}, 100 images of 32x32, DSA, torch {torch.__version__}, one thread, "
        f"{options.clock} time, {options.rounds} rounds"
    )

    peaks: dict[tuple[str, int], float] = {}
    for way in ("reverse", "full"):
        for steps in (5, 40) if way == "reverse" else (5, 10):
            peaks[way, steps] = in_a_process(peak, way, steps)
            print(
                f"{f'peak memory, {way}, {steps} steps, MB':<{COLUMNS}} {peaks[way, steps]:7.0f}",
                flush=True,
            )
    title = "peak memory of the sweep, 40 : 5 steps"
    ratio = peaks["reverse", 40] / peaks["reverse", 5]
    print(f"{title:<{COLUMNS}} {ratio:7.2f}   (at most 1.2)")
    title = "peak memory of full unrolling, 10 : 5 steps"
    ratio = peaks["full", 10] / peaks["full", 5]
    print(f"{title:<{COLUMNS}} {ratio:7.2f}")

    for images in (10, 100):
        swept = gradient("reverse", 5, images)
        full = gradient("full", 5, images)
        truncated = gradient("truncated", 5, images)
        timed(f"time of a gradient, sweep : full unrolling, {images} images", "at most 1.6",
              lambda f=full: rate(f, 1, clock), lambda s=swept: rate(s, 1, clock))  # fmt: skip
        timed(f"time of a gradient, TESLA's : full unrolling, {images} images", "",
              lambda f=full: rate(f, 1, clock), lambda t=truncated: rate(t, 1, clock))  # fmt: skip


if __name__ == "__main__":
    main()
