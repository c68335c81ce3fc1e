"""The evaluate stage: one resumable task per (set, network, seed), each result kept in the store.

Student seeds and the subsets of the random baseline are numbered from 0 in every run, so that sets are compared under common
random numbers and a baseline that one run trained is there for all others.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rayd import devices, seeding
from rayd.artifacts import content_hash, read_json, write_json
from rayd.config import EvaluationSettings, NetworkSettings, Recipe, ResourceSettings, prune
from rayd.data import ImageData, ImageSet, load
from rayd.data.selection import select
from rayd.distilled import Distilled
from rayd.engine.group import Group, Shared, open_group
from rayd.engine.observer import Facts
from rayd.engine.preflight import preflight
from rayd.engine.progress import Reporter
from rayd.engine.store import Store
from rayd.errors import ArtifactError, ConfigError, DataError
from rayd.evaluation.report import Report
from rayd.evaluation.student import Progress, StudentResult, TrainingSet, train
from rayd.recipes import assemble

STAGE = "students"
REPORT = "evaluation.json"
EVALUATION_KEYS = frozenset({"data", "evaluation", "resources"})
"""Settings that may be laid over the recipe of a finished set; its data are checked by their fingerprint."""


@dataclass(frozen=True)
class Task:
    """One student."""

    set_name: str
    """`distilled`, or the name of a baseline."""
    network: NetworkSettings
    """Its architecture."""
    seed: int
    """Its number."""
    epochs: int
    """Passes over its training set."""
    training: str
    """Fingerprint of its training set."""

    def inputs(self, settings: EvaluationSettings, data: ImageData, device: str) -> dict[str, Any]:
        """All that its result depends on."""
        protocol = settings.model_dump(
            mode="json", exclude={"networks", "seeds", "epochs", "whole_epochs", "baselines", "epoch"}
        )
        validation = data.validation.fingerprint if data.validation is not None else None
        return {
            "version": 1,
            "training": self.training,
            "test": data.test.fingerprint,
            "validation": validation,
            "normalization": data.normalization.fingerprint,
            "network": self.network.model_dump(),
            "seed": self.seed,
            "epochs": self.epochs,
            "epoch": settings.epoch,
            "protocol": protocol,
            "device": device,
        }


class Students:
    """Trains students in a worker; it keeps the test set and nothing else between tasks."""

    def __init__(self, settings: EvaluationSettings, resources: ResourceSettings, facts: Facts):
        """Know the protocol and the facts of the data."""
        self._settings, self._facts = settings, facts
        self._device = devices.choose(resources)
        self._kept: dict[str, TrainingSet] = {}

    def train(
        self, task: Task, training: Shared, test: Shared, validation: Shared | None, checkpoint: Path
    ) -> Iterator[Progress | StudentResult]:
        """Train and test one student; yields its progress, then its result.

        Args:
            task: which student.
            training: an `ImageSet`, or the images and labels of a synthetic set in network input space.
            test: an `ImageSet`.
            validation: an `ImageSet`.
            checkpoint: where the unfinished student is kept.
        """
        return train(
            self._training(task.set_name, training.get()),
            task.network,
            self._settings,
            shape=self._facts.shape,
            classes=self._facts.classes,
            seed=task.seed,
            epochs=task.epochs,
            device=self._device,
            test=self._real(test),
            validation=None if validation is None else self._real(validation),
            checkpoint=checkpoint,
        )

    def _training(self, name: str, content: ImageSet | tuple[Tensor, Tensor]) -> TrainingSet:
        if isinstance(content, ImageSet):
            return TrainingSet.of_images(_own(content), self._facts.normalization, name=name)
        return TrainingSet(*content, self._facts.normalization, name)

    def _real(self, shared: Shared) -> TrainingSet:
        if shared.key not in self._kept:
            self._kept[shared.key] = self._training("test", shared.get())
        return self._kept[shared.key]


def _own(images: ImageSet) -> ImageSet:
    """The same images in memory that torch may write to; Ray's is read-only."""
    if images.images.flags.writeable and images.labels.flags.writeable:
        return images
    return ImageSet(images.images.copy(), images.labels.copy(), images.class_names)


