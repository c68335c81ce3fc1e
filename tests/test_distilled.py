"""A distilled set comes back from disk as it was, and a damaged one is refused with one
sentence.
"""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from rayd.artifacts import file_hash, write_tensors
from rayd.card_text import describe
from rayd.data import Standardization, Whitening
from rayd.distilled import CARD, DIRECTORY, GRID, TENSORS, Distilled, load
from rayd.errors import ArtifactError, OutputError
from rayd.pictures import contact_sheet

NAMES = ("zebra", "ape", "cat")


def pixels(channels: int = 3, count: int = 6, side: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


def distilled(
    channels: int = 3, soft: bool = False, kind: type = Standardization, **card: object
) -> Distilled:
    real = pixels(channels)
    normalization = kind.fit(real)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    if soft:
        labels = torch.nn.functional.one_hot(labels, 3).float() * 0.8 + 0.1
    return Distilled(normalization(torch.from_numpy(real)), labels, NAMES, normalization, card)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    distilled(recipe="dm-digits", seed=3).save(tmp_path / DIRECTORY)
    return tmp_path / DIRECTORY


def forge(directory: Path, **changes: object) -> None:
    """Change the card; a value of None removes the key."""
    card = json.loads((directory / CARD).read_text()) | changes
    (directory / CARD).write_text(
        json.dumps({key: value for key, value in card.items() if value is not None})
    )


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("kind", [Standardization, Whitening])
def test_round_trip(tmp_path, soft, kind):
    original = distilled(soft=soft, kind=kind, recipe="dm-digits", method="dm", seed=3)
    original.save(tmp_path / DIRECTORY)
    for place in (tmp_path, tmp_path / DIRECTORY, str(tmp_path)):
        copy = load(place)
        assert torch.equal(copy.images, original.images)
        assert torch.equal(copy.labels, original.labels)
        assert copy.labels.dtype == original.labels.dtype
        assert copy.class_names == NAMES
        assert copy.normalization.fingerprint == original.normalization.fingerprint
        assert copy.card == original.card | {"sha256": file_hash(tmp_path / DIRECTORY / TENSORS)}
        assert copy.storage == original.storage
    assert sorted(path.name for path in (tmp_path / DIRECTORY).iterdir()) == [CARD, TENSORS, GRID]


def test_equal_content_gives_equal_bytes(tmp_path):
    for place in ("a", "b/c"):
        distilled(seed=3).save(tmp_path / place)
    for file in (TENSORS, CARD, GRID):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b/c" / file).read_bytes()


@pytest.mark.parametrize("kind", [Standardization, Whitening])
def test_pixels_are_those_that_were_normalised(kind):
    assert np.array_equal(distilled(kind=kind).pixels().numpy(), pixels())


def test_pixels_are_clamped_and_rounded_not_truncated():
    normalization = Standardization(torch.zeros(1), torch.ones(1))
    images = torch.tensor([-0.2, 0.6 / 255, 7.4 / 255, 1.3]).reshape(1, 1, 2, 2)
    made = Distilled(images, torch.tensor([0]), ["only"], normalization)
    assert made.pixels().flatten().tolist() == [0, 1, 7, 255]


def test_card_is_completed_and_may_say_more():
    made = distilled(method="dm", storage={"numbers": {"images": 5}, "bytes": {"images": 20}})
    assert made.card["ipc"] == 2
    assert made.card["shape"] == [3, 4, 4]
    assert made.card["method"] == "dm"
    assert made.storage.total_bytes == 20
    assert distilled().storage.bytes["images"] == 6 * 3 * 4 * 4 * 4


def test_a_plain_data_loader_takes_it(saved):
    images, labels = next(iter(DataLoader(load(saved), batch_size=4)))
    assert images.shape == (4, 3, 4, 4)
    assert images.dtype == torch.float32
    assert labels.tolist() == [0, 0, 1, 1]


def test_hard_labels_of_soft_ones():
    assert distilled(soft=True).hard_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_another_set_is_not_overwritten_unless_asked(saved):
    before = (saved / TENSORS).read_bytes()
    distilled(recipe="dm-digits", seed=3).save(saved)
    with pytest.raises(OutputError, match="already holds another distilled set"):
        distilled(soft=True).save(saved)
    assert (saved / TENSORS).read_bytes() == before
    distilled(soft=True).save(saved, overwrite=True)
    assert load(saved).labels.is_floating_point()


def test_missing_things_are_named(tmp_path, saved):
    with pytest.raises(ArtifactError, match="Got nothing"):
        load(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="Got a file"):
        load(saved / CARD)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no distilled set"):
        load(tmp_path / "empty")
    (saved / TENSORS).unlink()
    with pytest.raises(ArtifactError, match=rf"{TENSORS}' is missing"):
        load(saved)


def test_truncated_tensors(saved):
    (saved / TENSORS).write_bytes((saved / TENSORS).read_bytes()[:-7])
    with pytest.raises(ArtifactError, match="truncated"):
        load(saved)


def test_swapped_tensors(saved, tmp_path):
    distilled(soft=True).save(tmp_path / "other")
    (saved / TENSORS).write_bytes((tmp_path / "other" / TENSORS).read_bytes())
    with pytest.raises(ArtifactError, match="SHA-256"):
        load(saved)


@pytest.mark.parametrize(
    "write",
    [torch.save, lambda o, path: Path(path).write_bytes(pickle.dumps(o))],
    ids=["torch", "pickle"],
)
def test_a_pickle_is_refused(saved, write):
    write({"images": torch.zeros(2)}, saved / TENSORS)
    with pytest.raises(ArtifactError, match="is a pickle"):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sha256": None}, "lacks sha256"),
        ({"class_names": None, "shape": None}, "lacks class_names, shape"),
        ({"format": 3}, "Got 3 instead; a newer rayd wrote it"),
        ({"class_names": ["a", "b"]}, r"labels must lie in 0\.\.1, its class names; got 0\.\.2"),
        ({"class_names": "abc"}, "'class_names' in .* must be a valid array. Got 'abc' instead"),
        ({"shape": [3, 8, 8]}, "its card says"),
        ({"normalization": "zcaa"}, "did you mean 'zca'"),
    ],
)
def test_a_wrong_card_is_refused(saved, changes, sentence):
    forge(saved, **changes)
    with pytest.raises(ArtifactError, match=sentence):
        load(saved)


