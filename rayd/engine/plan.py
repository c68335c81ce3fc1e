"""What a run would do: work, what is cached, time, memory and disk, stage by stage, without doing
it and without decoding data.

Times are counted operations (`rayd.engine.costs`) times what such operations take on this machine
(`rayd.engine.speeds`). A cluster's workers may be faster or slower, and `workers` divide the work
items that can go side by side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from rayd import devices, methods, synthetic
from rayd.config import NetworkGroup, Recipe
from rayd.data import ImageData, ImageSet
from rayd.data.outline import Outline, load_outline
from rayd.data.streaming import READ_AHEAD
from rayd.engine import arithmetic
from rayd.engine.costs import Costs, StepCost
from rayd.engine.counting import Count, Counting
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId, teachers
from rayd.engine.preflight import check_settings, preflight
from rayd.engine.progress import Progress
from rayd.engine.speeds import Speeds
from rayd.engine.stages.experts import Experts
from rayd.engine.stages.measure import TEAM, Measure, shards
from rayd.engine.stages.score import Score
from rayd.engine.stages.squeeze import Squeeze, together
from rayd.engine.stages.student_tasks import TrainingSets, tasks
from rayd.engine.stages.students import Students
from rayd.engine.stages.synthesis import Synthesis
from rayd.engine.store import Store
from rayd.seeding import generator
from rayd.training.judging import TEST_BATCH
from rayd.training.progress import milestones
from rayd.training.squeeze import JUDGED
from rayd.training.stored import chunks as stored_chunks

DAY = 24 * 3600.0
DOMINANT = 0.3
"""Share of the time from which on a part of the work is named as what it is spent on."""
DECODED = 16
"""Streamed images of which the decoding is timed."""


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
    """Wall-clock time that the rest takes."""


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
    remarks: tuple[str, ...] = ()
    """Sentences: what takes most of the time and which settings change it, and whatever else must
    be known."""

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
            lines.append(
                f"{stage.stage:<11} {duration(stage.seconds):>10}   {stage.work}; {stage.cached}"
            )
        lines += [f"{'in all':<11} {duration(self.seconds):>10}", ""]
        lines.append(
            "memory  " + ", ".join(f"{name} {_size(size)}" for name, size in self.memory.items())
        )
        lines.append(
            "disk    " + ", ".join(f"{name} {_size(size)}" for name, size in self.disk.items())
        )
        return "\n".join([*lines, "", *self.remarks] if self.remarks else lines)


@dataclass(frozen=True)
class Part:
    """Some of the work of a stage."""

    what: str
    """In words, e.g. `2 students on the whole set`."""
    settings: str
    """What its time is proportional to, e.g. `evaluation.whole_epochs`."""
    count: Count
    """Its operations."""
    parallel: float = 1.0
    """How many workers share it."""
    decoded: float = 0.0
    """Streamed images that it decodes."""


@dataclass(frozen=True)
class Stage:
    """The work of a stage, not priced yet."""

    name: str
    work: str
    cached: str
    parts: tuple[Part, ...]


def plan(
    recipe: Recipe,
    data_root: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    calibrate: bool = False,
) -> Plan:
    """Plan a run; refuses what the run itself would refuse.

    Args:
        recipe: the run.
        data_root: where named data are looked for first; a known set may be nowhere.
        cache: root of the store that runs share.
        progress: where it is said that speeds are being measured.
        calibrate: measure speeds anew that are known.

    Raises:
        RaydError: as `distill` would.
    """
    progress = progress or Progress()
    check_settings(recipe)
    outline = load_outline(recipe.data, data_root, cache)
    store = Store(cache)
    data = outline.data
    with Counting():
        # networks are built without their values
        preflight(recipe, data)
    recipe = arithmetic.choose(recipe, data.shape).recipe
    method = methods.build(recipe)
    Squeeze(Job(recipe, data, store)).check()
    local = recipe.model_copy(
        update={
            "resources": recipe.resources.model_copy(
                update={"workers": 0, "threads": devices.threads(recipe.resources)}
            )
        }
    )
    with devices.thread_limit(devices.threads(local.resources)):
        work = _Work(recipe, method, outline, store)
        stages = work.stages()
        device = _device(recipe, local)
        speeds = Speeds(device)
        if calibrate or not speeds.measured:
            progress.log("plan: measuring how fast this machine is, for some seconds, once")
        speeds.calibrate([part.count for stage in stages for part in stage.parts], anew=calibrate)
        decoding = (
            _seconds_to_decode(data.train)
            if any(part.decoded for stage in stages for part in stage.parts)
            else 0.0
        )
        priced = {
            stage.name: [_seconds(part, speeds, decoding) for part in stage.parts]
            for stage in stages
        }
    made = tuple(
        StagePlan(stage.name, stage.work, stage.cached, sum(priced[stage.name])) for stage in stages
    )
    remarks = _remarks(recipe, outline, stages, priced, device)
    return Plan(recipe.name, _data_words(outline), made, work.memory(), work.disk(), remarks)


def stage_seconds(
    recipe: Recipe,
    method: methods.Method,
    data: ImageData,
    store: Store,
    speeds: Speeds,
    long: float,
    budget: float,
) -> dict[str, float]:
    """Seconds of each stage of a run that is about to begin.

    Args:
        recipe: the run.
        method: its method.
        data: its data.
        store: what is cached.
        speeds: of the machine; they are measured if they are not known and the run is long.
        long: seconds from which on it is.
        budget: seconds of measuring.
    """
    stages = _Work(recipe, method, Outline(data, True, True), store).stages()
    decoding = _seconds_to_decode(data.train) if data.train.streamed else 0.0

    def priced() -> dict[str, float]:
        return {
            stage.name: sum(_seconds(part, speeds, decoding) for part in stage.parts)
            for stage in stages
        }

    found = priced()
    if not speeds.measured and sum(found.values()) > long:
        speeds.calibrate([part.count for stage in stages for part in stage.parts], budget)
        found = priced()
    return found


def _device(recipe: Recipe, local: Recipe) -> torch.device:
    """Where the work is done, if this machine has such a device; workers that reserve GPUs may be
    elsewhere.
    """
    if recipe.resources.workers > 0 and recipe.resources.gpus_per_worker == 0:
        return torch.device("cpu")
    return devices.choose(local.resources)


def _seconds(part: Part, speeds: Speeds, decoding: float) -> float:
    return (speeds.seconds(part.count) + part.decoded * decoding) / part.parallel


def _data_words(outline: Outline) -> str:
    data = outline.data
    shape = "x".join(map(str, data.shape))
    streamed = ", streamed" if data.train.streamed else ""
    return f"{data.name} ({len(data.train):,} training images of {shape}, {data.classes} classes{streamed})"


class _Work:
    """The stages of a run, counted."""

    def __init__(self, recipe: Recipe, method: methods.Method, outline: Outline, store: Store):
        self.recipe = recipe
        self.method = method
        self.outline = outline
        self.data = outline.data
        self.store = store
        self.job = Job(recipe, outline.data, store)
        self.costs = Costs(recipe, outline.data, store)
        self.images = len(outline.data.train)
        self.statistics: dict[NetworkGroup, int] = {}
        self.step_bytes = 0.0

    def stages(self) -> list[Stage]:
        """All of them, in order."""
        found = (
            self._reading(),
            self._squeezing(),
            self._training_experts(),
            self._measuring(),
            self._scoring(),
            self._synthesizing(),
            self._relabelling(),
            self._evaluating(),
        )
        return [stage for stage in found if stage is not None]

    def _decoded(self, images: float) -> float:
        return images if self.data.train.streamed else 0.0

    def _reading(self) -> Stage | None:
        """The first pass over streamed images."""
        if self.outline.surveyed:
            return None
        splits = [
            split
            for split in (self.data.train, self.data.validation, self.data.test)
            if split is not None
        ]
        count = sum(map(len, splits))
        part = Part(
            f"the first pass over {count:,} images", "data.image_size", Count(), decoded=count
        )
        return Stage(
            "read", f"{count:,} images are decoded once, to know them", "not cached", (part,)
        )

    def _squeezing(self) -> Stage | None:
        recipe = self.recipe
        data = self.data
        squeeze = Squeeze(self.job)
        everyone = squeeze.items()
        absent = squeeze.missing()
        if not everyone:
            return None
        beside = recipe.squeeze.workers if together(recipe) else _side_by_side(recipe, len(absent))
        parts = []
        for kind, same in _alike(absent):
            settings = recipe.squeezing(kind.group)
            count = self.costs.testing(
                kind.architecture, settings.precision, min(JUDGED, self.images)
            )
            if data.validation is not None:
                count = count + self.costs.testing(
                    kind.architecture, settings.precision, len(data.validation)
                )
            if settings.epochs > 0:
                count = (
                    count
                    + self.costs.training(kind.architecture, settings, self.images)
                    * settings.epochs
                )
            decoded = self._decoded(settings.epochs * self.images + min(JUDGED, self.images)) * len(
                same
            )
            what = f"{len(same)} x {kind.architecture.label}, {settings.epochs} epochs"
            parts.append(Part(what, "squeeze.epochs", count * len(same), beside, decoded))
        names = ", ".join(network_id.label for network_id in absent) or "none"
        learned = sorted({recipe.squeezing(network_id.group).epochs for network_id in everyone})
        epochs = " or ".join(str(number) for number in learned)
        work = f"{len(absent)} of {len(everyone)} observers ({names}) learn {epochs} epochs of {self.images:,} images"
        there = squeeze.results()
        known = [
            f"{network_id.label} {one.facts['train_accuracy']:.3f}"
            for network_id, one in there.items()
            if network_id in everyone
        ]
        return Stage("squeeze", work, f"cached: {', '.join(known) or 'none'}", tuple(parts))

    def _training_experts(self) -> Stage | None:
        recipe = self.recipe
        if not self.method.needs_experts:
            return None
        settings = recipe.experts
        absent = Experts(self.job).missing()
        parts = []
        if absent:
            one = self.costs.training(settings.network, settings, self.images) * settings.epochs
            one = one + self.costs.testing(
                settings.network, settings.precision, min(JUDGED, self.images)
            )
            decoded = self._decoded(settings.epochs * self.images) * len(absent)
            what = f"{len(absent)} experts, {settings.epochs} epochs"
            beside = _side_by_side(recipe, len(absent))
            parts.append(
                Part(what, "experts.count and experts.epochs", one * len(absent), beside, decoded)
            )
        work = f"{len(absent)} of {settings.count} experts ({settings.network.label}) learn {settings.epochs} epochs of "
        work += f"{self.images:,} images"
        return Stage("experts", work, f"{settings.count - len(absent)} cached", tuple(parts))

    def _unmeasured(self) -> list[NetworkId]:
        if self.recipe.real != "measured":
            return []
        return Measure(self.job).unmeasured()

    def _measuring(self) -> Stage | None:
        recipe = self.recipe
        looking = [group for group in self.method.groups if self.method.needs(group)]
        if recipe.real == "sampled" or not looking or recipe.synthesis.steps == 0:
            return None
        absent = self._unmeasured()
        pool = sum(recipe.network_group(group).count for group in looking)
        parts = len(shards(self.images))
        beside = _side_by_side(recipe, len(absent) * parts)
        work_parts = []
        for kind, same in _alike(absent):
            place = [one.model_dump() for one in recipe.network_group(kind.group).networks].index(
                kind.architecture.model_dump()
            )
            count = self.costs.measuring(kind.group, place) * len(same)
            # streamed images are decoded once for several observers
            decoded = self._decoded(self.images) * math.ceil(len(same) / TEAM)
            what = f"{len(same)} x {kind.architecture.label} on all {self.images:,} images"
            work_parts.append(Part(what, f"{kind.group}.pool", count, beside, decoded))
        labels = ", ".join(
            network.label for group in looking for network in recipe.network_group(group).networks
        )
        work = f"{len(absent)} of {pool} observers ({labels}) look at {self.images:,} images"
        return Stage("measure", work, f"{pool - len(absent)} cached", tuple(work_parts))

    def _scoring(self) -> Stage | None:
        recipe = self.recipe
        data = self.data
        settings = self.recipe.synthetic
        if settings.init != "rded":
            return None
        absent = Score(self.job).missing()
        candidates = sum(
            min(settings.candidates, int(data.train.counts[label])) for label in absent
        )
        parts = []
        if absent:
            what = f"{settings.crops} crops of {candidates:,} images"
            beside = _side_by_side(recipe, len(absent))
            setting = "synthetic.candidates and synthetic.crops"
            parts.append(
                Part(
                    what,
                    setting,
                    self.costs.scoring() * candidates,
                    beside,
                    self._decoded(candidates),
                )
            )
        work = (
            f"{settings.crops} crops of up to {settings.candidates} images of {len(absent)} classes"
        )
        return Stage(
            "score",
            work,
            f"{data.classes - len(absent)} of {data.classes} classes cached",
            tuple(parts),
        )

    def _synthesized(self) -> bool:
        """Whether a run with the same settings left its set in the store."""
        return Synthesis(self.job).is_stored()

    def _synthesizing(self) -> Stage:
        recipe = self.recipe
        method = self.method
        with Counting():
            start = self.costs.start()
            blocks = len(
                synthetic.blocks(start.samples, recipe.synthesis.block, recipe.synthesis.order)
            )
        images = len(start)
        steps = recipe.synthesis.steps
        cached = self._synthesized()
        looking = {group: recipe.network_group(group).per_step for group in method.groups}
        students = method.following.settings.per_step if method.following is not None else 0
        parts: tuple[Part, ...] = ()
        grown = 0.0
        if steps > 0:
            step, self.statistics = self.costs.step()
            self.step_bytes = step.saved_bytes
            grown = step.trained_items
            asked = step.asked
            if students:
                student, size = self.costs.student()
                asked = asked + student * students
                self.step_bytes = max(self.step_bytes, size)
            parts = () if cached else self._step_parts(step, asked, blocks)
        sequential = " one after another" if method.sequential else ""
        cut = f" in {blocks} blocks{sequential}" if blocks > 1 else ""
        looks = [f"{count} {group}" for group, count in looking.items()]
        if method.following is not None:
            chosen = method.following.settings
            looks.append(
                f"{students} {'student' if students == 1 else 'students'} of {chosen.steps} steps ({chosen.way})"
            )
        who = " and ".join(looks) or "no observers"
        real = f", real side {recipe.real}" if looking or method.following is None else ""
        trained = f", {grown:.2g} of the queue trained on" if grown else ""
        work = f"{steps:,} steps of {who} on {images:,} images{cut}{real}{trained}"
        return Stage("synthesize", work, "cached" if cached else "not cached", parts)

    def _step_parts(self, step: StepCost, asked: Count, blocks: int) -> tuple[Part, ...]:
        """A step times steps and blocks, with what goes side by side in it."""
        recipe = self.recipe
        queue = self.recipe.observers.model_pool
        times = recipe.synthesis.steps * blocks
        if blocks > 1 and not self.method.sequential:
            together = apart = alone = _side_by_side(recipe, blocks)
        else:
            after = queue is not None and queue.source == "synthetic"
            items = step.asked_items if after else step.asked_items + step.trained_items
            together = _side_by_side(recipe, math.ceil(items))
            apart = _side_by_side(recipe, math.ceil(step.trained_items)) if after else together
            alone = 1
        decoded = 0.0
        if recipe.real == "sampled" and any(
            self.method.samples(group) for group in self.method.groups
        ):
            decoded = self._decoded(
                recipe.observers.real_batch * self.data.classes * recipe.observers.per_step * times
            )
        settings = "synthesis.steps"
        if self.method.following is not None:
            settings = "synthesis.steps and objective.steps"
        parts = [
            Part(f"{times:,} steps", settings, asked * times, together, decoded),
            Part(
                f"what {times:,} steps do beside their gradients",
                "synthesis.steps",
                step.driver * times,
                alone,
            ),
        ]
        if step.trained.calls:
            setting = (
                "observers.model_pool.train_epochs"
                if queue and queue.train_epochs
                else "observers.model_pool.train_steps"
            )
            parts.append(
                Part("the training of the queue's networks", setting, step.trained * times, apart)
            )
        return tuple(parts)

    def _relabelling(self) -> Stage | None:
        recipe = self.recipe
        if recipe.labels.kind != "stored":
            return None
        images = synthetic.image_count(recipe, self.data)
        epochs = recipe.evaluation.epochs
        parts = stored_chunks(epochs, images, self.data.classes, recipe.labels.precision)
        count = self.costs.labelling(images) * epochs
        work = f"{len(teachers(recipe))} teachers label {epochs:,} epochs of {images:,} images"
        part = Part(
            f"labels of {epochs:,} epochs",
            "evaluation.epochs",
            count,
            _side_by_side(recipe, len(parts)),
        )
        return Stage("relabel", work, "kept beside the set", (part,))

    def _evaluating(self) -> Stage:
        recipe = self.recipe
        data = self.data
        settings = self.recipe.evaluation
        hashes = Squeeze(self.job, ()).teacher_hashes()
        # which images are selected depends on pixels: without them such baselines count as not
        # cached
        known = {
            name for name in settings.baselines if name in ("random", "whole") or _has_pixels(data)
        }
        baselines = tasks(recipe, known, TrainingSets(data, None, recipe.ipc), hashes)
        sets = TrainingSets(data, None, recipe.ipc)
        there = Students(self.job, sets, baselines).results()
        absent = [
            (task.set_name, task.network, task.labels.kind)
            for task in baselines
            if task not in there
        ]
        kind = recipe.labels.kind
        others = "online" if kind == "stored" else kind
        runs = range(settings.seeds)
        unknown = [name for name in settings.baselines if name not in known]
        absent += [
            (name, network, others)
            for name in unknown
            for network in settings.networks
            for _ in runs
        ]
        absent += [("distilled", network, kind) for network in settings.networks for _ in runs]
        beside = _side_by_side(recipe, len(absent))
        parts = tuple(
            self._students(name, network, labels, absent, beside)
            for name, network, labels in dict.fromkeys(absent)
        )
        names = ", ".join(network.label for network in settings.networks)
        done = len(baselines) + len(unknown) * len(settings.networks) * settings.seeds
        cached = f"{len(there)} of {done} baseline results cached"
        return Stage("evaluate", f"{len(absent)} students ({names})", cached, parts)

    def _students(
        self, name: str, network: Any, labels: str, absent: Sequence[Any], beside: int
    ) -> Part:
        """All students of one architecture on one set."""
        settings = self.recipe.evaluation
        data = self.data
        count = absent.count((name, network, labels))
        own = synthetic.image_count(self.recipe, data)
        images = {"whole": self.images, "distilled": own}.get(name, self.recipe.ipc * data.classes)
        epochs = settings.epochs_on(name)
        one = (
            self.costs.training(network, settings, images, labels, real=name != "distilled")
            * epochs
        )
        selections = len(settings.epoch)
        one = one + self.costs.testing(network, settings.precision, len(data.test)) * selections
        judged = float(len(data.test))
        if data.validation is not None:
            times = selections + (
                len(milestones(epochs)) if "validation-best" in settings.epoch else 0
            )
            one = (
                one + self.costs.testing(network, settings.precision, len(data.validation)) * times
            )
            judged += len(data.validation) * times
        decoded = self._decoded(judged + (epochs * images if name == "whole" else 0)) * count
        what = f"{count} {'student' if count == 1 else 'students'} ({network.label}) on the {name} set, {epochs:,} epochs"
        setting = "evaluation.whole_epochs" if name == "whole" else "evaluation.epochs"
        return Part(what, f"{setting} and evaluation.seeds", one * count, beside, decoded)

    def memory(self) -> dict[str, int]:
        """Bytes by what holds them."""
        return {
            "data": self._data_bytes(),
            "measured statistics": self._statistic_bytes(),
            "step": int(self.step_bytes),
        }

    def disk(self) -> dict[str, int]:
        """Bytes by what is written."""
        recipe = self.recipe
        with Counting():
            set_bytes = sum(tensor.nbytes for tensor in self.costs.start().state_dict().values())
        optimizer_states = {"sgd": 1 if recipe.synthesis.momentum else 0, "adam": 2}[
            recipe.synthesis.optimizer
        ]
        return {
            "measured statistics": self._statistic_bytes(self._unmeasured()),
            **self._expert_bytes(),
            "checkpoints": 2
            * set_bytes
            * (1 + optimizer_states + (self.method.averaging is not None)),
            "distilled": 2 * set_bytes,
            "soft labels": self._label_bytes(),
        }

    def _data_bytes(self) -> int:
        """Decoded images: all of them, or those that a worker holds at a time where they are
        streamed.
        """
        recipe = self.recipe
        data = self.data
        splits = [split for split in (data.train, data.validation, data.test) if split is not None]
        if not data.train.streamed:
            return sum(split.images.nbytes for split in splits)
        batch = max(
            recipe.observers.batch_size,
            recipe.squeeze.batch_size,
            recipe.evaluation.batch_size,
            TEST_BATCH,
        )
        drawn = recipe.observers.real_batch * data.classes if recipe.real == "sampled" else 0
        scored = recipe.synthetic.candidates if recipe.synthetic.init == "rded" else 0
        # besides those decoded ahead, one batch is in use and one on its way
        held = max((READ_AHEAD + 2) * batch, drawn, scored)
        return max(min(held, len(split)) * split.images.nbytes // len(split) for split in splits)

    def _statistic_bytes(self, absent: list[NetworkId] | None = None) -> int:
        """Of all who are measured, or of those that are absent from the store."""
        total = 0
        for group, size in self.statistics.items():
            settings = self.recipe.network_group(group)
            count = settings.count if absent is None else sum(one.group == group for one in absent)
            total += size * count // len(settings.networks)
        return total

    def _expert_bytes(self) -> dict[str, int]:
        if not self.method.needs_experts:
            return {}
        with Counting():
            each = Experts(self.job).bytes_each()
        return {"experts": len(Experts(self.job).missing()) * each}

    def _label_bytes(self) -> int:
        """The logits of stored labels; crops and mixes are small beside them."""
        recipe = self.recipe
        if recipe.labels.kind != "stored":
            return 0
        numbers = (
            recipe.evaluation.epochs * synthetic.image_count(recipe, self.data) * self.data.classes
        )
        return numbers * (2 if recipe.labels.precision == "float16" else 4)


def _has_pixels(data: ImageData) -> bool:
    """Whether the pixels are those of the data: of stand-ins, the fingerprint was given."""
    return data.train.known_fingerprint is None


def _alike(absent: Sequence[NetworkId]) -> list[tuple[NetworkId, list[NetworkId]]]:
    """Members by architecture and panel."""
    groups: dict[tuple[str, str], list[NetworkId]] = {}
    for network_id in absent:
        groups.setdefault((network_id.group, network_id.architecture.model_dump_json()), []).append(
            network_id
        )
    return [(same[0], same) for same in groups.values()]


def _seconds_to_decode(images: ImageSet) -> float:
    """Time of one image on its way from file to batch."""
    rows = torch.randperm(len(images), generator=generator(0, "plan"))[:DECODED].numpy()
    # files are opened by the first image
    images.images[rows[:1]]
    began = time.perf_counter()
    used = time.process_time()
    images.images[rows]
    return min(time.perf_counter() - began, time.process_time() - used) / len(rows)


def _side_by_side(recipe: Recipe, items: int) -> int:
    return max(1, min(recipe.resources.workers, items))


def _remarks(
    recipe: Recipe,
    outline: Outline,
    stages: Sequence[Stage],
    priced: Mapping[str, Sequence[float]],
    device: torch.device,
) -> tuple[str, ...]:
    """What a reader should know beside the numbers."""
    remarks = []
    if not outline.found:
        remarks.append(
            f"'{recipe.data.name}' is not here: sizes are those of the published set, and nothing is cached."
        )
    total = sum(map(sum, priced.values()))
    ranked = sorted(
        (
            (seconds, stage, part)
            for stage in stages
            for part, seconds in zip(stage.parts, priced[stage.name], strict=True)
        ),
        key=lambda one: -one[0],
    )
    if ranked and ranked[0][0] >= DOMINANT * total > 0:
        seconds, stage, part = ranked[0]
        remarks.append(
            f"{seconds / total:.0%} of the time is {stage.name}: {part.what}. It is proportional to {part.settings}."
        )
    if device.type == "cpu" and total > DAY:
        remarks.append(
            f"On the CPU of this machine that is about {duration(total)}: use a GPU (resources.device=cuda, or --workers with "
            "resources.gpus_per_worker=1), more workers, or a smaller recipe."
        )
    return tuple(remarks)


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 4 * DAY else f"{seconds / DAY:,.0f} days"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
