"""The driver: stages one after another, each made of work items for a group, each kept when done.

    squeeze -> experts -> measure -> score -> synthesize -> relabel -> evaluate

It reads like sequential code whether the work is done in this process or by Ray workers.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rayd
from rayd import devices, methods, synthetic
from rayd.artifacts import content_hash
from rayd.config import Recipe
from rayd.data import ImageData
from rayd.distilled import Distilled, contact_sheet
from rayd.distilled import load as load_distilled
from rayd.engine import experts, initial, measure, relabel, spectra, squeeze
from rayd.engine.evaluate import Classroom, judge, keep_report
from rayd.engine.group import Group, Host, Shared, Streams, open_group
from rayd.engine.members import Member, members, panels, teachers, team
from rayd.engine.observer import Facts
from rayd.engine.observers import Memory
from rayd.engine.preflight import preflight
from rayd.engine.progress import Reporter, Shown
from rayd.engine.reading import read
from rayd.engine.rundir import RunDirectory, check_writable
from rayd.engine.squeeze import TrainedObserver
from rayd.engine.store import Store
from rayd.engine.synthesize import Assignment, Logged, State, Synthesizer, foreign, resumable
from rayd.engine.worker import Worker
from rayd.errors import ArtifactError, OutputError
from rayd.evaluation.report import Report
from rayd.networks import weights as given
from rayd.synthetic import Storage, SyntheticSet

ADVANCE_SECONDS = 1.0
"""How long the driver lets the synthesizer work between two looks at it."""


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


def distill(
    recipe: Recipe,
    out: Path,
    *,
    data_root: Path | None = None,
    cache: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Distil a data set as a recipe says, judge the result, and leave both in `out`.

    Args:
        recipe: the run.
        out: the run's directory.
        data_root: where named data are looked for first.
        cache: root of the store that runs share; see `rayd.engine.store`.
        resume: continue the run that `out` holds.
        overwrite: replace the run that `out` holds.
        reporter: where progress is shown; standard error unless given.

    Raises:
        RaydError: anything that a user can mend, in one sentence, before long work starts where that is possible.
    """
    method = methods.build(recipe)
    reporter = reporter or Reporter()
    data = read(recipe.data, data_root, cache, reporter)
    preflight(recipe, data)
    squeeze.check(recipe, data, Store(cache))
    check_writable(Store(cache).root, "cache")
    with (
        RunDirectory(out).opened(recipe, resume, overwrite) as directory,
        reporter.watched(directory.status),
        devices.thread_limit(devices.threads(recipe.resources)),
    ):
        return _Driver(recipe, method, data, directory, Store(cache), reporter).run()


def synthesis_key(recipe: Recipe, data: ImageData) -> str:
    """Hash of all that a synthesis depends on."""
    looking = [network for panel in panels(recipe) for network in recipe.panel(panel).networks]
    weights = [given.fingerprint(network) for network in looking]
    return content_hash({"version": 2, "data": data.fingerprint, "settings": recipe.identity(), "weights": weights})


