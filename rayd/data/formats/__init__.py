"""Data set formats on disk, one per module.

Opening a source reads its labels; images are decoded on demand, by the process that needs them.

To add a format, write a module here with

    matches       `matches(path)`: whether a path has this format
    open_source   `open_source(path, class_names)`: a `Source` (`rayd.data.formats.base`)

and add it to `FORMATS`. If settings (`data.train`, `data.validation`, `data.test`) can select its
splits by name, `open_source` also takes the settings, `DESCRIPTION` describes the format in words,
and the module is added to `NAMED_SPLITS` as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rayd.data.formats import cifar, digits, folder, idx, npz, parquet, svhn
from rayd.data.formats.base import Source

if TYPE_CHECKING:
    from rayd.config import DataSettings


class Format(Protocol):
    """A module for a format with fixed splits."""

    def matches(self, path: Path) -> bool:
        """Whether `path` has this format."""

    def open_source(self, path: Path, class_names: tuple[str, ...] | None = None) -> Source:
        """Open the data set at `path`."""


class NamedSplitsFormat(Protocol):
    """A module for a format whose splits have names, as in users' own data."""

    DESCRIPTION: str
    """Noun phrase that describes the format, with an article."""

    def matches(self, path: Path) -> bool:
        """Whether `path` has this format."""

    def open_source(
        self,
        path: Path,
        class_names: tuple[str, ...] | None = None,
        settings: DataSettings | None = None,
    ) -> Source:
        """Open the data set at `path`, with the splits named by the settings, if any."""


FORMATS: Sequence[Format] = (digits, parquet, cifar, idx, svhn, npz, folder)
"""All formats; the first match is used."""

NAMED_SPLITS: Sequence[NamedSplitsFormat] = (parquet, folder, npz)
"""Formats whose splits have names: the formats for users' own data, which messages list."""
