"""Precomputed soft labels on disk, replayed by students (FKD: Shen and Xing, ECCV 2022; SRe2L).

A directory of chunks, each with the draws and logits of some epochs:

    epochs-00000-00063.safetensors
    epochs-00064-00127.safetensors

with, for E epochs of N images in B batches and C classes (see `rayd.training.packing`)

| tensor | shape | |
|---|---|---|
| `order` | (E, N) | order of the images in each epoch; absent for a single batch (not shuffled) |
| `labels.images.logits` | (E, N, C) | mean logits of the mixed images, in order, float16/float32 |
| `transform.*` | (E, N, ...) or (E, B, ...) | views of the images |
| `mix.*` | (E, N, ...) or (E, B, ...) | partners, boxes or shares |

and, as metadata, the inputs of the labels (`Labelled`) and a hash of the tensors. Replaying depends
neither on the machine nor on the random generators that produced them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from rayd import remote
from rayd.artifacts import content_hash, read_metadata, read_tensors, tensor_hash, write_tensors
from rayd.config import LabelSettings, TrainingSettings
from rayd.errors import ArtifactError, ConfigError
from rayd.training.packing import unstack
from rayd.training.sets import TrainingSet

FORMAT = 1
"""Version of the format above; other versions are rejected."""

CHUNK_EPOCHS = 64
"""Maximum number of epochs of a chunk."""
CHUNK_BYTES = 2**26
"""Maximum bytes of a chunk's logits (unless it is a single epoch), held in memory by replays."""


