"""What was read is said: by `load`, by plans, and by a check that lists all problems at once."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rayd.cli import app
from rayd.config import DataSettings
from rayd.config.data import UNUSUAL
from rayd.data import load
from rayd.data.check import check
from rayd.data.duplicates import duplicates, exact_keys, keys_of
from rayd.data.outline import load_outline
from rayd.data.summary import DataSummary
from rayd.errors import ArtifactError, DataError
from tests.data.files import encode, some_images, write_folder, write_parquet


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Train and test folders of two classes, six and three images each, all different."""
    for first, (split, count) in enumerate((("seg_train", 6), ("seg_test", 3))):
        images = {name: some_images(count, seed=10 * first + k) for k, name in enumerate("ab")}
        write_folder(tmp_path / "set" / split, images)
    return tmp_path / "set"


def summary_of(path: Path, **settings: object) -> DataSummary:
    summary = load(DataSettings(name=str(path), **settings)).summary
    assert summary is not None
    return summary


@pytest.mark.parametrize("stream", [False, True])
def test_splits_are_counted_and_named(root: Path, stream: bool) -> None:
    summary = summary_of(root, stream=stream)
    assert [(name, split.count) for name, split in summary.splits.items()] == [
        ("train", 12),
        ("test", 6),
    ]
    assert summary.splits["train"].classes == (6, 6)
    assert summary.splits["test"].origin == "folder 'seg_test'"
    assert summary.class_names == ("a", "b")
    assert summary.image == (3, 4, 4)
    assert summary.duplicates is not None
    assert "copies     none" in summary.lines()


def test_a_carved_test_split_is_said(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", {name: some_images(10, seed=k) for k, name in enumerate("ab")})
    summary = summary_of(tmp_path / "set", validation_fraction=0.25, imbalance=2)
    assert summary.splits["test"].origin == (
        f"20% of each class, carved from train (seed 42): no test split in '{tmp_path / 'set'}'"
    )
    assert summary.splits["validation"].origin == "25% of each class, carved from train (seed 42)"
    assert summary.splits["train"].origin == "long tail of factor 2"


def test_digits_say_that_their_test_split_is_carved() -> None:
    summary = load(DataSettings(name="digits")).summary
    assert summary is not None
    assert "1,438 training, 359 test images (test: 20% of each class" in summary.brief()


@pytest.mark.parametrize("stream", [False, True])
def test_conversions_and_cropping_are_counted(tmp_path: Path, stream: bool) -> None:
    wide = np.zeros((1, 8, 16), np.uint8)
    for name in "ab":
        folder = tmp_path / "set" / name
        folder.mkdir(parents=True)
        for index in range(5):
            wide[0, index] = 255 - ord(name)
            exif = Image.Exif()
            exif[0x0112] = 3 if index == 4 else 1
            (folder / f"{index}.png").write_bytes(encode(wide, exif=exif))
    summary = summary_of(tmp_path / "set", stream=stream, image_size=8)
    assert summary.conversions == {"turned upright (EXIF orientation)": 2}
    assert summary.resized.endswith("(data.fit=crop), from 8 x 16; 50% of the pixels are cut off")
    assert "squashed" in summary_of(tmp_path / "set", image_size=8, fit="squash").resized


def test_conversions_and_cropping_of_arrays_are_counted(tmp_path: Path) -> None:
    images = some_images(20, side=16)[:, :, :, :8]
    images[:5, 1:] = images[:5, :1]
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(20) % 2)
    read = load(DataSettings(name=str(tmp_path / "a.npz"), image_size=8, mode="grey"))
    assert read.summary is not None
    assert read.summary.resized.endswith("from 16 x 8; 50% of the pixels are cut off")
    assert dict(read.summary.conversions) == {"colours converted to greyscale": 15}


