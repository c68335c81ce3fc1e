"""Timings of steps, measuring and students, as ratios to the bare forward pass.

Images are generated in CIFAR-10's shape, and networks have random weights, neither of which affects
the time of a step. Each entry of the result has

    seconds            of one step, of measuring `images`, or of one epoch of a student
    forward_seconds    of the bare forward pass of the same network over as many images, without
                       gradients, in the same batches, precision and layout
    ratio              seconds / forward_seconds
    forward_speed      how often this forward pass runs in the time of the contiguous float32 one
    peak_bytes         of memory, on CUDA

Seconds are wall-clock time, on the CPU processor time. They are those of the fastest of several
rounds, which depends least on other programs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu import Clock, Result, say
from rayd import devices, networks, seeding, synthetic
from rayd.artifacts import content_hash
from rayd.config import EvaluationSettings, NetworkSettings, Recipe
from rayd.data import ImageData, ImageSet
from rayd.data.normalization import fit_normalization
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId, groups, network_ids
from rayd.engine.observer import DatasetInfo
from rayd.engine.pool import LocalPool
from rayd.engine.stages.experts import Experts
from rayd.engine.stages.measure import Measure
from rayd.engine.store import Store
from rayd.engine.synthesizer import BlockTask, Synthesizer
from rayd.engine.worker import Worker
from rayd.errors import RaydError
from rayd.methods import build
from rayd.recipes import resolve
from rayd.training.batches import Draws
from rayd.training.losses import cross_entropy
from rayd.training.sets import TrainingSet
from rayd.training.trainer import Trainer

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
ROUNDS = 3
"""Number of timed rounds after a warm-up; the fastest is used."""
LEAST_SECONDS = 0.1
"""Minimum seconds of a round, so that clock resolution and device queue are negligible."""
MOST_CALLS = 100
"""Maximum number of calls in a round."""
IMAGES = 2000
"""Generated training images."""
RESNET: dict[str, Any] = {
    "observers": {"networks": "resnet18", "pool": 1, "per_step": 1},
    "synthesis": {"block": None},
}
EXPERTS = {"experts": {"count": 1, "epochs": 3}, "objective": {"epochs": 1, "start": {"most": 2}}}


@dataclass(frozen=True)
class Timed:
    """A recipe that is timed."""

    recipe: str
    """Its name."""
    overrides: dict[str, Any]
    """Overrides of the recipe."""
    everywhere: bool = True
    """Whether it is timed in every precision and layout, or only in float32 with the default
    layout.
    """


TIMED = (
    Timed("dm-cifar10-ipc10", {}),
    Timed("edc-cifar10-ipc10", RESNET),
    Timed("cfm-cifar10-ipc10", RESNET),
    Timed("dm-cifar10-ipc10-sampled", {}),
    Timed("idm-cifar10-ipc10", {}, everywhere=False),
    Timed("dc-cifar10-ipc10", {}, everywhere=False),
    Timed("frepo-cifar10-ipc10", {}, everywhere=False),
    Timed("mtt-cifar10-ipc10", EXPERTS, everywhere=False),
)
CONVNET = {"name": "convnet", "depth": 2, "width": 8}
SMALL: dict[str, Any] = {
    "observers": {"networks": CONVNET, "pool": 1, "per_step": 1},
    "evaluation": {"networks": [CONVNET]},
    "ipc": 1,
}
QUICK = (Timed("dm-cifar10-ipc10", SMALL),)


def run(
    result: Result,
    device: torch.device,
    quick: bool,
    out: Path,
    clock: Clock,
    share: float,
) -> None:
    """Run the timings that are missing in the result, until a share of the time is used."""
    data = generated(200 if quick else IMAGES)
    # the networks of the smoke test are too small for several threads
    threads = 1 if quick else torch.get_num_threads()
    with devices.thread_limit(threads):
        skipped = _all(result, device, QUICK if quick else TIMED, data, out, clock, share)
    result.set("timings_not_run", skipped)


def _all(
    result: Result,
    device: torch.device,
    chosen: tuple[Timed, ...],
    data: ImageData,
    out: Path,
    clock: Clock,
    share: float,
) -> list[str]:
    """Run timings; the names of those for which there was no time."""
    skipped = []
    for timed in chosen:
        for precision, layout in variants(timed, device):
            for kind, work in KINDS.items():
                name = f"{kind}, {timed.recipe}, {precision}, {layout}"
                if result.has("timings", name):
                    continue
                if clock.left(share) < 0:
                    skipped.append(name)
                    continue
                try:
                    with fixed_layout(layout):
                        entry = work(Bench(timed, precision, layout, device, data, out / "timings"))
                except (RaydError, RuntimeError) as error:
                    entry = {"error": next(iter(str(error).splitlines()), type(error).__name__)}
                if entry is None:
                    continue
                result.put("timings", name, entry)
                say(f"timing {name}: {entry.get('error') or _told(entry)}")
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    return skipped


def _told(entry: dict[str, Any]) -> str:
    return f"{1000 * entry['seconds']:.3g} ms, {entry['ratio']:.3g} forward passes"


def variants(timed: Timed, device: torch.device) -> Iterator[tuple[str, str]]:
    """Precisions and layouts in which a recipe is timed: TF32 and bfloat16 only on CUDA."""
    precisions = ["float32"]
    if timed.everywhere and device.type == "cuda":
        precisions += ["tf32", "bfloat16"] if torch.cuda.is_bf16_supported() else ["tf32"]
    for precision in precisions:
        for layout in FORMATS if timed.everywhere else ("as chosen",):
            yield precision, layout


@contextmanager
def fixed_layout(name: str) -> Iterator[None]:
    """Context that keeps networks and images in a given memory format."""
    before = devices.layout
    if name in FORMATS:
        devices.layout = lambda network, device: FORMATS[name]
    try:
        yield
    finally:
        devices.layout = before


def generated(count: int) -> ImageData:
    """Random images of CIFAR-10's shape, cycling through ten classes, equally many for training and
    test.
    """
    draws = np.random.default_rng(0)
    names = tuple(str(label) for label in range(10))
    labels = np.arange(count, dtype=np.int64) % len(names)
    pixels = draws.integers(0, 256, (2, count, 3, 32, 32), np.uint8)
    train, test = (ImageSet(images, labels, names) for images in pixels)
    return ImageData("generated", train, None, test, fit_normalization("standard", train.images))


@dataclass(frozen=True)
class Bench:
    """A recipe on a device, in one precision and one layout."""

    timed: Timed
    precision: str
    layout: str
    device: torch.device
    data: ImageData
    folder: Path

    @property
    def key(self) -> str:
        """Unique key of this bench."""
        return content_hash({"of": self.timed.recipe, "in": self.precision, "as": self.layout})

    @property
    def resources(self) -> dict[str, Any]:
        """Resources of the recipe, with the number of threads of this process."""
        return {"device": str(self.device), "threads": torch.get_num_threads()}

    @property
    def recipe(self) -> Recipe:
        """The recipe in this precision on this device, with more steps than are timed."""
        arithmetic = {"precision": self.precision}
        endless = {"steps": 10**6, "checkpoint_every": 10**6}
        recipe = resolve(self.timed.recipe, {**self.timed.overrides, "resources": self.resources})
        return recipe.model_copy(
            update={
                "observers": recipe.observers.model_copy(update=arithmetic),
                "synthesis": recipe.synthesis.model_copy(update=arithmetic | endless),
                "evaluation": recipe.evaluation.model_copy(update=arithmetic),
            }
        )

    def network(self, settings: NetworkSettings) -> nn.Module:
        """A network with random weights, in eval mode."""
        return networks.build(settings, self.data.shape, self.data.classes, seed=0).eval()

    def entry(
        self,
        work: Callable[[], object],
        network: NetworkSettings,
        images: int,
        batch: int,
        autocast: bool = False,
    ) -> dict[str, Any]:
        """Time some work relative to the bare forward pass over a number of images.

        Args:
            work: function to time.
            network: network of the forward pass.
            images: number of images of the forward pass.
            batch: number of images per call.
            autocast: keep a bfloat16 network's weights in float32, as students do.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        took = seconds(work, self.device)
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        forward = self.forward(network, images, batch, autocast)
        with fixed_layout("contiguous"):
            plain = Bench(self.timed, "float32", "contiguous", self.device, self.data, self.folder)
            basis = plain.forward(network, images, batch, autocast)
        return {
            "network": network.label,
            "images": images,
            "batch": batch,
            "precision": self.precision,
            "layout": self.layout,
            "threads": torch.get_num_threads(),
            "seconds": took,
            "forward_seconds": forward,
            "ratio": took / forward,
            "forward_speed": basis / forward,
            "peak_bytes": peak,
        }

    @torch.no_grad()
    def forward(self, settings: NetworkSettings, images: int, batch: int, autocast: bool) -> float:
        """Seconds of the forward pass of a network over a number of images in batches."""
        network = self.network(settings)
        dtype = torch.float32 if autocast else devices.dtype(self.precision)
        network.to(dtype)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.float()
        layout = devices.to_device(network, self.device)
        sizes = [min(batch, images - start) for start in range(0, images, batch)]
        inputs = {}
        for size in set(sizes):
            made = torch.randn(size, *self.data.shape, device=self.device, dtype=dtype)
            inputs[size] = made.contiguous(memory_format=layout)

        def work() -> None:
            for size in sizes:
                network(inputs[size])

        cast = devices.autocast(self.device, self.precision if autocast else "float32")
        with devices.convolutions(self.device, self.precision), cast:
            return seconds(work, self.device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, repeated often enough for the clock's resolution."""
    best = float("inf")
    calls = 1
    # the first round is a warm-up that determines the number of calls of the others
    for _ in range(1 + ROUNDS):
        began = _clock(device)
        for _ in range(calls):
            work()
        each = (_clock(device) - began) / calls
        best = each if best == float("inf") else min(best, each)
        calls = max(calls, min(MOST_CALLS, int(LEAST_SECONDS / max(each, 1e-6))))
    return best


def _clock(device: torch.device) -> float:
    """Processor seconds on the CPU, which depend less on other programs; else wall-clock time."""
    if device.type == "cpu":
        return time.process_time()
    devices.synchronize(device)
    return time.perf_counter()


def step(bench: Bench) -> dict[str, Any] | None:
    """One step of the synthesis with its optimizer, relative to a pass over its images."""
    recipe = bench.recipe
    data = bench.data
    pool = LocalPool(recipe.resources, Worker, recipe, DatasetInfo.of(data))
    weights = _weights(bench, pool)
    job = Job(recipe, data, Store(bench.folder / bench.key))
    statistics = Measure(job, weights).run(pool)
    experts = Experts(Job(recipe, data, Store(bench.folder)))
    experts.run(pool)
    files = experts.files()
    train = None
    if recipe.real == "sampled":
        train = pool.share((data.train.images, data.train.labels))
    learned = synthetic.initial(recipe, data)
    assignment = BlockTask(
        recipe=recipe,
        key=bench.key,
        normalization=data.normalization,
        block=0,
        blocks=1,
        start=pool.share(dict(learned.state_dict())),
        checkpoints=bench.folder / bench.key / "checkpoints",
        weights=weights,
        accuracies=dict.fromkeys(weights, 0.9),
        measured=statistics,
        train=train,
        experts=files,
    )
    synthesizer = Synthesizer(pool)
    reached = 0

    def once() -> None:
        nonlocal reached
        synthesizer.advance(assignment, reached, reached + 1)
        reached += 1

    images = len(learned.batch()[0])
    settings = recipe.experts.network if files else recipe.observers.networks[0]
    return bench.entry(once, settings, images, images)


def _weights(bench: Bench, pool: LocalPool) -> dict[NetworkId, Any]:
    """Random weights in place of trained ones."""
    recipe = bench.recipe
    found = {}
    for group in groups(recipe):
        for network_id in network_ids(recipe, group) if recipe.network_group(group).trained else ():
            found[network_id] = pool.share(bench.network(network_id.architecture).state_dict())
    return found


def measuring(bench: Bench) -> dict[str, Any] | None:
    """Measuring the real images with one network, relative to forward passes over them."""
    recipe = bench.recipe
    data = bench.data
    if recipe.real == "sampled" or not build(recipe).specs():
        return None
    pool = LocalPool(recipe.resources, Worker, recipe, DatasetInfo.of(data))
    network_id = network_ids(recipe)[0]
    weights = _weights(bench, pool)
    shard = pool.share((data.train.images, data.train.labels))

    def work() -> None:
        list(pool.map("measure_alone", [(network_id, weights.get(network_id), shard)]))

    return bench.entry(work, network_id.architecture, len(data.train), recipe.observers.batch_size)


def student(bench: Bench) -> dict[str, Any] | None:
    """One epoch of a student with hard labels, relative to forward passes over its images."""
    recipe = bench.recipe
    data = bench.data
    if not bench.timed.everywhere:
        return None
    settings: EvaluationSettings = recipe.evaluation.model_copy(update={"loss": "cross-entropy"})
    count = recipe.ipc * data.classes
    training = TrainingSet.from_images(data.train, data.normalization, np.arange(count))
    trainer = Trainer(
        bench.network(settings.networks[0]),
        training,
        settings,
        Draws(settings, count, data.shape, seeding.derive(0, "timing")),
        cross_entropy,
        epochs=10**6,
        seed=0,
        device=bench.device,
    )
    batch = min(settings.batch_size, count)
    return bench.entry(trainer.advance, settings.networks[0], count, batch, autocast=True)


KINDS: dict[str, Callable[[Bench], dict[str, Any] | None]] = {
    "step": step,
    "measuring": measuring,
    "student epoch": student,
}
