"""What a run would do: work, what is cached, time, memory and disk, stage by stage, without doing it.

Times are not guessed: one batch of every kind of work is run and timed on this machine's in-process device, then multiplied. A
cluster's workers may be faster or slower, and `workers` divide the work items that can go side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayd import devices, methods, networks, synthetic
from rayd.config import EvaluationSettings, NetworkSettings, Panel, Recipe, TrainingSettings
from rayd.data import ImageData
from rayd.data.augmentation import augmentation
from rayd.data.streaming import READ_AHEAD
from rayd.engine import arithmetic, distill, evaluate, experts, initial, measure, squeeze
from rayd.engine.group import LocalShared
from rayd.engine.members import Member, members, teachers
from rayd.engine.observer import Facts
from rayd.engine.observers import Observers, Question
from rayd.engine.preflight import check_settings, preflight
from rayd.engine.progress import Reporter
from rayd.engine.pursuit import Pursuer
from rayd.engine.queue import Growth
from rayd.engine.reading import read
from rayd.engine.store import Store
from rayd.engine.synthesize import RealBatches
from rayd.engine.tasks import Candidates, tasks
from rayd.networks.flat import FlatNetwork
from rayd.objectives.following import Following
from rayd.objectives.trajectory import Segment
from rayd.seeding import generator
from rayd.synthetic import SyntheticSet
from rayd.synthetic.paced import Paced
from rayd.training.judging import TEST_BATCH
from rayd.training.stored import chunks as stored_chunks

LONG = 2.0
"""Seconds after which a call is not timed again."""
TIMED_STEPS = 3
"""Steps of a student that are timed; the others take as long."""


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


def plan(recipe: Recipe, data_root: Path | None = None, cache: Path | None = None, reporter: Reporter | None = None) -> Plan:
    """Plan a run; refuses what the run itself would refuse. Of streamed data it needs the pass that the run would need.

    Raises:
        RaydError: as `distill` would.
    """
    check_settings(recipe)
    data = read(recipe.data, data_root, cache, reporter or Reporter(), recipe.usual_image_size)
    store = Store(cache)
    preflight(recipe, data)
    recipe = arithmetic.choose(recipe, data.shape).recipe
    method = methods.build(recipe)
    squeeze.check(recipe, data, store)
    local = recipe.model_copy(
        update={"resources": recipe.resources.model_copy(update={"workers": 0, "threads": devices.threads(recipe.resources)})}
    )
    with devices.thread_limit(devices.threads(local.resources)):
        probe = _Probe(local, method, data)
        sides = (
            _squeezing(recipe, data, store, local),
            _training_experts(recipe, method, data, store, local),
            _measuring(recipe, method, data, store, probe),
            _scoring(recipe, data, store),
            _synthesizing(recipe, method, probe, _synthesized(recipe, data, store)),
            _relabelling(recipe, data, local),
            _evaluating(recipe, data, store, local),
        )
        set_bytes = sum(tensor.nbytes for tensor in probe.start.state_dict().values())
        optimizer_states = {"sgd": 1 if recipe.synthesis.momentum else 0, "adam": 2}[recipe.synthesis.optimizer]
        return Plan(
            recipe.name,
            f"{data.name} ({len(data.train):,} training images of {'x'.join(map(str, data.shape))}, {data.classes} classes"
            f"{', streamed' if data.train.streamed else ''})",
            tuple(stage for stage in sides if stage is not None),
            {
                "data": _data_bytes(recipe, data),
                "measured statistics": _statistic_bytes(recipe, probe),
                "step": probe.step_bytes,
            },
            {
                "measured statistics": _statistic_bytes(recipe, probe, _unmeasured(recipe, method, data, store)),
                **_expert_bytes(recipe, method, data, store),
                "checkpoints": 2 * set_bytes * (1 + optimizer_states + (method.averaging is not None)),
                "distilled": 2 * set_bytes,
                "soft labels": _label_bytes(recipe, data),
            },
        )


def _data_bytes(recipe: Recipe, data: ImageData) -> int:
    """Decoded images: all of them, or those that a worker holds at a time where they are streamed."""
    splits = [split for split in (data.train, data.validation, data.test) if split is not None]
    if not data.train.streamed:
        return sum(split.images.nbytes for split in splits)
    batch = max(recipe.observers.batch_size, recipe.squeeze.batch_size, recipe.evaluation.batch_size, TEST_BATCH)
    drawn = recipe.observers.real_batch * data.classes if recipe.real == "sampled" else 0
    scored = recipe.synthetic.candidates if recipe.synthetic.init == "rded" else 0
    # besides those decoded ahead, one batch is in use and one on its way
    held = max((READ_AHEAD + 2) * batch, drawn, scored)
    return max(min(held, len(split)) * split.images.nbytes // len(split) for split in splits)


class _Probe:
    """One batch of measuring and one step of every architecture that looks, timed with random weights."""

    def __init__(self, recipe: Recipe, method: methods.Method, data: ImageData):
        # whatever the images start as, a step costs the same
        labels = "hard" if recipe.synthetic.labels == "hard" else "random"
        cheap = recipe.synthetic.model_copy(update={"init": "noise", "labels": labels})
        recipe = recipe.model_copy(update={"synthetic": cheap})
        self.start = synthetic.initial(recipe, data)
        self.blocks = synthetic.blocks(self.start.units, recipe.synthesis.block, recipe.synthesis.order)
        self.statistic_bytes: dict[Panel, int] = dict.fromkeys(method.panels, 0)
        """Of one member of each architecture of a panel."""
        self.seconds_per_image: dict[Panel, float] = dict.fromkeys(method.panels, 0.0)
        self.seconds_per_gradient: dict[Panel, float] = dict.fromkeys(method.panels, 0.0)
        self.seconds_per_growth = 0.0
        self.seconds_per_student = 0.0
        self.step_bytes = 0
        if method.following is not None and recipe.synthesis.steps > 0:
            self.seconds_per_student, self.step_bytes = _student_cost(recipe, method.following, data, self.start)
        if method.terms and recipe.synthesis.steps > 0:
            self._observers, self._recipe, self._data, self._method = Observers(recipe, Facts.of(data)), recipe, data, method
            for panel in method.panels:
                for place in range(len(recipe.panel(panel).networks)):
                    self._time(panel, place)

    def _time(self, panel: Panel, place: int) -> None:
        """Add the share of one architecture to the means over all of its panel."""
        recipe, data, settings = self._recipe, self._data, self._recipe.panel(panel)
        share, member = 1 / len(settings.networks), members(recipe, panel)[place]
        images, labels = data.train.images, data.train.labels
        real: LocalShared | None = None
        if self._method.needs(panel) and recipe.real == "measured":
            some = data.train.part(slice(0, settings.batch_size))
            shard = LocalShared((some.images, some.labels))
            states = self._observers.measure_alone(member, None, shard, shard)
            self.statistic_bytes[panel] += sum(t.nbytes for layers in states.values() for one in layers for t in one.values())
            seconds = _timed(lambda: self._observers.measure_alone(member, None, shard, shard))
            self.seconds_per_image[panel] += share * seconds / len(shard.value[0])
            real = LocalShared(states)
        elif self._method.samples(panel):
            real = LocalShared(RealBatches((images, labels)).draw(recipe, 0, 0))
        part = self.start.part(self.blocks[0])
        state = LocalShared(dict(part.state_dict()))
        parameters = LocalShared({name: p.detach() for name, p in part.named_parameters()})
        question = Question(member, 0, len(self.blocks), 0, 0, state, parameters, parameters, None, 0.0, real, LocalShared({}))
        asked = Observers(recipe, Facts.of(data))
        self.step_bytes = max(self.step_bytes, _kept_bytes(lambda: asked.answer(question)))
        self.seconds_per_gradient[panel] += share * _timed(lambda: asked.answer(question))
        queue = recipe.observers.queue
        if panel == "observers" and queue is not None:
            one_step = queue.model_copy(update={"train_steps": 1, "train_epochs": None})
            once = recipe.model_copy(update={"observers": recipe.observers.model_copy(update={"queue": one_step})})
            train = LocalShared((images, labels)) if queue.source == "real" else None
            growing, growth = Observers(once, Facts.of(data)), Growth(member, 0, None, train, state, parameters)
            count = len(labels) if train is not None else len(part)
            steps = (queue.train_epochs or 0) * -(-count // queue.batch_size) or queue.train_steps
            self.seconds_per_growth += share * steps * _timed(lambda: growing.answer(growth))


def _unmeasured(recipe: Recipe, method: methods.Method, data: ImageData, store: Store) -> list[Member]:
    return measure.missing(recipe, method, data, store) if recipe.real == "measured" else []


def _measuring(recipe: Recipe, method: methods.Method, data: ImageData, store: Store, probe: _Probe) -> StagePlan | None:
    looking = [panel for panel in method.panels if method.needs(panel)]
    if recipe.real == "sampled" or not looking:
        return None
    absent = _unmeasured(recipe, method, data, store)
    pool = sum(recipe.panel(panel).members for panel in looking)
    beside = _side_by_side(recipe, len(absent) * len(measure.shards(len(data.train))))
    seconds = len(data.train) / beside * sum(probe.seconds_per_image[member.panel] for member in absent)
    labels = ", ".join(network.label for panel in looking for network in recipe.panel(panel).networks)
    work = f"{len(absent)} of {pool} observers ({labels}) look at {len(data.train):,} images"
    return StagePlan("measure", work, f"{pool - len(absent)} cached", seconds)


def _statistic_bytes(recipe: Recipe, probe: _Probe, absent: list[Member] | None = None) -> int:
    """Of all who are measured, or of those that are absent from the store."""
    total = 0
    for panel, size in probe.statistic_bytes.items():
        pool, networks = recipe.panel(panel).pool, len(recipe.panel(panel).networks)
        total += size * pool if absent is None else size * sum(one.panel == panel for one in absent) // networks
    return total


def _squeezing(recipe: Recipe, data: ImageData, store: Store, local: Recipe) -> StagePlan | None:
    everyone, absent = squeeze.distinct(recipe, data), squeeze.missing(recipe, data, store)
    if not everyone:
        return None
    cost = 0.0
    speed: dict[tuple[str, Panel], float] = {}
    for member in absent:
        settings, kind = recipe.squeezing(member.panel), (member.network.label, member.panel)
        if kind not in speed:
            speed[kind] = _seconds_per_image(local, data, member.network, settings, settings.batch_size)
            speed[kind] += _seconds_to_decode(data, settings.batch_size)
        cost += speed[kind] * settings.epochs * len(data.train)
    beside = recipe.squeeze.workers if squeeze.together(recipe) else _side_by_side(recipe, len(absent))
    names = ", ".join(member.label for member in absent) or "none"
    learned = sorted({recipe.squeezing(member.panel).epochs for member in everyone})
    epochs = " or ".join(str(number) for number in learned)
    work = f"{len(absent)} of {len(everyone)} observers ({names}) learn {epochs} epochs of {len(data.train):,} images"
    there = squeeze.everyone(recipe, data, store, everyone)
    known = [f"{member.label} {one.facts['train_accuracy']:.3f}" for member, one in there.items()]
    return StagePlan("squeeze", work, f"cached: {', '.join(known) or 'none'}", cost / beside)


def _training_experts(recipe: Recipe, method: methods.Method, data: ImageData, store: Store, local: Recipe) -> StagePlan | None:
    if not method.needs_experts:
        return None
    settings, absent = recipe.experts, experts.missing(recipe, data, store)
    cost = 0.0
    if absent:
        speed = _seconds_per_image(local, data, settings.network, settings, min(settings.batch_size, len(data.train)))
        # flat trajectories take two gradients a step
        speed = speed * (2 if settings.flat_radius > 0 else 1) + _seconds_to_decode(data, settings.batch_size)
        cost = speed * settings.epochs * len(data.train) * len(absent)
    work = f"{len(absent)} of {settings.count} experts ({settings.network.label}) learn {settings.epochs} epochs of "
    work += f"{len(data.train):,} images"
    return StagePlan("experts", work, f"{settings.count - len(absent)} cached", cost / _side_by_side(recipe, len(absent)))


def _student_cost(recipe: Recipe, following: Following, data: ImageData, learned: SyntheticSet) -> tuple[float, int]:
    """Time and memory of a student: from one of a few steps between the random weights of two networks."""
    assert isinstance(learned, Paced)
    device, settings = devices.choose(recipe.resources), following.settings
    made = [networks.build(recipe.experts.network, data.shape, data.classes, seed=seed) for seed in (0, 1)]
    segment, replica = Segment(*(FlatNetwork(one).vector().to(device) for one in made)), learned.to(device)

    def student(steps: int) -> Callable[[], object]:
        fewer = replace(following, settings=settings.model_copy(update={"steps": steps, "loss_limit": None}))
        pursuer = Pursuer(recipe, fewer, data.shape, data.classes, device)
        return lambda: pursuer.pursue(segment, replica, 0, 0)

    few = min(settings.steps, TIMED_STEPS)
    seconds = _timed(student(few)) * settings.steps / few
    graph = _kept_bytes(student(1)) * (settings.steps if settings.way == "full" else 1)
    return seconds, graph + (settings.steps + 1) * segment.start.nbytes


def _expert_bytes(recipe: Recipe, method: methods.Method, data: ImageData, store: Store) -> dict[str, int]:
    """What is written of experts."""
    if not method.needs_experts:
        return {}
    return {"experts": len(experts.missing(recipe, data, store)) * experts.stored_bytes(recipe, data)}


def _scoring(recipe: Recipe, data: ImageData, store: Store) -> StagePlan | None:
    if recipe.synthetic.init != "rded":
        return None
    absent, settings = initial.missing(recipe, data, store), recipe.synthetic
    work = f"{settings.crops} crops of up to {settings.candidates} images of {len(absent)} classes, not timed"
    return StagePlan("score", work, f"{data.classes - len(absent)} of {data.classes} classes cached", 0.0)


def _relabelling(recipe: Recipe, data: ImageData, local: Recipe) -> StagePlan | None:
    if recipe.labels.kind != "stored":
        return None
    device, count = devices.choose(local.resources), min(recipe.evaluation.batch_size, len(data.train))
    images = data.normalization(torch.tensor(data.train.images[:count], device=device))
    seconds = 0.0
    for one in teachers(recipe):
        network = networks.build(one.network, data.shape, data.classes, seed=0).eval()
        devices.settle(network, device)
        with torch.no_grad():
            seconds += _timed(lambda network=network: network(images)) / count  # type: ignore[misc]
    images_made = synthetic.image_count(recipe, data)
    looks = recipe.evaluation.epochs * images_made
    parts = stored_chunks(recipe.evaluation.epochs, images_made, data.classes, recipe.labels.precision)
    work = f"{len(teachers(recipe))} teachers label {recipe.evaluation.epochs:,} epochs of {images_made:,} images"
    return StagePlan("relabel", work, "kept beside the set", seconds * looks / _side_by_side(recipe, len(parts)))


def _synthesized(recipe: Recipe, data: ImageData, store: Store) -> bool:
    """Whether a run with the same settings left its set in the store."""
    inputs = distill.synthesis_inputs(recipe, distill.synthesis_key(recipe, data))
    return recipe.synthesis.steps > 0 and store.has(distill.STAGE, inputs, "safetensors")


def _synthesizing(recipe: Recipe, method: methods.Method, probe: _Probe, cached: bool) -> StagePlan:
    steps, parts = recipe.synthesis.steps, len(probe.blocks)
    looking = {panel: recipe.panel(panel).per_step for panel in method.panels}
    queue = recipe.observers.queue
    growing = 0 if queue is None else queue.trained_per_step if queue.trained == "drawn" else recipe.observers.per_step
    students = method.following.settings.per_step if method.following is not None else 0
    asking = sum(count * probe.seconds_per_gradient[panel] for panel, count in looking.items())
    asking += students * probe.seconds_per_student
    training, asked = growing * probe.seconds_per_growth, sum(looking.values()) + students
    if parts > 1 and not method.sequential:
        one = (asking + training) / _side_by_side(recipe, parts)
    elif queue is not None and queue.source == "synthetic":
        one = asking / _side_by_side(recipe, asked) + training / _side_by_side(recipe, growing)
    else:
        one = (asking + training) / _side_by_side(recipe, asked + growing)
    seconds = steps * parts * one
    in_turn = " one after another" if method.sequential else ""
    cut = f" in {parts} blocks{in_turn}" if parts > 1 else ""
    looks = [f"{count} {panel}" for panel, count in looking.items()]
    if method.following is not None:
        chosen = method.following.settings
        looks.append(f"{students} {'student' if students == 1 else 'students'} of {chosen.steps} steps ({chosen.way})")
    who = " and ".join(looks) or "no observers"
    real = f", real side {recipe.real}" if looking or method.following is None else ""
    grown = f", {growing} of the queue trained on" if growing else ""
    work = f"{steps:,} steps of {who} on {len(probe.start):,} images{cut}{real}{grown}"
    return StagePlan("synthesize", work, "cached" if cached else "not cached", 0.0 if cached else seconds)


def _label_bytes(recipe: Recipe, data: ImageData) -> int:
    """The logits of stored labels; crops and mixes are small beside them."""
    if recipe.labels.kind != "stored":
        return 0
    numbers = recipe.evaluation.epochs * synthetic.image_count(recipe, data) * data.classes
    return numbers * (2 if recipe.labels.precision == "float16" else 4)


def _evaluating(recipe: Recipe, data: ImageData, store: Store, local: Recipe) -> StagePlan:
    settings = recipe.evaluation
    baselines = tasks(recipe, settings.baselines, Candidates(data, None, recipe.ipc), squeeze.teacher_hashes(recipe, data))
    there = evaluate.stored(baselines, recipe, data, store)
    absent = [task for index, task in enumerate(baselines) if index not in there]
    small, own = recipe.ipc * data.classes, synthetic.image_count(recipe, data)
    batch = min(settings.batch_size, small)
    speed = {network: _seconds_per_image(local, data, network, settings, batch) for network in settings.networks}
    whole = _seconds_to_decode(data, batch) if any(task.set_name == "whole" for task in absent) else 0.0
    cost = sum(
        task.epochs
        * ((speed[task.network] + whole) * len(data.train) if task.set_name == "whole" else speed[task.network] * small)
        for task in absent
    )
    cost += sum(speed[network] * settings.epochs * own * settings.seeds for network in settings.networks)
    students = len(absent) + settings.seeds * len(settings.networks)
    work = f"{students} students ({', '.join(network.label for network in settings.networks)})"
    cached = f"{len(baselines) - len(absent)} of {len(baselines)} baseline results cached"
    return StagePlan("evaluate", work, cached, cost / _side_by_side(recipe, students))


def _seconds_per_image(
    recipe: Recipe, data: ImageData, settings: NetworkSettings, training: TrainingSettings, count: int
) -> float:
    """Time of one image in a network's training, from one batch; teachers that label online look at it, too."""
    device = devices.choose(recipe.resources)
    network = networks.build(settings, data.shape, data.classes, seed=0).to(device)
    images = data.normalization(torch.tensor(data.train.images[:count], device=device))
    labels = torch.tensor(data.train.labels[:count], device=device)
    augment = augmentation(training.augmentation)
    online = isinstance(training, EvaluationSettings) and recipe.labels.kind == "online"
    watching = [networks.build(one.network, data.shape, data.classes, seed=0).to(device).eval() for one in teachers(recipe)]

    def step() -> None:
        network.zero_grad()
        with torch.no_grad():
            for teacher in watching if online else []:
                teacher(images)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.precision == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(network(augment(images, generator(0, "plan"))), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    return _timed(step) / len(images)


def _seconds_to_decode(data: ImageData, count: int) -> float:
    """Time of one image on its way from file to batch; nothing where the images are in memory."""
    if not data.train.streamed:
        return 0.0
    rows = torch.randperm(len(data.train), generator=generator(0, "plan"))[:count].numpy()
    return _timed(lambda: data.train.images[rows]) / len(rows)


def _side_by_side(recipe: Recipe, items: int) -> int:
    return max(1, min(recipe.resources.workers, items))


def _kept_bytes(work: Callable[[], object]) -> int:
    """Bytes that autograd keeps for backward passes, all of a call together."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(saved.values())


def _timed(work: Callable[[], object]) -> float:
    """Seconds of one call, the least of three after a warm-up; of one that takes long, the first has to do."""
    best, first = float("inf"), 0.0
    for call in range(4):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        first = first or seconds
        best = seconds if call < 2 else min(best, seconds)
        if first > LONG:
            break
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
