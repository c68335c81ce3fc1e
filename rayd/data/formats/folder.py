"""Image folders: `<dir>/<class>/*.png`, or `<dir>/{train,val,test}/<class>/*.png`; classes are the folders' names, sorted.

Images may lie deeper inside a class's folder. Stanford's Tiny ImageNet is read as it is published, with the labels of `val` in
`val_annotations.txt` and its unlabelled `test` left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayd import remote
from rayd.data.decode import Encoded
from rayd.data.formats.base import SPLIT_NAMES, EncodedPixels, Source, Split, SplitName
from rayd.data.images import Rows
from rayd.errors import DataError, unknown

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
"""Files that count as images; others are ignored."""

ANNOTATIONS = "val_annotations.txt"
"""Tiny ImageNet's validation labels: file name, synset and box, separated by tabs."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images in a file each."""

    folder: Path
    names: tuple[str, ...]
    """Of the files in the folder, as text: a million paths would take far more memory."""

    def read(self, rows: Rows) -> Iterator[Encoded]:
        """See `EncodedImages`."""
        for row in rows:
            path = self.folder / self.names[row]
            remote.need(path)
            yield Encoded(path, f"'{path}'")

    at = read

    def narrowed(self, rows: Rows) -> tuple[ImageFiles, Rows]:
        """See `EncodedImages`."""
        return ImageFiles(self.folder, tuple(self.names[row] for row in rows)), np.arange(len(rows))

    def files(self) -> Iterable[Path]:
        """See `EncodedImages`."""
        return (self.folder / name for name in self.names)


def matches(path: Path) -> bool:
    """Whether `path` is a folder with images in folders in it."""
    return path.is_dir() and any(_is_image(file) for folder in _folders(path) for file in folder.rglob("*"))


def open_source(path: Path, class_names: tuple[str, ...] | None = None) -> Source:
    """The data set in an image folder; `class_names` is ignored, as the folders have names.

    Raises:
        DataError: there is no image, or a split has classes that the training split has not.
    """
    folders = _split_folders(path)
    names = tuple(folder.name for folder in _folders(folders["train"]))
    splits = {split: _split(folder, names) for split, folder in folders.items()}
    if not splits["train"].labels.size:
        raise DataError(f"'{path}' must hold images ({', '.join(sorted(SUFFIXES))}) in one folder a class. Got none instead.")
    return Source(f"'{path}'", names, splits)


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith((".", "__")))


def _split_folders(path: Path) -> dict[SplitName, Path]:
    folders = {SPLIT_NAMES[folder.name.lower()]: folder for folder in _folders(path) if folder.name.lower() in SPLIT_NAMES}
    if "train" not in folders:
        return {"train": path}
    if (folders.get("validation", path) / ANNOTATIONS).is_file():
        folders.pop("test", None)
    return folders


def _split(folder: Path, names: Sequence[str]) -> Split:
    if (folder / ANNOTATIONS).is_file():
        labelled = _annotated(folder, names)
    else:
        labelled = [
            (image, _label(inside, names))
            for inside in _folders(folder)
            for image in sorted(inside.rglob("*"))
            if _is_image(image)
        ]
    labels = np.array([label for _, label in labelled], np.int64)
    names_of_files = tuple(str(file.relative_to(folder)) for file, _ in labelled)
    return Split(f"'{folder}'", labels, EncodedPixels(ImageFiles(folder, names_of_files)))


def _annotated(folder: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    lines = (folder / ANNOTATIONS).read_text(encoding="utf-8").splitlines()
    annotated = [line.split("\t")[:2] for line in lines if line.strip()]
    return [(folder / "images" / file, _label(Path(synset), names)) for file, synset in annotated]


def _label(folder: Path, names: Sequence[str]) -> int:
    if folder.name not in names:
        raise DataError(unknown("class", folder.name, names, f"'{folder.parent}'"))
    return names.index(folder.name)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