@pytest.mark.parametrize("stream", [False, True])
def test_copies_of_training_images_among_test_images_are_refused(root: Path, stream: bool) -> None:
    content = (root / "seg_train" / "a" / "002.png").read_bytes()
    (root / "seg_test" / "a" / "copy.png").write_bytes(content)
    sentence = (
        r"1 of 7 test images are copies .* '.*copy.png', a copy of '.*a/002.png'.*data.copies=keep"
    )
    with pytest.raises(DataError, match=sentence):
        summary_of(root, stream=stream)
    kept = summary_of(root, stream=stream, copies="keep")
    assert kept.duplicates is not None
    assert kept.duplicates.tested == 1
    assert "copies     1 test image is also in train" in kept.lines()


def test_copies_in_another_format_are_copies(root: Path) -> None:
    image = Image.open(root / "seg_train" / "a" / "002.png")
    image.save(root / "seg_test" / "a" / "copy.bmp")
    with pytest.raises(DataError, match="are copies of training images"):
        summary_of(root)


@pytest.mark.parametrize("stream", [False, True])
def test_images_without_content_are_no_copies(root: Path, stream: bool) -> None:
    """Blank images, and placeholders that the training split holds several times."""
    blank = encode(np.full((3, 4, 4), 7, np.uint8))
    placeholder = encode(some_images(1, seed=77)[0])
    for split, count in (("seg_train", 3), ("seg_test", 1)):
        (root / split / "a" / "blank.png").write_bytes(blank)
        for index in range(count):
            (root / split / "b" / f"placeholder{index}.png").write_bytes(placeholder)
    summary = summary_of(root, stream=stream)
    assert summary.duplicates is not None
    assert summary.duplicates.tested == 2
    assert check(DataSettings(name=str(root))).good


def test_data_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    """Copies land on both sides of a carved test split."""
    once = {name: some_images(20, seed=k) for k, name in enumerate("ab")}
    write_folder(tmp_path / "set", {name: np.repeat(images, 2, 0) for name, images in once.items()})
    settings = DataSettings(name=str(tmp_path / "set"))
    with pytest.raises(DataError, match=r"test images, carved from train, are copies.*copies=keep"):
        load(settings)
    assert not check(settings).good


def test_copies_of_other_classes_in_a_carved_split_are_said(tmp_path: Path) -> None:
    images = some_images(20)
    write_folder(tmp_path / "set", {"a": images, "b": images})
    summary = summary_of(tmp_path / "set")
    assert summary.duplicates is not None
    assert summary.duplicates.relabelled == 20


@pytest.mark.parametrize("stream", [False, True])
def test_nearly_black_images_are_said(tmp_path: Path, stream: bool) -> None:
    masks = {name: some_images(10, seed=k) % 2 for k, name in enumerate("ab")}
    write_folder(tmp_path / "set", masks)
    (remark,) = summary_of(tmp_path / "set", stream=stream).remarks
    assert remark.startswith("All training images are nearly black: no value exceeds 1 of 255.")
    found = check(DataSettings(name=str(tmp_path / "set"))).summary
    assert found is not None
    assert found.remarks == (remark,)


@pytest.mark.parametrize("stream", [False, True])
def test_plans_say_when_a_later_image_may_have_a_colour(tmp_path: Path, stream: bool) -> None:
    """All images decide on colours, and a plan looks at the first ones."""
    grey = some_images(400, channels=1)
    write_folder(tmp_path / "set", {"a": grey[:200], "b": grey[200:], "c": some_images(9, seed=1)})
    settings = DataSettings(name=str(tmp_path / "set"), stream=stream)
    before = load_outline(settings, cache=tmp_path / "cache").data
    assert before.shape.channels == 1
    assert before.summary is not None
    assert "The first 256 training images are greyscale" in before.summary.remarks[0]
    assert load(settings, cache=tmp_path / "cache").shape.channels == 3
    after = load_outline(settings, cache=tmp_path / "cache").data
    assert after.shape.channels == 3
    assert after.summary is not None
    assert after.summary.remarks == ()
    in_grey = load_outline(settings.model_copy(update={"mode": "grey"}), cache=tmp_path / "cache")
    assert in_grey.data.summary is not None
    assert in_grey.data.summary.remarks == ()


