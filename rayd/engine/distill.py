"""The driver: stages one after another, each made of work items for a group, each kept when done.

    squeeze -> experts -> measure -> score -> synthesize -> relabel -> evaluate

It reads like sequential code whether the work is done in this process or by Ray workers. What runs
have in common, up to the synthetic set itself, is made once (`rayd.engine.work_queue`), also by
those that go on at the same time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rayd import devices, methods, remote, synthetic
from rayd.artifacts import content_hash
from rayd.config import Recipe
from rayd.data import ImageData
from rayd.distilled import Distilled
from rayd.distilled import load as load_distilled
from rayd.engine import (
    arithmetic,
    card,
    experts,
    initial,
    measure,
    memory,
    relabel,
    spectra,
    squeeze,
)
from rayd.engine.callbacks import Callback, Milestone, WarmStart
from rayd.engine.evaluate import LabelSource, judge, keep_report
from rayd.engine.forecast import Forecast
from rayd.engine.network_ids import NetworkId, groups, network_ids, teachers, trained_networks
from rayd.engine.observer import DatasetInfo
from rayd.engine.optimise import Optimisation
from rayd.engine.pixel_range import out_of_range
from rayd.engine.pool import ObjectRef, TaskStream, WorkerPool, open_pool
from rayd.engine.preflight import check_settings, preflight
from rayd.engine.progress import Progress, Shown
from rayd.engine.reading import read
from rayd.engine.rundir import RunDirectory, check_writable, continuation
from rayd.engine.squeeze import TrainedObserver
from rayd.engine.store import Store
from rayd.engine.synthesize import BlockTask, adopt, block_folder, foreign
from rayd.engine.work_queue import WorkQueue, run_once
from rayd.engine.worker import Worker
from rayd.errors import ArtifactError, ConfigError, OutputError, RunError
from rayd.evaluation.report import Report, SetResult
from rayd.networks import weights as given
from rayd.synthetic import Storage, SyntheticSet

log = logging.getLogger(__name__)

STAGE = "synthesis"
"""Where the store keeps synthetic sets."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    directory: Path
    """Where everything lies."""
    recipe: Recipe
    """What was run, resolved."""
    distilled: Distilled
    """The result."""
    report: Report
    """How it was judged."""
    synthesis_seconds: float
    """What the synthesis took, whichever run did it."""


def distill(
    recipe: Recipe,
    out: Path,
    *,
    data_root: Path | None = None,
    cache: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    judged_on: Literal["test", "validation"] = "test",
    watch: Callback | None = None,
    warm_start: WarmStart | None = None,
) -> Run:
    """Distil a data set as a recipe says, judge the result, and leave both in `out`.

    Args:
        recipe: the run.
        out: the run's directory.
        data_root: where named data are looked for first.
        cache: root of the store that runs share; see `rayd.engine.store`.
        resume: continue the run that `out` holds.
        overwrite: replace the run that `out` holds.
        progress: where progress is shown; standard error unless given.
        judged_on: `validation` looks at the validation split in place of the test split, which is
            then not looked at.
        watch: who looks at the set on its way.
        warm_start: what the synthesis goes on from.

    Raises:
        RaydError: anything that a user can mend, in one sentence, before long work starts where
            that is possible.
    """
    progress = progress or Progress()
    check_settings(recipe)
    data = read(recipe.data, data_root, cache, progress, recipe.usual_image_size)
    data = data.judged_on_validation() if judged_on == "validation" else data
    preflight(recipe, data)
    earlier = RunDirectory(out) if resume and RunDirectory(out).holds_run() else None
    choice = arithmetic.choose(
        recipe, data.shape, earlier.recipe() if earlier is not None else None
    )
    recipe = choice.recipe
    method = methods.build(recipe)
    squeeze.check(recipe, data, Store(cache))
    check_writable(Store(cache).root, "cache")
    # trials belong to their sweep: continued by hand, their students would see the test split
    alone = judged_on == "test" and warm_start is None
    command = continuation(out, data_root, cache) if alone else None
    with (
        RunDirectory(out).opened(recipe, resume, overwrite, command) as directory,
        progress.watched(directory.status),
        devices.thread_limit(devices.threads(recipe.resources)),
    ):
        for sentence in (choice.summary, *choice.warnings):
            progress.log(sentence)
        return _Driver(
            choice, method, data, directory, Store(cache), progress, judged_on, watch, warm_start
        ).run()


