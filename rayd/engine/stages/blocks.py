"""The outer loop of the synthesis: all steps of all blocks of a synthetic set.

The steps on one block are in `rayd.engine.synthesizer`.

Blocks are optimised one after another, each with all workers, or in parallel, each by one worker.
Steps that a checkpoint already covers are not repeated. The whole set is kept up to date, for
callbacks and for logged contact sheets.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from rayd import synthetic
from rayd.callbacks import Callbacks, Step
from rayd.distilled import Distilled
from rayd.engine import checkpoint
from rayd.engine.gradients.base import tasks_per_step
from rayd.engine.gradients.feature_matching import Memory
from rayd.engine.job import Job
from rayd.engine.milestones import Callback
from rayd.engine.network_ids import NetworkId
from rayd.engine.pool import ActorHandle, HostingPool, ObjectRef, WorkerActor
from rayd.engine.progress import Progress, StageDisplay
from rayd.engine.runlog import RunLog
from rayd.engine.synthesizer import BlockTask, Logged, State, Synthesizer
from rayd.methods import Method
from rayd.pictures import contact_sheet
from rayd.synthetic import SyntheticSet

ADVANCE_SECONDS = 1.0
"""Seconds of work that the driver requests from the synthesizer per call: short enough for
progress, long enough to make the overhead of calls negligible.
"""
SHEET_TAG = "synthetic images"
"""Tag of the set's contact sheets in TensorBoard."""
MOST_SHEETS = 24
"""Maximum number of contact sheets that are logged for a set of several blocks."""
LARGEST_SHEET = 2**27
"""Bytes of a set's images up to which contact sheets are logged, as each needs a copy of the
images.
"""


@dataclass(frozen=True)
class StepInputs:
    """Results of the preceding stages that the steps of all blocks use."""

    weights: Mapping[NetworkId, ObjectRef]
    """Weights of trained networks."""
    accuracies: Mapping[NetworkId, float]
    """Their training accuracies, fractions."""
    measured: Mapping[NetworkId, ObjectRef]
    """Measured statistics of fixed observers; empty if real data are sampled."""
    experts: tuple[Path, ...]
    """Files of the experts, if trajectories are matched."""