def test_copies_within_a_split_are_counted(root: Path) -> None:
    content = (root / "seg_train" / "a" / "002.png").read_bytes()
    (root / "seg_train" / "a" / "copy.png").write_bytes(content)
    (root / "seg_train" / "b" / "copy.png").write_bytes(content)
    summary = summary_of(root)
    assert summary.duplicates is not None
    assert summary.duplicates.within == {"train": 2}
    assert summary.remarks == ("1 image is labelled with several classes.",)


@pytest.mark.parametrize("sampled", [False, True])
def test_keys_find_exactly_the_copies(sampled: bool) -> None:
    """Also among images that differ in one pixel only."""
    images = np.zeros((200, 1, 30, 30), np.uint8)
    for row in range(150):
        images[row].flat[row * 6] = 1
    train, test = images[:150], images[150:].copy()
    test[:20] = images[:20]
    keys = {"train": train, "test": test}
    exact = exact_keys(keys)
    if sampled:
        exact = {name: keys_of(pixels) for name, pixels in keys.items()}
    labels = {"train": np.zeros(150, np.int64), "test": np.zeros(50, np.int64)}
    found = duplicates(exact, labels)
    assert found.tested == 20
    assert found.within == {"test": 29}


@pytest.mark.parametrize("stream", [False, True])
def test_drawings_that_differ_in_a_spot_are_no_copies(tmp_path: Path, stream: bool) -> None:
    """A pass over streamed images keeps a key of some of their pixels alone."""
    places = iter(np.random.default_rng(0).permutation(31 * 31))
    for split in ("train", "test"):
        for name in ("a", "b"):
            drawings = np.full((10, 3, 64, 64), 255, np.uint8)
            for drawing in drawings:
                y, x = divmod(int(next(places)), 31)
                drawing[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = 0
            write_folder(tmp_path / "set" / split, {name: drawings})
    copied = tmp_path / "set" / "test" / "a" / "000.png"
    copied.write_bytes((tmp_path / "set" / "train" / "a" / "003.png").read_bytes())
    settings = DataSettings(name=str(tmp_path / "set"), stream=stream, copies="keep")
    summary = load(settings, cache=tmp_path / "cache").summary
    assert summary is not None
    assert summary.duplicates is not None
    assert (summary.duplicates.tested, summary.duplicates.within) == (1, {})
    assert summary.duplicates.relabelled == 0


def test_outlines_say_what_will_be_read(root: Path) -> None:
    outline = load_outline(DataSettings(name=str(root), image_size=8)).data.summary
    loaded = summary_of(root, image_size=8)
    assert outline is not None
    assert outline.splits == loaded.splits
    assert outline.duplicates is None


def test_summaries_survive_json(root: Path) -> None:
    summary = summary_of(root)
    assert DataSummary.from_json(json.loads(json.dumps(summary.to_json()))) == summary
    with pytest.raises(ArtifactError, match=r"splits\.train\.count"):
        DataSummary.from_json({**summary.to_json(), "splits": {"train": {"count": "many"}}})


def test_lines_fit_a_terminal(root: Path) -> None:
    write_folder(root / "seg_train", {f"class {k}": some_images(1, seed=50 + k) for k in range(30)})
    write_folder(root / "seg_test", {f"class {k}": some_images(1, seed=90 + k) for k in range(30)})
    lines = summary_of(root).lines()
    assert max(map(len, lines)) <= 80
    assert "and 12 more" in " ".join(map(str.strip, lines))


def spoil(root: Path) -> None:
    """Every kind of problem that a check finds."""
    train, test = root / "seg_train", root / "seg_test"
    (train / "a" / "empty.png").write_bytes(b"")
    (train / "a" / "broken.png").write_bytes(encode(some_images(1, side=64)[0])[:-900])
    (train / "b" / "deep.png").write_bytes(encode(np.full((1, 4, 4), 3000, np.uint16)))
    (train / "b" / "large.png").write_bytes(encode(some_images(1, side=9)[0]))
    (test / "a" / "copy.png").write_bytes((train / "a" / "002.png").read_bytes())
    (train / "b" / "other.png").write_bytes((train / "a" / "003.png").read_bytes())
    (train / "a" / "0.heic").write_bytes(b"")


def test_a_check_lists_all_problems_at_once(root: Path) -> None:
    spoil(root)
    found = check(DataSettings(name=str(root)))
    assert not found.good
    errors = [problem.what for problem in found.problems if problem.kind == "error"]
    assert len(errors) == 5
    for part in (
        "is empty (0 bytes)",
        "Cannot decode the image: ",
        "data.white_level",
        "2 different sizes, most often 4 x 4 (20), 9 x 9 (1): set 'data.image_size'",
        "1 image is duplicated in train and test",
    ):
        assert any(part in error for error in errors), part
    notes = [problem.what for problem in found.problems if problem.kind == "note"]
    assert notes == ["1 image is duplicated within train."]
    assert found.summary is not None
    assert found.summary.left_out == ("1 file with suffix .heic, which is not supported",)


def test_a_check_agrees_with_load(root: Path) -> None:
    settings = DataSettings(name=str(root), image_size=8)
    found = check(settings)
    assert found.good
    assert found.problems == ()
    assert found.summary == load(settings).summary


def test_a_check_lists_images_that_parquet_files_lack(tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "test")):
        contents: list[bytes | None] = [encode(image) for image in some_images(12, seed=seed)]
        contents[3] = b""
        contents[7] = None
        write_parquet(tmp_path / f"{name}.parquet", contents, [0, 1] * 6)
    found = check(DataSettings(name=str(tmp_path)))
    errors = [problem.what for problem in found.problems]
    assert len(errors) == 3
    assert sum("is empty (0 bytes)" in error for error in errors) == 1
    ending = "'img.bytes' is null. The images after it were not checked."
    assert sum(error.endswith(ending) for error in errors) == 2