def synthesis_key(
    recipe: Recipe, data: ImageData, history: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Hash of all that a synthesis depends on."""
    looking = [
        network for group in groups(recipe) for network in recipe.network_group(group).networks
    ]
    weights = [given.fingerprint(network) for network in looking]
    inputs: dict[str, Any] = {
        "version": 3,
        "data": data.fingerprint,
        "settings": recipe.identity(),
        "weights": weights,
    }
    if _scales_mappers(recipe):
        inputs["version"] = 5
    return content_hash(inputs | ({"history": list(history)} if history else {}))


def _scales_mappers(recipe: Recipe) -> bool:
    """Whether step sizes of low-rank mappers are those of `LowRank.step_scales`."""
    settings = recipe.synthesis
    given = {"left", "right"} <= settings.learning_rates.keys()
    return recipe.synthetic.kind == "lowrank" and settings.optimizer == "sgd" and not given


def synthesis_inputs(recipe: Recipe, key: str) -> dict[str, Any]:
    """All that a synthetic set in the store depends on."""
    return {"version": 1, "synthesis": key, "device": devices.choose(recipe.resources).type}


class _Driver:
    def __init__(
        self,
        choice: arithmetic.Choice,
        method: methods.Method,
        data: ImageData,
        directory: RunDirectory,
        store: Store,
        progress: Progress,
        judged_on: str,
        watch: Callback | None,
        warm_start: WarmStart | None,
    ):
        recipe = choice.recipe
        self._recipe = recipe
        self._method = method
        self._data = data
        self._hardware = choice.hardware
        self._directory = directory
        self._store = store
        self._progress = progress
        self._judged_on = judged_on
        self._watch = watch
        self._warm_start = warm_start
        self._log = directory.log
        self._key = synthesis_key(
            recipe, data, warm_start.history if warm_start is not None else ()
        )
        self._inputs = synthesis_inputs(recipe, self._key)
        self._workers = ExitStack()
        self._looked = 0.0

    def run(self) -> Run:
        with self._progress.stages(self._stage_names()):
            return self._run()

    def _stage_names(self) -> list[str]:
        """The stages of this run, in order, cached or not."""
        recipe = self._recipe
        method = self._method
        optimised = recipe.synthesis.steps > 0
        measured = recipe.real == "measured" and any(method.needs(group) for group in method.groups)
        there = {
            "squeeze": bool(trained_networks(recipe)),
            "experts": method.needs_experts,
            "measure": measured and optimised,
            "score": recipe.synthetic.init == "rded",
            "synthesize": optimised,
            "relabel": recipe.labels.kind == "stored",
            "evaluate": True,
        }
        return [name for name, wanted in there.items() if wanted]

    @cached_property
    def _foresight(self) -> Forecast | None:
        """The forecast of the run; none where no progress is shown, as counting operations takes a
        second or two.
        """
        return Forecast(self._recipe, self._data, self._store) if self._progress.followed else None

    def _foreseen(self, name: str) -> float | None:
        return None if self._foresight is None else self._foresight.stage(name)

    def _stage(self, name: str, unit: str) -> AbstractContextManager[Shown]:
        """The progress of a stage whose work items are not counted yet."""
        return self._progress.stage(name, 0, unit, self._foreseen(name))

    def _run(self) -> Run:
        with self._workers:
            distilled = self._finished() or self._found()
            squeezed = self._squeeze(
                trained_networks(self._recipe) if distilled is None else teachers(self._recipe)
            )
            if distilled is None:
                distilled = self._synthesize(squeezed)
            labels = self._relabel(distilled, squeezed)
        # students need the memory that observers, statistics and real images still take
        self.__dict__.pop("_pool", None)
        report = self._evaluate(distilled, squeezed, labels)
        return Run(self._directory.path, self._recipe, distilled, report, self._synthesis_seconds())

    def _synthesis_seconds(self) -> float:
        with suppress(ArtifactError, KeyError, TypeError, ValueError):
            return float(self._store.note(STAGE, self._inputs)["seconds"])
        return self._log.spent().get("synthesize", 0.0)

    @cached_property
    def _pool(self) -> WorkerPool:
        """The workers, started when they are first needed."""
        pool = self._workers.enter_context(
            open_pool(self._recipe.resources, Worker, self._recipe, DatasetInfo.of(self._data))
        )
        self._workers.enter_context(self._progress.workers(pool))
        return pool

    def _finished(self) -> Distilled | None:
        if not (self._directory.distilled / "card.json").exists():
            return None
        try:
            distilled = load_distilled(self._directory.distilled)
        except ArtifactError as error:
            place = remote.shown(self._directory.distilled)
            raise ArtifactError(
                f"{error} Move '{place}' away, and --resume makes it again from what is there."
            ) from error
        if distilled.card.get("synthesis") != self._key:
            raise self._other_data()
        self._progress.log(
            f"synthesize: done before, {len(distilled)} images in {self._directory.distilled}"
        )
        return distilled

    def _found(self) -> Distilled | None:
        """The set as another run with the same settings made it."""
        if self._recipe.synthesis.steps == 0:
            return None
        tensors = self._store.tensors(STAGE, self._inputs)
        if tensors is None:
            return None
        try:
            learned = synthetic.restore(self._recipe.synthetic, tensors)
            distilled = self._distilled(learned, self._store.note(STAGE, self._inputs)["observers"])
        except (ArtifactError, ConfigError, KeyError) as error:
            log.warning("%s It will be made again.", error)
            return None
        distilled.save(self._directory.distilled)
        self._progress.log(
            f"synthesize: found {len(distilled)} images of a run with the same settings"
        )
        self._warn(distilled)
        return distilled

    def _other_data(self) -> OutputError:
        return OutputError(
            f"'{self._directory.path}' holds a run on other data than '{self._data.name}' holds now; choose another --out."
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        finished = False
        try:
            with memory.explained(stage, self._recipe):
                yield
            finished = True
        finally:
            self._log.spend(stage, time.monotonic() - began - self._looked, finished)
            self._looked = 0.0

    def _squeeze(self, wanted: tuple[NetworkId, ...]) -> dict[NetworkId, TrainedObserver]:
        recipe = self._recipe
        data = self._data
        store = self._store
        if not squeeze.missing(recipe, data, store, wanted):
            return squeeze.everyone(recipe, data, store, wanted)
        with (
            self._stage("squeeze", "epochs") as shown,
            self._timed("squeeze"),
            self._trainers() as pool,
        ):
            waiting = self._progress.waiting("squeeze", "observers")
            weight = None if self._foresight is None else self._foresight.epoch
            trained = squeeze.squeeze(
                pool, recipe, data, store, shown.update, wanted, waiting, weight
            )
        for network_id in squeeze.distinct(recipe, data, wanted):
            self._progress.log(
                f"squeeze: {network_id.label} {squeeze.summary(trained[network_id])}"
            )
        return trained

    def _experts(self) -> tuple[Path, ...]:
        recipe = self._recipe
        data = self._data
        store = self._store
        if not self._method.needs_experts:
            return ()
        if not experts.missing(recipe, data, store):
            return experts.paths(recipe, data, store)
        with self._stage("experts", "epochs") as shown, self._timed("experts"):
            waiting = self._progress.waiting("experts", "experts")
            files = experts.train(self._pool, recipe, data, store, shown.update, waiting)
        self._progress.log(f"experts: {experts.summary(files)}")
        return files

    def _trainers(self) -> AbstractContextManager[TaskStream]:
        """The group, unless observers are trained by workers together, who need what the group
        holds once it is there.
        """
        if squeeze.together(self._recipe):
            return squeeze.open_workers(self._recipe, self._data, self._store)
        return nullcontext(self._pool)

    def _measure(self, weights: dict[NetworkId, ObjectRef]) -> dict[NetworkId, ObjectRef]:
        if self._recipe.real == "sampled" or not self._method.groups:
            return {}
        recipe = self._recipe
        method = self._method
        data = self._data
        if not measure.missing(recipe, method, data, self._store):
            with self._timed("measure"):
                states = measure.measure(
                    self._pool, recipe, method, data, self._store, weights, lambda *_: None
                )
            return {network_id: self._pool.share(state) for network_id, state in states.items()}
        with self._stage("measure", "shards") as shown, self._timed("measure"):
            waiting = self._progress.waiting("measure", "observers")
            weight = None if self._foresight is None else self._foresight.shard
            states = measure.measure(
                self._pool,
                recipe,
                method,
                data,
                self._store,
                weights,
                shown.update,
                waiting,
                weight,
            )
        return {network_id: self._pool.share(state) for network_id, state in states.items()}

    def _initial(
        self, weights: dict[NetworkId, ObjectRef], files: tuple[Path, ...]
    ) -> SyntheticSet:
        if not initial.missing(self._recipe, self._data, self._store):
            return initial.initial(
                self._pool, self._recipe, self._data, weights, self._store, lambda *_: None, files
            )
        with self._stage("score", "classes") as shown, self._timed("score"):
            waiting = self._progress.waiting("score", "classes")
            return initial.initial(
                self._pool,
                self._recipe,
                self._data,
                weights,
                self._store,
                shown.update,
                waiting=waiting,
            )

    def _synthesize(self, squeezed: dict[NetworkId, TrainedObserver]) -> Distilled:
        recipe = self._recipe
        pool = self._pool
        trained = [group for group in groups(recipe) if recipe.network_group(group).trained]
        looking = {network_id for group in trained for network_id in network_ids(recipe, group)}
        weights = {
            network_id: pool.share(one.state)
            for network_id, one in squeezed.items()
            if network_id in looking
        }
        accuracies = {
            network_id: float(squeezed[network_id].facts["train_accuracy"])
            for network_id in weights
        }
        files = self._experts()
        measured = self._measure(weights) if recipe.synthesis.steps > 0 else {}
        learned = self._initial(weights, files)
        facts = [one.facts_for_card for one in squeezed.values()]
        if recipe.synthesis.steps == 0:
            return self._keep(learned, facts)
        parts = synthetic.blocks(learned.samples, recipe.synthesis.block, recipe.synthesis.order)
        sequential = len(parts) == 1 or self._method.sequential
        watched = self._watch or Callback((), lambda _: None)
        pauses = watched.pauses(recipe.synthesis.steps, len(parts), sequential)
        train = (
            pool.share((self._data.train.images, self._data.train.labels))
            if recipe.real == "sampled"
            else None
        )
        assignments = [
            BlockTask(
                recipe,
                self._key,
                self._data.normalization,
                block,
                len(parts),
                pool.share(dict(learned.part(part).state_dict())),
                self._directory.checkpoints / block_folder(block, len(parts)),
                weights,
                accuracies,
                measured,
                train,
                files,
                pauses=pauses[block],
            )
            for block, part in enumerate(parts)
        ]
        if any(foreign(assignment.checkpoints, self._key) for assignment in assignments):
            raise self._other_data()

        look = partial(self._look, learned, facts)
        way = Optimisation(
            pool,
            assignments,
            learned,
            parts,
            self._log,
            self._progress,
            self._distilled,
            look,
            self._foreseen,
        )

        def make(taken: WorkQueue[str]) -> None:
            for piece in taken:
                if self._warm_start is not None:
                    for assignment in assignments:
                        source = self._warm_start.checkpoints / block_folder(
                            assignment.block, len(parts)
                        )
                        adopt(source, assignment.checkpoints, self._key)
                with self._timed("synthesize"):
                    way.sequential() if sequential else way.parallel()
                note = {"observers": facts, "seconds": self._log.spent()["synthesize"]}
                self._store.put_tensors(STAGE, self._inputs, learned.state_dict(), note)
                made.append(self._keep(learned, facts))
                taken.done(piece)

        made: list[Distilled] = []
        place = self._store.path(STAGE, self._inputs, "safetensors")
        waiting = self._progress.waiting("synthesize", "set")
        run_once(
            [self._key],
            lambda _: self._store.tensors(STAGE, self._inputs) is not None,
            lambda _: [place],
            make,
            waiting,
        )
        distilled = made[0] if made else self._found()
        if distilled is None:
            raise RunError(
                f"The synthetic set '{place}', which another run made, cannot be read; run again with --resume."
            )
        self._show_spectra(distilled, recipe.synthesis.steps * len(parts))
        if made:
            self._warn(distilled)
        return distilled

    def _warn(self, distilled: Distilled) -> None:
        """Say what is wrong with a set that is new to this run."""
        if (sentence := out_of_range(self._recipe, distilled)) is not None:
            log.warning("%s", sentence)

    def _keep(self, learned: SyntheticSet, observers: list[dict[str, Any]]) -> Distilled:
        distilled = self._distilled(learned, observers)
        distilled.save(self._directory.distilled)
        return distilled

    def _show_spectra(self, distilled: Distilled, step: int) -> None:
        """The spectra of the result in TensorBoard, where the method looks through a filter.

        The set is finished and saved: whatever goes wrong here is a warning.
        """
        if not spectra.drawn_of(self._method):
            return
        try:
            image = spectra.picture(
                self._recipe, self._method, self._data, self._store, distilled, self._pool
            )
            self._log.picture("spectra", step, np.asarray(image))
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning(
                "The spectra of the result could not be drawn for TensorBoard; the run goes on. Reason: %s",
                reason,
            )

    def _look(
        self, learned: SyntheticSet, observers: list[dict[str, Any]], fraction: float
    ) -> None:
        """Show the set, as it is now, to who wants to see it."""
        assert self._watch is not None
        began = time.monotonic()
        now = self._distilled(learned, observers)
        self._watch.reached(
            Milestone(fraction, now, self._directory.checkpoints, lambda: self._judge_now(now))
        )
        self._looked += time.monotonic() - began

    def _judge_now(self, distilled: Distilled) -> Report:
        """How well a set that is on its way trains the recipe's students; its labels are not
        stored, with the same result.
        """
        recipe = self._recipe
        data = self._data
        labels = self._recipe.labels
        if labels.kind == "stored":
            labels = labels.model_copy(update={"kind": "online", "seed": labels.stored_seed})
            recipe = recipe.model_copy(update={"labels": labels})
        taught = squeeze.everyone(recipe, data, self._store, teachers(recipe))
        room = LabelSource(taught, None, squeeze.teacher_hashes(recipe, data))
        with memory.explained("evaluate", recipe):
            results = judge(
                recipe,
                data,
                distilled,
                self._store,
                Progress(quiet=True),
                classroom=room,
                pool=self._pool,
            )
        return Report.build(recipe, results, distilled, {}, data.train.counts.tolist())

    def _distilled(
        self, learned: SyntheticSet, observers: Sequence[Mapping[str, Any]] = ()
    ) -> Distilled:
        data = self._data
        told = card.card(
            self._method,
            data,
            learned,
            synthesis=self._key,
            observers=observers,
            experts=self._expert_facts,
            hardware=self._hardware,
        )
        return Distilled.of(
            learned, self._recipe.synthetic, data.class_names, data.normalization, told
        )

    @cached_property
    def _expert_facts(self) -> dict[str, Any] | None:
        return (
            experts.facts_for_card(self._recipe, self._data, self._store)
            if self._method.needs_experts
            else None
        )

    def _relabel(
        self, distilled: Distilled, squeezed: dict[NetworkId, TrainedObserver]
    ) -> Path | None:
        """Soft labels for every epoch of a student, beside the set, whose card counts them."""
        recipe = self._recipe
        data = self._data
        directory = self._directory.distilled
        told: dict[str, Any] = {"config": card.config(recipe)}
        labels = None
        if recipe.labels.kind == "stored":
            wanted = relabel.made_for(recipe, distilled, squeeze.teacher_hashes(recipe, data))
            labels = relabel.found(recipe, wanted, directory)
            if labels is None:
                with self._stage("relabel", "epochs") as shown, self._timed("relabel"):
                    labels = relabel.relabel(
                        self._pool, recipe, data, distilled, squeezed, directory, shown.update
                    )
            kept = distilled.storage
            numbers = kept.numbers | {"soft labels": labels.numbers}
            size = kept.bytes | {"soft labels": labels.bytes}
            told["storage"] = asdict(Storage(numbers, size))
            told["labels"] = {
                "folder": str(labels.directory.relative_to(directory)),
                "epochs": labels.epochs,
            }
        if any(distilled.card.get(name) != value for name, value in told.items()):
            distilled.card |= told
            distilled.save(directory)
        return None if labels is None else labels.directory

    def _evaluate(
        self, distilled: Distilled, squeezed: dict[NetworkId, TrainedObserver], labels: Path | None
    ) -> Report:
        recipe = self._recipe
        data = self._data
        with self._timed("evaluate"):
            taught = {network_id: squeezed[network_id] for network_id in teachers(recipe)}
            room = LabelSource(taught, labels, squeeze.teacher_hashes(recipe, data))
            results = judge(
                recipe, data, distilled, self._store, self._progress, self._log.step, room
            )
        report = Report.build(
            recipe, results, distilled, self._log.spent(), data.train.counts.tolist()
        )
        if self._judged_on == "validation":
            report = replace(
                report, results=tuple(_on_validation(result) for result in report.results)
            )
        return keep_report(report, self._directory.path)


def _on_validation(result: SetResult) -> SetResult:
    """Tell it from one on the test split."""
    return replace(result, protocol=f"{result.protocol}, judged on the validation split")
