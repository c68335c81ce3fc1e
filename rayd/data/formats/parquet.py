"""Parquet folders in the layout of the Hugging Face hub.

`<dir>/{train,validation,test}-*.parquet`, with any number of shards per split, read in the order of
their names. Images are a struct column with the encoded file in `bytes` (`path` is ignored), or a
binary column; labels are integers. Column roles and class names come from the schema's
`huggingface` metadata if present, otherwise from the usual column names. Files of the split `extra`
(SVHN's easy images) are ignored.

Arrow reads row groups from the start, so random access reads many times more bytes than it needs.
Image folders are faster to train on, especially compared with files that have large row groups.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayd import remote
from rayd.data import copies
from rayd.data.arrays import Labels, Rows
from rayd.data.decode import CHUNK_IMAGES, Encoded
from rayd.data.files import DataFile, Listing
from rayd.data.formats.base import (
    EncodedPixels,
    Source,
    Split,
    SplitName,
    as_labels,
    numbered_classes,
)
from rayd.data.formats.shards import find_files, is_parquet
from rayd.data.layout import listed
from rayd.errors import DataError

if TYPE_CHECKING:
    from rayd.config import DataSettings

DESCRIPTION = "a folder of Parquet files"
"""Name of the format in messages."""

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")

AHEAD = 2**20
"""Size of the read-ahead buffer in bytes; with Arrow's defaults it would hold whole row groups."""
RUN_BYTES = 2**24
"""Bytes per run of row groups, which one thread reads in a single pass. Small row groups share a
run, as opening a file takes time.
"""
OPENED = 16
"""Number of files opened in parallel."""
SCATTERED = 8
"""Number of requested images from which a remote file is fetched whole. Requests of all calls count
if all files fit into the cache, otherwise those of a single call.
"""


