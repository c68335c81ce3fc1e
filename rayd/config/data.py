"""Settings of the real images."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from rayd.config.base import Settings


def as_name(value: object) -> object:
    """Convert a name that YAML read as another type to text, also `no`, `010` and dates.

    >>> as_name(False), as_name(8), as_name("cat")
    ('false', '8', 'cat')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | date):
        return str(value)
    return value


def _words(value: object) -> object:
    """Convert class names to text, and wrap a single name in a list."""
    if value is None:
        return None
    names = value if isinstance(value, list | tuple) else [value]
    return ["null" if name is None else as_name(name) for name in names]


Name = Annotated[str | None, BeforeValidator(as_name)]
"""Name of a split; numbers are text."""

GIVEN = "given-data"
"""Folder, in the store, of data that were given as objects."""

UNUSUAL = frozenset(
    {
        "fit",
        "mode",
        "background",
        "white_level",
        "train",
        "validation",
        "test",
        "copies",
    }
)
"""Settings that few data need: they are written, and part of cache keys, only if they are set."""


class DataSettings(Settings):
    """The data set, and images selected from it."""

    name: str
    """A known name (`rayd data list`), or the path of a Parquet or image folder or `.npz` file."""
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(_words)] = None
    """Keep only these classes, by name, in this order; by default all."""
    imbalance: float = Field(default=1.0, ge=1.0)
    """Long-tailed subset: class c of C keeps n_max * imbalance^(-c/(C-1)) images; 1 keeps all."""
    validation_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Fraction of each class that is set aside from the training split for model selection."""
    split_seed: int = 42
    """Seed of splits and subsets; it belongs to the data, not to the run."""
    image_size: int | None = Field(default=None, ge=4)
    """Side in pixels to resize images to; required if the files have different sizes."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """How `image_size` makes images square: crop to the central square, scale each side by itself,
    or pad the short side with `background`.
    """
    mode: Literal["grey", "rgb"] | None = None
    """Channels of all images; by default greyscale if no image has a colour, however its pixels are
    stored.
    """
    background: str = Field(default="white", pattern=r"^(white|black|grey|#[0-9a-fA-F]{6})$")
    """Colour under transparent pixels and around padded images: white, black, grey or `#rrggbb`."""
    white_level: float | None = Field(default=None, gt=0)
    """Value that becomes 255 in images of more than 8 bits per channel, e.g. 65535, 4095, or 1 for
    floats in image files; by default they are refused.
    """
    train: Name = None
    """Name of the training split, if it is ambiguous: a folder, or the prefix of Parquet files or
    of keys in an npz file; `.` if the folders are classes, not splits.
    """
    validation: Name = None
    """Name of the validation split, like `train`."""
    test: Name = None
    """Name of the test split, like `train`."""
    copies: Literal["refuse", "keep"] = "refuse"
    """Whether test images may be copies of training images, if the data come with a test split."""
    normalization: Literal["standard", "zca", "zca-scaled"] = "standard"
    """Per-channel standardisation, ZCA whitening as in MTT, or ZCA whitening of standardised channels
    as in FRePo, fitted on the training split.
    """
    stream: bool | None = None
    """Keep images encoded in their files and decode them on demand: slower, with memory that does
    not grow with the data; results are the same. Needs Parquet files or an image folder, under the
    same path on every worker. By default used if the decoded images would take more than half of
    the available memory.
    """

    @property
    def title(self) -> str:
        """Name of the data in titles and messages, or the kind of the objects that were given."""
        path = Path(self.name)
        return path.stem if GIVEN in path.parts else self.name

    @model_serializer(mode="wrap")
    def _without_unused(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit settings for unusual data at their defaults, as cache keys hash all settings."""
        tree: dict[str, Any] = serialize(self)
        fields = type(self).model_fields
        return {
            name: value
            for name, value in tree.items()
            if name not in UNUSUAL or getattr(self, name) != fields[name].default
        }
