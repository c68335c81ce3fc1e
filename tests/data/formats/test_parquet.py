"""Parquet folders are read whatever their shards, and each way in which one can be wrong is
told.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayd.data.formats import parquet
from rayd.data.formats.base import EncodedPixels
from rayd.data.formats.parquet import matches, open_source
from rayd.data.sources import open_source as open_any
from rayd.errors import DataError
from tests.data.files import encode, some_images, write_folder, write_parquet

NAMES = ("ant", "bee", "cow")
IMAGES = some_images(10)
LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
PNGS = [encode(image) for image in IMAGES]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images in two shards, and four to test with."""
    path = tmp_path_factory.mktemp("zoo")
    write_parquet(path / "train-00001-of-00002.parquet", PNGS[7:], LABELS[7:], names=NAMES)
    write_parquet(path / "train-00000-of-00002.parquet", PNGS[:7], LABELS[:7], names=NAMES)
    write_parquet(path / "test-00000-of-00001.parquet", PNGS[:4], LABELS[:4], names=NAMES)
    return path


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)
@given(rows=st.sets(st.integers(0, 9)))
def test_any_rows_can_be_read(zoo: Path, rows: set[int]) -> None:
    source = open_source(zoo)
    wanted = np.array(sorted(rows), np.int64)
    assert source.class_names == NAMES
    assert source.splits["train"].labels.tolist() == LABELS
    assert np.array_equal(
        source.splits["train"].read(wanted, shape=None if rows else (3, 4, 4)), IMAGES[wanted]
    )


