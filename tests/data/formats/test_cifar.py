"""CIFAR's binary version."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayd.data.formats.cifar import matches, open_source
from rayd.errors import DataError
from tests.data.files import some_images, write_cifar10

IMAGES = some_images(12, side=32)
LABELS = np.arange(12) % 10


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cifar10")
    write_cifar10(path / "cifar-10-batches-bin", IMAGES, LABELS, per_file=2)
    (path / "cifar-10-batches-bin" / "batches.meta.txt").write_text(
        "\n".join(f"class{c}" for c in range(10)) + "\n\n"
    )
    return path


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)
@given(rows=st.sets(st.integers(0, 9)))
def test_any_rows_of_cifar10_can_be_read(cifar10: Path, rows: set[int]) -> None:
    wanted = np.array(sorted(rows), np.int64)
    source = open_source(cifar10)
    assert source.class_names[9] == "class9"
    assert np.array_equal(source.splits["train"].read(wanted), IMAGES[wanted])
    assert source.splits["test"].labels.tolist() == [0, 1]


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    for file in ("train.bin", "test.bin"):
        coarse = np.full((12, 1), 19, np.uint8)
        np.concatenate(
            [coarse, LABELS[:, None].astype(np.uint8), IMAGES.reshape(12, -1)], 1
        ).tofile(tmp_path / file)
    source = open_source(tmp_path)
    assert matches(tmp_path)
    assert source.splits["train"].labels.tolist() == LABELS.tolist()
    assert np.array_equal(source.splits["train"].read(np.arange(12)), IMAGES)


def test_images_can_be_resized(cifar10: Path) -> None:
    assert open_source(cifar10).splits["test"].read(np.arange(2), side=8).shape == (2, 3, 8, 8)


def test_a_truncated_file_is_refused(cifar10: Path, tmp_path: Path) -> None:
    write_cifar10(tmp_path, IMAGES, LABELS, per_file=2)
    batch = tmp_path / "data_batch_3.bin"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"data_batch_3.bin' must be a multiple of 3073 bytes. Got 6,145 bytes"
    ):
        open_source(tmp_path)
    batch.unlink()
    with pytest.raises(DataError, match=r"There is no file '.*data_batch_3.bin'"):
        open_source(tmp_path)


def test_class_names_in_another_encoding_are_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path, IMAGES, LABELS, per_file=2)
    (tmp_path / "batches.meta.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match=r"Cannot read the class names in '.*batches\.meta\.txt'"):
        open_source(tmp_path)
