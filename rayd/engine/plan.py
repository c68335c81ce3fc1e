"""Plan of a run: work, cached results, time, memory and disk by stage, without decoding data.

Times are counted operations (`rayd.engine.costs`) multiplied by their measured durations on this
machine (`rayd.engine.speeds`). Workers of a cluster may be faster or slower; the time of tasks that
can run in parallel is divided by the number of workers.
"""

from __future__ import annotations

import gc
import re
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from rayd import devices, networks, shown, synthetic
from rayd.config import Recipe
from rayd.data import ImageSet
from rayd.data.outline import Outline, load_outline
from rayd.data.streaming import READ_AHEAD
from rayd.data.summary import DataSummary
from rayd.engine import arithmetic
from rayd.engine.costs import Costs
from rayd.engine.counting import Count, Counting
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId
from rayd.engine.preflight import check_settings, preflight
from rayd.engine.progress import Progress
from rayd.engine.reading import proposing
from rayd.engine.speeds import Speeds
from rayd.engine.stage_cost import Part, StageCost
from rayd.engine.stages.experts import Experts
from rayd.engine.stages.measure import Measure
from rayd.engine.stages.rank import Rank
from rayd.engine.stages.relabel import relabel_cost
from rayd.engine.stages.score import Score
from rayd.engine.stages.squeeze import Squeeze
from rayd.engine.stages.students import COMPARISONS, Students, students_cost
from rayd.engine.stages.synthesis import Synthesis
from rayd.engine.storage import label_bytes
from rayd.engine.store import Store
from rayd.engine.stored_precisions import with_stored_precisions
from rayd.engine.uncompiled import uncompiled
from rayd.seeding import generator
from rayd.synthetic.base import SOFT_LABELS
from rayd.training.judging import TEST_BATCH
from rayd.training.sets import NORMALIZED_ONCE

