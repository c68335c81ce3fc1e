"""Own methods, terms and networks, from modules outside the package."""

import json
import sys
from contextlib import suppress
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

import rayd
from rayd import methods, networks, parts
from rayd.artifacts import content_hash
from rayd.cli import main
from rayd.config import NetworkSettings
from rayd.data import ImageShape
from rayd.errors import ConfigError
from tests.test_cli import QUICK

MODULE = """
from typing import ClassVar
from torch import nn
from rayd.methods import Method
from rayd.objectives import MeanMatching
from rayd.objectives.terms import Term


class Mine(Method):
    name = "{name}"
    citation = "@misc{{mine}}"

    @classmethod
    def objective(cls, recipe):
        return (MeanMatching(),)


class Nameless(Method):
    citation = ""

    @classmethod
    def objective(cls, recipe):
        return (MeanMatching(),)


class Brightness(Term):
    name = "{name}-brightness"
    for_any_method = True

    def __call__(self, real, seen, labels, context):
        return seen.images.square().mean()


def small(shape, classes):
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * height * width, classes),
    )


def narrow(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape.channels * shape.height * shape.width, 3))
"""


@pytest.fixture
def own(tmp_path, monkeypatch, request):
    """A file with own parts, in a folder that is not on sys.path."""
    name = f"own_{abs(hash(request.node.name))}"
    file = tmp_path / f"{name}.py"
    file.write_text(MODULE.format(name=name))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(parts, "_LOADED", {})
    monkeypatch.setattr(parts, "_OWNERS", {})
    return file


def test_parts_by_module_and_name(own, monkeypatch):
    monkeypatch.syspath_prepend(own.parent)
    name = own.stem
    assert methods.get(f"{name}:Mine").name == name
    recipe = rayd.recipes.resolve(
        "digits",
        {
            "method": f"{name}:Mine",
            "terms": {f"{name}-brightness": {"weight": 0.1}},
            "observers.networks": f"{name}:small",
        },
    )
    assert [term.name for term in methods.build(recipe).terms] == ["mean", f"{name}-brightness"]
    network = networks.build(NetworkSettings(name=f"{name}:small"), ImageShape(1, 8, 8), 10, 0)
    again = networks.build(NetworkSettings(name=f"{name}:small"), ImageShape(1, 8, 8), 10, 0)
    assert torch.equal(network[0].weight, again[0].weight)
    by_spec = rayd.recipes.resolve("digits", {"terms": {f"{name}:Brightness": {"weight": 0.5}}})
    assert [term.weight for term in methods.build(by_spec).terms] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("{}:Absent", "has no 'Absent'"),
        ("no_such_module:Mine", "No module named"),
        ("{}:small", "must be a subclass of rayd.methods.Method"),
        ("{}:Nameless", "has no name"),
    ],
)
def test_what_is_no_method_is_refused(own, monkeypatch, spec, sentence):
    monkeypatch.syspath_prepend(own.parent)
    with pytest.raises(ConfigError, match=sentence):
        methods.get(spec.format(own.stem))


def test_two_methods_of_one_name_are_refused(own):
    parts.load_file(own)
    with pytest.raises(ConfigError, match=f"two methods named '{own.stem}'"):
        type("Other", (methods.Method,), {"name": own.stem})


def test_logits_that_do_not_fit_are_refused(own, monkeypatch):
    monkeypatch.syspath_prepend(own.parent)
    spec = NetworkSettings(name=f"{own.stem}:narrow")
    with pytest.raises(ConfigError, match=r"logits \(2, 10\).*Got \(2, 3\)"):
        networks.build(spec, ImageShape(1, 8, 8), 10)


def test_keys_depend_on_the_source_of_own_parts(own, monkeypatch):
    monkeypatch.syspath_prepend(own.parent)
    plain = content_hash({"method": "dm"})
    methods.get(f"{own.stem}:Mine")
    names = [f"{own.stem}:Mine", own.stem]
    before = [content_hash({"method": name}) for name in names]
    assert content_hash({"method": "dm"}) == plain
    own.write_text(own.read_text() + "\n# another version\n")
    parts._digest.cache_clear()
    after = [content_hash({"method": name}) for name in names]
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert content_hash({"method": "dm"}) == plain


def test_entry_points_are_found_and_failures_told(own, monkeypatch):
    monkeypatch.syspath_prepend(own.parent)
    points = {
        "rayd.methods": [EntryPoint("theirs", f"{own.stem}:Mine", "rayd.methods")],
        "rayd.networks": [EntryPoint("broken", "no_such_module:net", "rayd.networks")],
    }
    monkeypatch.setattr(parts, "entry_points", lambda group: points.get(group, []))
    parts.discovered.cache_clear()
    try:
        assert methods.get("theirs").name == own.stem
        with pytest.raises(ConfigError, match=r"'broken' of rayd.networks .* failed to load"):
            networks.build(NetworkSettings(name="broken"), ImageShape(1, 8, 8), 10)
        from rayd.engine.doctor import _parts

        assert [finding.status for finding in _parts()] == ["good", "wrong"]
    finally:
        parts.discovered.cache_clear()


def test_a_file_on_the_command_line_with_and_without_workers(own, tmp_path, capsys):
    """The same bytes: workers import the file, too."""
    name = own.stem
    settings = [f"method={name}", f"terms.{name}-brightness.weight=0.01", *QUICK]
    settings += ["evaluation.baselines=[]", f"observers.networks={name}:small"]
    settings = [one for one in settings if "observers.networks." not in one]
    images = []
    for workers in (0, 2):
        out = tmp_path / f"run{workers}"
        arguments = ["distill", "digits", "--import", str(own), *settings, "--quiet"]
        arguments += ["--out", str(out), "--cache", str(tmp_path / f"cache{workers}")]
        main_exit([*arguments, "--workers", str(workers), "--json"])
        images.append((out / "distilled" / "data.safetensors").read_bytes())
        assert json.loads(capsys.readouterr().out)["results"]
    assert images[0] == images[1]


def main_exit(arguments: list[str]) -> None:
    """Run a command that succeeds."""
    with suppress(SystemExit):
        main(arguments)


def test_a_missing_file_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["recipes", "--import", str(tmp_path / "nothing.py")])
    assert stop.value.code == 2
    assert "there is no such file" in capsys.readouterr().err
    assert not Path("nothing.py").exists()
