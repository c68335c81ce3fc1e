"""Damaged and edited files of a run, a set and its exports: each is read as what was written, or
refused in one sentence, and nothing is written.

A damage is drawn (cut off, a bit flipped, another type, a key gone, twice or too many, a FIFO), laid
on a copy of a finished run, and everything is read that commands read.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayd.card_text import describe
from rayd.distilled import Distilled, load
from rayd.engine.distill import distill
from rayd.engine.progress import Progress
from rayd.engine.rundir import RunDirectory
from rayd.engine.status import status
from rayd.errors import RaydError
from rayd.evaluation.report import Report
from rayd.export import export
from rayd.recipes import restore
from tests.conftest import tiny

EXPORTS = {"npz": "set.npz", "parquet": "set.parquet", "safetensors": "set.st", "imagefolder": "f"}
TEXTS = ("config.yaml", "status.json", "evaluation.json", "distilled/card.json", "f/rayd.json")
"""Files that hold a tree of settings or entries."""
FILES = (
    *TEXTS,
    "metrics.jsonl",
    "distilled/data.safetensors",
    "set.npz",
    "set.parquet",
    "set.st",
    "f/3/00000.png",
)
VALUES = (None, True, -1, 0, 3.5, 1e999, 10**30, "", "x", "\ud800", [], [[]], ["a"], {}, {"a": 1})
"""What stands in place of a value of another type."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and its set in every format."""
    folder = tmp_path_factory.mktemp("whole")
    evaluation = {"seeds": 1, "epochs": 1, "baselines": []}
    recipe = tiny(evaluation=evaluation, synthesis={"clip": True})
    run = distill(recipe, folder / "run", cache=folder / "cache", progress=Progress(quiet=True))
    for format, name in EXPORTS.items():
        export(run.distilled, format, folder / "run" / name)
    shutil.rmtree(folder / "run" / "tensorboard")
    return folder / "run"


def check_run(root: Path, truth: Distilled) -> None:
    """Read a run and its set."""
    read(lambda: status(root).text())
    read(lambda: RunDirectory(root).recipe())
    report = read(lambda: Report.kept(root))
    if report is not None:
        read(report.text)
    found = read(lambda: load(root))
    if found is not None:
        same(found, truth)
        assert found.class_names == truth.class_names
        read(lambda: describe(found, report))
        read(lambda: restore(found.card["config"], {}, "the card's recipe"))


def check_export(path: Path, truth: Distilled) -> None:
    """Read an export, which holds the card as well."""
    exported = read(lambda: load(path))
    if exported is not None:
        same(exported, truth)
        assert exported.class_names == truth.class_names
        assert exported.card == {k: v for k, v in truth.card.items() if k != "sha256"}


def read(action: Callable[[], Any]) -> Any:
    """What an action returns, or None if it is refused in a sentence."""
    try:
        return action()
    except RaydError as error:
        message = str(error)
        assert message.endswith(".")
        assert len(message.splitlines()) == 1
        assert len(message) < 1000
        return None


def same(found: Distilled, truth: Distilled) -> None:
    torch.testing.assert_close(found.images, truth.images, atol=2 / 255 / 0.3, rtol=0)
    assert torch.equal(found.labels, truth.labels)


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, str, tuple[Any, ...]]:
    """A file, what happens to it, and how."""
    kind = draw(st.sampled_from(["cut", "flip", "swap", "kind", "edit", "edit", "edit"]))
    name = draw(st.sampled_from(TEXTS if kind == "edit" else FILES))
    place = draw(st.floats(0, 1, exclude_max=True))
    match kind:
        case "cut":
            return name, kind, (place,)
        case "flip":
            return name, kind, (place, draw(st.integers(0, 7)))
        case "swap":
            return name, kind, (draw(st.sampled_from(FILES)),)
        case "kind":
            return name, kind, (draw(st.sampled_from(["fifo", "directory", "nothing", "empty"])),)
    change = draw(st.sampled_from(["type", "gone", "more", "twice"]))
    return name, kind, (place, change, draw(st.sampled_from(VALUES)))


def apply(root: Path, whole: Path, name: str, kind: str, how: tuple[Any, ...]) -> None:
    """Damage a file."""
    path = root / name
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[: int(how[0] * len(content))])
    elif kind == "flip":
        at = int(how[0] * len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << how[1]]) + content[at + 1 :])
    elif kind == "swap":
        path.write_bytes((whole / how[0]).read_bytes())
    elif kind == "kind":
        path.unlink()
        match how[0]:
            case "fifo":
                os.mkfifo(path)
            case "directory":
                path.mkdir()
            case "empty":
                path.touch()
    else:
        path.write_text(edited(content.decode(), path.suffix == ".yaml", *how), "utf-8")


def edited(text: str, is_yaml: bool, at: float, change: str, value: object) -> str:
    """A tree in which one of all entries is another."""
    head = text.partition("\n")[0] + "\n" if is_yaml else ""
    tree = yaml.safe_load(text) if is_yaml else json.loads(text)
    places = list(entries(tree))
    parent, key = places[int(at * len(places))]
    twice = "twice ' \" of it"
    match change:
        case "type":
            parent[key] = value
        case "gone":
            del parent[key]
        case "more" if isinstance(parent, dict):
            parent["no such entry"] = value
        case "twice" if isinstance(parent, dict):
            parent[twice] = parent[key]
    written = yaml.safe_dump(tree, sort_keys=False) if is_yaml else json.dumps(tree)
    for quote in (json.dumps, yaml.safe_dump):
        old = quote(twice).strip()
        written = written.replace(old, json.dumps(str(key)))
    return head + written


def entries(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a tree."""
    found = []
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        found.append((tree, key))
        if isinstance(value, dict | list):
            found += entries(value)
    return found


def try_one(whole: Path, tmp_path: Path, damage: tuple[str, str, tuple[Any, ...]]) -> None:
    root = tmp_path / "copy"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root)
    apply(root, whole, *damage)
    names = sorted(root.rglob("*"))
    top = damage[0].partition("/")[0]
    if top in EXPORTS.values():
        check_export(root / top, load(whole))
    else:
        check_run(root, load(whole))
    assert sorted(root.rglob("*")) == names


COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


def test_what_is_whole_is_read(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    truth = load(whole)
    check_run(tmp_path / "copy", truth)
    for name in EXPORTS.values():
        check_export(tmp_path / "copy" / name, truth)
        same(load(tmp_path / "copy" / name), truth)
    assert load(tmp_path / "copy").card["recipe"] == "tiny"


@settings(max_examples=60, derandomize=True, **COMMON)
@given(damage=damages())
def test_damage_is_refused_in_a_sentence(whole, tmp_path, damage):
    try_one(whole, tmp_path, damage)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=1000, **COMMON)
@given(damage=damages())
def test_much_damage_is_refused_in_a_sentence(whole, tmp_path, damage):
    try_one(whole, tmp_path, damage)
