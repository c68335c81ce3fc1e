"""Labels that teachers made once, on disk, for students to replay (FKD: Shen and Xing, ECCV 2022,
as SRe2L uses it).

A directory of chunks, each with the draws and logits of some epochs:

    epochs-00000-00063.safetensors
    epochs-00064-00127.safetensors

with, for E epochs of N images in B batches and C classes (see `rayd.training.packing`)

| tensor | shape | |
|---|---|---|
| `order` | (E, N) | the images in the order of each epoch; absent for a single batch, which is not shuffled |
| `labels.images.logits` | (E, N, C) | the teachers' mean logits of the mixed images, in that order, float16 or float32 |
| `transform.*` | (E, N, ...) or (E, B, ...) | the views of the images |
| `mix.*` | (E, N, ...) or (E, B, ...) | partners, boxes or shares |

and, as metadata, what all of it was made for (`Labelled`), with a hash of the tensors. Nothing of
the machine or of the random generators that made it is needed to replay it.
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
"""Version of the layout above; another one is refused."""

LOGITS = "labels.images.logits"
"""Name of the tensor of logits."""

CHUNK_EPOCHS = 64
"""Most epochs of a chunk."""
CHUNK_BYTES = 2**28
"""Most bytes of a chunk's logits, if it has more than one epoch: what replaying holds in memory."""


@dataclass(frozen=True)
class Labelled:
    """What labels were made for, and must fit where they are used."""

    images: str
    """Fingerprint of images and normalisation."""
    count: int
    """Number of images."""
    classes: int
    """Number of classes."""
    class_names: tuple[str, ...]
    """One name per class, in label order; empty if they were not known."""
    batch_size: int
    """Images of a batch."""
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
    """`evaluation.precision`, in which the teachers compute."""
    teachers: tuple[str, ...]
    """Hashes of what the teachers are made of; empty if they were not known."""

    @classmethod
    def of(
        cls,
        training: TrainingSet,
        classes: int,
        settings: TrainingSettings,
        labels: LabelSettings,
        teachers: tuple[str, ...] = (),
    ) -> Self:
        """What labels of a set under a protocol are made for."""
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
        """The settings that must be those of the student, by their names in a recipe."""
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
        """The inverse of `dataclasses.asdict`, through JSON.

        Raises:
            TypeError, KeyError: a field is missing or unknown.
        """
        return cls(
            **{**content, **{name: tuple(content[name]) for name in ("class_names", "teachers")}}
        )


@dataclass(frozen=True, eq=False)
class Chunk:
    """Draws and logits of some epochs."""

    epochs: range
    """Which ones."""
    tensors: Mapping[str, Tensor]
    """By name, with the epochs as first dimension."""

    def of(self, epoch: int) -> dict[str, Tensor]:
        """The tensors of one of the epochs."""
        return unstack(self.tensors, epoch - self.epochs.start)


def chunks(epochs: int, count: int, classes: int, precision: str) -> tuple[range, ...]:
    """How epochs are cut into chunks that fit in memory.

    >>> chunks(100, 10, 10, "float16"), chunks(2, 10**6, 1000, "float16")
    ((range(0, 64), range(64, 100)), (range(0, 1), range(1, 2)))
    """
    size = count * classes * (2 if precision == "float16" else 4)
    length = max(1, min(CHUNK_EPOCHS, CHUNK_BYTES // size))
    return tuple(range(start, min(start + length, epochs)) for start in range(0, epochs, length))


def chunk_path(directory: Path, epochs: range) -> Path:
    """Where a chunk lies or would lie."""
    return directory / f"epochs-{epochs.start:05d}-{epochs.stop - 1:05d}.safetensors"


def write_chunk(
    directory: Path, made_for: Labelled, epochs: range, tensors: Mapping[str, Tensor]
) -> Path:
    """Write what `rayd.training.labels.label_epochs` made of some epochs, whole or not at all."""
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
    """The labels that a directory holds. Only what they were made for is read at once; a chunk is
    when it is asked for.

    Attributes:
        directory: where they lie.
        made_for: what they were made for.
        epochs: how many epochs they last for.

    Raises:
        ArtifactError: there are none, or their chunks are damaged, incomplete, or not of one
            making.
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
                    f"The stored labels in '{directory}' must go on with epoch {self.epochs}. Got a chunk from {start} on."
                )
            if note["made_for"] != self._notes[0]["made_for"]:
                raise ArtifactError(
                    f"The stored labels in '{directory}' are of two makings: epoch {start} begins another one."
                )
            self.epochs = stop
        self.made_for = Labelled.from_json(self._notes[0]["made_for"])

    @property
    def numbers(self) -> int:
        """Stored numbers."""
        return sum(note["numbers"] for note in self._notes)

    @property
    def bytes(self) -> int:
        """The same in bytes."""
        return sum(note["bytes"] for note in self._notes)

    @property
    def fingerprint(self) -> str:
        """Hex BLAKE2b of all that is stored."""
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
        """Make sure that a student may be trained by them.

        Raises:
            ArtifactError: they are of other images or other classes.
            ConfigError: they are of another protocol, or of too few epochs.
        """
        wanted = Labelled.of(training, classes, settings, labels)
        got = self.made_for
        if (wanted.images, wanted.count) != (got.images, got.count):
            raise ArtifactError(
                f"The stored labels in '{self.directory}' are of other images than the set '{training.name}': fingerprint "
                f"{wanted.images[:12]} ({wanted.count} images) wanted, {got.images[:12]} ({got.count}) found."
            )
        named = wanted.class_names and got.class_names
        if wanted.classes != got.classes or (named and wanted.class_names != got.class_names):
            raise ArtifactError(
                f"The stored labels in '{self.directory}' are of other classes than the set '{training.name}': "
                f"{_difference(wanted, got)}."
            )
        if teachers and got.teachers and teachers != got.teachers:
            raise ConfigError(
                f"The stored labels in '{self.directory}' were made by other teachers than 'labels.networks' and 'squeeze' "
                "name now; set labels.kind=online to let those speak."
            )
        for name, value in wanted.settings.items():
            if value != (stored := got.settings.get(name)):
                raise ConfigError(
                    f"The stored labels in '{self.directory}' fit '{name}' {stored} only. Got {value} instead."
                )
        if epochs > self.epochs:
            raise ConfigError(
                f"The stored labels in '{self.directory}' last for {self.epochs} epochs. Got {epochs} epochs to train instead."
            )

    def chunk(self, epoch: int) -> Chunk:
        """The chunk with an epoch.

        Raises:
            ArtifactError: it is damaged, or was changed since this object was made.
        """
        note = next(note for note in self._notes if epoch in range(*note["epochs"]))
        epochs = range(*note["epochs"])
        path = chunk_path(self.directory, epochs)
        tensors, _ = read_tensors(path)
        if tensor_hash(tensors) != note["digest"]:
            raise ArtifactError(
                f"'{path}' is damaged: its tensors are not those that were written."
            )
        return Chunk(epochs, tensors)


def _note(path: Path) -> dict[str, Any]:
    """The metadata of a chunk, whose name says which epochs it has."""
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
            f"'{path}' must be a chunk of stored labels, format {FORMAT}. Got another file of that name."
        )
    return note


def _difference(wanted: Labelled, got: Labelled) -> str:
    if wanted.classes != got.classes:
        return f"{wanted.classes} classes wanted, {got.classes} found"
    place = next(
        i
        for i, (a, b) in enumerate(zip(wanted.class_names, got.class_names, strict=True))
        if a != b
    )
    return f"class {place} is '{wanted.class_names[place]}', '{got.class_names[place]}' found"