@dataclass(frozen=True)
class Labelled:
    """Inputs from which labels were computed; they must match where the labels are used."""

    images: str
    """Fingerprint of images and normalisation."""
    count: int
    """Number of images."""
    classes: int
    """Number of classes."""
    class_names: tuple[str, ...]
    """One name per class, in label order; empty if unknown."""
    batch_size: int
    """Images per batch."""
    transform: dict[str, Any]
    """`evaluation.transform`."""
    augmentation: str | None
    """`evaluation.augmentation`."""
    mix: str
    """`evaluation.mix`."""
    mix_concentration: float
    """`evaluation.mix_concentration`."""
    precision: str
    """`labels.precision`."""
    seed: int
    """`labels.seed`."""
    arithmetic: str
    """`evaluation.precision`, the arithmetic of the teachers."""
    teachers: tuple[str, ...]
    """Hashes of the teachers' inputs; empty if unknown."""

    @classmethod
    def of(
        cls,
        training: TrainingSet,
        classes: int,
        settings: TrainingSettings,
        labels: LabelSettings,
        teachers: tuple[str, ...] = (),
    ) -> Self:
        """Describe the inputs of labels for a set under a protocol."""
        return cls(
            images=training.image_fingerprint,
            count=len(training),
            classes=classes,
            class_names=training.class_names,
            batch_size=settings.batch_size,
            transform=settings.transform.model_dump(mode="json"),
            augmentation=settings.augmentation,
            mix=settings.mix,
            mix_concentration=settings.mix_concentration,
            precision=labels.precision,
            seed=labels.stored_seed,
            arithmetic=settings.precision,
            teachers=teachers,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that must equal the student's, by their names in a recipe."""
        evaluation = {
            name: getattr(self, name)
            for name in ("batch_size", "augmentation", "mix", "mix_concentration")
        }
        return {
            **{f"evaluation.{name}": value for name, value in evaluation.items()},
            **{f"evaluation.transform.{name}": value for name, value in self.transform.items()},
            "labels.precision": self.precision,
            "labels.seed": self.seed,
            "evaluation.precision": self.arithmetic,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of `dataclasses.asdict`, through JSON.

        Raises:
            TypeError, KeyError: a field is missing or unknown.
        """
        tuples = {name: tuple(content[name]) for name in ("class_names", "teachers")}
        return cls(**{**content, **tuples})


@dataclass(frozen=True, eq=False)
class LabelChunk:
    """Draws and logits of consecutive epochs."""

    epochs: range
    """Range of the epochs."""
    tensors: Mapping[str, Tensor]
    """Tensors by name, with epochs as first dimension."""

    def of(self, epoch: int) -> dict[str, Tensor]:
        """Tensors of one of the epochs."""
        return unstack(self.tensors, epoch - self.epochs.start)


def chunks(epochs: int, count: int, classes: int, precision: str) -> tuple[range, ...]:
    """Split epochs into chunks that fit in memory.

    >>> chunks(100, 10, 10, "float16"), chunks(2, 10**6, 1000, "float16")
    ((range(0, 64), range(64, 100)), (range(0, 1), range(1, 2)))
    """
    size = count * classes * (2 if precision == "float16" else 4)
    length = max(1, min(CHUNK_EPOCHS, CHUNK_BYTES // size))
    return tuple(range(start, min(start + length, epochs)) for start in range(0, epochs, length))


def chunk_path(directory: Path, epochs: range) -> Path:
    """Path of a chunk."""
    return directory / f"epochs-{epochs.start:05d}-{epochs.stop - 1:05d}.safetensors"


def write_chunk(
    directory: Path, made_for: Labelled, epochs: range, tensors: Mapping[str, Tensor]
) -> Path:
    """Write the result of `rayd.training.teacher_labels.label_epochs` for some epochs, atomically."""
    note = {
        "format": FORMAT,
        "made_for": asdict(made_for),
        "epochs": [epochs.start, epochs.stop],
        "numbers": sum(tensor.numel() for tensor in tensors.values()),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "digest": tensor_hash(tensors),
    }
    path = chunk_path(directory, epochs)
    write_tensors(path, tensors, note)
    return path


class StoredLabels:
    """Stored labels of a directory. Metadata are read at once, chunks on demand.

    Attributes:
        directory: directory of the labels.
        made_for: inputs of the labels.
        epochs: number of labelled epochs.

    Raises:
        ArtifactError: there are no labels, or chunks are damaged, missing, or inconsistent.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._notes = [_note(path) for path in remote.listed(directory, "epochs-*.safetensors")]
        if not self._notes:
            raise ArtifactError(
                f"'{directory}' must hold stored labels ('epochs-*.safetensors'). Got none."
            )
        self.epochs = 0
        for note in self._notes:
            start, stop = note["epochs"]
            if start != self.epochs:
                raise ArtifactError(
                    f"The stored labels in '{directory}' must continue with epoch {self.epochs}. "
                    f"Got a chunk from {start} on."
                )
            if note["made_for"] != self._notes[0]["made_for"]:
                raise ArtifactError(
                    f"The stored labels in '{directory}' have different inputs "
                    f"from epoch {start} on."
                )
            self.epochs = stop
        self.made_for = Labelled.from_json(self._notes[0]["made_for"])

    @property
    def numbers(self) -> int:
        """Number of stored values."""
        return sum(note["numbers"] for note in self._notes)

    @property
    def bytes(self) -> int:
        """Number of stored bytes."""
        return sum(note["bytes"] for note in self._notes)

    @property
    def fingerprint(self) -> str:
        """Hex BLAKE2b of everything stored."""
        return content_hash({"chunks": self._notes})

    def check(
        self,
        training: TrainingSet,
        classes: int,
        settings: TrainingSettings,
        labels: LabelSettings,
        epochs: int,
        teachers: tuple[str, ...] = (),
    ) -> None:
        """Check that the labels fit a student.

        Raises:
            ArtifactError: they belong to other images or other classes.
            ConfigError: they belong to another protocol, or to too few epochs.
        """
        expected = Labelled.of(training, classes, settings, labels)
        actual = self.made_for
        if (expected.images, expected.count) != (actual.images, actual.count):
            raise ArtifactError(
                f"The stored labels in '{self.directory}' belong to other images than the set "
                f"'{training.name}': expected fingerprint {expected.images[:12]} "
                f"({expected.count} images), found {actual.images[:12]} ({actual.count})."
            )
        named = expected.class_names and actual.class_names
        names_differ = named and expected.class_names != actual.class_names
        if expected.classes != actual.classes or names_differ:
            raise ArtifactError(
                f"The stored labels in '{self.directory}' belong to other classes than the set "
                f"'{training.name}': {_difference(expected, actual)}."
            )
        if teachers and actual.teachers and teachers != actual.teachers:
            raise ConfigError(
                f"The stored labels in '{self.directory}' were made by other teachers than "
                "'labels.networks' and 'squeeze' name now; "
                "set labels.kind=online to use the latter."
            )
        for name, value in expected.settings.items():
            stored = actual.settings.get(name)
            if value != stored:
                raise ConfigError(
                    f"The stored labels in '{self.directory}' fit '{name}' {stored} only. "
                    f"Got {value} instead."
                )
        if epochs > self.epochs:
            raise ConfigError(
                f"The stored labels in '{self.directory}' last for {self.epochs} epochs. "
                f"Got {epochs} epochs to train instead."
            )

    def chunk(self, epoch: int) -> LabelChunk:
        """Read the chunk that contains an epoch.

        Raises:
            ArtifactError: it is damaged, or was changed since this object was created.
        """
        note = next(note for note in self._notes if epoch in range(*note["epochs"]))
        epochs = range(*note["epochs"])
        path = chunk_path(self.directory, epochs)
        try:
            tensors, _ = read_tensors(path)
            if tensor_hash(tensors) != note["digest"]:
                raise ArtifactError(
                    f"'{path}' is damaged: its tensors are not those that were written."
                )
        except ArtifactError as error:
            # a resumed run first computes the missing chunks, and does not read others before
            raise ArtifactError(
                f"{error} Move it away, and 'rayd distill --resume' of its run recomputes it."
            ) from error
        return LabelChunk(epochs, tensors)


def _note(path: Path) -> dict[str, Any]:
    """Read the metadata of a chunk, whose name must match its epochs."""
    note = read_metadata(path)
    named = re.fullmatch(r"epochs-(\d+)-(\d+)", path.stem)
    try:
        Labelled.from_json(note["made_for"])
        fits = (
            named is not None
            and note["epochs"] == [int(named[1]), int(named[2]) + 1]
            and note["format"] == FORMAT
        )
    except (KeyError, TypeError):
        fits = False
    if not fits:
        raise ArtifactError(
            f"'{path}' must be a chunk of stored labels, format {FORMAT}. "
            "Got another file of that name."
        )
    return note


def _difference(expected: Labelled, actual: Labelled) -> str:
    if expected.classes != actual.classes:
        return f"expected {expected.classes} classes, found {actual.classes}"
    pairs = enumerate(zip(expected.class_names, actual.class_names, strict=True))
    label = next(index for index, (ours, theirs) in pairs if ours != theirs)
    return (
        f"expected class {label} to be '{expected.class_names[label]}', "
        f"found '{actual.class_names[label]}'"
    )
