"""Settings of the real images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rayd.config.base import Settings


def _words(value: object) -> object:
    """Class names are text, also where they look like numbers; one name stands for a tuple of
    one.
    """
    names = [value] if isinstance(value, str | int) else value
    return (
        [str(name) if isinstance(name, int) else name for name in names]
        if isinstance(names, list | tuple)
        else names
    )


class DataSettings(Settings):
    """Which images, and which of them."""

    name: str
    """A known name (`rayd data list`), or the path of a Parquet folder, an image folder or an
    `.npz` file.
    """
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(_words)] = None
    """Keep only these classes, by name, in this order; all of them when absent."""
    imbalance: float = Field(default=1.0, ge=1.0)
    """Long-tailed subset: class c of C keeps n_max * imbalance^(-c/(C-1)) training images,
    truncated; 1 keeps all.
    """
    validation_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each class carved from the training split for selection; 0 leaves all of it for
    distillation.
    """
    split_seed: int = 42
    """Seed of the splits and subsets that are drawn; it belongs to the data, not to the run."""
    image_size: int | None = Field(default=None, ge=4)
    """Resize every image to this side in pixels; needed where the files have different sizes."""
    normalization: Literal["standard", "zca"] = "standard"
    """Per-channel mean and standard deviation of the training split, or ZCA whitening fitted on
    it.
    """
    stream: bool | None = None
    """Leave images encoded in their files and decode them when they are needed: slower, in memory
    that does not grow with the data. Needs Parquet files or an image folder, under the same path
    wherever a worker runs; changes no result. When absent: where the decoded images would take more
    than half of the memory that this machine has available.
    """
