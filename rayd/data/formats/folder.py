"""Image folders: `<dir>/<class>/*.png`, or `<dir>/<split>/<class>/*.png`.

Classes are the folder names, sorted. Images may be in subfolders of a class. Names and content of
folders decide whether they are splits or classes; if they are ambiguous, an error asks for
`data.train`. Stanford's Tiny ImageNet is read as published: `val_annotations.txt` holds the labels
of `val`, and the unlabelled `test` is left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rayd import remote
from rayd.data import copies
from rayd.data.arrays import Rows
from rayd.data.decode import Encoded
from rayd.data.files import DataFile, Listing, names_below
from rayd.data.formats.base import EncodedPixels, Source, Split
from rayd.data.layout import (
    OTHER_PARTS,
    SplitName,
    assign,
    is_text,
    is_visible,
    listed,
    nfc,
    numbered,
    printable,
    requested,
    split_names,
    split_of,
    words,
)
from rayd.errors import DataError, unknown
from rayd.shown import quantity

if TYPE_CHECKING:
    from rayd.config import DataSettings

DESCRIPTION = "a folder of images for each class"
"""Name of the format in messages."""

# fmt: off
SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits",
    ".gif", ".icb", ".icns", ".ico", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe",
    ".jpeg", ".jpf", ".jpg", ".jpx", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".png",
    ".pnm", ".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif",
    ".tiff", ".vda", ".vst", ".webp", ".xbm", ".xpm",
})
# fmt: on
"""Extensions of image formats that PIL reads, except drawings, films and tables of numbers."""

USUAL = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".gif")
"""Extensions named in error messages."""

UNREADABLE = frozenset(
    {".heic", ".heif", ".raw", ".dng", ".cr2", ".nef", ".svg", ".jxl", ".npy", ".dcm"}
)
"""Extensions of image formats that are not supported."""

FEW_PARTS = 5
"""Maximum number of folders with ordinary names that may be parts of a data set, e.g. one per
source.
"""

ANNOTATIONS = "val_annotations.txt"
"""File of Tiny ImageNet's validation labels: file name, synset and box, separated by tabs."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Encoded images, one per file."""

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
        folder.is_dir() and is_visible(folder.name) and any(map(_is_image, names_below(folder)))
        for folder in path.iterdir()
    )


def holds(listing: Listing) -> bool:
    """Whether a listed folder has images in subfolders."""
    return any(
        len(parts) > 1 and is_visible(parts[0]) and _is_image(parts[-1])
        for parts in map(_parts, listing.names)
    )


def open_source(
    path: Path,
    class_names: tuple[str, ...] | None = None,
    settings: DataSettings | None = None,
) -> Source:
    """Open the data set in an image folder; ignores `class_names`, as the folders name the classes.

    Raises:
        DataError: there is no image, folders may be splits or classes, or a split has a class that
            is missing from the training split.
    """
    return open_listing(Listing.of(path), settings)


def open_listing(listing: Listing, settings: DataSettings | None = None) -> Source:
    """Open a listed image folder; reads no files except annotations."""
    where = f"'{printable(remote.shown(listing.folder))}'"
    tree = _Tree.of(listing)
    top = _Top.of(tree, _branching_folder(tree), where)
    folders = _split_folders(listing, top, settings)
    names = _class_names(listing, folders["train"], where)
    splits: dict[SplitName, Split] = {}
    used = set[int]()
    for split, folder in folders.items():
        labelled = _labelled(listing, tree, folder)
        used.update(row for row, _ in labelled)
        splits[split] = _split(listing, folder, labelled, names, split, where)
    if not splits["train"].labels.size:
        raise DataError(
            f"{where} must hold images ({', '.join(USUAL)}, ...) in one folder per class. "
            "Got none instead."
        )
    if len(names) < 2:
        raise DataError(_too_few_classes(tree, names, where))
    return Source(where, names, splits, _left_out(listing, tree, used))


