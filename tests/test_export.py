"""What is exported is read back, with the tools it was exported for, as the same pixels and
labels.
"""

import io
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from rayd.data import Standardization
from rayd.distilled import Distilled
from rayd.errors import ConfigError, OutputError
from rayd.export import export, folders


def distilled(
    names: tuple[str, ...] = ("zebra", "ape", "cat"), channels: int = 3, soft: bool = False
) -> Distilled:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, channels, 4, 5), generator=draw, dtype=torch.uint8)
    normalization = Standardization.fit(images.numpy())
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    return Distilled(
        normalization(images), torch.eye(3)[labels] if soft else labels, names, normalization
    )


def as_array(image: bytes | Image.Image) -> np.ndarray:
    opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
    array = np.asarray(opened)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


@pytest.mark.parametrize("name", ["set.parquet", "folder"])
@pytest.mark.parametrize("channels", [1, 3])
def test_parquet(tmp_path, name, channels):
    made = distilled(channels=channels)
    export(made, "parquet", tmp_path / name)
    frame = pd.read_parquet(tmp_path / name)
    assert frame["label"].tolist() == made.labels.tolist()
    assert frame["label"].dtype == np.int64
    for row, image in enumerate(frame["image"]):
        np.testing.assert_array_equal(as_array(image["bytes"]), made.pixels()[row].numpy())
    file = tmp_path / name if name.endswith(".parquet") else next((tmp_path / name).iterdir())
    features = json.loads(pq.read_schema(file).metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["zebra", "ape", "cat"]},
    }


@pytest.mark.parametrize(
    "names",
    [
        ("ape", "cat", "zebra"),
        ("zebra", "ape", "cat"),
        ("a/b", "a?b", "a b"),
        ("", "..", "c\nd"),
        ("Cat", "cat", "猫"),
    ],
)
def test_image_folder_keeps_labels_and_order(tmp_path, names):
    made = distilled(names)
    export(made, "imagefolder", tmp_path / "out")
    read = ImageFolder(str(tmp_path / "out"))
    assert read.targets == made.labels.tolist()
    for row, (image, _) in enumerate(read):
        np.testing.assert_array_equal(as_array(image), made.pixels()[row].numpy())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == folders(names)


def test_folder_names_are_kept_where_they_can_be():
    assert folders(["airplane", "bird"]) == ["airplane", "bird"]
    assert folders([f"n{c}" for c in range(11)])[:2] == ["00_n0", "01_n1"]


def test_a_class_without_images_keeps_its_place(tmp_path):
    made = distilled(("a", "b", "c", "d"))
    export(made, "imagefolder", tmp_path / "out")
    assert ImageFolder(str(tmp_path / "out"), allow_empty=True).classes == ["a", "b", "c", "d"]


@pytest.mark.parametrize("soft", [False, True])
def test_npz(tmp_path, soft):
    made = distilled(soft=soft)
    export(made, "npz", tmp_path / "any name")
    with np.load(tmp_path / "any name", allow_pickle=False) as read:
        np.testing.assert_array_equal(read["images"], made.pixels().permute(0, 2, 3, 1).numpy())
        assert read["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        assert read["class_names"].tolist() == ["zebra", "ape", "cat"]
        assert ("soft_labels" in read) == soft


@pytest.mark.parametrize("format", ["parquet", "imagefolder", "npz"])
def test_what_is_there_is_kept_unless_asked(tmp_path, format):
    destination = tmp_path / "out"
    export(distilled(), format, destination)
    with pytest.raises(OutputError, match="exists already"):
        export(distilled(), format, destination)
    export(distilled(("x", "y", "z")), format, destination, overwrite=True)
    match format:
        case "npz":
            assert np.load(destination)["class_names"].tolist() == ["x", "y", "z"]
        case "parquet":
            assert b'"x"' in pq.read_schema(next(destination.iterdir())).metadata[b"huggingface"]
        case "imagefolder":
            assert sorted(path.name for path in destination.iterdir()) == ["x", "y", "z"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        export(distilled(), "imagefolder", tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'parquet'"):
        export(distilled(), "parket", tmp_path / "out")
    with pytest.raises(OutputError, match="at most 4 channels"):
        export(distilled(channels=5), "imagefolder", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        export(distilled(), "npz", tmp_path / "file" / "out")
