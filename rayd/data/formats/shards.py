"""Assignment of Parquet files to splits by their names and folders, without opening them.

Files are `train-00000-of-00003.parquet`, `test.parquet`, ... in the folder or in its only
subfolder, or `<split>/0000.parquet` as in the hub's converted data sets, possibly in the folder of
a configuration. Missing and duplicate shards are errors.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rayd import remote
from rayd.data.files import DataFile, Listing
from rayd.data.layout import (
    SplitName,
    assign,
    is_visible,
    listed,
    requested,
    split_names,
    split_of,
    words,
)
from rayd.errors import DataError

if TYPE_CHECKING:
    from rayd.config import DataSettings

SUFFIX = ".parquet"
DEPTH = 3
"""Maximum number of components in the path of a Parquet file: configuration, split and file."""
EXTRA = "extra"
"""Split that is left out: SVHN's easy images."""
SHARD = re.compile(r"^(?P<part>.*?)[-_.]?(?P<index>\d+)[-_]of[-_](?P<count>\d+)(?P<rest>[-_.].*)?$")
"""Name of a shard with index and count, such as `train-00000-of-00003`, optionally with a hash."""
LAST_NUMBER = re.compile(r"^(?P<stem>.*?)(?P<number>\d+)$")
"""Name of a shard without a count, such as `train_0`."""
NUMBERED = re.compile(r"^\d+$")
"""Name of a shard in the folder of a split, such as `0000`."""
HASH = re.compile(r"^(?=.*\d)[0-9a-f]{6,}$")
"""Part of a name that is a hash, or a piece of one."""
PARTS_OF_SPLITS = frozenset({"part", "shard", "chunk", "of"})
"""Words that number the files of a split."""


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files of a data set."""

    splits: dict[SplitName, list[DataFile]]
    """Files of each split, in the order of their names."""
    origins: dict[SplitName, str]
    """Files or folder of each split, as a clause."""
    left_out: tuple[str, ...]
    """Content that is not read, as clauses."""


def is_parquet(name: str) -> bool:
    """Whether a path relative to a listed folder denotes a visible Parquet file."""
    *folders, file = name.split(os.sep)
    hidden = file.startswith(".") or not all(map(is_visible, folders))
    return file.endswith(SUFFIX) and not hidden and len(folders) < DEPTH


def find_files(listing: Listing, settings: DataSettings | None = None) -> ParquetFiles:
    """Assign the Parquet files of a folder to splits.

    Raises:
        DataError: the folder holds several data sets, a shard is missing or duplicated, a file
            names no split, or the splits are ambiguous.
    """
    where = f"'{remote.shown(listing.folder)}'"
    rows = [row for row, name in enumerate(listing.names) if is_parquet(name)]
    parts, of_hub = _parts(listing, rows, where)
    splits = _assigned(listing, parts, settings, where, split_names(parts) if of_hub else None)
    notes = list[str]()
    for part in splits.values():
        names = [listing.names[row] for row in parts[part]]
        _check_shards(names, where, part)
        _check_duplicates(listing, parts[part], where)
        notes += _missing_numbers(names)
    used = {row for part in splits.values() for row in parts[part]}
    left_out = [f"'{listing.names[row]}'" for row in rows if row not in used]
    return ParquetFiles(
        {split: list(listing.at(parts[part])) for split, part in splits.items()},
        {split: _origin(part, of_hub) for split, part in splits.items()},
        (*_shortened(left_out), *notes, *listing.skipped),
    )


def _parts(listing: Listing, rows: Sequence[int], where: str) -> tuple[dict[str, list[int]], bool]:
    """Group the Parquet files at the least depth by part of the data set.

    Returns:
        Rows by part, and whether parts are folders, as in the hub's converted data sets.

    Raises:
        DataError: the folder holds several data sets.
    """
    depth = min(name_depth(listing.names[row]) for row in rows)
    chosen = [row for row in rows if name_depth(listing.names[row]) == depth]
    folders = sorted({str(Path(listing.names[row]).parent) for row in chosen})
    parents = sorted({str(Path(folder).parent) for folder in folders})
    named = split_names(Path(folder).name for folder in folders)
    of_hub = depth > 1 and bool(named) and len(parents) == 1
    if len(folders) > 1 and not of_hub:
        raise DataError(
            _several_data_sets(listing, where, parents if len(parents) > 1 else folders)
        )
    parts: dict[str, list[int]] = {}
    for row in chosen:
        path = Path(listing.names[row])
        part = path.parent.name if of_hub else part_of(path.name.removesuffix(SUFFIX))
        parts.setdefault(part, []).append(row)
    return parts, of_hub


def name_depth(name: str) -> int:
    """Number of components of a relative path."""
    return len(Path(name).parts)


def part_of(stem: str) -> str:
    """Part of a data set to which a file belongs, from its name without suffix.

    >>> part_of("train-00000-of-00003-a1b2c3d4"), part_of("test_small"), part_of("train_1")
    ('train', 'test_small', 'train')
    """
    if (shard := SHARD.match(stem)) is not None:
        stem = shard["part"]
    pieces = [piece for piece in re.split(r"([-_.])", stem) if piece]
    kept = list[str]()
    for piece in pieces[::-1]:
        marks_file = piece.isdigit() or piece.lower() in PARTS_OF_SPLITS or HASH.match(piece)
        if kept or not (piece in "-_." or marks_file):
            kept.append(piece)
    return "".join(kept[::-1])


def _assigned(
    listing: Listing,
    parts: Mapping[str, Sequence[int]],
    settings: DataSettings | None,
    where: str,
    named: Mapping[str, SplitName] | None,
) -> dict[SplitName, str]:
    """Assign parts to splits, see `assign`; ignores `EXTRA` unless settings name it."""
    wanted = requested(settings)
    names = [part for part in parts if part.lower() != EXTRA or part in wanted.values()]
    named = split_names(names) if named is None else named
    unknown = [part for part in names if part not in named and not _starts_like_a_split(part)]
    if unknown and not wanted:
        first = listing[parts[unknown[0]][0]]
        folder = first.path.parent
        remedy = "set 'data.train' to the name of the training files without their numbers"
        if split_of(folder.name) is not None:
            remedy = f"set 'data.name' to the folder of all splits, '{remote.shown(folder.parent)}'"
        raise DataError(
            "Parquet files must be named train-*, validation-* or test-*. "
            f"Got '{first}' instead; {remedy}."
        )
    return assign(names, settings, where, "split", named)


def _starts_like_a_split(part: str) -> bool:
    """Whether the first word of a name denotes a split, as in `test_small`."""
    return any(split_of(word) is not None for word in words(part)[:1])


def _check_shards(names: Sequence[str], where: str, part: str) -> None:
    """Reject missing and duplicate shards.

    Raises:
        DataError: the numbers in the file names are inconsistent.
    """
    stems = [_stem(name) for name in names]
    shards = [shard for stem in stems if (shard := SHARD.match(stem)) is not None]
    if not shards:
        _check_numbers(stems, where, part)
        return
    counts = {int(shard["count"]) for shard in shards}
    if len(counts) > 1 or len(shards) < len(stems):
        raise DataError(
            f"The split '{part}' of {where} must be one set of shards. Got shards of several sets, "
            f"{listed([Path(name).name for name in names])}; remove all but one set."
        )
    total = counts.pop()
    by_index: dict[int, list[str]] = {}
    for name, shard in zip(names, shards, strict=True):
        by_index.setdefault(int(shard["index"]), []).append(Path(name).name)
    _check_numbered(by_index, total, where, part)


def _check_numbered(
    by_index: Mapping[int, Sequence[str]], total: int, where: str, part: str
) -> None:
    """Reject duplicate and missing shard numbers."""
    for index, again in sorted(by_index.items()):
        if len(again) > 1:
            raise DataError(
                f"The split '{part}' of {where} holds shard {index} of {total} twice, as "
                f"{listed(again)}; remove one."
            )
    missing = [index for index in range(total) if index not in by_index]
    if missing or len(by_index) != total:
        raise DataError(
            f"The split '{part}' of {where} must have {total} files, according to their names. Got "
            f"{len(by_index)}: number {', '.join(map(str, missing[:5]))} is missing; fetch it "
            "again."
        )


def _check_numbers(stems: Sequence[str], where: str, part: str) -> None:
    """Reject gaps in the hub's file names `0000`, `0001`, ..."""
    numbers = sorted(int(stem) for stem in stems if NUMBERED.match(stem))
    if len(numbers) == len(stems) and numbers != list(range(len(numbers))):
        missing = sorted(set(range(max(numbers))) - set(numbers))
        raise DataError(
            f"The split '{part}' of {where} lacks the file '{missing[0]:04}{SUFFIX}'; fetch it "
            "again."
        )