@dataclass
class _Folder:
    """Content of one folder."""

    images: int = 0
    """Number of images directly inside."""
    below: set[str] = field(default_factory=set)
    """Names of direct subfolders that hold images at any depth."""


@dataclass
class _Tree:
    """Images of a listing by folder, and content that is left out."""

    images: list[tuple[int, list[str]]]
    """Row and path components of every visible image."""
    folders: dict[str, _Folder]
    """Folders that hold images at any depth, by relative path; "" is the listed folder."""
    hidden: Counter[str]
    """Number of hidden images, or images in hidden or system folders, by that path component."""
    other: Counter[str]
    """Number of files that are not images, by suffix."""

    @classmethod
    def of(cls, listing: Listing) -> _Tree:
        """Group the files of a listing."""
        images = list[tuple[int, list[str]]]()
        folders: dict[str, _Folder] = {"": _Folder()}
        hidden = Counter[str]()
        other = Counter[str]()
        for row, name in enumerate(listing.names):
            parts = name.split(os.sep)
            file = parts[-1]
            suffix = os.path.splitext(file)[1].lower()
            concealed = next((part for part in parts[:-1] if not is_visible(part)), None)
            if concealed is None and file.startswith("."):
                concealed = file
            if concealed is not None:
                hidden[concealed] += suffix in SUFFIXES
            elif suffix in SUFFIXES:
                images.append((row, parts))
                parent = os.sep.join(parts[:-1])
                if parent not in folders:
                    _add(folders, parts[:-1])
                folders[parent].images += 1
            else:
                other[suffix] += 1
        return cls(images, folders, hidden, other)

    def inside(self, folder: str) -> list[str]:
        """Names of direct subfolders that hold images, sorted."""
        return sorted(self.folders[folder].below) if folder in self.folders else []

    def at(self, *parts: str) -> _Folder:
        """Content of the folder at a path given by components."""
        return self.folders.get(os.path.join("", *parts), _Folder())

    def count(self, folder: str) -> int:
        """Number of images in a folder, at any depth."""
        inside = os.path.join(folder, "")
        return sum(
            found.images
            for path, found in self.folders.items()
            if path == folder or path.startswith(inside)
        )


def _add(folders: dict[str, _Folder], parts: Sequence[str]) -> None:
    """Register a folder that holds images with all its parents."""
    for depth in range(len(parts)):
        folders[os.sep.join(parts[:depth])].below.add(parts[depth])
        folders.setdefault(os.sep.join(parts[: depth + 1]), _Folder())


def _branching_folder(tree: _Tree) -> str:
    """Descend from the listed folder to the folder that branches into splits or classes."""
    top = ""
    while True:
        inside = tree.inside(top)
        if len(inside) != 1 or tree.at(top).images or split_names(inside):
            return top
        only = os.path.join(top, inside[0])
        if tree.at(only).images or not tree.inside(only):
            return top
        top = only


@dataclass(frozen=True)
class _Top:
    """The folder whose subfolders are splits or classes."""

    tree: _Tree
    path: str
    """Its relative path."""
    inside: list[str]
    """Names of its subfolders that hold images."""
    where: str
    """The data set, for error messages."""

    @classmethod
    def of(cls, tree: _Tree, path: str, where: str) -> _Top:
        """Create from the relative path of the folder."""
        return cls(tree, path, tree.inside(path), where)

    @cached_property
    def folders(self) -> dict[str, _Folder]:
        """The subfolders by name."""
        return {name: self.tree.at(self.path, name) for name in self.inside}

    @cached_property
    def named(self) -> dict[str, SplitName]:
        """Subfolders whose names denote a split, with the split."""
        return split_names(self.inside)

    @cached_property
    def splits(self) -> dict[str, SplitName]:
        """Entries of `named` whose folder holds only folders, not images."""
        return {
            name: split
            for name, split in self.named.items()
            if self.folders[name].below and not self.folders[name].images
        }

    @cached_property
    def rest(self) -> list[str]:
        """Subfolders whose names do not denote a split."""
        return [name for name in self.inside if name not in self.named]

    def join(self, chosen: Mapping[SplitName, str]) -> dict[SplitName, str]:
        """Relative paths of the splits' folders, given their names."""
        return {split: os.path.join(self.path, name) for split, name in chosen.items()}


