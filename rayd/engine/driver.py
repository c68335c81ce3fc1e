"""The driver: the stages of a run, one after another.

    squeeze -> experts -> measure -> score -> rank -> synthesize -> relabel -> evaluate

The code is sequential, whether the work is done in this process or by Ray workers. Results that
runs share, up to the synthetic set itself, are computed once (`rayd.engine.stage`), even by
concurrent runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rayd import plugins, remote
from rayd.callbacks import Callbacks, EndSynthesis, Step
from rayd.distilled import Distilled
from rayd.distilled import load as load_distilled
from rayd.engine import arithmetic, card, memory
from rayd.engine.costs import Costs
from rayd.engine.evaluate import judge, keep_report
from rayd.engine.gpu_sharing import run_sharing_gpus
from rayd.engine.interim import judge_now, validation_accuracy
from rayd.engine.job import Job
from rayd.engine.milestones import Callback, Milestone, WarmStart
from rayd.engine.network_ids import NetworkId, groups, network_ids, teachers, trained_networks
from rayd.engine.observer import DatasetInfo
from rayd.engine.open_pool import open_pool
from rayd.engine.peak import PeakMemory
from rayd.engine.pixel_range import out_of_range
from rayd.engine.pool import HostingPool, ObjectRef, TaskStream, WorkerPool
from rayd.engine.progress import Progress
from rayd.engine.progress_forecast import Forecast
from rayd.engine.run import Run
from rayd.engine.rundir import RunDirectory
from rayd.engine.set_writer import SetWriter
from rayd.engine.stage import Item, Result, Stage
from rayd.engine.stages.blocks import Blocks, StepInputs
from rayd.engine.stages.experts import Experts
from rayd.engine.stages.initial_set import initial_set
from rayd.engine.stages.measure import Measure
from rayd.engine.stages.rank import Rank
from rayd.engine.stages.relabel import Relabel
from rayd.engine.stages.score import Score
from rayd.engine.stages.squeeze import Squeeze, TrainedObserver, together
from rayd.engine.stages.students import LabelSource, Students
from rayd.engine.stages.synthesis import Synthesis, Synthesized
from rayd.engine.storage import with_labels_of
from rayd.engine.worker import Worker
from rayd.errors import ArtifactError, OutputError, RunError
from rayd.evaluation.report import Report, SetResult
from rayd.evaluation.set_result import ON_VALIDATION
from rayd.synthetic import Storage, SyntheticSet
from rayd.synthetic.base import SOFT_LABELS
from rayd.training.stored_labels import StoredLabels

log = logging.getLogger(__name__)


class Driver:
    """Runs the stages in order."""

    def __init__(
        self,
        *,
        job: Job,
        hardware: arithmetic.Hardware,
        directory: RunDirectory,
        progress: Progress,
        judged_on: str,
        callback: Callback | None,
        warm_start: WarmStart | None,
        callbacks: Callbacks,
    ):
        self._job = job
        self._recipe = job.recipe
        self._directory = directory
        self._progress = progress
        self._judged_on = judged_on
        self._callback = callback
        self._warm_start = warm_start
        self._callbacks = callbacks
        self._log = directory.log
        self._synthesis = Synthesis(job, warm_start)
        self._workers = ExitStack()
        self._seconds_in_callback = 0.0
        self._writer = SetWriter(job, directory.distilled, self._synthesis.hash, hardware)
        self._synthesis.write = self._writer.write_beside
        # the set's images in shared memory, once the relabel stage has placed them there
        self._images: ObjectRef | None = None

    def run(self) -> Run:
        """Run all stages, and return the finished run."""
        # in any case, the set is written before the directory is unlocked
        with self._writer, self._progress.stages(self._stage_names()):
            with self._workers:
                # the run's own set first, so that a resumed run does not depend on the store
                distilled = self._finished() or self._found()
                # if the set exists, observers need not be trained for it
                networks = teachers(self._recipe)
                if distilled is None:
                    networks = trained_networks(self._recipe)
                observers = self._squeeze(networks)
                if distilled is None:
                    distilled = self._synthesize(observers)
                labels = self._relabel(distilled, observers)
                self._writer.finish(distilled, wait=False)
                report = None
                # workers that train a student together are started by Ray Train
                are_shared = self._recipe.resources.workers > 0 and "_pool" in self.__dict__
                if are_shared and self._recipe.evaluation.workers == 1:
                    report = self._evaluate(distilled, observers, labels, self._pool)
            if report is None:
                # students need the memory that the worker in this process still holds
                self.__dict__.pop("_pool", None)
                report = self._evaluate(distilled, observers, labels)
            self._writer.finish(distilled)
        return Run(
            directory=self._directory.path,
            recipe=self._recipe,
            distilled=distilled,
            report=report,
            synthesis_seconds=self._synthesis_seconds(),
        )

    def _stage_names(self) -> list[str]:
        """The stages of this run, in order, cached or not."""
        job = self._job
        stages = (Squeeze(job), Experts(job), Measure(job), Score(job))
        later = (Rank(job), self._synthesis)
        names = [stage.name for stage in (*stages, *later) if stage.items()]
        if self._recipe.labels.kind == "stored":
            names.append(Relabel.name)
        return [*names, Students.name]

    @cached_property
    def _pool(self) -> HostingPool:
        """The worker pool, started when it is first needed."""
        info = DatasetInfo.of(self._job.data)
        memory_ = 0
        if self._recipe.resources.workers > 0 and self._forecast is not None:
            memory_ = self._forecast.worker_memory()
        pool = open_pool(self._recipe.resources, Worker, self._recipe, info, memory=memory_)
        self._workers.enter_context(pool)
        self._workers.enter_context(self._progress.workers(pool))
        return pool

    @cached_property
    def _forecast(self) -> Forecast | None:
        """The forecast of the run; None if no progress is shown, as counting operations takes a
        second or two.
        """
        return Forecast(self._job) if self._progress.is_shown else None

    def _expected_seconds(self, name: str) -> float | None:
        """Expected seconds of a stage, if known."""
        return None if self._forecast is None else self._forecast.stage(name)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Context that logs the duration of its block, and explains out-of-memory errors."""
        self._callbacks.call("on_stage", stage)
        began = time.monotonic()
        finished = False
        try:
            with memory.explained(stage, self._recipe):
                yield
            finished = True
        finally:
            # students that a callback trains do not count as synthesis
            seconds = time.monotonic() - began - self._seconds_in_callback
            self._log.spend(stage, seconds, finished, self._peak_memory())
            self._seconds_in_callback = 0.0

    def _peak_memory(self) -> PeakMemory:
        """Peak memory of any process of this run so far."""
        peak = PeakMemory.here()
        pool: WorkerPool | None = self.__dict__.get("_pool")
        for worker in [] if pool is None else pool.workers():
            peak = peak.largest(worker.memory, worker.gpu_memory)
        return peak

    def _compute(
        self,
        stage: Stage[Item, Result],
        weight: Callable[[Item], float] | None = None,
        pool: TaskStream | None = None,
    ) -> dict[Item, Result]:
        """The results of a stage; missing ones are computed."""
        found = len(stage.items()) - len(stage.missing())
        if found and (elsewhere := self._made_elsewhere(stage)):
            self._progress.log(f"{stage.name}: found {found} {stage.noun}{elsewhere}")
        if not stage.missing():
            return stage.results()
        on_wait = self._progress.wait_logger(stage.name, stage.noun)
        expected_seconds = self._expected_seconds(stage.name)
        with (
            self._progress.stage(stage.name, 0, stage.unit, expected_seconds) as shown,
            self._timed(stage.name),
        ):
            return stage.run(pool or self._pool, shown, on_wait, weight)

    def _made_elsewhere(self, stage: Stage[Item, Result]) -> str:
        """Clause naming other kinds of device that computed results; empty if there are none."""
        own = self._job.device
        others = [device for device in stage.devices() if device != own]
        if not others:
            return ""
        return f" made on {' and '.join(others)}: equal to those of {own} within rounding"

    def _finished(self) -> Distilled | None:
        """The set that this run finished before it was interrupted."""
        if not (self._directory.distilled / "card.json").exists():
            return None
        try:
            distilled = load_distilled(self._directory.distilled)
        except ArtifactError as error:
            place = remote.shown(self._directory.distilled)
            raise ArtifactError(
                f"{error} Move '{place}' away, and --resume recomputes it from cached results."
            ) from error
        if distilled.card.get("synthesis") != self._synthesis.hash:
            raise self._other_data()
        self._progress.log(
            f"synthesize: done before, {len(distilled)} images in {self._directory.distilled}"
        )
        return distilled

    def _found(self) -> Distilled | None:
        """The set of another run with the same settings."""
        found = self._synthesis.results().get(self._synthesis.hash)
        if found is None:
            return None
        self._writer.origin = found.origin
        distilled = self._save(found.learned, found.observers)
        self._progress.log(
            f"synthesize: found {len(distilled)} images of a run with the same settings"
            f"{self._made_elsewhere(self._synthesis)}"
        )
        self._warn(distilled)
        return distilled

    def _other_data(self) -> OutputError:
        own = sorted(plugins.source_of(self._job.recipe.model_dump_json()))
        source = f", or of another version of {' and '.join(map(repr, own))}" if own else ""
        return OutputError(
            f"'{self._directory.path}' holds a run on other data than '{self._job.data.name}' "
            f"holds now{source}, or its config.yaml was edited since; choose another --out."
        )

    def _synthesis_seconds(self) -> float:
        """Duration of the synthesis, in whichever run it was."""
        found = self._synthesis.results().get(self._synthesis.hash)
        return self._log.spent().get("synthesize", 0.0) if found is None else found.seconds

    def _squeeze(self, networks: tuple[NetworkId, ...]) -> dict[NetworkId, TrainedObserver]:
        """Train observers, classifiers and teachers."""
        squeeze = Squeeze(self._job, networks)
        missing = squeeze.missing()
        weight = None if self._forecast is None or not missing else self._forecast.epoch
        with ExitStack() as stack:
            pool = None
            # teams hold the GPUs that the workers of later stages will need, and end with this
            # stage
            if missing and together(self._recipe):
                pool = stack.enter_context(squeeze.open_pool())
            observers = self._compute(squeeze, weight, pool)
        if missing:
            for network_id in squeeze.items():
                self._progress.log(f"squeeze: {network_id.label} {observers[network_id].summary()}")
        return observers

    def _train_experts(self) -> tuple[Path, ...]:
        """Train experts where the method matches trajectories."""
        experts = Experts(self._job)
        missing = experts.missing()
        if missing:
            costs = Costs(self._recipe, self._job.data, self._job.store)
            run_sharing_gpus(
                self._pool,
                self._recipe.resources,
                len(missing),
                lambda: experts.bytes_of_training(costs),
                lambda workers: self._compute(experts, pool=workers),
            )
            self._progress.log(f"experts: {experts.summary()}")
        else:
            self._compute(experts)
        return experts.files()

    def _synthesize(self, observers: dict[NetworkId, TrainedObserver]) -> Distilled:
        """Run the synthesis, from the initial set to the finished one."""
        pool = self._pool
        weights = self._share_weights(observers)
        files = self._train_experts()
        shard_weight = None if self._forecast is None else self._forecast.shard
        measured = self._compute(Measure(self._job, weights), shard_weight)
        score = Score(self._job, weights)
        self._compute(score)
        rank = Rank(self._job)
        self._compute(rank)
        learned = initial_set(self._job, pool, score, files, rank.scores())
        facts = [observer.facts_for_card for observer in observers.values()]
        if not self._synthesis.items():
            return self._save(learned, facts)
        accuracies = {
            network_id: float(observers[network_id].facts["train_accuracy"])
            for network_id in weights
        }
        blocks = Blocks(
            job=self._job,
            pool=pool,
            hash=self._synthesis.hash,
            learned=learned,
            checkpoints=self._directory.checkpoints,
            inputs=StepInputs(
                weights=weights, accuracies=accuracies, measured=measured, experts=files
            ),
            log=self._log,
            progress=self._progress,
            as_distilled=lambda learned: self._writer.with_card(learned, facts),
            callback=self._callback,
            callbacks=self._callbacks,
            validation_accuracy=self._validation_accuracy,
            on_milestone=lambda fraction: self._on_milestone(learned, facts, fraction),
        )
        if blocks.foreign():
            raise self._other_data()

        def optimize() -> Synthesized:
            if self._warm_start is not None:
                blocks.adopt(self._warm_start.checkpoints)
            with self._timed("synthesize"):
                blocks.run(self._expected_seconds("synthesize"))
            return Synthesized(learned, facts, self._log.spent()["synthesize"], self._writer.origin)

        synthesis = self._synthesis
        synthesis.optimize = optimize
        on_wait = self._progress.wait_logger(synthesis.name, synthesis.noun)
        try:
            found = synthesis.run(pool, on_wait=on_wait).get(synthesis.hash)
        except EndSynthesis as end:
            return self._ended_early(end)
        if found is None:
            (path,) = synthesis.paths(synthesis.hash)
            raise RunError(
                f"The synthetic set '{path}', which another run computed, cannot be read; run "
                "again with --resume."
            )
        self._writer.origin = found.origin
        distilled = self._save(found.learned, found.observers)
        self._warn(distilled)
        return distilled

    def _share_weights(
        self, observers: dict[NetworkId, TrainedObserver]
    ) -> dict[NetworkId, ObjectRef]:
        """Share the weights of the trained networks that terms use with the workers."""
        used: set[NetworkId] = set()
        for group in groups(self._recipe):
            if self._recipe.network_group(group).trained:
                used.update(network_ids(self._recipe, group))
        return {
            network_id: self._pool.share(observer.state)
            for network_id, observer in observers.items()
            if network_id in used
        }

    def _warn(self, distilled: Distilled) -> None:
        """Warn about pixels far out of range."""
        if (sentence := out_of_range(self._recipe, distilled)) is not None:
            log.warning("%s", sentence)

    def _save(self, learned: SyntheticSet, observers: list[dict[str, Any]]) -> Distilled:
        """Write the set into the run's directory."""
        distilled = self._writer.with_card(learned, observers)
        self._writer.write(distilled)
        return distilled

    def _ended_early(self, end: EndSynthesis) -> Distilled:
        """Write the set of an earlier step into the run's directory, with a note on its card."""
        distilled = end.distilled
        distilled.card["ended_at_step"] = end.step
        self._writer.write(distilled)
        self._progress.log(f"synthesize: ended early, with the set of step {end.step}")
        self._warn(distilled)
        return distilled

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Context whose duration is not counted as part of the stage that it interrupts."""
        began = time.monotonic()
        yield
        self._seconds_in_callback += time.monotonic() - began

    def _validation_accuracy(self, distilled: Distilled) -> float:
        """Mean validation accuracy of the recipe's students on the current set."""
        with self._paused():
            return validation_accuracy(distilled, self._job)

    def _on_milestone(
        self, learned: SyntheticSet, observers: list[dict[str, Any]], fraction: float
    ) -> None:
        """Call the sweep's callback with the current set."""
        assert self._callback is not None
        with self._paused():
            now = self._writer.with_card(learned, observers)
            milestone = Milestone(
                fraction=fraction,
                distilled=now,
                checkpoints=self._directory.checkpoints,
                judge=lambda: judge_now(now, self._job, self._pool),
            )
            self._callback.on_milestone(milestone)

    def _relabel(
        self, distilled: Distilled, observers: dict[NetworkId, TrainedObserver]
    ) -> Path | None:
        """Store soft labels for every epoch of a student next to the set; its card counts them."""
        directory = self._directory.distilled
        facts: dict[str, Any] = {"config": card.config(self._recipe)}
        labels = None
        if self._recipe.labels.kind == "stored":
            relabel = Relabel(self._job, distilled, observers, directory)
            labels = relabel.labels()
            if labels is None:
                self._compute(relabel)
                labels = StoredLabels(relabel.directory)
                if self._recipe.resources.workers > 0:
                    # without workers, they would be copied for students that are trained by a team
                    self._images = relabel.images
            storage = distilled.storage
            numbers = storage.numbers | {SOFT_LABELS: labels.numbers}
            size = storage.bytes | {SOFT_LABELS: labels.bytes}
            folder = str(labels.directory.relative_to(directory))
            facts["storage"] = asdict(Storage(numbers, size))
            facts["labels"] = {"folder": folder, "epochs": labels.epochs}
        else:
            counted = with_labels_of(distilled, self._recipe, self._job.data)
            facts["storage"] = counted.card["storage"]
        self._writer.add_to_card(distilled, facts)
        return None if labels is None else labels.directory

    def _log_evaluation(
        self, stage: str, step: int, seconds: float, values: Mapping[str, float]
    ) -> None:
        """Log a student, and notify callbacks."""
        self._log.step(stage, step, seconds, values)
        self._callbacks.call("on_step", Step(stage, step, values, seconds))

    def _evaluate(
        self,
        distilled: Distilled,
        observers: dict[NetworkId, TrainedObserver],
        labels: Path | None,
        pool: WorkerPool | None = None,
    ) -> Report:
        """Train and test students, and add their results to the report of the directory.

        Args:
            distilled: the set.
            observers: trained networks, the teachers among them.
            labels: directory of stored labels.
            pool: workers of the earlier stages; if None, workers are started for the students.
        """
        networks = teachers(self._recipe)
        source = LabelSource(
            teachers={network_id: observers[network_id] for network_id in networks},
            stored=labels,
            hashes=Squeeze(self._job, ()).teacher_hashes(),
        )
        with self._timed("evaluate"):
            results = judge(
                self._job,
                distilled,
                self._progress,
                self._log_evaluation,
                source,
                pool=pool,
                is_last=True,
                images=self._images,
            )
        counts = self._job.data.train.counts.tolist()
        report = Report.build(self._recipe, results, distilled, self._log.spent(), counts)
        if self._judged_on == "validation":
            on_validation = tuple(_on_validation(result) for result in report.results)
            report = replace(report, results=on_validation)
        kept = keep_report(report, self._directory.path)
        for result in report.results:
            self._callbacks.call("on_result", result)
        return kept


def _on_validation(result: SetResult) -> SetResult:
    """Mark a result as one on the validation split."""
    return replace(result, protocol=f"{result.protocol}, {ON_VALIDATION}")
