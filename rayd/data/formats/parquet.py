"""Parquet folders in the layout of the Hugging Face hub.

`<dir>/{train,validation,test}-*.parquet`, any number of shards each, read in the order of their
names. The images are a struct column with the file's `bytes` (`path` is ignored), or a plain binary
column; the labels are integers. Which columns, and the names of the classes, are taken from the
schema's `huggingface` metadata where it is there, else from the usual column names. Files of the
split `extra` (SVHN's easy images) are left alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayd import remote
from rayd.data import copies
from rayd.data.arrays import Labels, Rows
from rayd.data.decode import CHUNK_IMAGES, Encoded
from rayd.data.files import DataFile, Listing
from rayd.data.formats.base import (
    SPLIT_NAMES,
    EncodedPixels,
    Source,
    Split,
    SplitName,
    as_labels,
    numbered_classes,
)
from rayd.data.formats.pages import ByteColumn, Open
from rayd.errors import DataError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")

AHEAD = 2**20
"""Bytes that are read ahead: Arrow's defaults would hold whole row groups."""
OPENED = 16
"""Files at a URL that are opened side by side."""
SCATTERED = 8
"""Images of a file at a URL for which it is fetched whole, wanted together or, if there is room for
all files, by and by.
"""


@dataclass(frozen=True)
class Shard:
    """One Parquet file: which of its columns are what."""

    file: DataFile
    groups: tuple[int, ...]
    """Rows of each row group."""
    image_column: str
    """Column path of the image bytes: `img.bytes`, or `img` where the column is binary itself."""
    label_column: str
    class_names: tuple[str, ...] | None

    @classmethod
    def open(cls, file: DataFile) -> tuple[Shard, Any]:
        """Read the file's footer and its labels, an Arrow column; both in one go, as a file at a
        URL may be far away.

        Raises:
            DataError: the file is empty, no Parquet, or lacks an image or label column.
        """
        if file.size == 0:
            raise DataError(f"'{file}' is empty (0 bytes).")
        with _opened(file, file.peek) as parquet:
            schema: pa.Schema = parquet.schema_arrow
            groups = tuple(
                parquet.metadata.row_group(group).num_rows
                for group in range(parquet.num_row_groups)
            )
            features = _features(schema)
            image = _column(file, schema, "image", _typed(features, "Image"), IMAGE_COLUMNS)
            label = _column(file, schema, "label", _typed(features, "ClassLabel"), LABEL_COLUMNS)
            labels = parquet.read(columns=[label], use_threads=False).column(0)
        names = features.get(label, {}).get("names")
        class_names = tuple(map(str, names)) if names else None
        return cls(file, groups, _bytes_path(file, schema.field(image)), label, class_names), labels

    @property
    def rows(self) -> int:
        """Images in it."""
        return sum(self.groups)

    def labels(self, column: Any, class_names: tuple[str, ...] | None) -> Labels:
        """All labels of the file, int64 (rows,), from their column.

        Raises:
            DataError: a label is missing, no integer, or outside the class names.
        """
        where = f"column '{self.label_column}' of '{self.file}'"
        if column.null_count:
            row = next(row for row, label in enumerate(column) if not label.is_valid)
            raise DataError(f"Labels of {where} must not be null. Got null in row {row} instead.")
        if not pa.types.is_integer(column.type):
            raise DataError(f"Labels of {where} must be integers. Got {column.type} instead.")
        # not to_numpy, which imports pandas
        return as_labels(
            np.from_dlpack(column.cast(pa.int64()).combine_chunks()), class_names, where
        )

    def encoded(self, rows: Rows) -> Iterator[Encoded]:
        """The encoded images at ascending rows of this file; row groups without any of them are
        skipped.

        A file at a URL is fetched whole where half of its row groups are wanted or more.
        """
        wanted = np.zeros(self.rows, bool)
        wanted[rows] = True
        spans = np.split(np.arange(self.rows), np.cumsum(self.groups)[:-1])
        groups = [group for group, span in enumerate(spans) if wanted[span].any()]
        position = np.concatenate([spans[group] for group in groups]) if groups else rows[:0]
        start = 0
        whole = 2 * len(groups) >= len(spans)
        with _opened(
            self.file, self.file.open if whole else self.file.peek, buffer_size=AHEAD
        ) as parquet:
            columns = [self.image_column]
            for batch in parquet.iter_batches(
                CHUNK_IMAGES, row_groups=groups, columns=columns, use_threads=False
            ):
                column = batch.column(0)
                values = column.field("bytes") if pa.types.is_struct(column.type) else column
                at = position[start : start + len(values)]
                for index in np.flatnonzero(wanted[at]):
                    where = f"row {at[index]} of '{self.file}'"
                    content = values[int(index)].as_buffer()
                    if content is None:
                        raise DataError(
                            f"The image at {where} has no bytes: '{self.image_column}' is null."
                        )
                    yield Encoded(memoryview(content), where)
                start += len(values)

    def column(self, whole: bool) -> ByteColumn:
        """The images' bytes, for reading few of them; of a file at a URL all are fetched, or the
        pages of those few.

        Raises:
            DataError: the file is another one than it was.
            OSError, pyarrow.ArrowException: it is gone or damaged.
        """
        if not self.file.elsewhere and (size := self.file.path.stat().st_size) != self.file.size:
            raise DataError(
                f"'{self.file}' has changed since it was opened: {self.file.size} bytes then, {size} now."
            )
        return ByteColumn(self.file, self.image_column, whole)


