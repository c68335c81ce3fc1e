"""Students of an evaluation: their training sets, and a task for each student."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayd import seeding
from rayd.artifacts import content_hash
from rayd.config import (
    NOT_OF_A_STUDENT,
    EvaluationSettings,
    LabelSettings,
    Recipe,
    StudentNetworkSettings,
)
from rayd.data import ImageData, ImageSet
from rayd.data.selection import select
from rayd.data.streaming import StreamedPixels
from rayd.distilled import Distilled
from rayd.engine.pool import ObjectRef, TaskStream
from rayd.evaluation.student import StudentResult
from rayd.evaluation.variants import DISTILLED, EQUAL_STORAGE, Variant


@dataclass(frozen=True)
class Task:
    """One student."""

    variant: Variant
    """Its training set and deviations from the protocol."""
    network: StudentNetworkSettings
    """Its architecture."""
    seed: int
    """Its number, which is its seed."""
    epochs: int
    """Passes over its training set."""
    training: str
    """Fingerprint of its training set."""
    labels: LabelSettings
    """Labels that it is trained with."""
    teachers: tuple[str, ...]
    """Hashes of its teachers' inputs."""
    learning_rate: float
    """Initial step size."""
    images: int
    """Size of its training set."""

    @property
    def set_name(self) -> str:
        """`distilled`, or the name of a baseline."""
        return self.variant.set

    def settings(self, protocol: EvaluationSettings) -> EvaluationSettings:
        """The protocol of this student."""
        own = self.variant.applied(protocol)
        return own.model_copy(update={"learning_rate": self.learning_rate})

    def inputs(self, settings: EvaluationSettings, data: ImageData, device: str) -> dict[str, Any]:
        """Everything that its results depend on; stored labels and online ones of the same seed are
        equal.
        """
        others = {"epoch", *NOT_OF_A_STUDENT}
        protocol = self.settings(settings).model_dump(mode="json", exclude=others)
        validation = data.validation.fingerprint if data.validation is not None else None
        return {
            "version": 3,
            "training": self.training,
            "test": data.test.fingerprint,
            "validation": validation,
            "normalization": data.normalization.fingerprint,
            # its step size is part of the protocol here
            "network": self.network.model_dump(exclude={"learning_rate"}),
            "seed": self.seed,
            "epochs": self.epochs,
            "epoch": settings.epoch,
            "protocol": protocol,
            "labels": self._soft_labels() if self.labels.kind != "hard" else "hard",
            "device": device,
            # they affect rounding, and batch normalisation on CPUs
            **({"workers": settings.workers} if settings.workers > 1 else {}),
        }

    def _soft_labels(self) -> dict[str, Any]:
        seed = self.seed if self.labels.seed is None else self.labels.seed
        return {"teachers": list(self.teachers), "precision": self.labels.precision, "seed": seed}


