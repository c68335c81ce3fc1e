"""Single values are those that Arrow reads, however the file was written."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayd.data.files import DataFile
from rayd.data.formats import pages
from rayd.data.formats.pages import ByteColumn


def some_values(
    count: int, largest: int, seed: int = 0, nulls: float = 0.0, distinct: int | None = None
) -> list[bytes | None]:
    rng = np.random.default_rng(seed)
    pool = [rng.bytes(int(rng.integers(largest + 1))) for _ in range(distinct or count)]
    values = pool if distinct is None else [pool[i] for i in rng.integers(distinct, size=count)]
    return [None if rng.random() < nulls else value for value in values]


def write(
    path: Path,
    values: list[bytes | None],
    struct: bool = True,
    required: bool = False,
    **options: Any,
) -> ByteColumn:
    if struct:
        kind: Any = pa.struct(
            [pa.field("bytes", pa.binary(), nullable=not required), ("path", pa.string())]
        )
        column = [{"bytes": value, "path": "x"} for value in values]
    else:
        kind = pa.binary()
        column = values
    schema = pa.schema([("label", pa.int64()), pa.field("img", kind, nullable=not required)])
    table = pa.table({"label": list(range(len(values))), "img": column}, schema=schema)
    pq.write_table(
        table,
        path,
        **{"row_group_size": 40, "data_page_size": 600, "write_batch_size": 4, **options},
    )
    return ByteColumn(DataFile.at(path), "img.bytes" if struct else "img")


def read(column: ByteColumn, rows: list[int]) -> list[bytes | None]:
    return [value.page.take(value.index) for value in column.values(np.array(rows, np.int64))]


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"use_dictionary": False, "compression": "none"},
    "snappy": {"use_dictionary": False},
    "gzip": {"use_dictionary": False, "compression": "gzip"},
    "zstd": {"use_dictionary": False, "compression": "zstd"},
    "brotli": {"use_dictionary": False, "compression": "brotli"},
    "dictionary": {},
    "dictionary that overflows": {"dictionary_pagesize_limit": 700},
    "version 2": {"data_page_version": "2.0", "dictionary_pagesize_limit": 700},
    "version 2, plain": {
        "data_page_version": "2.0",
        "use_dictionary": False,
        "compression": "none",
    },
    "page index and checksums": {"write_page_index": True, "write_page_checksum": True},
    "required": {"required": True},
    "binary column": {"struct": False},
    "statistics": {"use_dictionary": False, "write_statistics": True},
    "long pages": {"row_group_size": 150, "data_page_size": 10**6},
    "long pages, dictionary that overflows": {
        "row_group_size": 150,
        "data_page_size": 10**6,
        "dictionary_pagesize_limit": 700,
    },
}
FALLBACKS: dict[str, dict[str, Any]] = {
    "lz4": {"compression": "lz4"},
    "delta lengths": {
        "use_dictionary": False,
        "column_encoding": {"img.bytes": "DELTA_LENGTH_BYTE_ARRAY"},
    },
}


@pytest.mark.parametrize("layout", [*LAYOUTS, *FALLBACKS])
@pytest.mark.parametrize(("nulls", "distinct"), [(0.0, None), (0.3, None), (0.0, 3), (0.2, 1)])
def test_values_are_those_that_were_written(
    tmp_path: Path, layout: str, nulls: float, distinct: int | None
) -> None:
    options = {**LAYOUTS, **FALLBACKS}[layout]
    values = some_values(
        150, 90, nulls=0.0 if options.get("required") else nulls, distinct=distinct
    )
    column = write(tmp_path / "x.parquet", values, **options)
    assert read(column, list(range(150))) == values
    order = np.random.default_rng(1).permutation(150).tolist()
    assert read(column, order) == [values[row] for row in order]
    assert read(column, [149, 0, 149, 3]) == [values[row] for row in (149, 0, 149, 3)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_row_group_is_read_whole_without_need(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_whole", None)
    values = some_values(60, 90)
    assert read(write(tmp_path / "x.parquet", values, **LAYOUTS[layout]), [59, 2]) == [
        values[59],
        values[2],
    ]


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80
)
@given(
    count=st.sampled_from([1, 7, 60, 700]),
    largest=st.sampled_from([0, 1, 200, 5000]),
    group=st.integers(1, 70) | st.integers(100, 700),
    page=st.sampled_from([1, 100, 5000, 10**6]),
    batch=st.integers(1, 20),
    nulls=st.sampled_from([0.0, 0.5, 1.0]),
    distinct=st.sampled_from([None, 1, 2, 5, 300]),
    version=st.sampled_from(["1.0", "2.0"]),
    limit=st.sampled_from([1, 500, 10**6]),
    seed=st.integers(0, 99),
    compression=st.sampled_from(["none", "snappy"]),
)
def test_any_file_that_arrow_writes(
    tmp_path: Path, count: int, largest: int, group: int, page: int, batch: int, nulls: float, distinct: int | None,
    version: str, limit: int, seed: int, compression: str,
) -> None:  # fmt: skip
    values = some_values(count, largest, seed, nulls, distinct)
    options = {
        "row_group_size": group,
        "data_page_size": page,
        "write_batch_size": batch,
        "data_page_version": version,
    }
    options |= {"dictionary_pagesize_limit": limit, "compression": compression}
    column = write(tmp_path / "x.parquet", values, **options)
    for rows in np.random.default_rng(seed).integers(count, size=(2, 20)).tolist():
        assert read(column, rows) == [values[row] for row in rows]


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_only_the_pages_that_are_asked_for_are_read(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those without compression once: later their values alone are."""
    read_pages: list[pages.Page] = []
    real = pages._parse
    monkeypatch.setattr(
        pages, "_parse", lambda chunk, page: (read_pages.append(page), real(chunk, page))[1]
    )
    values = some_values(200, 300)
    column = write(
        tmp_path / "x.parquet",
        values,
        use_dictionary=False,
        row_group_size=200,
        compression=compression,
    )
    asked = column.values(np.array([7, 150, 7]))
    assert not read_pages
    assert [value.read_bytes() for value in asked] == [values[7], values[150], values[7]]
    assert len(read_pages) == 2
    assert sum(page.rows for page in read_pages) < 50
    for value, row in zip(column.values(np.array([7, 150, 6])), (7, 150, 6), strict=True):
        assert value.read_bytes() == values[row]
    assert len(read_pages) == (2 if compression == "none" else 4)


def test_null_is_said(tmp_path: Path) -> None:
    (value,) = write(tmp_path / "x.parquet", [b"a", None]).values(np.array([1]))
    with pytest.raises(ValueError, match="it has no bytes: its value is null"):
        value.read_bytes()


def test_damage_ends_in_an_error_of_a_known_kind_or_in_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "x.parquet"
    write(path, some_values(80, 90), dictionary_pagesize_limit=700)
    whole = path.read_bytes()
    refused = 0
    footer = 8 + int.from_bytes(whole[-8:-4], "little")
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(4, len(whole) - footer)] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            read(ByteColumn(DataFile.at(path), "img.bytes"), [0, 20, 41, 79])
        except (OSError, ValueError):
            refused += 1
    assert 0 < refused < 400
