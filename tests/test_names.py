"""Names of files: home directories, titles of data, and names that lead out of their folder, which
every reader refuses, so that nothing is written elsewhere.
"""

import json
import os
from pathlib import Path

import pytest
import torch

import rayd
import tuning
from rayd import remote
from rayd.callbacks import CSVLogger
from rayd.data.files import Listing
from rayd.data.normalization import Standardization
from rayd.data.sources import open_source
from rayd.distilled import Distilled, load
from rayd.errors import ArtifactError, ConfigError, DataError, RaydError
from rayd.export import folders
from rayd.hub import readme
from rayd.names import inside
from rayd.page.page import write as write_page

HOSTILE = (
    "../escaped",
    "../../../../escaped",
    "a/../../escaped",
    "/escaped",
    "..\\..\\escaped",
    "a\\..\\..\\escaped",
    "a\0/../escaped",
)
HARMLESS = ("a", "a/b.png", "..a/b..", "a/...", "c:1.png", "2024-01-01T10:00/x", "ä b", ".hidden")


def test_a_home_directory_is_found_by_every_reader_of_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "low.yaml").write_text("base: digits\nipc: 3\n")
    (tmp_path / "top.yaml").write_text("base: ~/low.yaml\nseed: 4\n")
    recipe = rayd.recipes.resolve("~/top.yaml")
    assert (recipe.ipc, recipe.seed) == (3, 4)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "space.yaml").write_text(
        "base: ~/top.yaml\nsearch: {synthesis.steps: {choice: [1, 2]}}\n"
    )
    space = tuning.load("~/own/space.yaml")
    assert space.base == (str(tmp_path / "top.yaml"),)
    with pytest.raises(ConfigError, match="is a directory, not a recipe"):
        rayd.recipes.find("~/own")
    CSVLogger("~/own/metrics.csv").on_run_start(tmp_path, recipe)
    write_page(Path("~/own/page.html"), "a page")
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == [
        "metrics.csv",
        "page.html",
        "space.yaml",
    ]


def test_the_home_of_nobody_is_a_name_like_any_other():
    with pytest.raises(DataError, match=r"There is no data set at '~nobody-of-this-name/x'"):
        open_source("~nobody-of-this-name/x")


@pytest.mark.parametrize(
    ("name", "title"),
    [("photos/v1.2", "v1.2"), ("./photos/", "photos"), ("a/b.npz", "b"), ("cifar10", "cifar10")],
)
def test_data_are_called_by_the_name_of_their_folder(name, title):
    """A folder's name may have a dot: two versions are two titles."""
    recipe = rayd.recipes.resolve("digits", {"data.name": name})
    assert recipe.name == f"dm-{title}-ipc1"
    images = torch.zeros(2, 1, 4, 4)
    half = torch.full((1,), 0.5, dtype=torch.float64)
    card = {"data": {"name": recipe.data.name}}
    made = Distilled(images, torch.arange(2), ["a", "b"], Standardization(half, half), card)
    assert f"from {title} with rayd" in readme(made)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_out_of_a_folder_are_refused(name):
    with pytest.raises(ArtifactError, match=r"leads out of that folder; rename or remove it\.$"):
        inside(name, "somewhere")


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_names_are_kept(name):
    assert inside(name, "somewhere") == name


def lists_hostile_names(system, monkeypatch, name):
    """Make a storage report a name that no client of it would write."""
    found = {"name": name, "type": "file", "size": 1, "mtime": 1.0}
    monkeypatch.setattr(system, "find", lambda *_, **__: {name: found})
    monkeypatch.setattr(system, "ls", lambda *_, **__: [name])
    monkeypatch.setattr(
        system, "get", lambda names, targets: [Path(path).write_bytes(b"x") for path in targets]
    )


@pytest.mark.parametrize("name", HOSTILE[:3])
@pytest.mark.parametrize(
    "read",
    [
        remote.bring_all,
        remote.files,
        Listing.of,
        remote.size,
        lambda folder: open_source(remote.url(folder)),
    ],
    ids=["bring_all", "files", "listing", "size", "data"],
)
def test_a_hostile_bucket_writes_nothing_outside_of_its_mirror(tmp_path, monkeypatch, name, read):
    monkeypatch.setenv("RAYD_MIRROR", str(tmp_path / "mirrors"))
    system = remote._filesystem("memory")
    lists_hostile_names(system, monkeypatch, f"/bucket/run/{name}")
    monkeypatch.setattr(system, "info", lambda *_: {"name": "/bucket/run", "type": "directory"})
    folder = remote.local("memory://bucket/run")
    with pytest.raises(RaydError, match=r"leads out of that folder"):
        read(folder)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("url", ["memory://bucket/../../../../x", "memory://../x"])
def test_a_url_that_leads_out_of_its_storage_is_refused(url):
    with pytest.raises(ConfigError, match="leads out of that folder"):
        remote.local(url)


def test_a_card_names_files_of_its_own_folder_only(tmp_path):
    one = Distilled(
        images=torch.zeros(2, 1, 4, 4),
        labels=torch.tensor([0, 1]),
        class_names=("a", "b"),
        normalization=Standardization(torch.zeros(1), torch.ones(1)),
    )
    one.save(tmp_path / "set")
    path = tmp_path / "set" / "card.json"
    card = json.loads(path.read_text())
    for name in HOSTILE:
        path.write_text(json.dumps({**card, "labels": {"folder": name, "epochs": 1}}))
        with pytest.raises(ArtifactError, match=r"in '.*card\.json' leads out of that folder"):
            load(tmp_path / "set")


def test_folders_of_an_export_do_not_follow_class_names():
    for folder in folders([*HOSTILE, "..", "", "."]):
        assert os.path.basename(folder) == folder
        assert folder.strip(".")
