"""Image folders: `<dir>/<class>/*.png`, or `<dir>/{train,val,test}/<class>/*.png`.

Classes are the folders' names, sorted. Images may be in subfolders of a class. Stanford's Tiny
ImageNet is read as published: `val` is labelled by `val_annotations.txt`, and the unlabelled `test`
is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayd import remote
from rayd.data import copies
from rayd.data.arrays import Rows
from rayd.data.decode import Encoded
from rayd.data.files import DataFile, Listing
from rayd.data.formats.base import SPLIT_NAMES, EncodedPixels, Source, Split, SplitName
from rayd.errors import DataError, unknown

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
)
"""File extensions of images; other files are ignored."""

ANNOTATIONS = "val_annotations.txt"
"""Tiny ImageNet's validation labels: file name, synset and box, separated by tabs."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images, one per file."""

    listing: Listing

    def read(self, rows: Rows) -> Iterator[Encoded]:
        """See `EncodedImages`; remote images are fetched in parallel batches."""
        selected = self.listing.at(rows)
        return (Encoded(file, f"'{file}'") for file in copies.prefetched(selected))

    at = read

    def narrowed(self, rows: Rows) -> tuple[ImageFiles, Rows]:
        """See `EncodedImages`."""
        return ImageFiles(self.listing.at(rows)), np.arange(len(rows))

    def files(self) -> Iterable[DataFile]:
        """See `EncodedImages`."""
        return self.listing


def matches(path: Path) -> bool:
    """Whether `path` is a folder with images in subfolders."""
    return path.is_dir() and any(
        _is_image(file.name) and file.is_file()
        for folder in path.iterdir()
        if folder.is_dir() and _is_visible(folder.name)
        for file in folder.rglob("*")
    )


def holds(listing: Listing) -> bool:
    """Whether the listed folder has images in subfolders."""
    return any(
        len(parts) > 1 and _is_visible(parts[0]) and _is_image(parts[-1])
        for parts in map(_parts, listing.names)
    )


def open_source(path: Path, class_names: tuple[str, ...] | None = None) -> Source:
    """Open the data set in an image folder; `class_names` is ignored, as the folders have names.

    Raises:
        DataError: there is no image, or a split has classes missing from the training split.
    """
    return open_listing(Listing.of(path))


def open_listing(listing: Listing) -> Source:
    """Open an image folder whose files are listed; reads no file except annotations."""
    where = remote.shown(listing.folder)
    folders = _split_folders(listing)
    names = tuple(_folders(listing, folders["train"]))
    splits = {split: _split(listing, folder, names) for split, folder in folders.items()}
    if not splits["train"].labels.size:
        raise DataError(
            f"'{where}' must hold images ({', '.join(sorted(SUFFIXES))}) in one folder per class. "
            "Got none instead."
        )
    return Source(f"'{where}'", names, splits)


def _folders(listing: Listing, inside: str = "") -> list[str]:
    """Names of the visible folders directly inside one of the listed folders."""
    parents = ((Path(folder).name, str(Path(folder).parent)) for folder in listing.folders)
    return sorted(
        name for name, parent in parents if parent == (inside or ".") and _is_visible(name)
    )


def _split_folders(listing: Listing) -> dict[SplitName, str]:
    """Folder of each split; the empty path if the listed folder is the only split."""
    folders = {
        SPLIT_NAMES[name.lower()]: name for name in _folders(listing) if name.lower() in SPLIT_NAMES
    }
    if "train" not in folders:
        return {"train": ""}
    if (
        "validation" in folders
        and os.path.join(folders["validation"], ANNOTATIONS) in listing.names
    ):
        folders.pop("test", None)
    return folders


def _split(listing: Listing, folder: str, names: Sequence[str]) -> Split:
    where = remote.shown(listing.folder / folder)
    annotations = os.path.join(folder, ANNOTATIONS)
    if annotations in listing.names:
        labelled = _annotated(
            listing, folder, listing[listing.names.index(annotations)].read_bytes()
        )
    else:
        depth = len(_parts(folder))
        labelled = []
        for row, parts in enumerate(map(_parts, listing.names)):
            inside = parts[depth:]
            split_folder = "/".join(parts[:depth])
            inside = parts[depth:]
            in_class = len(inside) > 1 and _is_visible(inside[0])
            if split_folder == folder and in_class and _is_image(inside[-1]):
                labelled.append((row, inside[0]))
    numbers = {name: label for label, name in enumerate(names)}
    for _, name in labelled:
        if name not in numbers:
            raise DataError(unknown("class", name, names, f"'{where}'"))
    labels = [numbers[name] for _, name in labelled]
    files = ImageFiles(listing.at([row for row, _ in labelled]))
    return Split(f"'{where}'", np.array(labels, np.int64), EncodedPixels(files))


def _annotated(listing: Listing, folder: str, annotations: bytes) -> list[tuple[int, str]]:
    """Row and class of each image of Tiny ImageNet's validation split."""
    rows = {name: row for row, name in enumerate(listing.names)}
    labelled = []
    for line in filter(str.strip, annotations.decode().splitlines()):
        file, synset = line.split("\t")[:2]
        name = os.path.join(folder, "images", file)
        if name not in rows:
            raise DataError(
                f"There is no file '{remote.shown(listing.folder / name)}', "
                f"which '{ANNOTATIONS}' refers to."
            )
        labelled.append((rows[name], synset))
    return labelled


def _parts(name: str) -> list[str]:
    return name.split(os.sep) if name else []


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def _is_visible(folder: str) -> bool:
    return not folder.startswith((".", "__"))