@pytest.mark.parametrize(("together", "reads"), [(1, 4), (10**9, 2)])
def test_random_access_reads_a_run_of_row_groups_once(
    zoo: Path, together: int, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row groups of three images, in two files: each alone, or all of a file together."""
    monkeypatch.setattr(parquet, "RUN_BYTES", together)
    seen: list[list[int]] = []
    values = parquet.Shard.values
    monkeypatch.setattr(
        parquet.Shard,
        "values",
        lambda shard, rows, *rest: (seen.append(rows.tolist()), values(shard, rows, *rest))[1],
    )
    read = open_source(zoo).splits["train"].read
    assert isinstance(read, EncodedPixels)
    encoded = list(read.encoded.at(np.array([9, 0, 5, 2, 9, 6])))
    assert not seen, "nothing is read before it is decoded"
    contents = [one.content.read_bytes() for one in encoded]
    assert contents == [PNGS[row] for row in (9, 0, 5, 2, 9, 6)]
    assert sorted(seen) == ([[0, 2], [2], [5], [6]] if reads == 4 else [[0, 2, 5, 6], [2]])


@pytest.mark.parametrize(
    "options",
    [
        {"image": "image", "label": "labels"},
        {"image": "image", "label": "fine_label"},
        {"struct": False},
        {"image": "picture", "label": "kind", "names": NAMES},
    ],
    ids=["other columns", "fine labels", "plain binary", "columns of the metadata"],
)
def test_usual_columns_are_found(tmp_path: Path, options: dict) -> None:
    write_parquet(tmp_path / "train.parquet", PNGS, LABELS, **options)
    source = open_source(tmp_path)
    assert source.class_names == options.get("names", ("0", "1", "2"))
    assert np.array_equal(source.splits["train"].read(np.arange(10)), IMAGES)


def test_fine_labels_win_over_coarse_ones(tmp_path: Path) -> None:
    table = pa.table({"img": PNGS, "coarse_label": [0] * 10, "fine_label": LABELS})
    pq.write_table(table, tmp_path / "train.parquet")
    assert open_source(tmp_path).splits["train"].labels.tolist() == LABELS


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [pa.array(PNGS[:4]), pa.array([0, 1, 0, 1]), pa.array([1, 1, 0, 0])]
    for names in (["img", "label", "label"], ["img", "img", "label"]):
        arrays = [columns[0 if name == "img" else 1] for name in names]
        pq.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "train.parquet")
        with pytest.raises(DataError, match=r"must have different names. Got '(img|label)' twice"):
            open_source(tmp_path)


@pytest.mark.parametrize("names", [2, "ab", {"0": "a"}])
def test_class_names_that_are_no_list_are_ignored(tmp_path: Path, names: object) -> None:
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"img": PNGS[:4], "label": [0, 1, 0, 1]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "train.parquet")
    assert open_source(tmp_path).class_names == ("0", "1")


def test_one_of_several_columns_of_labels_must_have_a_usual_name(tmp_path: Path) -> None:
    features = {"img": {"_type": "Image"}}
    for name in ("season", "species"):
        features[name] = {"_type": "ClassLabel", "names": ["a", "b"]}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"img": PNGS[:4], "season": [0, 1, 0, 1], "species": [0, 0, 1, 1]})
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"columns of labels, 'season' and 'species': rename one"):
        open_source(tmp_path)
    features["label"] = features.pop("species")
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = table.rename_columns(["img", "season", "label"]).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "train.parquet")
    assert open_source(tmp_path).splits["train"].labels.tolist() == [0, 0, 1, 1]


def test_files_may_lie_in_the_one_folder_inside(tmp_path: Path) -> None:
    write_parquet(tmp_path / "plain_text" / "train-0.parquet", PNGS, LABELS)
    assert matches(tmp_path)
    assert len(open_source(tmp_path).splits["train"].labels) == 10
    write_parquet(tmp_path / "full" / "train-0.parquet", PNGS, LABELS)
    with pytest.raises(DataError, match=r"must hold one data set. Got Parquet files in 2 folders"):
        open_source(tmp_path)


def test_split_names_of_the_hub_are_known_and_extra_is_left_alone(tmp_path: Path) -> None:
    for split in ("train", "valid", "test", "extra"):
        write_parquet(tmp_path / f"{split}-0.parquet", PNGS, LABELS)
    assert set(open_source(tmp_path).splits) == {"train", "validation", "test"}


def test_names_that_are_known_serve_files_without_any(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", PNGS, LABELS)
    assert open_source(tmp_path, class_names=NAMES).class_names == NAMES


@pytest.mark.parametrize("content", [b"PAR1 but no more", b"PK\x03\x04 something else"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"Cannot read '.*train.parquet' as Parquet"):
        open_source(tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").touch()
    with pytest.raises(DataError, match=r"train.parquet' is empty \(0 bytes\)"):
        open_source(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", PNGS, LABELS)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"Cannot read .*train.parquet' as Parquet"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("labels", "names", "sentence"),
    [
        ([0, 1, 3], NAMES, r"must lie in 0\.\.2, as there are 3 class names. Got 3 in row 2"),
        ([0, -1, 2], NAMES, "must not be negative. Got -1 in row 1 instead.$"),
        ([-1, -1, -1], NAMES, "published without labels, so move or delete it"),
        ([0, None, 2], NAMES, "must not be null. Got null in row 1"),
        ([0, 2, 2], None, r"must cover 0\.\.2. No image has label 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, labels: list, names: tuple | None, sentence: str
) -> None:
    write_parquet(tmp_path / "train.parquet", PNGS[:3], labels, names=names)
    with pytest.raises(DataError, match=sentence):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            {"pixels": PNGS, "label": LABELS},
            "image column 'img' or 'image'. Got the columns pixels, label",
        ),
        (
            {"img": PNGS, "class": LABELS},
            "label column 'label' or 'labels' or 'fine_label'. Got the columns img, class",
        ),
        (
            {"img": ["a.png"] * 10, "label": LABELS},
            "Column 'img' of .* must hold encoded images. Got string",
        ),
        ({"img": PNGS, "label": ["ant"] * 10}, "must be integers. Got string"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, table: dict, sentence: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=sentence):
        open_source(tmp_path)


def test_labels_beyond_any_class_are_refused(tmp_path: Path) -> None:
    labels = pa.array([0, 2**63], pa.uint64())
    pq.write_table(pa.table({"img": PNGS[:2], "label": labels}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="must be class indices"):
        open_source(tmp_path)


def test_shards_must_name_the_same_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", PNGS, LABELS, names=NAMES)
    write_parquet(tmp_path / "test.parquet", PNGS, LABELS, names=NAMES[::-1])
    with pytest.raises(DataError, match=r"name the same classes in the same order. Got 2 lists"):
        open_source(tmp_path)


def test_a_folder_without_training_files_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test-0.parquet", PNGS, LABELS)
    with pytest.raises(
        DataError, match=r"must hold Parquet files of a training split .* Got only test"
    ):
        open_source(tmp_path)


def test_files_that_name_no_split_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data-0.parquet", PNGS, LABELS)
    with pytest.raises(DataError, match="must be named train-"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "has no bytes"), (b"", "is empty"), (PNGS[0][:60], "Cannot decode")],
)
def test_a_damaged_image_is_named_by_file_and_row(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    write_parquet(tmp_path / "train-0.parquet", PNGS[:4], LABELS[:4])
    write_parquet(tmp_path / "train-1.parquet", [*PNGS[:4], content], LABELS[:5])
    source = open_source(tmp_path)
    with pytest.raises(DataError, match=sentence) as caught:
        source.splits["train"].read(np.arange(9))
    assert f"row 4 of '{tmp_path / 'train-1.parquet'}'" in str(caught.value)


def test_metadata_that_is_no_json_is_ignored(tmp_path: Path) -> None:
    schema = pa.schema([("img", pa.binary()), ("label", pa.int64())], metadata={"huggingface": "{"})
    pq.write_table(
        pa.table({"img": PNGS, "label": LABELS}, schema=schema), tmp_path / "train.parquet"
    )
    assert open_source(tmp_path).class_names == ("0", "1", "2")


def test_what_is_only_called_parquet_is_no_file(tmp_path: Path) -> None:
    """Neither a folder nor a link to a file that is not there makes a data set."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "train.parquet").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"links' holds broken links"):
        open_any(str(tmp_path / "links"))
    images = some_images(2)
    write_folder(tmp_path / "photos", {"ant": images, "bee.parquet": images})
    assert open_any(str(tmp_path / "photos")).class_names == ("ant", "bee.parquet")