class Candidates:
    """The training sets that are compared: the distilled one and its baselines, each with a fingerprint."""

    def __init__(self, data: ImageData, distilled: Distilled | None, ipc: int):
        """Compare `distilled`, if there is one, with subsets of `data` of `ipc` images per class."""
        self._data, self._distilled, self._ipc = data, distilled, ipc
        self._rows: dict[tuple[str, int], npt.NDArray[np.int64]] = {}
        self._shared: dict[str, Shared] = {}

    def fingerprint(self, set_name: str, seed: int) -> str:
        """Hash of the set that a student of this number is trained on."""
        if set_name == "distilled":
            assert self._distilled is not None
            digest = hashlib.blake2b(self._distilled.images.numpy().tobytes(), digest_size=16)
            digest.update(self._distilled.labels.numpy().tobytes())
            return digest.hexdigest()
        if set_name == "whole":
            return self._data.train.fingerprint
        rows = self._subset(set_name, seed)
        return content_hash({"of": self._data.train.fingerprint, "rows": hashlib.blake2b(rows.tobytes()).hexdigest()})

    def share(self, group: Group, set_name: str, seed: int) -> Shared:
        """The set where workers can reach it, placed once."""
        fingerprint = self.fingerprint(set_name, seed)
        if fingerprint not in self._shared:
            self._shared[fingerprint] = group.share(self._content(set_name, seed))
        return self._shared[fingerprint]

    def _content(self, set_name: str, seed: int) -> ImageSet | tuple[Tensor, Tensor]:
        if set_name == "distilled":
            assert self._distilled is not None
            return self._distilled.images, self._distilled.labels
        return self._data.train if set_name == "whole" else self._data.train.subset(self._subset(set_name, seed))

    def _subset(self, set_name: str, seed: int) -> npt.NDArray[np.int64]:
        number = seed if set_name == "random" else 0
        if (set_name, number) not in self._rows:
            draws = seeding.generator(number, "random baseline")
            self._rows[set_name, number] = select(set_name, self._data.train, self._ipc, self._data.normalization, draws)
        return self._rows[set_name, number]


def tasks(settings: EvaluationSettings, sets: Iterable[str], candidates: Candidates) -> list[Task]:
    """All students that an evaluation trains: the longest first, so that workers end together."""
    return [
        Task(
            name,
            network,
            seed,
            settings.epochs_on(name),
            candidates.fingerprint(name, seed),
        )
        for name in sorted(sets, key=lambda name: (name != "whole", name != "distilled", name))
        for network in settings.networks
        for seed in range(settings.seeds)
    ]


def stored(work: Sequence[Task], recipe: Recipe, data: ImageData, store: Store) -> dict[int, StudentResult]:
    """Results that are in the store, by the index of their task; a damaged one counts as absent."""
    device = devices.choose(recipe.resources).type
    found: dict[int, StudentResult] = {}
    for index, task in enumerate(work):
        record = store.record(STAGE, task.inputs(recipe.evaluation, data, device))
        with suppress(ArtifactError):
            if record is not None:
                found[index] = StudentResult.from_json(record)
    return found


def train_students(
    group: Group,
    recipe: Recipe,
    data: ImageData,
    candidates: Candidates,
    work: Sequence[Task],
    store: Store,
    event: Callable[[int, Progress | StudentResult], None],
) -> None:
    """Train and test the students of all tasks, and keep each result when it is there.

    Args:
        group: hosts `Students`.
        recipe: the run.
        data: the real data, with the test split.
        candidates: the sets.
        work: the tasks.
        store: where results are kept.
        event: told (index of the task, progress or result).
    """
    device = devices.choose(recipe.resources).type
    keys = [task.inputs(recipe.evaluation, data, device) for task in work]
    test = group.share(data.test)
    validation = group.share(data.validation) if data.validation is not None else None
    items = [
        (
            task,
            candidates.share(group, task.set_name, task.seed),
            test,
            validation,
            store.path("unfinished-students", key, "safetensors"),
        )
        for task, key in zip(work, keys, strict=True)
    ]
    for index, message in group.stream("train", items):
        if isinstance(message, StudentResult):
            store.put_record(STAGE, keys[index], message.to_json())
        event(index, message)