class Blocks:
    """All steps of all blocks. Steps are numbered consecutively through the blocks.

    Args:
        job: the run.
        pool: hosts `Worker`.
        hash: hash of everything that the synthesis depends on; stored in checkpoints.
        learned: the set before the first step; kept up to date.
        checkpoints: directory of the run's checkpoints.
        inputs: results that the steps use.
        log: where logged steps are written.
        progress: where progress is shown.
        as_distilled: converts the current synthetic set into a distilled set.
        callback: the sweep's callback with its milestones, if any.
        callbacks: called with every logged step.
        validation_accuracy: validation accuracy of students of an unfinished set.
        on_milestone: called at each milestone with the fraction of finished steps.
    """

    def __init__(
        self,
        *,
        job: Job,
        pool: HostingPool,
        hash: str,
        learned: SyntheticSet,
        checkpoints: Path,
        inputs: StepInputs,
        log: RunLog,
        progress: Progress,
        as_distilled: Callable[[SyntheticSet], Distilled],
        callback: Callback | None,
        callbacks: Callbacks,
        validation_accuracy: Callable[[Distilled], float],
        on_milestone: Callable[[float], None],
    ):
        recipe = job.recipe
        settings = recipe.synthesis
        self._job = job
        self._pool = pool
        self._learned = learned
        self._log = log
        self._progress = progress
        self._as_distilled = as_distilled
        self._on_milestone = on_milestone
        self._callbacks = callbacks
        self._validation_accuracy = validation_accuracy
        self._steps = settings.steps
        self._parts = synthetic.blocks(learned.samples, settings.block, settings.order)
        count = len(self._parts)
        self._sequential = count == 1 or job.method.sequential
        self._last_sheet = 0
        milestones: list[tuple[int, ...]] = [()] * count
        if callback is not None:
            milestones = callback.steps_by_block(settings.steps, count, self._sequential)
        train = None
        if recipe.real == "sampled":
            train = pool.share((job.data.train.images, job.data.train.labels))
        self.tasks = [
            BlockTask(
                recipe=recipe,
                key=hash,
                normalization=job.data.normalization,
                block=block,
                blocks=count,
                start=pool.share(dict(learned.part(part).state_dict())),
                checkpoints=checkpoints / checkpoint.block_folder(block, count),
                weights=inputs.weights,
                accuracies=inputs.accuracies,
                measured=inputs.measured,
                train=train,
                experts=inputs.experts,
                milestones=milestones[block],
            )
            for block, part in enumerate(self._parts)
        ]
        """The blocks."""

    def foreign(self) -> bool:
        """Whether the directory holds checkpoints of another synthesis."""
        return any(checkpoint.foreign(task.checkpoints, task.key) for task in self.tasks)

    def adopt(self, checkpoints: Path) -> None:
        """Start from the checkpoints of another run, unless this run has its own."""
        for task in self.tasks:
            source = checkpoints / checkpoint.block_folder(task.block, task.blocks)
            checkpoint.adopt(source, task.checkpoints, task.key)

    def run(self, expected_seconds: float | None = None) -> None:
        """Run all steps that no checkpoint covers.

        Args:
            expected_seconds: forecast of all steps in seconds; None if unknown.
        """
        with self._shown(expected_seconds) as shown:
            if not any(self._reached()):
                self._log_sheet(0, self._learned)
            if self._sequential:
                self._run_sequentially(shown)
            else:
                self._run_in_parallel(shown)

    @contextmanager
    def _shown(self, expected_seconds: float | None) -> Iterator[StageDisplay]:
        total = self._steps * len(self.tasks)
        with self._progress.stage("synthesize", total, "steps", expected_seconds) as shown:
            yield shown

    def _resumed(self) -> list[int]:
        """Number of steps of each block that a checkpoint covers; log lines of later steps are
        dropped, as these will be repeated.
        """
        steps = self._steps
        reached = self._reached()

        def is_covered(step: int) -> bool:
            block, before = divmod(step - 1, steps)
            return before + 1 <= reached[block]

        self._log.forget("synthesize", is_covered)
        return reached

    def _reached(self) -> list[int]:
        """Number of steps of each block that a checkpoint covers."""
        return [checkpoint.resumable(task.checkpoints, task.key) for task in self.tasks]

    def _run_sequentially(self, shown: StageDisplay) -> None:
        """Optimise one block after another with all workers, which share the observers of a step.

        The state of the terms is passed on from block to block.
        """
        synthesizer = place_synthesizer(self._pool, self._job.method)
        steps = self._steps
        began = self._resumed()
        shown.update(sum(began))
        term_state: Mapping[NetworkId, Memory] = {}
        for task, reached in zip(self.tasks, began, strict=True):
            task = replace(task, term_state=term_state)
            block = task.block
            # a run that resumes in a later block is past the milestones of this one
            is_past = any(began[block + 1 :])
            for milestone in task.milestones:
                # milestones before the newest checkpoint were handled by the run that wrote it; one
                # exactly at it may be repeated
                if reached <= milestone and not is_past:
                    self._advance(synthesizer, task, reached, milestone, shown)
                    reached = milestone
                    self._update(block, synthesizer.call("state", task, milestone))
                    self._on_milestone((block * steps + milestone) / (steps * len(self.tasks)))
            self._advance(synthesizer, task, reached, steps, shown)
            self._update(block, synthesizer.call("state", task, steps))
            if len(self.tasks) > 1:
                self._log_sheet_of_blocks((block + 1) * steps)
            if block + 1 < len(self.tasks):
                # fetched late, as only the next block needs it: it may be as large as the
                # statistics
                term_state = synthesizer.call("term_state", task, steps)

    def _advance(
        self, synthesizer: ActorHandle, task: BlockTask, reached: int, end: int, shown: StageDisplay
    ) -> None:
        """Advance one block from a step to a later one."""
        interval = task.recipe.synthesis.checkpoint_every
        before = self._steps * task.block
        step = reached
        stride = 1
        while step < end:
            # never beyond a checkpoint, after which the set may be used; several steps per call, as
            # each call is a message to another process
            until = min(step + stride, end, (step // interval + 1) * interval)
            if self._callbacks:
                # a callback may request the set at a logged step
                every = task.recipe.synthesis.log_every
                until = min(until, (step // every + 1) * every)
            started = time.monotonic()
            logged = synthesizer.call("advance", task, step, until)
            stride = _next_stride(until - step, time.monotonic() - started)
            step = until
            for line in logged:
                self._log.step("synthesize", before + line.step, line.seconds, line.terms)
                distilled = partial(self._distilled_at, synthesizer, task, step)
                self._call_callbacks(before + line.step, line, distilled)
            shown.update(before + step, terms=logged[-1].terms if logged else None)
            if step % interval == 0 and task.blocks == 1:
                state = synthesizer.call("state", task, step)
                self._log_sheet(step, synthetic.restore(task.recipe.synthetic, state))

    def _run_in_parallel(self, shown: StageDisplay) -> None:
        """Optimise blocks in parallel: each worker optimises a block with its own observers."""
        steps = self._steps
        began = self._resumed()
        reached = list(began)
        shown.update(sum(reached))
        # all blocks reach a milestone before any continues
        milestones = [step for step in self.tasks[0].milestones if max(began) <= step]
        for end in (*milestones, steps):
            items = [(task, end) for task in self.tasks]
            for block, event in self._pool.stream("synthesize", items):
                if not isinstance(event, Logged):
                    self._update(block, event)
                    reached[block] = end
                    self._log_sheet_of_blocks(sum(reached))
                    continue
                # a restarted block counts from its checkpoint, but the displayed progress must not
                # decrease
                reached[block] = max(reached[block], event.step)
                # lines of steps that an earlier run logged have no terms
                if event.terms:
                    step = block * steps + event.step
                    self._log.step("synthesize", step, event.seconds, event.terms)
                    self._call_callbacks(step, event, self._distilled)
                shown.update(sum(reached), terms=event.terms or None)
            if end < steps:
                self._on_milestone(end / steps)

    def _log_sheet_of_blocks(self, step: int) -> None:
        """Log a contact sheet after a block, at most `MOST_SHEETS` over all blocks."""
        if step - self._last_sheet >= self._steps * len(self.tasks) / MOST_SHEETS:
            self._log_sheet(step, self._learned)

    def _log_sheet(self, step: int, learned: SyntheticSet) -> None:
        """Log a contact sheet of the set, unless the set is larger than `LARGEST_SHEET`."""
        self._last_sheet = step
        float32_bytes = 4 * len(learned) * math.prod(self._job.data.shape)
        if float32_bytes <= LARGEST_SHEET:
            sheet = np.asarray(contact_sheet(self._as_distilled(learned)))
            self._log.picture(SHEET_TAG, step, sheet)

    def _distilled_at(self, synthesizer: ActorHandle, task: BlockTask, step: int) -> Distilled:
        """The set with the state of a block after a step."""
        self._update(task.block, synthesizer.call("state", task, step))
        return self._distilled()

    def _distilled(self) -> Distilled:
        """A copy of the current set, which later steps do not change."""
        return self._as_distilled(copy.deepcopy(self._learned))

    def _call_callbacks(self, step: int, line: Logged, distilled: Callable[[], Distilled]) -> None:
        """Call `on_step` of the callbacks, unless the line is of a step before a resume."""
        if line.terms:
            logged = Step(
                stage="synthesize",
                step=step,
                metrics=line.terms,
                seconds=line.seconds,
                distilled=distilled,
                validation_accuracy=lambda: self._validation_accuracy(distilled()),
            )
            self._callbacks.call("on_step", logged)

    def _update(self, block: int, state: State) -> None:
        """Copy the state of a block into the whole set."""
        part = synthetic.restore(self.tasks[block].recipe.synthetic, state)
        self._learned.put(self._parts[block], part)


def place_synthesizer(pool: HostingPool, method: Method) -> ActorHandle:
    """Create a synthesizer whose steps use all workers. It runs in the first worker, whose own
    results then need no transfer; if a step has work for only one worker, that worker computes
    everything.

    In process (`resources.workers: 0`) it is a plain object. How the synthesis uses workers is
    written down in `rayd.engine.stage`, under "Workers".
    """
    workers = method.recipe.resources.workers
    if workers == 0:
        return pool.host(Synthesizer)
    is_alone = min(workers, tasks_per_step(method)) == 1
    return WorkerActor(pool, "synthesizer", None if is_alone else pool.neighbours())


def _next_stride(steps: int, seconds: float) -> int:
    """Number of steps that take about `ADVANCE_SECONDS`.

    It grows at most fourfold at a time, so that one quick step does not lead to many slow ones.
    """
    wanted = steps * ADVANCE_SECONDS / max(seconds, 1e-6)
    # at most fourfold: the first steps build networks, and may be slower or faster than the rest
    return max(1, min(int(wanted), 4 * steps))
