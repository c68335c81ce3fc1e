"""What an evaluation trains: the sets that are compared, and one task per (set, network, seed)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rayd import seeding
from rayd.artifacts import content_hash
from rayd.config import EvaluationSettings, LabelSettings, Recipe, StudentNetworkSettings
from rayd.data import ImageData, ImageSet
from rayd.data.selection import select
from rayd.distilled import Distilled
from rayd.engine.pool import ObjectRef, TaskStream


@dataclass(frozen=True)
class Task:
    """One student."""

    set_name: str
    """`distilled`, or the name of a baseline."""
    network: StudentNetworkSettings
    """Its architecture."""
    seed: int
    """Its number."""
    epochs: int
    """Passes over its training set."""
    training: str
    """Fingerprint of its training set."""
    labels: LabelSettings
    """What it learns from."""
    teachers: tuple[str, ...]
    """Hashes of what its teachers are made of."""
    learning_rate: float
    """First step size."""

    def inputs(self, settings: EvaluationSettings, data: ImageData, device: str) -> dict[str, Any]:
        """All that its results depend on; replayed labels and online ones of the same seed are the
        same.
        """
        others = {
            "networks",
            "seeds",
            "epochs",
            "whole_epochs",
            "baselines",
            "epoch",
            "learned_step_size",
        }
        protocol = settings.model_dump(mode="json", exclude=others) | {
            "learning_rate": self.learning_rate
        }
        validation = data.validation.fingerprint if data.validation is not None else None
        return {
            "version": 3,
            "training": self.training,
            "test": data.test.fingerprint,
            "validation": validation,
            "normalization": data.normalization.fingerprint,
            # its step size is that of the protocol here
            "network": self.network.model_dump(exclude={"learning_rate"}),
            "seed": self.seed,
            "epochs": self.epochs,
            "epoch": settings.epoch,
            "protocol": protocol,
            "labels": self._soft_labels() if self.labels.kind != "hard" else "hard",
            "device": device,
        }

    def _soft_labels(self) -> dict[str, Any]:
        seed = self.seed if self.labels.seed is None else self.labels.seed
        return {"teachers": list(self.teachers), "precision": self.labels.precision, "seed": seed}


class TrainingSets:
    """The training sets that are compared: the distilled one and its baselines, each with a
    fingerprint.
    """

    def __init__(
        self,
        data: ImageData,
        distilled: Distilled | None,
        ipc: int,
        scores: Mapping[str, Tensor] | None = None,
    ):
        """Compare `distilled`, if there is one, with subsets of `data` of `ipc` images per class;
        `scores` are those of the real images, for subsets that are selected by them.
        """
        self._scores = scores
        self._data = data
        self._distilled = distilled
        self._ipc = ipc
        self._rows: dict[tuple[str, int], npt.NDArray[np.int64]] = {}
        self._shared: dict[str, ObjectRef] = {}

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
        return content_hash(
            {
                "of": self._data.train.fingerprint,
                "rows": hashlib.blake2b(rows.tobytes()).hexdigest(),
            }
        )

    def learning_rate(self, set_name: str, settings: EvaluationSettings) -> float:
        """First step size of students on a set: the one that was learned with it, where that is
        wanted.
        """
        learned = (
            self._distilled.step_size
            if set_name == "distilled" and self._distilled is not None
            else None
        )
        return (
            learned
            if learned is not None and settings.learned_step_size
            else settings.learning_rate
        )

    def share(self, pool: TaskStream, set_name: str, seed: int) -> ObjectRef:
        """The set where workers can reach it, placed once."""
        fingerprint = self.fingerprint(set_name, seed)
        if fingerprint not in self._shared:
            self._shared[fingerprint] = pool.share(self._content(set_name, seed))
        return self._shared[fingerprint]

    def _content(self, set_name: str, seed: int) -> ImageSet | tuple[Tensor, Tensor]:
        if set_name == "distilled":
            assert self._distilled is not None
            return self._distilled.images, self._distilled.labels
        return (
            self._data.train
            if set_name == "whole"
            else self._data.train.subset(self._subset(set_name, seed))
        )

    def _subset(self, set_name: str, seed: int) -> npt.NDArray[np.int64]:
        number = seed if set_name == "random" else 0
        if (set_name, number) not in self._rows:
            draws = seeding.generator(number, "random baseline")
            self._rows[set_name, number] = select(
                set_name,
                self._data.train,
                self._ipc,
                self._data.normalization,
                draws,
                self._scores,
            )
        return self._rows[set_name, number]


def tasks(
    recipe: Recipe, sets: Iterable[str], candidates: TrainingSets, hashes: tuple[str, ...] = ()
) -> list[Task]:
    """All students that an evaluation trains: the longest first, so that workers end together."""
    settings = recipe.evaluation
    return [
        Task(
            name,
            network,
            seed,
            settings.epochs_on(name),
            candidates.fingerprint(name, seed),
            _labels_on(recipe.labels, name),
            hashes,
            network.learning_rate or candidates.learning_rate(name, settings),
        )
        for name in sorted(sets, key=lambda name: (name != "whole", name != "distilled", name))
        for network in settings.networks
        for seed in range(settings.seeds)
    ]


def _labels_on(labels: LabelSettings, set_name: str) -> LabelSettings:
    """Labels are stored for the distilled set alone; others are labelled online, in the same order,
    crops and mixes.
    """
    if labels.kind != "stored":
        return labels
    kind = "stored" if set_name == "distilled" else "online"
    return labels.model_copy(update={"kind": kind, "seed": labels.stored_seed})