def _split_folders(
    listing: Listing, top: _Top, settings: DataSettings | None
) -> dict[SplitName, str]:
    """Relative path of the folder of each split, whose subfolders are the classes.

    Raises:
        DataError: the folders may be splits or classes.
    """
    wanted = requested(settings)
    if wanted.get("train") == ".":
        if len(wanted) > 1:
            raise DataError(
                "With 'data.train=.' all folders are classes: 'data.validation' and 'data.test' "
                "must not be set."
            )
        return {"train": top.path}
    if (annotated := _annotated_splits(listing, top)) is not None:
        return annotated
    if wanted:
        # settings may also name deeper folders, such as `images/train`
        deeper = [
            name for name in wanted.values() if os.path.join(top.path, name) in top.tree.folders
        ]
        names = list(dict.fromkeys([*top.inside, *deeper]))
        chosen = assign(names, settings, top.where, "folder", top.splits)
    elif _are_classes(top):
        return {"train": top.path}
    else:
        parts = [name for name in top.inside if name in top.splits or name in top.rest]
        chosen = assign(parts, settings, top.where, "folder", top.splits)
    _check_train(chosen, top)
    return _below_single_folders(top.tree, top.join(chosen))


def _annotated_splits(listing: Listing, top: _Top) -> dict[SplitName, str] | None:
    """Splits of Tiny ImageNet, whose `val` is labelled by a file and whose `test` is unlabelled.

    Returns:
        Relative path of the folder of each split; None for other data sets.
    """
    by_split = {split: name for name, split in top.named.items()}
    annotated = any(
        os.path.join(top.path, name, ANNOTATIONS) in listing.files for name in top.named
    )
    if not annotated or "train" not in by_split:
        return None
    by_split.pop("test", None)
    return top.join(by_split)


def _are_classes(top: _Top) -> bool:
    """Whether the subfolders are classes, if no setting decides.

    Raises:
        DataError: they may be splits or classes.
    """
    if not top.splits:
        if top.named and not top.rest:
            raise DataError(
                f"The folders {listed(list(top.named))} of {top.where} hold images directly, not "
                "in one folder per class: if they are classes, set 'data.train=.'; if they are "
                "splits, move the images into one folder per class."
            )
        _check_classes(top)
        return True
    alike = [name for name in top.rest if _share_subfolders(top, [name, *top.splits])]
    if len(alike) > len(top.splits) and len(alike) == len(top.rest):
        # classes: bus, car and train, each with day and night; not train_a, train_b and test
        if not any(split_of(name) for name in alike):
            return True
        raise DataError(_ambiguous(top, top.inside))
    pair = "train" in top.splits.values() and len(set(top.splits.values())) > 1
    if len(top.rest) >= len(top.splits) and not (pair and not alike):
        raise DataError(_ambiguous(top, [*top.splits, *top.rest]))
    return False


def _check_train(chosen: Mapping[SplitName, str], top: _Top) -> None:
    """Reject splits without a training split."""
    if "train" not in chosen:
        first = chosen.get("validation", top.inside[0])
        raise DataError(
            f"{top.where} holds no training split, only {listed(top.inside)}: set "
            f"'data.train={first}' to train on that folder, or 'data.train=.' if the folders are "
            "classes."
        )


def _below_single_folders(tree: _Tree, folders: Mapping[SplitName, str]) -> dict[SplitName, str]:
    """Descend through a single folder between split and classes, as in `train/images/cat`."""
    train = _below_single_folder(tree, folders["train"])
    classes = tree.inside(train)
    found: dict[SplitName, str] = {}
    for split, folder in folders.items():
        below = _below_single_folder(tree, folder)
        # a test split may hold a single class
        single = below != folder and tree.inside(folder)[0] in classes
        found[split] = folder if single else below
    return found


