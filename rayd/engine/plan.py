"""What a run would do: work, what is cached, time, memory and disk, stage by stage, without doing it.

Times are not guessed: one batch of every kind of work is run and timed on this machine's in-process device, then multiplied. A
cluster's workers may be faster or slower, and `workers` divide the work items that can go side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayd import devices, methods, networks, synthetic
from rayd.config import NetworkSettings, Recipe
from rayd.data import ImageData, load
from rayd.data.augmentation import augmentation
from rayd.engine import evaluate, measure
from rayd.engine.group import LocalShared
from rayd.engine.observer import Facts, Observers
from rayd.engine.preflight import preflight
from rayd.engine.store import Store
from rayd.engine.synthesize import RealBatches
from rayd.seeding import generator


@dataclass(frozen=True)
class StagePlan:
    """One stage."""

    stage: str
    """Its name."""
    work: str
    """What would be done."""
    cached: str
    """What need not be done."""
    seconds: float
    """Wall-clock time that the rest takes, from one timed batch."""


@dataclass(frozen=True)
class Plan:
    """A run that has not begun."""

    recipe: str
    """Its name."""
    data: str
    """The real data."""
    stages: tuple[StagePlan, ...]
    """The stages, in order."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes by what holds them; `step` is what a worker's backward pass keeps."""
    disk: dict[str, int] = field(default_factory=dict)
    """Bytes by what is written."""

    @property
    def seconds(self) -> float:
        """Wall-clock time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON-able mapping; sizes in bytes, times in seconds."""
        return {**asdict(self), "seconds": self.seconds}

    def text(self) -> str:
        """The plan for people."""
        lines = [f"{self.recipe} on {self.data}", ""]
        for stage in self.stages:
            lines.append(f"{stage.stage:<11} {_duration(stage.seconds):>10}   {stage.work}; {stage.cached}")
        lines += [f"{'in all':<11} {_duration(self.seconds):>10}", ""]
        lines.append("memory  " + ", ".join(f"{name} {_size(size)}" for name, size in self.memory.items()))
        lines.append("disk    " + ", ".join(f"{name} {_size(size)}" for name, size in self.disk.items()))
        return "\n".join(lines)


def plan(recipe: Recipe, data_root: Path | None = None, cache: Path | None = None) -> Plan:
    """Plan a run; refuses what the run itself would refuse.

    Raises:
        RaydError: as `distill` would.
    """
    method = methods.build(recipe)
    data, store = load(recipe.data, data_root), Store(cache)
    preflight(recipe, data)
    local = recipe.model_copy(
        update={"resources": recipe.resources.model_copy(update={"workers": 0, "threads": devices.threads(recipe.resources)})}
    )
    with devices.thread_limit(devices.threads(local.resources)):
        probe = _Probe(local, data)
        sides = (
            _measuring(recipe, method, data, store, probe),
            _synthesizing(recipe, probe),
            _evaluating(recipe, data, store, local),
        )
        set_bytes = sum(tensor.nbytes for tensor in probe.start.state_dict().values())
        optimizer_states = {"sgd": 1 if recipe.synthesis.momentum else 0, "adam": 2}[recipe.synthesis.optimizer]
        images = len(data.train) + len(data.test) + (len(data.validation) if data.validation is not None else 0)
        return Plan(
            recipe.name,
            f"{data.name} ({len(data.train):,} training images of {'x'.join(map(str, data.shape))}, {data.classes} classes)",
            tuple(stage for stage in sides if stage is not None),
            {
                "data": images * data.train.images[0].nbytes,
                "measured statistics": probe.statistic_bytes * (recipe.observers.pool if recipe.real == "measured" else 0),
                "step": probe.step_bytes,
            },
            {
                "measured statistics": probe.statistic_bytes * len(_unmeasured(recipe, method, data, store)),
                "checkpoints": 2 * set_bytes * (1 + optimizer_states),
                "distilled": set_bytes,
            },
        )


