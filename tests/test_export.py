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

import rayd
from rayd import plugins
from rayd.artifacts import content_hash
from rayd.cli import main
from rayd.config import DataSettings
from rayd.data import Standardization, Whitening
from rayd.data import load as load_data
from rayd.distilled import Distilled, load
from rayd.engine.distill import distill
from rayd.engine.progress import Progress
from rayd.engine.run import Run
from rayd.errors import ArtifactError, ConfigError, OutputError, RunError
from rayd.export import WRITERS, export, folders
from tests.conftest import tiny

FORMATS = tuple(WRITERS)
SOFT = torch.tensor([0.7, 0.2, 0.1])


def distilled(
    names: tuple[str, ...] = ("zebra", "ape", "cat"),
    channels: int = 3,
    soft: bool = False,
    kind: type[Standardization] | type[Whitening] = Standardization,
    shift: float = 0.0,
) -> Distilled:
    """A set of images of 8 bits; `shift` moves them, and some of them out of 0..1."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, channels, 4, 5), generator=draw, dtype=torch.uint8)
    normalization = kind.fit(images.numpy())
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    inputs = normalization.forward_unit(images / 255 + shift) if shift else normalization(images)
    soft_labels = torch.stack([SOFT.roll(int(label)) for label in labels])
    return Distilled(inputs, soft_labels if soft else labels, names, normalization, {"seed": 3})


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
    written = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert written == folders(names)


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
            found = sorted(path.name for path in destination.iterdir())
            assert found == ["rayd.json", "x", "y", "z"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("first", ["npz", "imagefolder"])
@pytest.mark.parametrize("second", ["npz", "imagefolder"])
def test_a_file_and_a_folder_replace_each_other(tmp_path, first, second):
    destination = tmp_path / "out"
    export(distilled(), first, destination)
    export(distilled(("x", "y", "z")), second, destination, overwrite=True)
    assert load(destination).class_names == ("x", "y", "z")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        export(distilled(), "imagefolder", tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_folder_of_photos_is_never_replaced(tmp_path):
    (tmp_path / "cats").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "cats" / "mine.png")
    with pytest.raises(OutputError, match="is not an export"):
        export(distilled(), "imagefolder", tmp_path, overwrite=True)
    assert (tmp_path / "cats" / "mine.png").exists()


def test_what_a_link_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    export(distilled(), "imagefolder", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]
    assert (tmp_path / "disk" / "rayd.json").exists()


def test_the_current_folder_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(distilled(), "npz", ".", overwrite=True)
    assert len(load(tmp_path / "here")) == 6


def test_a_failed_write_names_the_destination(tmp_path, monkeypatch):
    def full(path, *_):
        raise RunError(f"Cannot write '{path}': No space left on device.")

    monkeypatch.setattr("rayd.export.write_tensors", full)
    with pytest.raises(OutputError) as caught:
        export(distilled(), "safetensors", tmp_path / "out")
    assert str(caught.value) == f"Cannot write '{tmp_path / 'out'}': No space left on device."


@pytest.mark.parametrize("name", ["distilled", "card.json"])
def test_a_class_may_be_called_like_a_part_of_a_run(tmp_path, name):
    export(distilled(("ape", name, "zebra")), "imagefolder", tmp_path / "out")
    assert load(tmp_path / "out").class_names == ("ape", name, "zebra")


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'parquet'"):
        export(distilled(), "parket", tmp_path / "out")
    with pytest.raises(OutputError, match="at most 4 channels"):
        export(distilled(channels=5), "imagefolder", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        export(distilled(), "npz", tmp_path / "file" / "out")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("kind", [Standardization, Whitening])
def test_an_export_is_read_back_as_the_set_or_refused(tmp_path, format, soft, shift, kind):
    made = distilled(soft=soft, shift=shift, kind=kind)
    destination = tmp_path / "out"
    if format == "imagefolder" and (soft or shift):
        with pytest.raises(OutputError, match="--format safetensors or npz, which hold it"):
            export(made, format, destination)
        assert not destination.exists()
        return
    export(made, format, destination)
    back = load(destination)
    # images of 8 bits come back to the last bits of a float
    torch.testing.assert_close(back.images, made.images, atol=1e-4, rtol=1e-5)
    assert torch.equal(back.labels, made.labels)
    assert back.class_names == made.class_names
    assert back.normalization.fingerprint == made.normalization.fingerprint
    assert back.card == made.card
    if shift:
        assert torch.equal(back.images, made.images)


@pytest.mark.parametrize("format", ["safetensors", "npz", "parquet", "imagefolder", "hub"])
def test_an_export_is_read_whatever_became_of_own_parts(tmp_path, monkeypatch, format):
    """A card may name a method or data of a file that another machine does not have."""
    monkeypatch.setattr(plugins, "source_of", lambda _: {"flowers:small": "before"})
    export(distilled(), format, tmp_path / "out")
    monkeypatch.setattr(plugins, "source_of", lambda _: {})
    assert len(load(tmp_path / "out")) == 6


def test_exports_of_older_versions_with_own_parts_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "source_of", lambda _: {"flowers:small": "the same"})
    monkeypatch.setattr("rayd.export.text_hash", content_hash)
    export(distilled(), "npz", tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="does not hold the set that was exported"):
        load(tmp_path / "out")
    monkeypatch.setattr(plugins, "source_of", lambda _: {"flowers:small": "the same"})
    assert len(load(tmp_path / "out")) == 6


def test_low_rank_images_are_exported_as_images(tmp_path):
    run = rayd.distill(
        tiny_file(tmp_path, synthetic={"kind": "lowrank", "rank": 3}),
        out=tmp_path / "run",
        quiet=True,
    )
    for format in ("npz", "safetensors", "parquet"):
        export(run.distilled, format, tmp_path / format)
        assert torch.equal(load(tmp_path / format).images, run.distilled.images)


def test_what_is_lost_is_measured_and_said(tmp_path):
    made = distilled(soft=True, shift=0.3)
    with pytest.raises(OutputError) as refused:
        export(made, "imagefolder", tmp_path / "out")
    assert "% of the values lie outside 0..1, from 0.3 to 1.3" in str(refused.value)
    assert "its labels are soft" in str(refused.value)
    lost = export(made, "imagefolder", tmp_path / "out", lossy=True)
    assert len(lost) == 2
    assert torch.equal(load(tmp_path / "out").labels, made.hard_labels)
    said = " ".join(export(made, "parquet", tmp_path / "table"))
    assert "Labels are soft, in 'soft_label': 'label' is only the largest entry" in said
    assert "clamped in 'image'" in said
    assert export(distilled(), "npz", tmp_path / "exact") == []
    assert export(made, "safetensors", tmp_path / "all") == []


def test_classes_that_soft_labels_leave_without_images_are_counted(tmp_path):
    made = distilled(soft=True)
    one_sided = Distilled(made.images, SOFT.repeat(6, 1), made.class_names, made.normalization)
    said = export(one_sided, "parquet", tmp_path / "out")
    assert "no image has its largest entry for 2 of 3 classes" in said[0]


def test_a_large_whitening_matrix_needs_a_file_of_tensors(tmp_path):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 14, 14), generator=draw, dtype=torch.uint8)
    normalization = Whitening.fit(images.numpy())
    made = Distilled(normalization(images), torch.tensor([0, 0, 1, 1]), ["a", "b"], normalization)
    with pytest.raises(OutputError, match="whitening matrix is too large for JSON"):
        export(made, "parquet", tmp_path / "out")
    export(made, "npz", tmp_path / "out.npz")
    assert torch.equal(load(tmp_path / "out.npz").normalization.state()["mean"], normalization.mean)
    export(made, "parquet", tmp_path / "out", lossy=True)
    with pytest.raises(ArtifactError, match="without its whitening matrix"):
        load(tmp_path / "out")


@pytest.mark.parametrize("format", ["npz", "parquet", "imagefolder"])
def test_an_export_is_data_as_well(tmp_path, format):
    made = distilled(channels=1)
    destination = tmp_path / f"out{'.npz' * (format == 'npz')}"
    export(made, format, destination)
    (tmp_path / "more").mkdir()
    data = load_data(DataSettings(name=str(destination), image_size=4))
    assert sorted(data.class_names) == sorted(folders(made.class_names)) or (
        data.class_names == made.class_names
    )


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_an_export_out_of_range_is_data_as_well(tmp_path, format):
    made = distilled(soft=True, shift=0.3)
    destination = tmp_path / f"out{'.npz' * (format == 'npz')}"
    export(made, format, destination)
    data = load_data(DataSettings(name=str(destination)))
    assert len(data.train) + len(data.test) == len(made)


def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "set.npz").touch()
    monkeypatch.setattr("rayd.export._magic", forbidden)
    with pytest.raises(ArtifactError, match=r"Cannot read '.*set\.npz': Permission denied"):
        load(tmp_path / "set.npz")


def test_a_parquet_file_of_a_stranger_is_no_export(tmp_path):
    pd.DataFrame({"label": [0, 1]}).to_parquet(tmp_path / "some.parquet")
    with pytest.raises(ArtifactError, match="holds no card of a distilled set") as caught:
        load(tmp_path / "some.parquet")
    # a single file is no data set either
    assert "data=" not in str(caught.value)


def tiny_file(folder, **overrides):
    """A recipe file that ends in seconds."""
    path = folder / "tiny.yaml"
    path.write_text(tiny(**overrides).to_yaml())
    return path


DECOUPLED = {
    "method": "sre2l",
    "observers": {"networks": {"name": "convnet", "depth": 2, "width": 8, "norm": "batch"}},
    "squeeze": {"epochs": 2},
    "synthesis": {"steps": 10},
}
LABELS = {
    "hard": {"synthesis": {"steps": 40, "clip": True}},
    "out of range": {"synthesis": {"steps": 40}},
    "learned": {
        "method": "frepo",
        "observers": {"pool": 3, "per_step": 1},
        "synthetic": {"labels": "classes"},
        "synthesis": {"steps": 10, "learning_rate": 0.02},
    },
    "online": DECOUPLED,
    "stored": {**DECOUPLED, "labels": {"kind": "stored"}},
}
"""Settings for sets with each kind of labels."""


@pytest.fixture(scope="module", params=LABELS)
def run(request, tmp_path_factory) -> Run:
    """A finished run for each kind of labels."""
    folder = tmp_path_factory.mktemp("run")
    evaluation = {"seeds": 2, "epochs": 25, "baselines": []}
    recipe = tiny(evaluation=evaluation, **LABELS[request.param])
    return distill(recipe, folder / "run", cache=folder / "cache", progress=Progress(quiet=True))


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_has_the_accuracy_of_the_report(run, tmp_path, format):
    """Or it is refused."""
    destination = tmp_path / "out"
    try:
        export(run.distilled, format, destination)
    except OutputError:
        assert format == "imagefolder"
        soft = run.distilled.labels.is_floating_point()
        assert soft or not run.distilled.pixel_range.fits
        return
    reported = run.report.results[0].test_accuracy
    given = {"quiet": True, "cache": run.directory.parent / "cache", "resources": {"threads": 1}}
    if "labels" in run.distilled.card:
        with pytest.raises(ConfigError, match=r"set labels\.kind=online"):
            rayd.evaluate(load(destination), **given)
        given["labels"] = {"kind": "online"}
    found = rayd.evaluate(load(destination), **given).results[0].test_accuracy
    spread = max(reported.std or 0, found.std or 0, 0.01)
    assert abs(found.mean - reported.mean) <= spread
    if not run.distilled.pixel_range.fits and "labels" not in given:
        assert found.runs == reported.runs


def test_the_command_line_says_what_is_lost_and_evaluates_exports(tmp_path, capsys):
    made = distilled(soft=True)
    made.save(tmp_path / "set")
    with pytest.raises(SystemExit) as stop:
        main(["export", str(tmp_path / "set"), str(tmp_path / "out"), "--format", "imagefolder"])
    assert stop.value.code == 2
    assert "its labels are soft" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["export", str(tmp_path / "set"), str(tmp_path / "out"), "--format", "parquet"])
    assert stop.value.code == 0
    assert "soft_label" in capsys.readouterr().err
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(SystemExit) as stop:
        main(["show", str(tmp_path / "out")])
    assert stop.value.code == 0
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "holds no recipe" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
