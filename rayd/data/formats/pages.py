"""Random access to the values of a Parquet byte-string column, without reading whole row groups.

Arrow reads row groups whole: a batch of random images would cost one for each image. Here the page
headers give the position of each row, and only its page is read. The layout follows the Parquet
format (`Encodings.md`, `parquet.thrift` of https://github.com/apache/parquet-format):

    chunk      page*, the first one optionally a dictionary
    page       header (Thrift, compact protocol), content
    content    v1: codec(levels, values); v2: levels, codec(values)
    levels     which rows are null; in runs, each of one value or bit-packed
    values     plain: (length, bytes)*; dictionary: bit width, then indices in runs

A row group in another encoding is read whole by Arrow. A page is read when its first value is
requested and dropped after its last; for an uncompressed page the positions of its values are
cached, and later only the requested values are read. Writers often make one page per row group, so
random access to compressed files reads many times the bytes it needs: image folders, or
uncompressed files, are faster to train on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rayd.data.files import DataFile

Values = Sequence[bytes | memoryview | None]
"""Values of consecutive rows; None for null."""
Load = Callable[[], Values]
"""Reads the values of a page."""
Open = Callable[[], BinaryIO]
"""Opens the file."""

DATA_PAGE = 0
DICTIONARY_PAGE = 2
DATA_PAGE_V2 = 3
"""Page types; other types hold no values."""
PLAIN = 0
PLAIN_DICTIONARY = 2
RLE = 3
RLE_DICTIONARY = 8
"""Supported encodings."""
CODECS = {
    "UNCOMPRESSED": None,
    "SNAPPY": "snappy",
    "GZIP": "gzip",
    "ZSTD": "zstd",
    "BROTLI": "brotli",
}
"""Supported compressions, with Arrow's names."""

HEADER = 2**13
"""Bytes read at first for a page header; statistics can make it longer."""


class UnreadableError(Exception):
    """A row group has an encoding that only Arrow supports, or is damaged."""


@dataclass(frozen=True)
class Page:
    """A page of values."""

    offset: int
    """Offset of the content in the file."""
    size: int
    """Size of the content in the file, in bytes."""
    raw: int
    """Size of the decompressed content, in bytes."""
    rows: int
    encoding: int
    levels: int | None = None
    """Bytes of uncompressed levels before the values (v2); None if compressed with them (v1)."""
    compressed: bool = True


@dataclass(frozen=True)
class ColumnChunk:
    """Properties common to the pages of a column chunk."""

    open: Open
    codec: str | None
    depth: int
    """Largest definition level, which marks values that are not null."""
    dictionary: Page | None