class _Driver:
    def __init__(
        self, recipe: Recipe, method: methods.Method, data: ImageData, directory: RunDirectory, store: Store, reporter: Reporter
    ):
        self._recipe, self._method, self._data = recipe, method, data
        self._directory, self._store, self._reporter = directory, store, reporter
        self._log, self._key = directory.log, synthesis_key(recipe, data)
        self._workers = ExitStack()

    def run(self) -> Run:
        with self._workers:
            distilled = self._finished()
            squeezed = self._squeeze(team(self._recipe) if distilled is None else teachers(self._recipe))
            if distilled is None:
                distilled = self._synthesize(squeezed)
            labels = self._relabel(distilled, squeezed)
        report = self._evaluate(distilled, squeezed, labels)
        return Run(self._directory.path, self._recipe, distilled, report)

    @cached_property
    def _group(self) -> Group:
        """The workers, started when they are first needed."""
        group = self._workers.enter_context(open_group(self._recipe.resources, Worker, self._recipe, Facts.of(self._data)))
        self._workers.enter_context(self._reporter.workers(group))
        return group

    def _finished(self) -> Distilled | None:
        if not (self._directory.distilled / "card.json").exists():
            return None
        distilled = load_distilled(self._directory.distilled)
        if distilled.card.get("synthesis") != self._key:
            raise self._other_data()
        self._reporter.say(f"synthesize: done before, {len(distilled)} images in {self._directory.distilled}")
        return distilled

    def _other_data(self) -> OutputError:
        return OutputError(
            f"'{self._directory.path}' holds a run on other data than '{self._data.name}' holds now; choose another --out."
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began, finished = time.monotonic(), False
        try:
            yield
            finished = True
        finally:
            self._log.spend(stage, time.monotonic() - began, finished)

    def _squeeze(self, wanted: tuple[Member, ...]) -> dict[Member, TrainedObserver]:
        recipe, data, store = self._recipe, self._data, self._store
        if not squeeze.missing(recipe, data, store, wanted):
            return squeeze.everyone(recipe, data, store, wanted)
        with self._timed("squeeze"), self._reporter.stage("squeeze", 0, "epochs") as shown, self._trainers() as group:
            trained = squeeze.squeeze(group, recipe, data, store, shown.update, wanted)
        for member, one in trained.items():
            self._reporter.say(f"squeeze: {member.label} {squeeze.in_words(one)}")
        return trained

    def _experts(self) -> tuple[Path, ...]:
        recipe, data, store = self._recipe, self._data, self._store
        if not self._method.needs_experts:
            return ()
        if not experts.missing(recipe, data, store):
            return experts.paths(recipe, data, store)
        with self._timed("experts"), self._reporter.stage("experts", 0, "epochs") as shown:
            files = experts.train(self._group, recipe, data, store, shown.update)
        self._reporter.say(f"experts: {experts.in_words(files)}")
        return files

    def _trainers(self) -> AbstractContextManager[Streams]:
        """The group, unless observers are trained by workers together, who need what the group holds once it is there."""
        if squeeze.together(self._recipe):
            return squeeze.open_workers(self._recipe, self._data, self._store)
        return nullcontext(self._group)

    def _measure(self, weights: dict[Member, Shared]) -> dict[Member, Shared]:
        if self._recipe.real == "sampled" or not self._method.panels:
            return {}
        with self._timed("measure"), self._reporter.stage("measure", 0, "shards") as shown:
            recipe, method, data = self._recipe, self._method, self._data
            states = measure.measure(self._group, recipe, method, data, self._store, weights, shown.update)
        return {member: self._group.share(state) for member, state in states.items()}

    def _initial(self, weights: dict[Member, Shared], files: tuple[Path, ...]) -> SyntheticSet:
        if not initial.missing(self._recipe, self._data, self._store):
            return initial.initial(self._group, self._recipe, self._data, weights, self._store, lambda *_: None, files)
        with self._timed("score"), self._reporter.stage("score", 0, "classes") as shown:
            return initial.initial(self._group, self._recipe, self._data, weights, self._store, shown.update)

    def _synthesize(self, squeezed: dict[Member, TrainedObserver]) -> Distilled:
        recipe, group = self._recipe, self._group
        trained = [panel for panel in panels(recipe) if recipe.panel(panel).trained]
        looking = {member for panel in trained for member in members(recipe, panel)}
        weights = {member: group.share(one.state) for member, one in squeezed.items() if member in looking}
        accuracies = {member: float(squeezed[member].facts["train_accuracy"]) for member in weights}
        files = self._experts()
        measured = self._measure(weights) if recipe.synthesis.steps > 0 else {}
        learned = self._initial(weights, files)
        parts = synthetic.blocks(learned.units, recipe.synthesis.block, recipe.synthesis.order)
        train = group.share((self._data.train.images, self._data.train.labels)) if recipe.real == "sampled" else None
        assignments = [
            Assignment(
                recipe,
                self._key,
                self._data.normalization,
                block,
                len(parts),
                group.share(dict(learned.part(part).state_dict())),
                self._directory.checkpoints / f"block-{block:05d}" if len(parts) > 1 else self._directory.checkpoints,
                weights,
                accuracies,
                measured,
                train,
                files,
            )
            for block, part in enumerate(parts)
        ]
        if any(foreign(assignment.checkpoints, self._key) for assignment in assignments):
            raise self._other_data()
        if recipe.synthesis.steps > 0:
            in_turn = len(parts) == 1 or self._method.sequential
            optimise = self._optimise_in_turn if in_turn else self._optimise_side_by_side
            for part, state in zip(parts, optimise(assignments), strict=True):
                learned.put(part, synthetic.restore(recipe.synthetic, state))
        distilled = self._distilled(learned, squeezed)
        distilled.save(self._directory.distilled)
        self._show_spectra(distilled, recipe.synthesis.steps * len(parts))
        return distilled

    def _show_spectra(self, distilled: Distilled, step: int) -> None:
        """The spectra of the result in TensorBoard, where the method looks through a filter."""
        with suppress(ArtifactError):
            image = spectra.picture(self._recipe, self._method, self._data, self._store, distilled)
            self._log.picture("spectra", step, np.asarray(image))

    def _optimise_in_turn(self, assignments: list[Assignment]) -> list[State]:
        """All workers on one block after another: each step asks its observers side by side.

        Terms find in their memory what the block before left there. Steps are numbered through the blocks.
        """
        synthesizer = self._group.host(Synthesizer)
        steps, total = self._recipe.synthesis.steps, self._recipe.synthesis.steps * len(assignments)
        began = [resumable(assignment.checkpoints, self._key) for assignment in assignments]
        self._log.forget("synthesize", lambda step: (step - 1) % steps + 1 <= began[(step - 1) // steps])
        states: list[State] = []
        remembered: Mapping[Member, Memory] = {}
        with self._timed("synthesize"), self._reporter.stage("synthesize", total, "steps") as shown:
            shown.update(sum(began))
            for assignment, reached in zip(assignments, began, strict=True):
                assignment = replace(assignment, remembered=remembered)
                self._optimise(synthesizer, assignment, reached, shown)
                states.append(synthesizer.call("state", assignment, steps))
                if assignment.block + 1 < len(assignments):
                    remembered = synthesizer.call("remembered", assignment, steps)
        return states

    def _optimise(self, synthesizer: Host, assignment: Assignment, reached: int, shown: Shown) -> None:
        """One block, from the step that was reached before to its end."""
        steps, interval = self._recipe.synthesis.steps, self._recipe.synthesis.checkpoint_every
        before = steps * assignment.block
        step, stride = reached, 1
        while step < steps:
            until = min(step + stride, steps, (step // interval + 1) * interval)
            started = time.monotonic()
            logged = synthesizer.call("advance", assignment, step, until)
            stride = _next_stride(until - step, time.monotonic() - started)
            step = until
            for line in logged:
                self._log.step("synthesize", before + line.step, line.seconds, line.terms)
            shown.update(before + step, terms=logged[-1].terms if logged else None)
            if step % interval == 0 and assignment.blocks == 1:
                now = synthetic.restore(self._recipe.synthetic, synthesizer.call("state", assignment, step))
                self._log.picture("synthetic images", step, np.asarray(contact_sheet(self._distilled(now, {}))))

    def _optimise_side_by_side(self, assignments: list[Assignment]) -> list[State]:
        """Blocks over workers: each worker optimises a block with its own observers. Steps are numbered through the blocks."""
        steps = self._recipe.synthesis.steps
        states: dict[int, State] = {}
        began = [resumable(assignment.checkpoints, self._key) for assignment in assignments]
        self._log.forget("synthesize", lambda step: (step - 1) % steps + 1 <= began[(step - 1) // steps])
        reached = list(began)
        total = steps * len(assignments)
        with self._timed("synthesize"), self._reporter.stage("synthesize", total, "steps") as shown:
            shown.update(sum(reached))
            items = [(assignment,) for assignment in assignments]
            for block, event in self._group.stream("synthesize", items):
                if isinstance(event, Logged):
                    reached[block] = max(reached[block], event.step)
                    if event.terms:
                        self._log.step("synthesize", block * steps + event.step, event.seconds, event.terms)
                    shown.update(sum(reached), terms=event.terms or None)
                else:
                    states[block] = event
        return [states[block] for block in range(len(assignments))]

    def _distilled(self, learned: SyntheticSet, squeezed: dict[Member, TrainedObserver]) -> Distilled:
        recipe, data = self._recipe, self._data
        card = {
            "recipe": recipe.name,
            "method": recipe.method,
            "citation": self._method.citation,
            "data": {"name": data.name, "fingerprint": data.fingerprint},
            "ipc": recipe.ipc,
            "synthesis": self._key,
            "seed": recipe.seed,
            "steps": recipe.synthesis.steps,
            "observers": [one.facts_for_card for one in squeezed.values()],
            "storage": asdict(_with_whitening(learned.storage(), data)),
            "versions": {
                "rayd": rayd.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "config": _config(recipe),
        }
        return Distilled.of(learned, recipe.synthetic, data.class_names, data.normalization, card)

    def _relabel(self, distilled: Distilled, squeezed: dict[Member, TrainedObserver]) -> Path | None:
        """Soft labels for every epoch of a student, beside the set, whose card counts them."""
        recipe, data, directory = self._recipe, self._data, self._directory.distilled
        card: dict[str, Any] = {"config": _config(recipe)}
        labels = None
        if recipe.labels.kind == "stored":
            wanted = relabel.made_for(recipe, distilled, squeeze.teacher_hashes(recipe, data))
            labels = relabel.found(recipe, wanted, directory)
            if labels is None:
                with self._timed("relabel"), self._reporter.stage("relabel", 0, "epochs") as shown:
                    labels = relabel.relabel(self._group, recipe, data, distilled, squeezed, directory, shown.update)
            kept = distilled.storage
            numbers, size = kept.numbers | {"soft labels": labels.numbers}, kept.bytes | {"soft labels": labels.bytes}
            card["storage"] = asdict(Storage(numbers, size))
            card["labels"] = {"folder": str(labels.directory.relative_to(directory)), "epochs": labels.epochs}
        if any(distilled.card.get(name) != value for name, value in card.items()):
            distilled.card |= card
            distilled.save(directory)
        return None if labels is None else labels.directory

    def _evaluate(self, distilled: Distilled, squeezed: dict[Member, TrainedObserver], labels: Path | None) -> Report:
        recipe, data = self._recipe, self._data
        with self._timed("evaluate"):
            taught = {member: squeezed[member] for member in teachers(recipe)}
            room = Classroom(taught, labels, squeeze.teacher_hashes(recipe, data))
            results = judge(recipe, data, distilled, self._store, self._reporter, self._log.step, room)
        return keep_report(
            Report.build(recipe, results, distilled, self._log.spent(), data.train.counts.tolist()), self._directory.path
        )


def _config(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a card holds it."""
    return recipe.model_dump(mode="json", exclude={"resources"})


def _with_whitening(storage: Storage, data: ImageData) -> Storage:
    """What a set costs together with the whitening that its use needs; two numbers a channel are not counted."""
    if data.normalization.kind != "zca":
        return storage
    state = data.normalization.state().values()
    numbers, size = sum(tensor.numel() for tensor in state), sum(tensor.nbytes for tensor in state)
    return Storage(storage.numbers | {"whitening": numbers}, storage.bytes | {"whitening": size})


def _next_stride(steps: int, seconds: float) -> int:
    """Steps that take about `ADVANCE_SECONDS`, growing at most fourfold at a time."""
    wanted = steps * ADVANCE_SECONDS / max(seconds, 1e-6)
    return max(1, min(int(wanted), 4 * steps))