def _below_single_folder(tree: _Tree, folder: str) -> str:
    """The only subfolder, if it holds only folders; otherwise the folder itself."""
    inside = tree.inside(folder)
    if len(inside) != 1 or tree.at(folder).images:
        return folder
    only = os.path.join(folder, inside[0])
    return folder if tree.at(only).images else only


def _share_subfolders(top: _Top, names: Sequence[str]) -> bool:
    """Whether folders hold no images directly, but largely the same subfolders."""
    below = [top.folders[name].below for name in names]
    if any(top.folders[name].images for name in names) or not all(below):
        return False
    common = set.intersection(*below)
    return 2 * len(common) >= max(map(len, below))


def _check_classes(top: _Top) -> None:
    """Reject folders that may be parts of a data set, each with the same classes.

    There are few parts, each with several classes: a hundred folders that hold the same two
    subfolders are classes.
    """
    names = top.rest
    if len(names) < 2 or not _share_subfolders(top, names):
        return
    below = max(len(top.folders[name].below) for name in names)
    telling = any(set(words(name)) & OTHER_PARTS for name in names) or numbered(names)
    if below > 1 and (telling or len(names) <= max(below, FEW_PARTS)):
        raise DataError(_ambiguous(top, names, top.folders[names[0]].below))


def _ambiguous(top: _Top, names: Sequence[str], below: Iterable[str] = ()) -> str:
    """Error message for folders that may be splits or classes."""
    classes = f", each with {listed(sorted(below), 3)}," if below else ""
    ranked = {"train": 0, None: 1, "validation": 2, "test": 3}

    def rank(name: str) -> tuple[int, int]:
        """Sort the training split first, and then by number of images."""
        split, _ = split_of(name) or (None, ())
        return ranked[split], -top.tree.count(os.path.join(top.path, name))

    train, *others = sorted(sorted(names), key=rank)
    return (
        f"The folders {listed(sorted(names))} of {top.where}{classes} may be splits or classes: "
        f"set e.g. 'data.train={printable(train)}' and 'data.test={printable(others[0])}' if they "
        "are splits, or 'data.train=.' if they are classes."
    )


def _class_names(listing: Listing, folder: str, where: str) -> tuple[str, ...]:
    """Names of the visible direct subfolders of a folder, sorted."""
    found: dict[str, str] = {}
    for path in listing.folders:
        parent, _, name = path.rpartition(os.sep)
        if parent != folder or not is_visible(name):
            continue
        if not is_text(name):
            raise DataError(
                f"Class folders must have names in UTF-8. Got '{printable(name)}' in {where} "
                "instead; rename it."
            )
        if nfc(name) in found:
            raise DataError(
                f"{where} holds two folders named '{name}', which differ only in their Unicode "
                "normalisation; merge them."
            )
        found[nfc(name)] = name
    return tuple(sorted(found))


def _labelled(listing: Listing, tree: _Tree, folder: str) -> list[tuple[int, str]]:
    """Row and class of each image of a split."""
    annotations = os.path.join(folder, ANNOTATIONS)
    if folder and annotations in listing.files:
        file = listing[listing.names.index(annotations)]
        return _annotated(listing, folder, file.read_bytes())
    inside = _parts(folder)
    depth = len(inside)
    return [
        (row, parts[depth])
        for row, parts in tree.images
        if len(parts) > depth + 1 and parts[:depth] == inside
    ]