def _check_duplicates(listing: Listing, rows: Sequence[int], where: str) -> None:
    """Reject local files of a split with equal content; remote files are not compared."""
    if remote.url(listing.folder) is not None:
        return
    by_size: dict[int, list[int]] = {}
    for row in rows:
        for other in by_size.setdefault(int(listing.sizes[row]), []):
            one = listing.names[other]
            name = listing.names[row]
            with suppress(OSError):
                if not filecmp.cmp(listing.folder / one, listing.folder / name, shallow=False):
                    continue
                raise DataError(
                    f"{where} holds the same file twice, as {listed([one, name])}; remove one."
                )
        by_size[int(listing.sizes[row])].append(row)


def _missing_numbers(names: Sequence[str]) -> list[str]:
    """Numbers missing from file names, which may indicate missing files, as clauses."""
    found = [LAST_NUMBER.match(_stem(name)) for name in names]
    numbers = sorted(int(match["number"]) for match in found if match is not None)
    stems = {match["stem"] for match in found if match is not None}
    if None in found or len(stems) != 1 or len(numbers) < 2:
        return []
    missing = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
    # if most numbers are missing, they are not shard numbers but years, for example
    if not missing or len(missing) > len(numbers):
        return []
    listing = ", ".join(map(str, missing[:5]))
    return [f"number {listing} of the files '{stems.pop()}*', which is missing"]


def _stem(name: str) -> str:
    return Path(name).name.removesuffix(SUFFIX)


def _several_data_sets(listing: Listing, where: str, folders: Sequence[str]) -> str:
    """Error message for a folder with several data sets."""
    first = remote.shown(listing.folder / folders[0])
    return (
        f"{where} must hold one data set. Got Parquet files in {len(folders)} folders "
        f"instead; set 'data.name' to one of them, e.g. '{first}'."
    )


def _origin(part: str, is_folder: bool) -> str:
    return f"folder '{part}'" if is_folder else f"files '{part}*'"


def _shortened(clauses: Sequence[str]) -> list[str]:
    """Shorten a list of clauses to the first five."""
    return [*clauses[:5], *([f"{len(clauses) - 5} more files"] if len(clauses) > 5 else [])]