class ByteColumn:
    """A byte-string column of a Parquet file.

    Raises:
        OSError, pyarrow.ArrowException: the file cannot be opened.
    """

    def __init__(self, file: DataFile, name: str, whole: bool = True):
        """Read the footer.

        Args:
            file: the file.
            name: path of the column in the schema.
            whole: fetch a remote file whole; otherwise, only the pages that are needed.
        """
        self._open = file.open if whole else file.peek
        self._name = name
        with self._open() as content, pq.ParquetFile(content) as parquet:
            self._metadata = parquet.metadata
            schema = parquet.schema
        groups = [self._metadata.row_group(group) for group in range(self._metadata.num_row_groups)]
        names = (
            [groups[0].column(index).path_in_schema for index in range(groups[0].num_columns)]
            if groups
            else [name]
        )
        self._index = names.index(name)
        self._schema = schema.column(self._index)
        self._ends = np.cumsum([group.num_rows for group in groups])
        self._spans: dict[int, tuple[npt.NDArray[np.int64], list[Load]]] = {}

    def values(self, rows: npt.NDArray[np.int64]) -> list[Value]:
        """Look up the values at rows in any order; at first only page headers are read.

        Raises:
            OSError: the file cannot be read.
        """
        groups = np.searchsorted(self._ends, rows, "right")
        positions = [
            self._position(int(group), int(row)) for group, row in zip(groups, rows, strict=True)
        ]
        shared: dict[tuple[int, int], _SharedPage] = {}
        for group, span, _ in positions:
            if (group, span) not in shared:
                shared[group, span] = _SharedPage(self._spans[group][1][span])
            shared[group, span].pending += 1
        return [Value(shared[group, span], index) for group, span, index in positions]

    def _position(self, group: int, row: int) -> tuple[int, int, int]:
        """Row group, page within it, and index within the page, of a row."""
        if group not in self._spans:
            self._spans[group] = self._loads(group)
        inside = row - (int(self._ends[group - 1]) if group else 0)
        starts = self._spans[group][0]
        span = int(np.searchsorted(starts, inside, "right")) - 1
        return group, span, inside - int(starts[span])

    def _loads(self, group: int) -> tuple[npt.NDArray[np.int64], list[Load]]:
        """First rows of the pages of a row group, relative to the group, and the page readers."""
        column = self._metadata.row_group(group).column(self._index)
        try:
            chunk, pages = _chunk(self._open, column, self._schema)
        except UnreadableError:
            return np.zeros(1, np.int64), [partial(_whole, self._open, group, self._name)]
        starts = np.cumsum([0, *(page.rows for page in pages)])[:-1].astype(np.int64)
        return starts, [_in_place(chunk, page) or partial(_read, chunk, page) for page in pages]


class _SharedPage:
    """Page read by several values, kept in memory until all of them are read."""

    def __init__(self, load: Load):
        self.pending = 0
        self._load = load
        self._lock = Lock()
        self._values: Values | None = None

    def take(self, index: int) -> bytes | None:
        with self._lock:
            values = self._load() if self._values is None else self._values
            self.pending -= 1
            self._values = values if self.pending > 0 else None
        value = values[index]
        # a copy: a view would keep the whole page in memory
        return None if value is None else bytes(value)


@dataclass(frozen=True, eq=False)
class Value:
    """A value that is read on demand."""

    page: _SharedPage
    index: int

    def read_bytes(self) -> bytes:
        """Read the bytes of the value.

        Raises:
            OSError: the file cannot be read.
            ValueError: the page is damaged, or the value is null.
        """
        value = self.page.take(self.index)
        if value is None:
            raise ValueError("it has no bytes: its value is null")
        return value


class _InPlace:
    """Page whose values are stored in the file as they are."""

    def __init__(self, chunk: ColumnChunk, page: Page):
        self._chunk = chunk
        self._page = page
        self._located: _Located | None = None

    def __call__(self) -> Values:
        if self._located is not None:
            return self._located
        parsed = _parse(self._chunk, self._page)
        self._located = parsed.located(self._chunk.open)
        return parsed.values()


@dataclass(frozen=True, eq=False)
class _Located(Sequence[bytes | None]):
    """Values of which only offset and size are in memory; size -1 for null."""

    open: Open
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        if self.sizes[index] < 0:
            return None
        with self.open() as file:
            file.seek(int(self.starts[index]))
            return file.read(int(self.sizes[index]))


@dataclass(frozen=True, eq=False)
class _Parsed:
    """Decoded content of a data page."""

    pool: list[memoryview]
    """Values of the page that are not null, or those of the dictionary."""
    which: npt.NDArray[np.int64]
    """Index into `pool` of each row, -1 for null."""
    offset: int
    """Offset of the pool in the file, if it is not compressed."""

    def values(self) -> Values:
        return [None if index < 0 else self.pool[index] for index in self.which]

    def located(self, open: Open) -> _Located:
        # the last entry stands for null, which has index -1
        sizes = np.array([*map(len, self.pool), -1], np.int64)
        starts = self.offset + np.cumsum(sizes + 4) - sizes
        return _Located(open, starts[self.which], sizes[self.which])


