"""Experts on disk: their parameters after every epoch, of which one at a time is read.

An expert is one safetensors file. Its tensor `epochs` (E + 1, P), float32 or bfloat16, has a row
for the network as it started and one for every epoch; a row is what `rayd.networks.flat` takes. The
metadata have the names and shapes of the parameters in the order of a row, and what else is known
of the expert. An index, `experts.json`, names the files of a library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from rayd.artifacts import read_json, read_metadata, read_row, write_json, write_tensors
from rayd.errors import ArtifactError

INDEX = "experts.json"
"""The file that names the experts of a directory."""
ROWS = "epochs"
"""The tensor of an expert's file."""


class Trajectory:
    """An expert: `trajectory[t]` are its parameters (P,), float32, after epoch t; 0 is where it
    started.

    Args:
        path: of its file, of which the metadata alone are read now.

    Raises:
        ArtifactError: the file is missing, damaged, or no expert.
    """

    def __init__(self, path: Path):
        self.path = path
        note = read_metadata(path)
        try:
            self.shapes: dict[str, tuple[int, ...]] = {
                name: tuple(shape) for name, shape in note["shapes"]
            }
            """Of every parameter, by name, in the order of a row."""
            self.epochs = int(note[ROWS])
            """E, the number of its epochs."""
            self.facts: dict[str, Any] = note["facts"]
            """What else is known of it."""
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"'{path}' is no expert: its metadata lack what tells its epochs and parameters."
            ) from error

    def __len__(self) -> int:
        """E + 1."""
        return self.epochs + 1

    def __getitem__(self, epoch: int) -> Tensor:
        """The parameters after an epoch, 0 to E, read from the file.

        Raises:
            IndexError: there is no such epoch.
            ArtifactError: the file is gone or damaged.
        """
        if not 0 <= epoch <= self.epochs:
            raise IndexError(
                f"'{self.path}' has the epochs 0 to {self.epochs}. Got {epoch} instead."
            )
        row = read_row(self.path, ROWS, epoch).float()
        if row.shape != (self.size,):
            raise ArtifactError(
                f"'{self.path}' has rows of {tuple(row.shape)} for {self.size} parameters."
            )
        return row

    @cached_property
    def size(self) -> int:
        """P, the number of all parameters."""
        return sum(prod(shape) for shape in self.shapes.values())


def write_trajectory(
    path: Path,
    epochs: Tensor,
    shapes: Mapping[str, tuple[int, ...]],
    facts: Mapping[str, Any] | None = None,
) -> Trajectory:
    """Write an expert, whole or not at all.

    Args:
        path: of its file.
        epochs: (E + 1, P), in the type that is to be stored.
        shapes: of every parameter, by name, in the order of a row.
        facts: JSON-able, what else is to be known of it.
    """
    note = {
        "shapes": [[name, list(shape)] for name, shape in shapes.items()],
        ROWS: len(epochs) - 1,
        "facts": dict(facts or {}),
    }
    write_tensors(path, {ROWS: epochs}, note)
    return Trajectory(path)


class Library:
    """Experts of one architecture, all with the same number of epochs.

    Args:
        paths: of their files, whose metadata are read when they are asked for.

    Raises:
        ArtifactError: there are none.
    """

    def __init__(self, paths: Sequence[Path]):
        if not paths:
            raise ArtifactError("A library must have at least one expert. Got none instead.")
        self._paths = list(paths)
        self._known: dict[int, Trajectory] = {}

    @classmethod
    def of(cls, directory: Path) -> Library:
        """The experts that the index of a directory names.

        Raises:
            ArtifactError: the index is missing, damaged, or names no files beside it.
        """
        names = read_json(directory / INDEX).get("experts")
        if not isinstance(names, list) or not all(
            isinstance(name, str) and Path(name).name == name for name in names
        ):
            raise ArtifactError(
                f"'{directory / INDEX}' must list the files of experts, beside it. Got {names!r} instead."
            )
        return cls([directory / name for name in names])

    def write_index(self, directory: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Name the experts, which must lie in it, in the index of a directory.

        Raises:
            ArtifactError: an expert is missing or does not fit the others.
        """
        first, *_ = list(self)
        content = {ROWS: first.epochs, "parameters": first.size, "facts": dict(facts or {})}
        write_json(directory / INDEX, content | {"experts": [path.name for path in self._paths]})

    def __len__(self) -> int:
        """Number of experts."""
        return len(self._paths)

    def __getitem__(self, index: int) -> Trajectory:
        """One expert.

        Raises:
            IndexError: there are not as many.
            ArtifactError: its file is missing or damaged, or of another network or length than the
                first one's.
        """
        if not 0 <= index < len(self._paths):
            raise IndexError(
                f"There are the experts 0 to {len(self._paths) - 1}. Got {index} instead."
            )
        if index not in self._known:
            one = Trajectory(self._paths[index])
            if index > 0 and (one.shapes, one.epochs) != (self[0].shapes, self[0].epochs):
                raise ArtifactError(
                    f"'{one.path}' is an expert of another network or length than '{self[0].path}'."
                )
            self._known[index] = one
        return self._known[index]

    def __iter__(self) -> Iterator[Trajectory]:
        """All experts, in order."""
        return (self[index] for index in range(len(self)))