DAY = 24 * 3600.0
DOMINANT = 0.3
"""Fraction of the time from which a part of the work is mentioned in a remark."""
NOTABLE = 0.05
"""Fraction of the time from which comparisons are mentioned in a remark."""
PROCESS = 800 * 10**6
"""Resident bytes of a process that has imported everything that a run needs, with torch built for
CUDA, as measured for the driver and the workers of runs on digits. Half of them are libraries,
which the processes of a machine share.
"""
GPU_LIBRARIES = 2 * 10**9
"""Bytes of the host that a process with a GPU takes for its context and libraries."""
COPIES = 3
"""Maximum number of copies of the synthetic set in the driver."""
DECODED = 16
"""Number of streamed images whose decoding is timed."""


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage."""

    stage: str
    """Name of the stage."""
    work: str
    """Description of the work."""
    cached: str
    """Description of the cached part."""
    seconds: float
    """Wall-clock time of the part that is not cached."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run."""

    recipe: str
    """Name of the recipe."""
    data: str
    """The real data."""
    stages: tuple[StagePlan, ...]
    """The stages, in order."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes by purpose. `step` is the tensors that are saved for a worker's backward pass,
    `student` the total of training the largest student on its device, which determines how students
    share GPUs. `driver` and `each worker`, or `in all` without workers, are estimates of the peak
    memory of processes, without GPU memory.
    """
    disk: dict[str, int] = field(default_factory=dict)
    """Bytes by kind of file."""
    read: DataSummary | None = None
    """Description of the data as read, without looking at pixels."""
    remarks: tuple[str, ...] = ()
    """Sentences about the slowest part, the settings that change it, and other caveats."""

    @property
    def seconds(self) -> float:
        """Wall-clock time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def __repr__(self) -> str:
        return shown.short(
            "Plan", self.recipe, stages=len(self.stages), seconds=round(self.seconds)
        )

    def _repr_html_(self) -> str:
        """The stages, in a notebook."""
        rows = []
        for stage in self.stages:
            rows.append([stage.stage, duration(stage.seconds), stage.work, stage.cached])
        made: str = shown.table(["stage", "time", "work", "cached"], rows, self.recipe)
        return made

    def to_json(self) -> dict[str, Any]:
        """A JSON-able mapping; sizes in bytes, times in seconds."""
        return {**asdict(self), "seconds": self.seconds}

    def text(self, width: int | None = None) -> str:
        """A table for the terminal.

        Args:
            width: maximum number of characters per line; None does not break lines.
        """
        lines = [f"{self.recipe} on {self.data}", ""]
        if self.read is not None:
            lines += [*self.read.lines(), ""]
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
        lines += ["", *self.remarks] if self.remarks else []
        return "\n".join(lines if width is None else [_broken(line, width) for line in lines])


def _broken(line: str, width: int) -> str:
    """Break a line; continuation lines are aligned with its last column."""
    columns = re.match(r"(?:memory|disk) +|\S+ {2,}[\d.]+ \S+ {3,}", line)
    indent = " " * (0 if columns is None else columns.end())
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def plan(
    recipe: Recipe,
    data_root: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    calibrate: bool = False,
) -> Plan:
    """Plan a run; raises the errors that the run itself would raise at its start.

    Args:
        recipe: the run.
        data_root: where named data are searched first; a known data set may be missing.
        cache: root of the store that runs share.
        progress: reports that speeds are being measured.
        calibrate: measure speeds again that are known.

    Raises:
        RaydError: as `distill` does.
    """
    with uncompiled(), _uncollected():
        return _planned(recipe, data_root, cache, progress or Progress(), calibrate)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause garbage collection, which takes a tenth of a plan's time and frees almost nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _planned(
    recipe: Recipe, data_root: Path | None, cache: Path | None, progress: Progress, calibrate: bool
) -> Plan:
    check_settings(recipe)
    with proposing(recipe.usual_image_size):
        outline = load_outline(recipe.data, data_root, cache)
    data = outline.data
    with Counting():
        # networks are built without values: see `rayd.engine.counting`
        preflight(recipe, data)
    choice = arithmetic.choose(recipe, data.shape)
    job, _ = with_stored_precisions(Job(choice.recipe, data, Store(cache)), choice)
    recipe = job.recipe
    Squeeze(job).check()
    threads = devices.threads(recipe.resources)
    in_process = {"workers": 0, "threads": threads}
    local = recipe.model_copy(update={"resources": recipe.resources.model_copy(update=in_process)})
    with devices.thread_limit(threads):
        work = _Work(job, outline)
        stages = work.stages()
        parts = [part for stage in stages for part in stage.parts]
        device = _device(recipe, local)
        speeds = Speeds(device)
        if calibrate or not speeds.measured:
            progress.log("plan: measuring how fast this machine is, for some seconds, once")
        # the most expensive operations of this plan first, so that the total is accurate early
        speeds.calibrate([part.count for part in parts], anew=calibrate)
        decoding = 0.0
        # only if something is decoded, as it needs the files, which a plan can do without
        if any(part.decoded for part in parts):
            decoding = _seconds_to_decode(data.train)
        priced = {}
        for stage in stages:
            priced[stage.name] = [_seconds(part, speeds, decoding) for part in stage.parts]
    made = tuple(
        StagePlan(stage.name, stage.work, stage.cached, sum(priced[stage.name])) for stage in stages
    )
    remarks = _remarks(recipe, outline, stages, priced, device)
    return Plan(
        recipe=recipe.name,
        data=_data_words(outline),
        stages=made,
        memory={**work.memory(), **work.process_memory(parts)},
        disk=work.disk(),
        read=data.summary,
        remarks=remarks,
    )


def stage_seconds(job: Job, speeds: Speeds, long: float, budget: float) -> dict[str, float]:
    """Seconds of each stage of a run.

    Args:
        job: the run.
        speeds: speeds of the machine; measured if they are unknown and the run is long.
        long: seconds from which a run counts as long.
        budget: seconds spent on measuring speeds.
    """
    data = job.data
    stages = _Work(job, Outline(data, True, True)).stages()
    decoding = _seconds_to_decode(data.train) if data.train.streamed else 0.0

    def by_stage() -> dict[str, float]:
        found = {}
        for stage in stages:
            found[stage.name] = sum(_seconds(part, speeds, decoding) for part in stage.parts)
        return found

    seconds = by_stage()
    if not speeds.measured and sum(seconds.values()) > long:
        speeds.calibrate([part.count for stage in stages for part in stage.parts], budget)
        seconds = by_stage()
    return seconds


def worker_memory(job: Job) -> int:
    """Estimate of the peak memory of a worker of a run, bytes; see `Plan.memory`."""
    work = _Work(job, Outline(job.data, True, True))
    parts = [part for stage in work.stages() for part in stage.parts]
    return work.process_memory(parts).get("each worker", 0)


def _device(recipe: Recipe, local: Recipe) -> torch.device:
    """The device of the run, or the closest one on this machine, if workers run elsewhere."""
    if recipe.resources.workers > 0 and recipe.resources.gpus_per_worker == 0:
        return torch.device("cpu")
    return devices.choose(local.resources)


def _seconds(part: Part, speeds: Speeds, decoding: float) -> float:
    return (speeds.seconds(part.count) + part.decoded * decoding) / part.parallel


def _data_words(outline: Outline) -> str:
    data = outline.data
    shape = "x".join(map(str, data.shape))
    streamed = ", streamed" if data.train.streamed else ""
    return (
        f"{data.name} ({len(data.train):,} training images of {shape}, "
        f"{data.classes} classes{streamed})"
    )


class _Work:
    """Cost, memory and disk of the stages of a run."""

    def __init__(self, job: Job, outline: Outline):
        self.job = job
        self.recipe = job.recipe
        self.outline = outline
        self.data = job.data
        self.costs = Costs(job.recipe, job.data, job.store)

    def stages(self) -> list[StageCost]:
        """The cost of each stage, in order."""
        job = self.job
        costs = self.costs
        found = [
            self._reading(),
            Squeeze(job).cost(costs),
            Experts(job).cost(costs),
            Measure(job).cost(costs),
            Score(job, is_baseline="rded" in job.recipe.evaluation.baselines).cost(costs),
            Rank(job).cost(costs),
            Synthesis(job).cost(costs),
            relabel_cost(job, costs),
            students_cost(job, costs),
        ]
        return [stage for stage in found if stage is not None]

    def _reading(self) -> StageCost | None:
        """Cost of the first pass over streamed images."""
        if self.outline.surveyed:
            return None
        splits = (self.data.train, self.data.validation, self.data.test)
        count = sum(len(split) for split in splits if split is not None)
        what = f"the first pass over {count:,} images"
        part = Part(what, "data.image_size", Count(), decoded=count)
        work = f"{count:,} images are decoded once, to survey them"
        return StageCost("read", work, "not cached", (part,))

    def memory(self) -> dict[str, int]:
        """Bytes of memory by purpose."""
        return {
            "data": self._data_bytes(),
            "measured statistics": self._statistic_bytes(),
            "step": int(self._step_bytes()),
            "student": int(self._student_bytes()),
        }

    def _student_bytes(self) -> float:
        """Maximum bytes that training a student on the distilled set takes."""
        settings = self.recipe.evaluation
        images = synthetic.image_count(self.recipe, self.data)
        kind = self.recipe.labels.kind
        return max(
            self.costs.training_bytes(network, settings, images, kind, real=False)
            for network in settings.networks
        )

    def process_memory(self, parts: Sequence[Part]) -> dict[str, int]:
        """Estimates of the peak memory of the driver and of each worker, or of the only process.

        Args:
            parts: parts of all stages, to find the one for which autograd saves most.
        """
        recipe = self.recipe
        workers = recipe.resources.workers
        is_cpu = _device(recipe, recipe).type == "cpu"
        with Counting():
            start = self.costs.start()
            set_bytes = sum(tensor.nbytes for tensor in start.state_dict().values())
        blocks = synthetic.blocks(start.samples, recipe.synthesis.block, recipe.synthesis.order)
        images = 0 if self.data.train.streamed else self._data_bytes()
        # the set: with its optimizer state, as saved, and as shared with students
        driver = PROCESS + images + COPIES * set_bytes
        statistic = self._largest_statistic()
        worker = PROCESS if is_cpu else PROCESS + GPU_LIBRARIES
        # statistics of one observer, and of one of its shards, while they are measured
        worker += 2 * statistic
        if self.data.train.streamed:
            worker += self._data_bytes()
        if is_cpu:
            # networks and statistics are distributed over the workers by affinity
            share = 1 / max(1, workers)
            saved = max((part.count.saved_bytes for part in parts), default=0.0)
            # statistics in float32; images, their average and their gradient
            held = share * (self._statistic_bytes() / 2 + self._network_bytes())
            worker += int(held + 3 * set_bytes / len(blocks) + saved)
            worker += self._normalized_bytes()
        if workers == 0:
            return {"in all": driver + worker - PROCESS}
        return {"driver": driver, "each worker": worker}

    def _largest_statistic(self) -> int:
        """Maximum bytes of the statistics of one observer."""
        if self.recipe.synthesis.steps == 0 or self.recipe.real == "sampled":
            return 0
        _, sizes = self.costs.step()
        return max(
            (
                size // len(self.recipe.network_group(group).networks)
                for group, size in sizes.items()
            ),
            default=0,
        )

    def _network_bytes(self) -> int:
        """Bytes of the weights of all observers."""
        total = 0
        with Counting():
            for group in self.job.method.groups:
                settings = self.recipe.network_group(group)
                each = 0
                for network in settings.networks:
                    state = networks.build(network, self.data.shape, self.data.classes, seed=0)
                    each += sum(tensor.nbytes for tensor in state.state_dict().values())
                total += each * settings.count // len(settings.networks)
        return total

    def _normalized_bytes(self) -> int:
        """Bytes of training images that are kept in normalised form."""
        train = self.data.train
        once = 0 if train.streamed else 4 * train.images.nbytes
        return once if once <= NORMALIZED_ONCE else 0

    def _step_bytes(self) -> float:
        """Bytes of the tensors that are saved for the backward pass of a step."""
        if self.recipe.synthesis.steps == 0:
            return 0.0
        step, _ = self.costs.step()
        if self.job.method.trajectory_objective is None:
            return step.saved_bytes
        _, size = self.costs.student()
        return max(step.saved_bytes, size)

    def disk(self) -> dict[str, int]:
        """Bytes of disk by kind of file."""
        recipe = self.recipe
        with Counting():
            set_bytes = sum(tensor.nbytes for tensor in self.costs.start().state_dict().values())
        optimizer_states = {"sgd": 1 if recipe.synthesis.momentum else 0, "adam": 2}[
            recipe.synthesis.optimizer
        ]
        return {
            "measured statistics": self._statistic_bytes(Measure(self.job).unmeasured()),
            **self._expert_bytes(),
            "checkpoints": 2
            * set_bytes
            * (1 + optimizer_states + (self.job.method.averaging is not None)),
            "distilled": 2 * set_bytes,
            SOFT_LABELS: label_bytes(recipe, self.data),
        }

    def _data_bytes(self) -> int:
        """Bytes of decoded images: all, or those that a worker holds at a time if streamed."""
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
        # in addition to the batches decoded ahead, one is in use and one is being decoded
        held = max((READ_AHEAD + 2) * batch, drawn, scored)
        return max(min(held, len(split)) * split.images.nbytes // len(split) for split in splits)

    def _statistic_bytes(self, missing: list[NetworkId] | None = None) -> int:
        """Bytes of the statistics of all networks, or of those that are missing from the store."""
        if self.recipe.synthesis.steps == 0:
            return 0
        _, sizes = self.costs.step()
        total = 0
        for group, size in sizes.items():
            settings = self.recipe.network_group(group)
            count = settings.count
            if missing is not None:
                count = sum(network_id.group == group for network_id in missing)
            # `size` is the total over one network of each architecture
            total += size * count // len(settings.networks)
        return total

    def _expert_bytes(self) -> dict[str, int]:
        if not self.job.method.needs_experts:
            return {}
        with Counting():
            each = Experts(self.job).bytes_each()
        return {"experts": len(Experts(self.job).missing()) * each}


def _seconds_to_decode(images: ImageSet) -> float:
    """Seconds to read and decode one image."""
    # drawn from the whole set, as its first images are often of one class and similar
    rows = torch.randperm(len(images), generator=generator(0, "plan"))[:DECODED].numpy()
    # the first image opens the files
    _ = images.images[rows[:1]]
    began = time.perf_counter()
    used = time.process_time()
    _ = images.images[rows]
    # the minimum, as wall time includes other programs, and processor time all threads
    return min(time.perf_counter() - began, time.process_time() - used) / len(rows)


def _remarks(
    recipe: Recipe,
    outline: Outline,
    stages: Sequence[StageCost],
    priced: Mapping[str, Sequence[float]],
    device: torch.device,
) -> tuple[str, ...]:
    """Caveats of the plan, and advice where it takes long."""
    remarks = []
    if not outline.found:
        remarks.append(
            f"'{recipe.data.name}' is not on this machine: sizes are those of the published set, "
            "and nothing is cached."
        )
    remarks += _idle_workers(recipe, stages)
    total = sum(map(sum, priced.values()))
    ranked: list[tuple[float, StageCost, Part]] = []
    for stage in stages:
        for part, seconds in zip(stage.parts, priced[stage.name], strict=True):
            ranked.append((seconds, stage, part))
    ranked.sort(key=lambda entry: -entry[0])
    if ranked and ranked[0][0] >= DOMINANT * total > 0:
        seconds, stage, part = ranked[0]
        remarks.append(
            f"{seconds / total:.0%} of the time is {stage.name}: {part.what}. It is proportional "
            f"to {part.settings}."
        )
    compared = sum(seconds for seconds, _, part in ranked if part.settings.startswith(COMPARISONS))
    if compared >= NOTABLE * total > 0:
        remarks.append(
            f"{duration(compared)} of the time are spent on comparisons that put the accuracy into "
            f"perspective; {COMPARISONS}=[] leaves them out."
        )
    if device.type == "cpu" and total > DAY:
        remarks.append(
            f"On the CPU of this machine that is about {duration(total)}: use a GPU "
            "(resources.device=cuda, or --workers with resources.gpus_per_worker=1), more workers, "
            "or a smaller recipe."
        )
    return tuple(remarks)


def _idle_workers(recipe: Recipe, stages: Sequence[StageCost]) -> list[str]:
    """Sentences on stages that keep fewer workers busy than there are."""
    workers = recipe.resources.workers
    busy = {}
    for stage in stages:
        if stage.parts:
            busy[stage.name] = max(part.parallel for part in stage.parts)
    fewer = {name: count for name, count in busy.items() if name != "read" and count < workers}
    if not fewer:
        return []
    listed = ", ".join(f"{name} {count}" for name, count in fewer.items())
    cure = f"use --workers {max(busy.values())}" if max(busy.values()) < workers else ""
    if "synthesize" in fewer:
        can_split = recipe.real == "measured" and recipe.synthesis.split < workers
        share = f"synthesis.split={workers} lets more of them share a step, where terms allow it"
        cure = " or ".join(filter(None, (cure, share if can_split else "")))
    students = fewer.get(Students.name, workers)
    if 2 * students <= workers:
        share = f"evaluation.workers={workers // students} trains each student with so many"
        cure = "; ".join(filter(None, (cure, share)))
    return [f"Of {workers} workers these stages keep fewer busy: {listed}{cure and '; ' + cure}."]


def duration(seconds: float) -> str:
    """Format seconds with a suitable unit."""
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
