"""Speed of sampled steps, as ratios measured in one run: `python -m benchmarks.sampled [--ipc 1
10]`.

A step with `real: sampled` draws a fresh network and 256 real images of every class. It is compared
with the loop of the paper (Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV
2023), implemented in a straightforward way: for one class after another, a batch of real and one of
synthetic images pass through the same random augmentation and network, and the loss is the squared
distance of their mean features. Both sides have CIFAR-10's shapes (with random pixels, as values do
not affect the speed), a ConvNet of depth 3 and width 128, float32 and one thread.

Each ratio is the median over rounds that time both alternately, in processor seconds of this
process. Nothing is asserted, as timed tests are unreliable on a shared machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import ENDLESS, in_process
from rayd.config import Recipe
from rayd.data import ImageData
from rayd.data.images import ImageSet
from rayd.data.normalization import Standardization
from rayd.recipes import assemble

CLASSES = 10
PER_CLASS = 500
REAL_BATCH = 256


def cifar_like() -> ImageData:
    """Random images in the shape of CIFAR-10, but fewer."""
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (CLASSES * PER_CLASS, 3, 32, 32), dtype=np.uint8)
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    train = ImageSet(pixels, labels, tuple(f"class {label}" for label in range(CLASSES)))
    return ImageData("random", train, None, train, Standardization.fit(pixels))


def recipe(ipc: int, **settings: object) -> Recipe:
    """DM as published, on one thread."""
    base = {
        "method": "dm",
        "data": {"name": "cifar10"},
        "ipc": ipc,
        "real": "sampled",
        "synthesis": {**ENDLESS, "learning_rate": 1.0},
        "resources": {"threads": 1, "device": "cpu"},
    }
    return assemble(base, settings)


def convnet() -> nn.Sequential:
    """The features of the paper's network: three blocks of convolution, instance normalisation,
    ReLU and average pooling.
    """
    blocks: list[nn.Module] = []
    for channels in (3, 128, 128):
        blocks += [
            nn.Conv2d(channels, 128, 3, padding=1),
            nn.GroupNorm(128, 128),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
    return nn.Sequential(*blocks, nn.Flatten())


@dataclass(frozen=True)
class View:
    """One operation with one draw of parameters for all images of a class."""

    name: str
    first: float
    second: float
    third: float

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images (N, 3, 32, 32)."""
        operation: Callable[[Tensor], Tensor] = getattr(self, self.name)
        return operation(images)

    def color(self, images: Tensor) -> Tensor:
        images = images + (self.first - 0.5)
        grey = images.mean(1, keepdim=True)
        images = (images - grey) * (self.second * 2) + grey
        middle = images.mean((1, 2, 3), keepdim=True)
        return (images - middle) * (self.third + 0.5) + middle

    def crop(self, images: Tensor) -> Tensor:
        dy, dx = (int(part * 9) for part in (self.first, self.second))
        return functional.pad(images, (4, 4, 4, 4))[:, :, dy : dy + 32, dx : dx + 32]

    def cutout(self, images: Tensor) -> Tensor:
        top, left = (int(part * 33) - 8 for part in (self.first, self.second))
        mask = torch.ones(images.shape[0], 32, 32)
        mask[:, max(top, 0) : max(top + 16, 0), max(left, 0) : max(left + 16, 0)] = 0
        return images * mask[:, None]

    def flip(self, images: Tensor) -> Tensor:
        return images.flip(3) if self.first < 0.5 else images

    def scale(self, images: Tensor) -> Tensor:
        across, down = (part * (1.2 - 1 / 1.2) + 1 / 1.2 for part in (self.first, self.second))
        return self._affine(images, [[across, 0.0, 0.0], [0.0, down, 0.0]])

    def rotate(self, images: Tensor) -> Tensor:
        angle = torch.tensor((self.first - 0.5) * 2 * 15 * pi / 180)
        sine = float(angle.sin())
        cosine = float(angle.cos())
        return self._affine(images, [[cosine, -sine, 0.0], [sine, cosine, 0.0]])

    def _affine(self, images: Tensor, matrix: list[list[float]]) -> Tensor:
        grid = functional.affine_grid(
            torch.tensor(matrix).expand(len(images), 2, 3), list(images.shape), align_corners=False
        )
        return functional.grid_sample(images, grid, align_corners=False)


VIEWS = ("color", "crop", "cutout", "flip", "scale", "rotate")


class Published:
    """The loop of the paper, class by class, on normalised float32 images in memory."""

    def __init__(self, ipc: int, data: ImageData):
        self._ipc = ipc
        self._real = data.normalization(torch.from_numpy(data.train.images))
        self._rows = [np.flatnonzero(data.train.labels == label) for label in range(CLASSES)]
        self._images = torch.randn(CLASSES * ipc, 3, 32, 32, requires_grad=True)
        self._optimizer = torch.optim.SGD([self._images], lr=1.0, momentum=0.5)
        self._draws = np.random.default_rng(0)

    def __call__(self) -> None:
        """One step."""
        network = convnet().requires_grad_(False)
        loss = torch.zeros(())
        for label in range(CLASSES):
            rows = self._draws.permutation(self._rows[label])[:REAL_BATCH]
            view = View(str(self._draws.choice(VIEWS)), *self._draws.random(3).tolist())
            real = network(view(self._real[rows])).detach()
            made = network(view(self._images[label * self._ipc : (label + 1) * self._ipc]))
            loss = loss + (real.mean(0) - made.mean(0)).square().sum()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def seconds(step: Callable[[], None], steps: int) -> float:
    """Processor seconds of some steps."""
    began = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - began


def main() -> None:
    """Print every ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--steps",
        type=int,
        default=2,
        help="steps of each side in a round; augmentations differ between steps",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = cifar_like()
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread, float32, {options.rounds} rounds"
    )
    for ipc in options.ipc:
        ours = in_process(recipe(ipc), data).advance
        published = Published(ipc, data)
        seconds(ours, 1)
        seconds(published, 1)
        rounds = [
            (seconds(ours, options.steps), seconds(published, options.steps))
            for _ in range(options.rounds)
        ]
        ratios = sorted(theirs / own for own, theirs in rounds)
        own = statistics.median(own for own, _ in rounds) / options.steps
        print(
            f"IPC {ipc}: step rate, ours : published loop  {statistics.median(ratios):.2f}"
            f"  ({ratios[0]:.2f} .. {ratios[-1]:.2f}; a step of ours takes {own:.2f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