@dataclass(frozen=True, eq=False)
class ParquetImages:
    """Images in Parquet files; rows are counted through all of them."""

    shards: tuple[Shard, ...]
    _columns: dict[tuple[int, bool], ByteColumn] = field(
        default_factory=dict, init=False, repr=False
    )
    """By shard, and whether it is fetched whole; opened when they are first needed."""
    _asked: Counter[int] = field(default_factory=Counter, init=False, repr=False)
    """Images of each shard that were asked for."""

    def read(self, rows: Rows) -> Iterator[Encoded]:
        """See `EncodedImages`; reads the row groups that hold the rows."""
        for index, start, stop in self._spans():
            inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
            if len(inside):
                yield from self.shards[index].encoded(inside)

    def at(self, rows: Rows) -> Iterator[Encoded]:
        """See `EncodedImages`; reads the pages that hold the rows."""
        found: list[Encoded | None] = [None] * len(rows)
        for index, start, stop in self._spans():
            places = np.flatnonzero((rows >= start) & (rows < stop))
            for place, encoded in zip(places, self._at(index, rows[places] - start), strict=True):
                found[place] = encoded
        return (encoded for encoded in found if encoded is not None)

    def narrowed(self, rows: Rows) -> tuple[ParquetImages, Rows]:
        """See `EncodedImages`."""
        kept = list[Shard]()
        renumbered = rows.copy()
        before = 0
        for index, start, stop in self._spans():
            inside = (rows >= start) & (rows < stop)
            if inside.any():
                kept.append(replace(self.shards[index], class_names=None))
                renumbered[inside] += before - start
                before += stop - start
        return ParquetImages(tuple(kept)), renumbered

    def files(self) -> Iterable[DataFile]:
        """See `EncodedImages`."""
        return [shard.file for shard in self.shards]

    @cached_property
    def _fit(self) -> bool:
        """Whether all files lie here, or copies of all of them may be kept."""
        return not self.shards[0].file.elsewhere or copies.fit(shard.file for shard in self.shards)

    def _spans(self) -> Iterator[tuple[int, int, int]]:
        """Each shard's index, first row, and the row after its last."""
        start = 0
        for index, shard in enumerate(self.shards):
            yield index, start, start + shard.rows
            start += shard.rows

    def _at(self, index: int, rows: Rows) -> Iterator[Encoded]:
        if not len(rows):
            return
        shard = self.shards[index]
        asked = self._asked[index] = self._asked[index] + len(rows) if self._fit else len(rows)
        whole = asked >= SCATTERED
        try:
            if (index, whole) not in self._columns:
                self._columns[index, whole] = shard.column(whole)
            values = self._columns[index, whole].values(rows)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise DataError(
                f"Cannot decode the image at row {rows[0]} of '{shard.file}': {reason}."
            ) from error
        for row, value in zip(rows, values, strict=True):
            yield Encoded(value, f"row {row} of '{shard.file}'")

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "_columns": {}, "_asked": Counter()}


def matches(path: Path) -> bool:
    """Whether `path` is a folder with Parquet files in it, or in a folder in it."""
    return path.is_dir() and any(
        any(path.glob(pattern)) for pattern in ("*.parquet", "*/*.parquet")
    )


def holds(listing: Listing) -> bool:
    """Whether a folder has Parquet files in it, or in a folder in it."""
    return bool(_files(listing))


def open_source(path: Path, class_names: tuple[str, ...] | None = None) -> Source:
    """The data set in a folder of Parquet files.

    Args:
        path: the folder; if it holds no Parquet file itself, the one folder in it that does.
        class_names: names for files that name no classes.

    Raises:
        DataError: a file is damaged or not what its name says; the sentence names it.
    """
    return open_listing(Listing.of(path), class_names)