def test_class_names_must_be_those_of_the_data(saved):
    names = json.loads((saved / CARD).read_text())["class_names"]
    forge(saved, data={"name": "x", "read": {"class_names": names}})
    assert load(saved).class_names == tuple(names)
    forge(saved, class_names=[names[1], names[0], *names[2:]])
    sentence = f"it calls a class '{names[1]}' that its data call '{names[0]}'"
    with pytest.raises(ArtifactError, match=sentence):
        load(saved)


def test_a_card_may_say_null_of_its_data_and_labels(saved):
    card = json.loads((saved / CARD).read_text())
    card |= {"data": None, "labels": None, "config": {"labels": {"kind": "online"}}}
    (saved / CARD).write_text(json.dumps(card))
    read = load(saved)
    assert "distilled from unknown" in describe(read)
    assert "computed while students train" in read.needs[-1]


def test_a_card_that_is_not_json_is_refused(saved):
    (saved / CARD).write_text('{"format": 1')
    with pytest.raises(ArtifactError, match="truncated or not JSON"):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"images": torch.full((2, 1, 4, 4), torch.nan)},
            "2 of 2 images hold values that are not finite",
        ),
        ({"images": torch.zeros(2, 4, 4)}, r"must be float32 \(n, C, H, W\)"),
        (
            {"labels": torch.zeros(3, dtype=torch.int64)},
            r"labels must be int64 \(2,\) or float32 \(2, 2\)",
        ),
        ({"labels": torch.full((2, 2), torch.inf)}, "soft labels hold values that are not finite"),
        ({"images": None}, "lacks the tensor 'images'"),
        ({"normalization.std": None}, "lacks 'std'"),
    ],
)
def test_wrong_tensors_are_refused_though_the_card_agrees(tmp_path, changes, sentence):
    normalization = Standardization(torch.zeros(1), torch.ones(1))
    Distilled(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), ["a", "b"], normalization).save(
        tmp_path
    )
    state = {f"normalization.{name}": value for name, value in normalization.state().items()}
    tensors = {"images": torch.zeros(2, 1, 4, 4), "labels": torch.tensor([0, 1]), **state} | changes
    write_tensors(
        tmp_path / TENSORS, {name: value for name, value in tensors.items() if value is not None}
    )
    forge(tmp_path, sha256=file_hash(tmp_path / TENSORS))
    with pytest.raises(ArtifactError, match=sentence):
        load(tmp_path)


def test_a_diverged_set_is_not_made():
    with pytest.raises(ArtifactError, match="not finite"):
        Distilled(
            torch.full((1, 1, 2, 2), torch.inf),
            torch.tensor([0]),
            ["a"],
            Standardization(torch.zeros(1), torch.ones(1)),
        )


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_contact_sheet_has_a_row_a_class_and_a_column_an_image(channels):
    sheet = np.asarray(contact_sheet(distilled(channels)))
    right = sheet[:, -102:]
    assert right.shape == (3 * 50 + 2, 102, 3)
    first = right[2:50, 2:50]
    expected = (
        pixels(channels)[0] if channels != 2 else pixels(channels)[0].mean(0, keepdims=True).round()
    )
    for tile, value in zip(
        first[::12, ::12].reshape(16, 3), expected.reshape(len(expected), 16).T, strict=True
    ):
        assert tile.tolist() == np.broadcast_to(value, 3).tolist()
    assert (sheet[:, :-102] < 128).any()


def test_the_saved_grid_is_the_contact_sheet(saved):
    np.testing.assert_array_equal(
        np.asarray(Image.open(saved / GRID)), np.asarray(contact_sheet(load(saved)))
    )


def test_contact_sheet_of_many_classes_and_images_stays_small():
    normalization = Standardization(torch.zeros(1), torch.ones(1))
    labels = torch.arange(30).repeat_interleave(12)
    made = Distilled(
        torch.zeros(360, 1, 48, 48), labels, [f"class {c}" for c in range(30)], normalization
    )
    width, height = contact_sheet(made).size
    assert height == 20 * 50 + 2
    assert width < 10 * 50 + 2 + 100


def test_the_card_alone_is_written_again(saved):
    copy = load(saved)
    before = (saved / TENSORS).stat().st_mtime_ns
    labels = {"folder": "labels/0123", "epochs": 3}
    copy.card["labels"] = labels
    copy.save_card()
    assert (saved / TENSORS).stat().st_mtime_ns == before
    assert load(saved).card["labels"] == labels
    with pytest.raises(ArtifactError, match="not saved"):
        distilled().save_card()
