"""The driver: stages one after another, each made of work items for a group, each kept when done.

    measure -> synthesize -> evaluate

It reads like sequential code whether the work is done in this process or by Ray workers.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rayd
from rayd import devices, methods, synthetic
from rayd.artifacts import content_hash, read_tensors
from rayd.config import Recipe
from rayd.data import ImageData, load
from rayd.distilled import Distilled, contact_sheet
from rayd.distilled import load as load_distilled
from rayd.engine import measure
from rayd.engine.evaluate import judge, keep_report
from rayd.engine.group import Group, open_group
from rayd.engine.observer import Facts, Observers
from rayd.engine.preflight import preflight
from rayd.engine.progress import Reporter
from rayd.engine.rundir import RunDirectory, check_writable
from rayd.engine.store import Store
from rayd.engine.synthesize import Assignment, Synthesizer, foreign, newest, save_checkpoint
from rayd.errors import ArtifactError, OutputError
from rayd.evaluation.report import Report
from rayd.synthetic import Storage

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
    data = load(recipe.data, data_root)
    preflight(recipe, data)
    check_writable(Store(cache).root, "cache")
    with (
        RunDirectory(out).opened(recipe, resume, overwrite) as directory,
        devices.thread_limit(devices.threads(recipe.resources)),
    ):
        return _Driver(recipe, method, data, directory, Store(cache), reporter or Reporter()).run()


def synthesis_key(recipe: Recipe, data: ImageData) -> str:
    """Hash of all that a synthesis depends on."""
    return content_hash({"version": 1, "data": data.fingerprint, "settings": recipe.identity()})


class _Driver:
    def __init__(
        self, recipe: Recipe, method: methods.Method, data: ImageData, directory: RunDirectory, store: Store, reporter: Reporter
    ):
        self._recipe, self._method, self._data = recipe, method, data
        self._directory, self._store, self._reporter = directory, store, reporter
        self._log, self._key = directory.log, synthesis_key(recipe, data)

    def run(self) -> Run:
        distilled = self._finished()
        if distilled is None:
            with open_group(self._recipe.resources, Observers, self._recipe, Facts.of(self._data)) as group:
                measured = self._measure(group)
                distilled = self._synthesize(group, measured)
        report = self._evaluate(distilled)
        return Run(self._directory.path, self._recipe, distilled, report)

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

    def _measure(self, group: Group) -> list[Any] | None:
        if self._recipe.real == "sampled":
            return None
        with self._timed("measure"), self._reporter.stage("measure", 0, "shards") as shown:
            states = measure.measure(group, self._recipe, self._method, self._data, self._store, shown.update)
        return [group.share(state) for state in states]

    def _synthesize(self, group: Group, measured: list[Any] | None) -> Distilled:
        recipe, began = self._recipe, self._begin()
        self._log.forget("synthesize", began)
        assignment = Assignment(
            recipe,
            self._key,
            self._data.normalization,
            self._directory.checkpoints,
            tuple(measured) if measured is not None else None,
            None if measured is not None else group.share((self._data.train.images, self._data.train.labels)),
        )
        synthesizer = group.host(Synthesizer)
        steps, interval = recipe.synthesis.steps, recipe.synthesis.checkpoint_every
        with self._timed("synthesize"), self._reporter.stage("synthesize", steps, "steps") as shown:
            shown.update(began)
            step, stride = began, 1
            while step < steps:
                until = min(step + stride, steps, (step // interval + 1) * interval)
                started = time.monotonic()
                logged = synthesizer.call("advance", assignment, step, until)
                stride = _next_stride(until - step, time.monotonic() - started)
                step = until
                for line in logged:
                    self._log.step("synthesize", line.step, line.seconds, line.terms)
                shown.update(step, terms=logged[-1].terms if logged else None)
                if step % interval == 0:
                    sheet = contact_sheet(self._distilled(synthesizer.call("state", assignment, step)))
                    self._log.picture("synthetic images", step, np.asarray(sheet))
            distilled = self._distilled(synthesizer.call("state", assignment, step))
            distilled.save(self._directory.distilled)
        return distilled

    def _begin(self) -> int:
        """The step to go on from; writes the checkpoint of step 0 where there is none.

        Raises:
            OutputError: the checkpoints are those of another run.
        """
        checkpoints = self._directory.checkpoints
        try:
            return int(read_tensors(newest(checkpoints, self._key))[1]["step"])
        except ArtifactError as error:
            if foreign(checkpoints, self._key):
                raise self._other_data() from error
        start = synthetic.initial(self._recipe, self._data)
        tensors = {f"set.{name}": tensor for name, tensor in start.state_dict().items()}
        save_checkpoint(checkpoints, self._key, 0, tensors)
        return 0

    def _distilled(self, state: dict[str, torch.Tensor]) -> Distilled:
        recipe, data = self._recipe, self._data
        learned = synthetic.restore(recipe.synthetic, state)
        images, labels = (tensor.detach() for tensor in learned.batch())
        card = {
            "recipe": recipe.name,
            "method": recipe.method,
            "citation": self._method.citation,
            "data": {"name": data.name, "fingerprint": data.fingerprint},
            "ipc": recipe.ipc,
            "synthesis": self._key,
            "seed": recipe.seed,
            "steps": recipe.synthesis.steps,
            "storage": asdict(_with_whitening(learned.storage(), data)),
            "versions": {
                "rayd": rayd.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "config": recipe.model_dump(mode="json", exclude={"resources"}),
        }
        return Distilled(images, labels, data.class_names, data.normalization, card)

    def _evaluate(self, distilled: Distilled) -> Report:
        with self._timed("evaluate"):
            results = judge(
                self._recipe,
                self._data,
                distilled,
                self._store,
                self._reporter,
                self._log.step,
            )
        return keep_report(Report.build(self._recipe, results, distilled, self._log.spent()), self._directory.path)


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