class _Probe:
    """One batch of measuring and one step, timed."""

    def __init__(self, recipe: Recipe, data: ImageData):
        observers = Observers(recipe, Facts.of(data))
        rows = slice(0, recipe.observers.batch_size)
        shard = LocalShared((data.train.images[rows], data.train.labels[rows]))
        self.start = synthetic.initial(recipe, data)
        template = LocalShared(dict(self.start.state_dict()))
        parameters = LocalShared({name: p.detach() for name, p in self.start.named_parameters()})
        self.statistic_bytes = 0
        self.seconds_per_image = 0.0
        if recipe.real == "measured":
            states = observers.measure(0, shard)
            self.statistic_bytes = sum(t.nbytes for layers in states.values() for state in layers for t in state.values())
            self.seconds_per_image = _timed(lambda: observers.measure(0, shard)) / len(shard.value[0])
            real = LocalShared(states)
        else:
            real = LocalShared(RealBatches((data.train.images, data.train.labels)).draw(recipe, 0, 0))
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            observers.gradient(0, 0, template, parameters, real)
        self.step_bytes = sum(saved.values())
        self.seconds_per_gradient = _timed(lambda: observers.gradient(0, 0, template, parameters, real))


def _unmeasured(recipe: Recipe, method: methods.Method, data: ImageData, store: Store) -> list[int]:
    return measure.missing(recipe, method, data, store) if recipe.real == "measured" else []


def _measuring(recipe: Recipe, method: methods.Method, data: ImageData, store: Store, probe: _Probe) -> StagePlan | None:
    if recipe.real == "sampled":
        return None
    absent, pool = _unmeasured(recipe, method, data, store), recipe.observers.pool
    items = len(absent) * len(measure.shards(data.train))
    seconds = probe.seconds_per_image * len(absent) * len(data.train) / _side_by_side(recipe, items)
    work = f"{len(absent)} of {pool} observers ({recipe.observers.network.label}) look at {len(data.train):,} images"
    return StagePlan("measure", work, f"{pool - len(absent)} cached", seconds)


def _synthesizing(recipe: Recipe, probe: _Probe) -> StagePlan:
    per_step = recipe.observers.per_step
    seconds = recipe.synthesis.steps * per_step * probe.seconds_per_gradient / _side_by_side(recipe, per_step)
    work = f"{recipe.synthesis.steps:,} steps of {per_step} observers on {len(probe.start):,} images, real side {recipe.real}"
    return StagePlan("synthesize", work, "never cached", seconds)


def _evaluating(recipe: Recipe, data: ImageData, store: Store, local: Recipe) -> StagePlan:
    settings = recipe.evaluation
    baselines = evaluate.tasks(settings, settings.baselines, evaluate.Candidates(data, None, recipe.ipc))
    there = evaluate.stored(baselines, recipe, data, store)
    absent = [task for index, task in enumerate(baselines) if index not in there]
    speed = {network: _seconds_per_image(local, data, network) for network in settings.networks}
    small = recipe.ipc * data.classes
    cost = sum(speed[task.network] * task.epochs * (len(data.train) if task.set_name == "whole" else small) for task in absent)
    cost += sum(speed[network] * settings.epochs * small * settings.seeds for network in settings.networks)
    students = len(absent) + settings.seeds * len(settings.networks)
    work = f"{students} students ({', '.join(network.label for network in settings.networks)})"
    cached = f"{len(baselines) - len(absent)} of {len(baselines)} baseline results cached"
    return StagePlan("evaluate", work, cached, cost / _side_by_side(recipe, students))


def _seconds_per_image(recipe: Recipe, data: ImageData, settings: NetworkSettings) -> float:
    """Time of one image in a student's training, from one batch as large as the distilled set allows."""
    device = devices.choose(recipe.resources)
    count = min(recipe.evaluation.batch_size, recipe.ipc * data.classes)
    network = networks.build(settings, data.shape, data.classes, seed=0).to(device)
    images = data.normalization(torch.tensor(data.train.images[:count], device=device))
    labels = torch.tensor(data.train.labels[:count], device=device)
    augment = augmentation(recipe.evaluation.augmentation)

    def step() -> None:
        network.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.evaluation.precision == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(network(augment(images, generator(0, "plan"))), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    return _timed(step) / len(images)


def _side_by_side(recipe: Recipe, items: int) -> int:
    return max(1, min(recipe.resources.workers, items))


def _timed(work: Callable[[], object]) -> float:
    """Seconds of one call, the least of three after a warm-up."""
    work()
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