def test_a_check_of_data_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    found = check(DataSettings(name=str(tmp_path / "nothing")))
    assert [problem.kind for problem in found.problems] == ["error"]


def test_the_command_prints_problems_and_exits_with_1(root: Path) -> None:
    run = CliRunner()
    assert run.invoke(app, ["data", "check", str(root)]).exit_code == 0
    spoil(root)
    printed = run.invoke(app, ["data", "check", str(root)])
    assert printed.exit_code == 1
    assert "error      Images have 2 different sizes" in printed.output
    as_json = run.invoke(app, ["data", "check", str(root), "data.image_size=8", "--json"])
    assert as_json.exit_code == 1
    tree = json.loads(as_json.output)
    assert not tree["good"]
    assert len(tree["problems"]) == 5


def test_a_check_names_settings_as_they_are_spelled(root: Path) -> None:
    refused = CliRunner().invoke(app, ["data", "check", str(root), "imagesize=8"])
    assert "did you mean 'data.image_size'?" in str(refused.exception)


def test_the_fraction_of_a_carved_split_is_not_rounded() -> None:
    summary = load(DataSettings(name="digits", validation_fraction=0.995)).summary
    assert summary is not None
    assert summary.splits["validation"].origin.startswith("99.5% of each class")


def test_help_names_layouts_and_settings() -> None:
    """What is known about own data is found without the source."""
    printed = " ".join(CliRunner().invoke(app, ["data", "check", "--help"]).output.split())
    for part in ("data=PATH", "<split>/<class>", "train-*.parquet", "x_train", "20 %"):
        assert part in printed, part
    for name in (*UNUSUAL, "image_size", "classes"):
        assert f"{name}=" in printed, name


def test_images_outside_of_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encode(some_images(1)[0]))
    with pytest.raises(DataError, match="outside of class folders; sort them into one folder per"):
        load(DataSettings(name=str(tmp_path)))
    (tmp_path / "labels.csv").write_text("0.png,cat")
    with pytest.raises(DataError, match=r"labels in tables \(.csv\) are not supported"):
        load(DataSettings(name=str(tmp_path)))
