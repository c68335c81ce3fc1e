"""Expert trajectories on disk: parameters after every epoch, read one epoch at a time.

A trajectory is a safetensors file. Its tensor `epochs` (E + 1, P), float32 or bfloat16, has a row
for the initial parameters and for every epoch, in the format of `rayd.networks.flat`. The metadata
contain names and shapes of the parameters in the order of a row, and further facts of the expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from rayd.artifacts import read_metadata, read_row, write_tensors
from rayd.errors import ArtifactError

ROWS = "epochs"
"""Tensor of an expert's file."""


class Trajectory:
    """Trajectory of an expert: `trajectory[t]` is the parameters (P,), float32, after epoch t.

    Epoch 0 is the initialisation.

    Args:
        path: path of the file, of which only the metadata are read at once.

    Raises:
        ArtifactError: the file is missing, damaged, or not a trajectory.
    """

    def __init__(self, path: Path):
        self.path = path
        note = read_metadata(path)
        try:
            self.shapes: dict[str, tuple[int, ...]] = {
                name: tuple(shape) for name, shape in note["shapes"]
            }
            """Shape of every parameter, by name, in the order of a row."""
            self.epochs = int(note[ROWS])
            """Number of epochs, E."""
            self.facts: dict[str, Any] = note["facts"]
            """Further metadata."""
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"'{path}' is not an expert trajectory: "
                "its metadata lack the epochs or the parameters."
            ) from error

    def __len__(self) -> int:
        """E + 1."""
        return self.epochs + 1

    def __getitem__(self, epoch: int) -> Tensor:
        """Read the parameters after an epoch, 0 to E.

        Raises:
            IndexError: the epoch is out of range.
            ArtifactError: the file is missing or damaged.
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
        """Number of parameters, P."""
        return sum(prod(shape) for shape in self.shapes.values())


def write_trajectory(
    path: Path,
    epochs: Tensor,
    shapes: Mapping[str, tuple[int, ...]],
    facts: Mapping[str, Any] | None = None,
) -> Trajectory:
    """Write a trajectory, atomically.

    Args:
        path: path of the file.
        epochs: parameters (E + 1, P), in the type to store.
        shapes: shape of every parameter, by name, in the order of a row.
        facts: further metadata, JSON-able.
    """
    note = {
        "shapes": [[name, list(shape)] for name, shape in shapes.items()],
        ROWS: len(epochs) - 1,
        "facts": dict(facts or {}),
    }
    write_tensors(path, {ROWS: epochs}, note)
    return Trajectory(path)