def _split(
    listing: Listing,
    folder: str,
    labelled: Sequence[tuple[int, str]],
    names: Sequence[str],
    split: SplitName,
    whole: str,
) -> Split:
    where = f"'{printable(remote.shown(listing.folder / folder))}'" if folder else whole
    numbers = {name: label for label, name in enumerate(names)}
    labels = np.empty(len(labelled), np.int64)
    for position, (_, name) in enumerate(labelled):
        label = numbers.get(name)
        if label is None:
            label = numbers.get(nfc(name))
        if label is None:
            raise DataError(unknown("class", printable(name), names, where))
        labels[position] = label
    files = ImageFiles(listing.at([row for row, _ in labelled]))
    origin = f"folder '{printable(folder)}'" if folder else ""
    return Split(where, labels, EncodedPixels(files), origin)


def _too_few_classes(tree: _Tree, names: Sequence[str], where: str) -> str:
    """Error message for a folder with fewer than two classes."""
    hint = without_tables(tree.other)
    hint = f"; {hint}" if hint else ""
    return f"{where} must hold at least two classes. Got only {listed(names)} instead{hint}."


def without_tables(suffixes: Container[str]) -> str:
    """Remedy if labels may be in a table, as a clause; empty if there is no table."""
    tables = [suffix for suffix in (".csv", ".tsv", ".json", ".txt") if suffix in suffixes]
    if not tables:
        return ""
    return (
        f"labels in tables ({', '.join(tables)}) are not supported: sort the images into one "
        "folder per class"
    )


def _left_out(listing: Listing, tree: _Tree, used: set[int]) -> tuple[str, ...]:
    """Content that was not read, with the reason, as clauses."""
    found = [*_unused_images(tree, used), *_other_files(tree)]
    if sum(tree.hidden.values()):
        names = [name for name, count in sorted(tree.hidden.items()) if count]
        hidden = quantity(sum(tree.hidden.values()), "image")
        found.append(f"{hidden} hidden or in system folders ({listed(names, 3)})")
    return (*found, *listing.skipped)


def _unused_images(tree: _Tree, used: set[int]) -> Iterator[str]:
    """Yield a clause for each folder with images that belong to no class."""
    folders = Counter[str]()
    for row, parts in tree.images:
        if row not in used:
            folders[parts[0] if len(parts) > 1 else ""] += 1
    for name, count in sorted(folders.items()):
        place = f"in folder '{printable(name)}'" if name else "outside the class folders"
        yield f"{quantity(count, 'image')} {place}"


def _other_files(tree: _Tree) -> Iterator[str]:
    """Yield clauses about files that are not images, or in an unsupported format."""
    rest = {}
    for suffix, count in sorted(tree.other.items()):
        if suffix in UNREADABLE:
            yield f"{quantity(count, 'file')} with suffix {suffix}, which is not supported"
        else:
            rest[suffix] = count
    if rest:
        kinds = ", ".join(f"{printable(suffix) or 'no suffix'}: {n}" for suffix, n in rest.items())
        count = sum(rest.values())
        verb = "is not an image" if count == 1 else "are not images"
        yield f"{quantity(count, 'file')} that {verb} ({kinds})"


def _annotated(listing: Listing, folder: str, annotations: bytes) -> list[tuple[int, str]]:
    """Row and class of each image of Tiny ImageNet's validation split.

    Raises:
        DataError: a line has no class, as in a truncated file, or an image is missing.
    """
    rows = {name: row for row, name in enumerate(listing.names)}
    labelled = []
    lines = annotations.decode("utf-8", "backslashreplace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        file, separator, rest = line.partition("\t")
        if not separator:
            where = remote.shown(listing.folder / folder / ANNOTATIONS)
            raise DataError(
                f"Lines of '{where}' must hold a file and its class, separated by a tab. "
                f"Got '{line}' in line {number} instead; the file may be truncated."
            )
        synset = rest.partition("\t")[0]
        name = os.path.join(folder, "images", file)
        if name not in rows:
            raise DataError(
                f"There is no file '{remote.shown(listing.folder / name)}', "
                f"which '{ANNOTATIONS}' lists."
            )
        labelled.append((rows[name], synset))
    return labelled


def _parts(name: str) -> list[str]:
    return name.split(os.sep) if name else []


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