def _in_place(chunk: ColumnChunk, page: Page) -> Load | None:
    plain = chunk.codec is None or (page.encoding == PLAIN and not page.compressed)
    return _InPlace(chunk, page) if plain else None


def _chunk(open: Open, column: Any, schema: Any) -> tuple[ColumnChunk, list[Page]]:
    """Read the page headers of a column chunk, in order."""
    if column.compression not in CODECS or schema.max_repetition_level:
        raise UnreadableError
    starts = [column.data_page_offset, column.dictionary_page_offset]
    start = min(start for start in starts if start)
    dictionary = None
    pages = list[Page]()
    rows = 0
    try:
        with open() as file:
            for kind, page in _pages(file, start, start + column.total_compressed_size):
                if kind == DICTIONARY_PAGE:
                    dictionary = page
                else:
                    pages.append(page)
                    rows += page.rows
    except (KeyError, TypeError, IndexError) as error:
        raise UnreadableError from error
    if rows != column.num_values or min((page.rows for page in pages), default=0) < 0:
        raise UnreadableError
    chunk = ColumnChunk(open, CODECS[column.compression], schema.max_definition_level, dictionary)
    return chunk, pages


def _pages(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, Page]]:
    """Yield the pages with values between two offsets, with their types."""
    while start < end:
        fields, length = _header(file, start)
        start += length
        kind, page = _page(fields, start)
        if page is not None:
            yield kind, page
        size = fields[3]
        if not 0 <= size <= end - start:
            raise UnreadableError
        start += size


def _page(fields: dict[int, Any], offset: int) -> tuple[int, Page | None]:
    """Type and description of a page, from its header fields; None for a page without values."""
    kind = fields[1]
    raw = fields[2]
    size = fields[3]
    if kind == DICTIONARY_PAGE:
        header = fields[7]
        return kind, Page(offset, size, raw, header[1], _known(header[2], PLAIN, PLAIN_DICTIONARY))
    if kind == DATA_PAGE:
        header = fields[5]
        _known(header[3], RLE)
        return kind, Page(
            offset, size, raw, header[1], _known(header[2], PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY)
        )
    if kind == DATA_PAGE_V2:
        header = fields[8]
        encoding = _known(header[4], PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY)
        return kind, Page(
            offset, size, raw, header[1], encoding, header[5] + header[6], header.get(7, True)
        )
    return kind, None


def _known(encoding: int, *known: int) -> int:
    if encoding not in known:
        raise UnreadableError
    return encoding


def _header(file: BinaryIO, offset: int) -> tuple[dict[int, Any], int]:
    """Read the header of the page at an offset; also return its length."""
    window = HEADER
    while True:
        file.seek(offset)
        data = file.read(window)
        try:
            return _struct(data, 0)
        except IndexError:
            if len(data) < window:
                raise
            window *= 8


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Parse a Thrift struct (compact protocol) into fields by number; also return its end."""
    fields = dict[int, Any]()
    number = 0
    while (byte := data[at]) != 0:
        at += 1
        if byte >> 4:
            number += byte >> 4
        else:
            zigzag, at = _varint(data, at)
            number = (zigzag >> 1) ^ -(zigzag & 1)
        fields[number], at = _field(data, at, byte & 15)
    return fields, at + 1


def _field(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    """Parse a value of one of the compact protocol's types; page headers have no lists or maps."""
    if kind in (1, 2):
        return kind == 1, at
    if kind in (4, 5, 6):
        zigzag, at = _varint(data, at)
        return (zigzag >> 1) ^ -(zigzag & 1), at
    if kind == 8:
        length, at = _varint(data, at)
        if at + length > len(data):
            raise IndexError
        return data[at : at + length], at + length
    if kind == 12:
        return _struct(data, at)
    if kind in (3, 7):
        return None, at + (1 if kind == 3 else 8)
    raise UnreadableError


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Parse an unsigned varint, seven bits per byte; also return its end."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at = at + 1
        shift = shift + 7
        if byte < 128:
            return value, at