@dataclass(frozen=True)
class Shard:
    """One Parquet file with the roles of its columns."""

    file: DataFile
    groups: tuple[int, ...]
    """Number of rows in each row group."""
    image_column: str
    """Column path of the image bytes: `img.bytes`, or `img` for a binary column."""
    label_column: str
    class_names: tuple[str, ...] | None

    @classmethod
    def open(cls, file: DataFile) -> tuple[Shard, Any]:
        """Read the footer and the label column of a file at once, as opening remote files is slow.

        Raises:
            DataError: the file is empty or not Parquet, lacks an image or label column, or has
                several such columns, none with a usual name.
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
        class_names = tuple(map(str, names)) if names and isinstance(names, list) else None
        return cls(file, groups, _bytes_path(file, schema.field(image)), label, class_names), labels

    @property
    def rows(self) -> int:
        """Number of images."""
        return sum(self.groups)

    def labels(self, column: Any, class_names: tuple[str, ...] | None) -> Labels:
        """Convert the label column to labels, int64 (rows,).

        Raises:
            DataError: a label is null, not an integer, or has no class name.
        """
        where = f"column '{self.label_column}' of '{self.file}'"
        if column.null_count:
            row = next(row for row, label in enumerate(column) if not label.is_valid)
            raise DataError(f"Labels of {where} must not be null. Got null in row {row} instead.")
        if not pa.types.is_integer(column.type):
            raise DataError(f"Labels of {where} must be integers. Got {column.type} instead.")
        try:
            numbers = column.cast(pa.int64()).combine_chunks()
        except pa.ArrowInvalid as error:
            raise DataError(f"Labels of {where} must be class indices: {error}.") from error
        # `to_numpy` would import pandas
        return as_labels(np.from_dlpack(numbers), class_names, where)

    def encoded(self, rows: Rows) -> Iterator[Encoded]:
        """Yield the encoded images at ascending rows of this file; see `values`."""
        return (Encoded(value, f"row {row} of '{self.file}'") for row, value in self.values(rows))

    def footer(self, whole: bool) -> pq.FileMetaData:
        """Read the footer, which locates the row groups; see `values`."""
        with _opened(self.file, self.file.open if whole else self.file.peek) as parquet:
            return parquet.metadata

    def values(
        self, rows: Rows, whole: bool = False, footer: pq.FileMetaData | None = None
    ) -> Iterator[tuple[int, memoryview]]:
        """Yield rows with their encoded images, skipping unused row groups.

        Args:
            rows: ascending rows without repetitions.
            whole: fetch a remote file whole; always done for rows in at least half of its row
                groups.
            footer: footer of the file, if it was read before.

        Raises:
            DataError: the file is missing, damaged or has changed since it was opened, or an image
                is null.
        """
        self._check_size()
        ends = np.cumsum(self.groups)
        groups = np.unique(np.searchsorted(ends, rows, "right"))
        content_opener = self.file.open if whole or 2 * len(groups) >= len(ends) else self.file.peek
        selected = np.zeros(self.rows, bool)
        selected[rows] = True
        position = np.concatenate(
            [np.arange(ends[group] - self.groups[group], ends[group]) for group in groups]
        )
        start = 0
        with _opened(self.file, content_opener, AHEAD, footer) as parquet:
            columns = [self.image_column]
            for batch in parquet.iter_batches(
                CHUNK_IMAGES, row_groups=groups.tolist(), columns=columns, use_threads=False
            ):
                column = batch.column(0)
                values = column.field("bytes") if pa.types.is_struct(column.type) else column
                at = position[start : start + len(values)]
                for index in np.flatnonzero(selected[at]):
                    row = int(at[index])
                    content = values[int(index)].as_buffer()
                    if content is None:
                        raise DataError(
                            f"The image at row {row} of '{self.file}' has no bytes: "
                            f"'{self.image_column}' is null."
                        )
                    yield row, memoryview(content)
                start += len(values)

    def _check_size(self) -> None:
        # remote files are checked when they are fetched; opening reports missing files
        try:
            size = self.file.size if self.file.is_remote else self.file.path.stat().st_size
        except FileNotFoundError:
            return
        if size != self.file.size:
            raise DataError(
                f"'{self.file}' has changed since it was opened: {self.file.size} bytes then, "
                f"{size} now."
            )


class RowRun:
    """Images of one or more row groups, read together when the first one is decoded.

    Decoding threads can read different runs at the same time.

    Args:
        shard: the file.
        rows: rows of the file, in any order.
        whole: see `Shard.values`.
        footer: see `Shard.values`.
    """

    def __init__(self, shard: Shard, rows: Rows, whole: bool, footer: pq.FileMetaData):
        self._shard = shard
        self._rows = np.unique(rows)
        self._whole = whole
        self._footer = footer
        self._lock = Lock()
        self._contents: list[bytes] | None = None

    def read(self, row: int) -> bytes:
        """Get the encoded image at one of the rows.

        Raises:
            DataError: see `Shard.values`.
        """
        with self._lock:
            if self._contents is None:
                values = self._shard.values(self._rows, self._whole, self._footer)
                # copies, as views would keep all of Arrow's batches in memory
                self._contents = [bytes(value) for _, value in values]
        return self._contents[int(np.searchsorted(self._rows, row))]


class RowContent(NamedTuple):
    """Content of an encoded image, read on demand."""

    run: RowRun
    row: int

    def read_bytes(self) -> bytes:
        """See `RowRun.read`."""
        return self.run.read(self.row)


@dataclass(frozen=True, eq=False)
class ParquetImages:
    """Images in Parquet files; rows are numbered across files."""

    shards: tuple[Shard, ...]
    _footers: dict[int, pq.FileMetaData] = field(default_factory=dict, init=False, repr=False)
    """Footers by shard, read on first use, as footers with many row groups are slow to parse."""
    _requested: Counter[int] = field(default_factory=Counter, init=False, repr=False)
    """Number of images requested from each shard."""

    def read(self, rows: Rows) -> Iterator[Encoded]:
        """See `EncodedImages`; reads only row groups that hold requested rows."""
        for index, start, stop in self._spans():
            inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
            if len(inside):
                yield from self.shards[index].encoded(inside)

    def at(self, rows: Rows) -> Iterator[Encoded]:
        """See `EncodedImages`; a row group is read when its first image is decoded."""
        found: list[Encoded | None] = [None] * len(rows)
        for index, start, stop in self._spans():
            positions = np.flatnonzero((rows >= start) & (rows < stop))
            if len(positions):
                images = self._at(index, rows[positions] - start)
                for position, encoded in zip(positions, images, strict=True):
                    found[position] = encoded
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
        """Whether all files are local, or their copies fit into the cache at once."""
        return not self.shards[0].file.is_remote or copies.fit(shard.file for shard in self.shards)

    def _spans(self) -> Iterator[tuple[int, int, int]]:
        """Yield index, first row, and last row + 1 of each shard."""
        start = 0
        for index, shard in enumerate(self.shards):
            yield index, start, start + shard.rows
            start += shard.rows

    def _at(self, index: int, rows: Rows) -> Iterator[Encoded]:
        """Yield the images at the given rows of a shard, in any order."""
        shard = self.shards[index]
        requested = self._requested[index] = (
            self._requested[index] + len(rows) if self._fit else len(rows)
        )
        whole = requested >= SCATTERED
        if index not in self._footers:
            self._footers[index] = shard.footer(whole)
        footer = self._footers[index]
        groups, position = np.unique(
            np.searchsorted(np.cumsum(shard.groups), rows, "right"), return_inverse=True
        )
        sizes = [footer.row_group(int(group)).total_byte_size for group in groups]
        number = (np.cumsum(sizes) // RUN_BYTES)[position]
        runs = {
            int(run): RowRun(shard, rows[number == run], whole, footer) for run in np.unique(number)
        }
        for run, row in zip(number.tolist(), rows.tolist(), strict=True):
            yield Encoded(RowContent(runs[run], row), f"row {row} of '{shard.file}'")

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "_footers": {}, "_requested": Counter()}


def matches(path: Path) -> bool:
    """Whether `path`, or a folder up to two levels below it, holds visible Parquet files."""
    return path.is_dir() and any(
        is_parquet(str(found.relative_to(path))) and found.is_file()
        for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet")
        for found in path.glob(pattern)
    )


def holds(listing: Listing) -> bool:
    """Whether a listed folder, or one up to two levels below it, holds visible Parquet files."""
    return any(map(is_parquet, listing.names))


def open_source(
    path: Path,
    class_names: tuple[str, ...] | None = None,
    settings: DataSettings | None = None,
) -> Source:
    """Open the data set in a folder of Parquet files.

    Args:
        path: the folder, or a folder with a single subfolder of Parquet files.
        class_names: class names, unless the files contain them.
        settings: may name the files to use as splits, where that is ambiguous.

    Raises:
        DataError: a file is damaged, a shard is missing, or the splits are missing or ambiguous.
    """
    return open_listing(Listing.of(path), class_names, settings)


def open_listing(
    listing: Listing,
    class_names: tuple[str, ...] | None = None,
    settings: DataSettings | None = None,
) -> Source:
    """Open a listed folder; reads footers and labels. See `open_source`."""
    path = remote.shown(listing.folder)
    found = find_files(listing, settings)
    by_split = found.splits
    shards = dict[SplitName, list[Shard]]()
    columns = dict[SplitName, list[Any]]()
    for split, files in by_split.items():
        # in parallel, as remote files have high latency
        with ThreadPoolExecutor(OPENED, "rayd-open") as pool:
            shards[split], columns[split] = map(
                list, zip(*pool.map(Shard.open, files), strict=True)
            )
    if "train" not in shards:
        raise DataError(
            f"'{path}' must hold Parquet files of a training split (train-*.parquet). "
            f"Got only {_listed(shards)} instead."
        )
    named = {
        shard.class_names
        for files in shards.values()
        for shard in files
        if shard.class_names is not None
    }
    if len(named) > 1:
        raise DataError(
            f"The Parquet files in '{path}' must name the same classes in the same order. "
            f"Got {len(named)} lists instead."
        )
    names = named.pop() if named else class_names
    labels = dict[SplitName, Labels]()
    for split, split_shards in shards.items():
        pairs = zip(split_shards, columns[split], strict=True)
        labels[split] = np.concatenate([shard.labels(column, names) for shard, column in pairs])
    if names is None:
        names = numbered_classes(labels["train"], f"'{path}'")
        for split, values in labels.items():
            as_labels(values, names, f"the {split} split of '{path}'")
    splits = dict[SplitName, Split]()
    for split, split_shards in shards.items():
        pixels = EncodedPixels(ParquetImages(tuple(split_shards)))
        where = f"the {split} split of '{path}'"
        splits[split] = Split(where, labels[split], pixels, found.origins[split])
    return Source(f"'{path}'", names, splits, found.left_out)


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Features by column from the `huggingface` metadata; empty if missing or malformed."""
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
    found = [name for name in announced if name in schema.names]
    if len(found) > 1 and not any(name in usual for name in found):
        raise DataError(
            f"'{file}' has several columns of {role}s, {listed(found)}: rename one of them to "
            f"'{role}'."
        )
    for candidate in (*(name for name in usual if name in announced), *announced, *usual):
        if schema.names.count(candidate) > 1:
            raise DataError(
                f"Columns of '{file}' must have different names. Got '{candidate}' twice instead."
            )
        if candidate in schema.names:
            return candidate
    expected = " or ".join(f"'{name}'" for name in usual)
    raise DataError(
        f"'{file}' must have the {role} column {expected}. "
        f"Got the columns {', '.join(schema.names) or 'none'} instead."
    )


def _bytes_path(file: DataFile, field: pa.Field) -> str:
    kind = field.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        field = field.with_name(f"{field.name}.bytes")
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"Column '{field.name}' of '{file}' must hold encoded images. Got {kind} instead."
        )
    return str(field.name)


def _listed(shards: Mapping[SplitName, object]) -> str:
    return " and ".join(shards) or "other splits"


@contextmanager
def _opened(
    file: DataFile,
    content: Callable[[], BinaryIO],
    buffer_size: int = 0,
    footer: pq.FileMetaData | None = None,
) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file: by path if it is local, otherwise from `content`.

    Raises:
        DataError: the file cannot be read or is damaged.
    """
    options = {"pre_buffer": False, "buffer_size": buffer_size, "metadata": footer}
    try:
        if not file.is_remote:
            with pq.ParquetFile(file.path, **options) as parquet:
                yield parquet
        else:
            with content() as opened, pq.ParquetFile(opened, **options) as parquet:
                yield parquet
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"Cannot read '{file}' as Parquet: {str(error).splitlines()[0].rstrip('.')}."
        ) from error