def judge(
    recipe: Recipe,
    data: ImageData,
    distilled: Distilled,
    store: Store,
    reporter: Reporter,
    log: Callable[[str, int, float, dict[str, float]], None] = lambda *_: None,
) -> list[tuple[str, StudentResult]]:
    """Train and test students on the distilled set and on the recipe's baselines.

    Args:
        recipe: the protocol, the architectures, the baselines, the resources.
        data: the real data.
        distilled: the set to judge.
        store: where results are kept.
        reporter: where progress is shown.
        log: told (stage, number of the result, seconds, values) of every new result.
    """
    settings = recipe.evaluation
    candidates = Candidates(data, distilled, recipe.ipc)
    work = tasks(settings, ["distilled", *settings.baselines], candidates)
    results = stored(work, recipe, data, store)
    absent = [index for index in range(len(work)) if index not in results]
    if absent:
        rest = [work[index] for index in absent]
        reached = [0] * len(rest)
        with (
            open_group(recipe.resources, Students, settings, recipe.resources, Facts.of(data)) as group,
            reporter.stage("evaluate", sum(task.epochs for task in rest), "epochs") as shown,
        ):

            def event(index: int, message: Progress | StudentResult) -> None:
                if isinstance(message, StudentResult):
                    task = rest[index]
                    results[absent[index]], reached[index] = message, task.epochs
                    name = f"{task.set_name}/{task.network.label}/{task.seed}/test_accuracy"
                    log("evaluate", len(results), message.seconds, {name: message.test_accuracy})
                else:
                    reached[index] = message.epoch
                shown.update(sum(reached))

            shown.update(0)
            train_students(group, recipe, data, candidates, rest, store, event)
    return [(task.set_name, results[index]) for index, task in enumerate(work)]


def evaluate_distilled(
    distilled: Distilled, overrides: Mapping[str, Any], data_root: Path | None, cache: Path | None, reporter: Reporter
) -> Report:
    """Judge a distilled set by its own recipe with overrides.

    Raises:
        ArtifactError: its card holds no recipe.
        DataError: the real data are not those that it was distilled from.
    """
    if "config" not in distilled.card:
        raise ArtifactError("The card of this distilled set holds no recipe ('config'), so its data and protocol are unknown.")
    if other := sorted(overrides.keys() - EVALUATION_KEYS):
        raise ConfigError(
            f"An evaluation takes settings of {', '.join(sorted(EVALUATION_KEYS))} only. Got '{other[0]}' instead."
        )
    recipe = assemble(prune(Recipe, distilled.card["config"]), overrides, "the card's recipe")
    data = load(recipe.data, data_root)
    if (known := distilled.card.get("data", {}).get("fingerprint")) not in (None, data.fingerprint):
        raise DataError(
            f"The set was distilled from other data than '{recipe.data.name}' holds now: fingerprint {known[:12]} wanted, "
            f"{data.fingerprint[:12]} found."
        )
    preflight(recipe, data)
    began = time.monotonic()
    with devices.thread_limit(devices.threads(recipe.resources)):
        results = judge(recipe, data, distilled, Store(cache), reporter)
    return Report.build(recipe, results, distilled, {"evaluate": time.monotonic() - began})


def kept_report(directory: Path) -> Report | None:
    """The report that a run directory, or the directory of a distilled set, holds.

    Raises:
        ArtifactError: it is damaged.
    """
    path = directory / REPORT
    return Report.from_json(read_json(path)) if path.exists() else None


def keep_report(report: Report, directory: Path) -> Report:
    """Add a report to the one that a directory holds; newer results win. The caller holds the directory's lock."""
    before = kept_report(directory)
    merged = report if before is None else before.merge(report)
    write_json(directory / REPORT, merged.to_json())
    return merged