@dataclass(frozen=True)
class SharedSet:
    """Images and labels that are shared with workers separately, so that several sets can share
    images.

    An `ObjectRef` of a pair of arrays.
    """

    images: ObjectRef
    """Network input (n, C, H, W)."""
    labels: ObjectRef
    """Class indices (n,), or soft labels (n, classes)."""

    @property
    def key(self) -> str:
        """The identity of the pair."""
        return f"{self.images.key} {self.labels.key}"

    def get(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
        """Both arrays."""
        return self.images.get(), self.labels.get()


class TrainingSets:
    """Training sets of an evaluation: the distilled one and its baselines, with fingerprints."""

    def __init__(
        self,
        data: ImageData,
        distilled: Distilled | None,
        ipc: int,
        storage: int | None = None,
        patches: ImageSet | None = None,
        scores: Mapping[str, Tensor] | None = None,
        images: ObjectRef | None = None,
    ):
        """Compare a distilled set with subsets of real images.

        Args:
            data: the real images.
            distilled: the set; None if only baselines are needed.
            ipc: images per class of the subsets.
            storage: bytes of the distilled set with its labels, for `equal-storage`; by default
                those of its card.
            patches: images of the baseline `rded`.
            scores: scores of the real images, for subsets that are selected by them.
            images: the distilled images as an array (n, C, H, W), if an earlier stage has shared
                them.
        """
        self._patches = patches
        self._scores = scores
        self._data = data
        self._distilled = distilled
        self._ipc = ipc
        if storage is None and distilled is not None:
            storage = distilled.storage.total_bytes
        self._storage = storage
        self._rows: dict[tuple[str, int], npt.NDArray[np.int64]] = {}
        self._shared: dict[str, ObjectRef] = {}
        self._images = images
        self._fingerprints: dict[tuple[str, int, bool], str] = {}

    def fingerprint(self, set_name: str, seed: int, hard_labels: bool = False) -> str:
        """Hash of the training set of the student with a number, computed once."""
        # only random sets depend on the student's number: others are hashed and shared once
        number = seed if set_name in ("random", EQUAL_STORAGE) else 0
        key = (set_name, number, hard_labels)
        if key not in self._fingerprints:
            self._fingerprints[key] = self._hash(set_name, seed, hard_labels)
        return self._fingerprints[key]

    def _hash(self, set_name: str, seed: int, hard_labels: bool) -> str:
        if set_name == DISTILLED:
            digest = self._image_digest.copy()
            digest.update(self._distilled_labels(hard_labels).data)
            return digest.hexdigest()
        if self._is_whole(set_name):
            return self._data.train.fingerprint
        if set_name == "rded":
            return self._required_patches.fingerprint
        rows = self._subset(set_name, seed)
        return content_hash(
            {
                "of": self._data.train.fingerprint,
                "rows": hashlib.blake2b(rows.tobytes()).hexdigest(),
            }
        )

    @cached_property
    def _image_digest(self) -> hashlib.blake2b:
        """Hash of the distilled images without labels, which takes seconds for some gigabytes."""
        # hashed in place, as the set may be too large for a copy
        return hashlib.blake2b(self._distilled_images.data, digest_size=16)

    def size(self, set_name: str) -> int:
        """Number of images of a set."""
        if set_name == DISTILLED:
            assert self._distilled is not None
            return len(self._distilled)
        if set_name == "whole":
            return len(self._data.train)
        if set_name == EQUAL_STORAGE:
            return int(self._equal_counts.sum())
        return self._ipc * self._data.classes

    def epochs(self, set_name: str, settings: EvaluationSettings) -> int:
        """Passes over a set.

        Students of `equal-storage` are trained for as many optimizer steps as those of the
        distilled set, so that more images do not mean more training.
        """
        if set_name != EQUAL_STORAGE:
            return settings.epochs_on(set_name)
        size = self.size(DISTILLED)
        steps = settings.epochs * -(-size // settings.batch_size)
        return max(1, round(steps / -(-self.size(set_name) // settings.batch_size)))

    def learning_rate(self, set_name: str, settings: EvaluationSettings) -> float:
        """Initial step size of students on a set: the one that was learned with it, if enabled."""
        if set_name == DISTILLED and self._distilled is not None and settings.learned_step_size:
            learned = self._distilled.step_size
            if learned is not None:
                return learned
        return settings.learning_rate

    def share(
        self, pool: TaskStream, set_name: str, seed: int, hard_labels: bool = False
    ) -> ObjectRef:
        """Share the set with the workers, once."""
        fingerprint = self.fingerprint(set_name, seed, hard_labels)
        if fingerprint not in self._shared:
            if set_name == DISTILLED:
                self._shared[fingerprint] = self._share_distilled(pool, hard_labels)
            else:
                self._shared[fingerprint] = pool.share(self._content(set_name, seed))
        return self._shared[fingerprint]

    def _share_distilled(self, pool: TaskStream, hard_labels: bool) -> SharedSet:
        """Share the distilled set with labels of one kind; both kinds share the images."""
        if self._images is None:
            self._images = pool.share(self._distilled_images)
        return SharedSet(self._images, pool.share(self._distilled_labels(hard_labels)))

    def _content(self, set_name: str, seed: int) -> ImageSet:
        train = self._data.train
        if self._is_whole(set_name):
            return train
        if set_name == "rded":
            return self._required_patches
        rows = self._subset(set_name, seed)
        if set_name == EQUAL_STORAGE and isinstance(train.images, StreamedPixels):
            # may be most of a set that does not fit into memory
            return ImageSet(train.images.part(rows), train.labels[rows], train.class_names)
        return train.subset(rows)

    @property
    def _distilled_images(self) -> npt.NDArray[np.float32]:
        # arrays are read in place, while tensors would be copied for every student
        assert self._distilled is not None
        images: npt.NDArray[np.float32] = self._distilled.images.numpy()
        return images

    def _distilled_labels(self, hard_labels: bool) -> npt.NDArray[Any]:
        assert self._distilled is not None
        labels = self._distilled.hard_labels if hard_labels else self._distilled.labels
        found: npt.NDArray[Any] = labels.contiguous().numpy()
        return found

    @property
    def _required_patches(self) -> ImageSet:
        assert self._patches is not None
        return self._patches

    def _is_whole(self, set_name: str) -> bool:
        """Whether a set is the whole training split."""
        if set_name == EQUAL_STORAGE:
            return self.size(set_name) == len(self._data.train)
        return set_name == "whole"

    @cached_property
    def _equal_counts(self) -> npt.NDArray[np.int64]:
        """Number of real images of each class that take as many bytes as the distilled set."""
        assert self._storage is not None
        size = math.prod(self._data.shape)  # one byte per value; labels are implied by order
        return even_counts(self._storage // size, self._data.train.counts)

    def _subset(self, set_name: str, seed: int) -> npt.NDArray[np.int64]:
        number = seed if set_name in ("random", EQUAL_STORAGE) else 0
        if (set_name, number) not in self._rows:
            # seeded by number instead of the run's seed, so that all runs compare with the same
            # random images, whose students are cached
            draws = seeding.generator(number, "random baseline")
            self._rows[set_name, number] = self._select(set_name, draws)
        return self._rows[set_name, number]

    def _select(self, set_name: str, draws: torch.Generator) -> npt.NDArray[np.int64]:
        train = self._data.train
        if set_name != EQUAL_STORAGE:
            return select(set_name, train, self._ipc, self._data.normalization, draws, self._scores)
        chosen = []
        for rows, count in zip(train.class_index, self._equal_counts, strict=True):
            chosen.append(rows[torch.randperm(len(rows), generator=draws)[:count].numpy()])
        return np.concatenate(chosen)


def even_counts(total: int, available: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Spread images over classes as evenly as their sizes allow, at least one for each class.

    >>> even_counts(10, np.array([9, 2, 9])), even_counts(100, np.array([9, 2, 9]))
    (array([4, 2, 4]), array([9, 2, 9]))
    """
    level = 1
    for candidate in np.unique(available):
        # the highest level that the total allows among classes with images left
        full = available[available < candidate].sum()
        open_classes = int((available >= candidate).sum())
        level = max(level, min(int(candidate), int((total - full) // open_classes)))
    return np.minimum(available, level)


def tasks(
    recipe: Recipe,
    sets: Iterable[str | Variant],
    candidates: TrainingSets,
    hashes: tuple[str, ...] = (),
) -> list[Task]:
    """All students of an evaluation, in the order of the report.

    Args:
        recipe: protocol, networks and seeds.
        sets: training sets; a name stands for the set under the unmodified protocol.
        candidates: the training sets.
        hashes: hashes of the teachers' inputs.
    """
    settings = recipe.evaluation
    ordered = sorted(
        map(Variant.of, sets),
        key=lambda one: (one.set != "whole", one.set != DISTILLED, one.set, one.ordering()),
    )
    found = []
    for variant in ordered:
        name = variant.set
        common = candidates.learning_rate(name, settings)
        for network, seed in product(settings.networks, range(settings.seeds)):
            rates = settings.learning_rates or (network.learning_rate or common,)
            for rate in rates:
                task = Task(
                    variant=variant,
                    network=network,
                    seed=seed,
                    epochs=candidates.epochs(name, settings),
                    training=candidates.fingerprint(name, seed, variant.hard_labels),
                    labels=labels_on(recipe.labels, variant),
                    teachers=hashes,
                    learning_rate=rate,
                    images=candidates.size(name),
                )
                found.append(task)
    return found


def labels_on(labels: LabelSettings, variant: Variant) -> LabelSettings:
    """Label settings of a student.

    Labels are stored only for the distilled set under the unmodified protocol; others are computed
    online, in the same order, crops and mixes.
    """
    if variant.hard_labels:
        return LabelSettings()
    if labels.kind != "stored":
        return labels
    kind = "stored" if variant == Variant(DISTILLED) else "online"
    return labels.model_copy(update={"kind": kind, "seed": labels.stored_seed})


def with_best_rates(
    work: Sequence[Task], results: Mapping[Task, Sequence[StudentResult]]
) -> list[Task]:
    """Select students at the step size that is best on the validation split, by set and network.

    The test split is not used. Of equal ones, the first is selected; a single one needs no
    comparison.

    Args:
        work: students at all step sizes.
        results: their results, of which the first tested epoch counts.
    """
    by_rate: dict[tuple[Variant, StudentNetworkSettings], dict[float, list[float]]] = {}
    for task in work:
        accuracy = results[task][0].validation_accuracy
        rates = by_rate.setdefault((task.variant, task.network), {})
        rates.setdefault(task.learning_rate, []).append(0.0 if accuracy is None else accuracy)
    best = {place: max(rates, key=lambda r: fmean(rates[r])) for place, rates in by_rate.items()}
    return [task for task in work if task.learning_rate == best[task.variant, task.network]]
