"""Settings of the real images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rayd.config.base import Settings


def _words(value: object) -> object:
    """Convert class names to text, also numeric ones, and wrap a single name in a list."""
    names = [value] if isinstance(value, str | int) else value
    if not isinstance(names, list | tuple):
        return names
    return [str(name) if isinstance(name, int) else name for name in names]


class DataSettings(Settings):
    """The data set, and images selected from it."""

    name: str
    """A known name (`rayd data list`), or the path of a Parquet or image folder or `.npz` file."""
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(_words)] = None
    """Keep only these classes, by name, in this order; by default all."""
    imbalance: float = Field(default=1.0, ge=1.0)
    """Long-tailed subset: class c of C keeps n_max * imbalance^(-c/(C-1)) images; 1 keeps all."""
    validation_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Fraction of each class carved from the training split for model selection."""
    split_seed: int = 42
    """Seed of splits and subsets; it belongs to the data, not to the run."""
    image_size: int | None = Field(default=None, ge=4)
    """Side in pixels to resize images to; required if the files have different sizes."""
    normalization: Literal["standard", "zca"] = "standard"
    """Per-channel standardisation, or ZCA whitening, fitted on the training split."""
    stream: bool | None = None
    """Keep images encoded in their files and decode them on demand: slower, with memory that does
    not grow with the data; results are the same. Needs Parquet files or an image folder, under the
    same path on every worker. By default used if the decoded images would take more than half of
    the available memory.
    """