def open_listing(listing: Listing, class_names: tuple[str, ...] | None = None) -> Source:
    """The same, of a folder whose files are known: footers and labels are read."""
    path = remote.shown(listing.folder)
    by_split = _by_split(listing)
    shards = dict[SplitName, list[Shard]]()
    columns = dict[SplitName, list[Any]]()
    for split, files in by_split.items():
        # side by side: those at a URL answer slowly
        with ThreadPoolExecutor(OPENED, "rayd-open") as pool:
            shards[split], columns[split] = map(
                list, zip(*pool.map(Shard.open, files), strict=True)
            )
    if "train" not in shards:
        raise DataError(
            f"'{path}' must hold Parquet files of a training split (train-*.parquet). Got only {_listed(shards)} instead."
        )
    named = {
        shard.class_names
        for files in shards.values()
        for shard in files
        if shard.class_names is not None
    }
    if len(named) > 1:
        raise DataError(
            f"The Parquet files in '{path}' must name the same classes in the same order. Got {len(named)} lists instead."
        )
    names = named.pop() if named else class_names
    labels = {
        split: np.concatenate(
            [
                shard.labels(column, names)
                for shard, column in zip(files, columns[split], strict=True)
            ]
        )
        for split, files in shards.items()
    }
    if names is None:
        names = numbered_classes(labels["train"], f"'{path}'")
        for split, values in labels.items():
            as_labels(values, names, f"the {split} split of '{path}'")
    splits = {
        split: Split(
            f"the {split} split of '{path}'",
            labels[split],
            EncodedPixels(ParquetImages(tuple(files))),
        )
        for split, files in shards.items()
    }
    return Source(f"'{path}'", names, splits)


def _files(listing: Listing) -> list[DataFile]:
    """Parquet files of a folder, else of the folders in it; in the order of their names."""
    depths = [Path(name).parts for name in listing.names]
    rows = {
        depth: [
            row
            for row, parts in enumerate(depths)
            if len(parts) == depth and _is_parquet(parts[-1])
        ]
        for depth in (1, 2)
    }
    return list(listing.at(rows[1] or rows[2]))


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet")


def _by_split(listing: Listing) -> dict[SplitName, list[DataFile]]:
    path = remote.shown(listing.folder)
    files = _files(listing)
    folders = sorted({file.path.parent for file in files})
    if len(folders) > 1:
        raise DataError(
            f"'{path}' must hold one data set. Got Parquet files in {len(folders)} folders instead; give one of them as "
            f"'data.name', e.g. '{remote.shown(folders[0])}'."
        )
    splits: dict[SplitName, list[DataFile]] = {}
    for file in files:
        prefix = re.split(r"[-_.]", file.path.name)[0].lower()
        if prefix in SPLIT_NAMES:
            splits.setdefault(SPLIT_NAMES[prefix], []).append(file)
        elif prefix != "extra":
            raise DataError(
                f"Parquet files must be called train-*, validation-* or test-*. Got '{file}' instead."
            )
    return splits


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The features of the `huggingface` metadata, by column; empty when there are none, or they are
    not what they should be.
    """
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            str(column): feature
            for column, feature in features.items()
            if isinstance(feature, dict)
        }
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _typed(features: Mapping[str, dict[str, Any]], kind: str) -> list[str]:
    return [column for column, feature in features.items() if feature.get("_type") == kind]


def _column(
    file: DataFile, schema: pa.Schema, role: str, announced: Sequence[str], usual: Sequence[str]
) -> str:
    for candidate in (*(name for name in usual if name in announced), *announced, *usual):
        if candidate in schema.names:
            return candidate
    wanted = " or ".join(f"'{name}'" for name in usual)
    raise DataError(
        f"'{file}' must have the {role} column {wanted}. Got the columns {', '.join(schema.names) or 'none'} instead."
    )


def _bytes_path(file: DataFile, field: pa.Field) -> str:
    kind = field.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        field = field.with_name(f"{field.name}.bytes")
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"Column '{field.name}' of '{file}' must hold the images' bytes. Got {kind} instead."
        )
    return str(field.name)


def _listed(shards: Mapping[SplitName, object]) -> str:
    return " and ".join(shards) or "other splits"


@contextmanager
def _opened(file: DataFile, content: Open, buffer_size: int = 0) -> Iterator[pq.ParquetFile]:
    """A file that Arrow reads, itself where it lies here.

    Raises:
        DataError: it cannot be read, or is damaged.
    """
    try:
        if not file.elsewhere:
            with pq.ParquetFile(file.path, pre_buffer=False, buffer_size=buffer_size) as parquet:
                yield parquet
        else:
            with (
                content() as opened,
                pq.ParquetFile(opened, pre_buffer=False, buffer_size=buffer_size) as parquet,
            ):
                yield parquet
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"Cannot read '{file}' as Parquet: {str(error).splitlines()[0].rstrip('.')}."
        ) from error