def _read(chunk: ColumnChunk, page: Page) -> Values:
    """Read the values of a data page."""
    return _parse(chunk, page).values()


def _parse(chunk: ColumnChunk, page: Page) -> _Parsed:
    try:
        with chunk.open() as file:
            content = _content(file, chunk, page)
            levels, values = _split(content, chunk, page)
            which = np.full(page.rows, -1)
            valid = _runs(levels, chunk.depth.bit_length(), page.rows) == chunk.depth
            count = int(valid.sum())
            if page.encoding == PLAIN:
                which[valid] = np.arange(count)
                return _Parsed(
                    _plain(values, count), which, page.offset + len(content) - len(values)
                )
            if chunk.dictionary is None:
                raise ValueError("its page has no dictionary")
            pool = _plain(_content(file, chunk, chunk.dictionary), chunk.dictionary.rows)
        which[valid] = _runs(values[1:], values[0], count) if count else 0
        if which.max(initial=-1) >= len(pool):
            raise IndexError
        return _Parsed(pool, which, chunk.dictionary.offset)
    except IndexError as error:
        raise ValueError("its page is damaged") from error


def _content(file: BinaryIO, chunk: ColumnChunk, page: Page) -> memoryview:
    """Read and decompress the content of a page."""
    file.seek(page.offset)
    data = file.read(page.size)
    if len(data) < page.size:
        raise ValueError("its page is cut off")
    plain = page.levels or 0
    if chunk.codec is None or not page.compressed or page.size == plain:
        return memoryview(data)
    # Arrow's own buffer has signed bytes
    values = memoryview(pa.decompress(data[plain:], page.raw - plain, chunk.codec)).cast("B")
    return memoryview(data[:plain] + bytes(values)) if plain else values


def _split(content: memoryview, chunk: ColumnChunk, page: Page) -> tuple[memoryview, memoryview]:
    """Split into levels and values; in v1 the levels are preceded by their length."""
    if page.levels is not None:
        return content[: page.levels], content[page.levels :]
    if chunk.depth == 0:
        return content[:0], content
    end = 4 + int.from_bytes(content[:4], "little")
    return content[4:end], content[end:]


def _runs(data: memoryview, width: int, count: int) -> npt.NDArray[np.int64]:
    """Decode `count` numbers of `width` bits from runs of one value and bit-packed runs."""
    numbers = np.zeros(count, np.int64)
    filled = 0
    at = 0
    while width and filled < count:
        header, at = _varint(data, at)
        if header & 1:
            end = at + (header >> 1) * width
            bits = np.unpackbits(np.frombuffer(data[at:end], np.uint8), bitorder="little")
            run = bits.reshape(-1, width).astype(np.int64) @ (1 << np.arange(width))
        else:
            end = at + (width + 7) // 8
            run = np.full(header >> 1, int.from_bytes(data[at:end], "little"))
        if end > len(data) or not len(run):
            raise IndexError
        run = run[: count - filled]
        numbers[filled : filled + len(run)] = run
        filled = filled + len(run)
        at = end
    return numbers


def _plain(data: memoryview, count: int) -> list[memoryview]:
    values = list[memoryview]()
    at = 0
    for _ in range(count):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            raise IndexError
        values.append(data[at + 4 : end])
        at = end
    return values


def _whole(open: Open, group: int, name: str) -> Values:
    """Read all values of a row group with Arrow."""
    with open() as content, pq.ParquetFile(content) as parquet:
        column = (
            parquet.read_row_group(group, columns=[name], use_threads=False)
            .column(0)
            .combine_chunks()
        )
    values = column.field("bytes") if pa.types.is_struct(column.type) else column
    buffers = (value.as_buffer() for value in values)
    return [None if buffer is None else memoryview(buffer) for buffer in buffers]
