"""Own methods, terms and networks, from modules outside the package."""

import importlib
import json
import sys
from contextlib import suppress
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import yaml

import rayd
from rayd import methods, networks, plugins
from rayd.artifacts import content_hash
from rayd.cli import main
from rayd.config import DataSettings, NetworkSettings
from rayd.data import ImageShape, load
from rayd.engine.rundir import continuation
from rayd.errors import ConfigError, DataError, OutputError, RaydError
from tests.test_cli import QUICK

MODULE = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn
from rayd.methods import Method
from rayd.objectives import MeanMatching
from rayd.objectives.terms import Term
from rayd.statistics import Statistic, Vectors


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


@dataclass(frozen=True, eq=False)
class Spread(Statistic):

    count: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def empty(cls, classes, dimension):
        zeros = torch.zeros(classes, dimension, dtype=torch.float64)
        return cls(torch.zeros(classes, dtype=torch.float64), zeros)

    def merge(self, other):
        return type(self)(self.count + other.count, self.squares + other.squares)

    def like(self, features, labels, transform=Vectors()):
        vectors = transform.vectors(features)
        member = torch.nn.functional.one_hot(labels, len(self.count)).to(vectors.dtype)
        squares = member.T @ vectors.square().sum(1)
        return type(self)(member.sum(0) * vectors.shape[1], squares)

    def distance(self, synthetic):
        ours = synthetic.squares / synthetic.count.clamp(min=1).unsqueeze(1)
        theirs = self.squares / self.count.clamp(min=1).unsqueeze(1)
        return (ours - theirs.to(ours.dtype)).square().sum()


class Mute(Statistic):
    empty = Spread.empty
    merge = Spread.merge
    like = Spread.like


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 1, 8, 8, generator=generator)
    return pixels, torch.arange(count) % 10


def data():
    return {{"train": images(60, 0), "test": images(20, 1), "class_names": list("abcdefghij")}}


def mapping_without_train():
    return {{"test": images(20, 1)}}


def broken():
    raise OSError("no disk")


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
    monkeypatch.setattr(plugins, "_LOADED", {})
    monkeypatch.setattr(plugins, "_IMPORTED", [])
    monkeypatch.setattr(plugins, "_OWNERS", {})
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
    plugins.load_file(own)
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
    plugins._MODULES.clear()
    after = [content_hash({"method": name}) for name in names]
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert content_hash({"method": "dm"}) == plain


def test_keys_depend_on_the_source_of_own_terms(own):
    """A term is named without its module: `terms.brightness.weight=0.1 --import my_method.py`."""
    plugins.load_file(own)
    content = {"method": "dm", "terms": {f"{own.stem}-brightness": {"weight": 0.1}}}
    before = content_hash(content)
    own.write_text(own.read_text().replace("square().mean()", "abs().mean()"))
    plugins._MODULES.clear()
    assert content_hash(content) != before


def test_a_run_is_not_continued_with_another_version_of_a_term(own, tmp_path):
    plugins.load_file(own)
    term = f"{own.stem}-brightness"
    arguments = {
        "out": tmp_path / "run",
        "cache": tmp_path / "cache",
        "quiet": True,
        "settings": {
            f"terms.{term}.weight": 1.0,
            "synthesis.steps": 1,
            "observers.pool": 1,
            "evaluation.seeds": 1,
            "evaluation.epochs": 1,
            "evaluation.baselines": [],
        },
    }
    rayd.distill("digits", **arguments)
    own.write_text(own.read_text().replace("square().mean()", "abs().mean()"))
    plugins._MODULES.clear()
    with pytest.raises(OutputError, match=rf"holds a run .* another version of '{term}'"):
        rayd.distill("digits", **arguments, resume=True)


def test_a_module_that_is_reloaded_is_read_again(own, monkeypatch):
    """As notebooks with `%autoreload` do, of a module or of one that it uses."""
    helper = own.with_name(f"other_{own.stem}.py")
    helper.write_text("FACTOR = 1\n")
    own.write_text(f"import {helper.stem}\n{own.read_text()}")
    monkeypatch.syspath_prepend(own.parent)
    methods.get(f"{own.stem}:Mine")
    content = {"method": own.stem}
    before = content_hash(content)
    helper.write_text("FACTOR = 2\n")
    importlib.reload(sys.modules[helper.stem])
    assert content_hash(content) != before


def test_entry_points_are_found_and_failures_told(own, monkeypatch):
    monkeypatch.syspath_prepend(own.parent)
    points = {
        "rayd.methods": [EntryPoint("theirs", f"{own.stem}:Mine", "rayd.methods")],
        "rayd.networks": [EntryPoint("broken", "no_such_module:net", "rayd.networks")],
    }
    monkeypatch.setattr(plugins, "entry_points", lambda group: points.get(group, []))
    plugins.discovered.cache_clear()
    try:
        assert methods.get("theirs").name == own.stem
        with pytest.raises(ConfigError, match=r"'broken' of rayd.networks .* failed to load"):
            networks.build(NetworkSettings(name="broken"), ImageShape(1, 8, 8), 10)
        from rayd.engine.doctor import _parts

        assert [finding.status for finding in _parts()] == ["good", "wrong"]
    finally:
        plugins.discovered.cache_clear()


def test_a_file_on_the_command_line_with_and_without_workers(own, tmp_path, capsys):
    """The same bytes, and the same keys: every process imports the file."""
    name = own.stem
    settings = [one for one in QUICK if not one.startswith("observers.networks.")]
    settings += [
        f"method={name}",
        f"terms.{name}-brightness.weight=0.01",
        f"terms.statistic.of={name}:Spread",
        f"observers.networks={name}:small",
        "evaluation.baselines=[]",
    ]
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


def test_the_command_that_continues_a_run_imports_its_parts(own):
    assert "--import" not in continuation(Path("/runs/a"))
    plugins.load_file(own)
    assert continuation(Path("/runs/a")) == f"rayd distill --resume /runs/a --import {own}"


def test_data_by_module_and_name(own, monkeypatch, tmp_path):
    """Any part gives the data; the run remembers its name, and is continued by it."""
    monkeypatch.syspath_prepend(own.parent)
    name = f"{own.stem}:data"
    settings = {"data": name, "evaluation.baselines": []}
    for override in QUICK:
        key, _, value = override.partition("=")
        settings[key] = yaml.safe_load(value)
    run = rayd.distill("digits", out=tmp_path / "run", settings=settings, quiet=True)
    assert run.recipe.data.name == name
    assert run.distilled.class_names == tuple("abcdefghij")
    again = rayd.distill(resume=tmp_path / "run", quiet=True)
    assert torch.equal(again.distilled.images, run.distilled.images)
    planned = rayd.plan("digits", settings=settings)
    assert "60 training images" in planned.text()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mapping_without_train", "be a data set, or a mapping with 'train'.*Got test instead"),
        ("broken", r"cannot be read \(OSError: no disk\)"),
        ("absent", "has no 'absent'"),
    ],
)
def test_data_that_cannot_be_read_are_refused(own, monkeypatch, name, sentence):
    monkeypatch.syspath_prepend(own.parent)
    with pytest.raises(RaydError, match=sentence):
        load(DataSettings(name=f"{own.stem}:{name}"))


def test_a_statistic_by_name_is_a_term_of_any_method(own, monkeypatch):
    monkeypatch.syspath_prepend(own.parent)
    spec = f"{own.stem}:Spread"
    recipe = rayd.recipes.resolve("digits", {"terms.statistic.of": spec})
    term = methods.build(recipe).terms[-1]
    features = torch.rand(6, 4, requires_grad=True)
    labels = torch.arange(6) % 2
    real = torch.rand(10, 4)
    real_labels = torch.arange(10) % 2
    library = rayd.terms.StatisticMatching(of=spec)
    loss = library(real, features, real_labels, labels)
    gaps = [
        real[real_labels == label].square().mean(0) - features[labels == label].square().mean(0)
        for label in (0, 1)
    ]
    torch.testing.assert_close(loss, torch.stack(gaps).square().sum())
    loss.backward()
    assert features.grad.abs().sum() > 0
    assert term.spec.sources.keys() == {spec}
    assert not rayd.objectives.MeanMatching().spec.sources
    means = rayd.terms.StatisticMatching()(real, features, real_labels, labels)
    assert torch.equal(means, rayd.terms.mean_matching(real, features, real_labels, labels))


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        ("{}:Mute", "cannot be matched: give its class a method 'distance"),
        ("{}:Mine", "must be a subclass of rayd.statistics.Statistic"),
        ("Momens", "did you mean 'Moments'"),
    ],
)
def test_what_is_no_statistic_is_refused(own, monkeypatch, of, sentence):
    monkeypatch.syspath_prepend(own.parent)
    with pytest.raises(ConfigError, match=sentence):
        rayd.recipes.resolve("digits", {"terms.statistic.of": of.format(own.stem)})


@pytest.mark.parametrize("where", ["head", "function"])
def test_keys_depend_on_the_modules_that_a_part_uses(own, monkeypatch, where):
    helper = own.with_name(f"helper_{own.stem}.py")
    helper.write_text("FACTOR = 1\n\n\ndef scale(value):\n    return FACTOR * value\n")
    line = f"from {helper.stem} import scale\n"
    used = line if where == "head" else f"def scaled(value):\n    {line}    return scale(value)\n"
    own.write_text(f"{used}{own.read_text()}")
    monkeypatch.syspath_prepend(own.parent)
    methods.get(f"{own.stem}:Mine")
    before = content_hash({"method": own.stem})
    helper.write_text("FACTOR = 2\n\n\ndef scale(value):\n    return FACTOR * value\n")
    plugins._MODULES.clear()
    assert content_hash({"method": own.stem}) != before


def test_entry_points_of_data_and_statistics(own, monkeypatch, capsys):
    monkeypatch.syspath_prepend(own.parent)
    points = {
        "rayd.datasets": [EntryPoint("letters", f"{own.stem}:data", "rayd.datasets")],
        "rayd.statistics": [EntryPoint("spread", f"{own.stem}:Spread", "rayd.statistics")],
    }
    monkeypatch.setattr(plugins, "entry_points", lambda group: points.get(group, []))
    plugins.discovered.cache_clear()
    try:
        assert load(DataSettings(name="letters")).class_names == tuple("abcdefghij")
        assert rayd.statistics.get("spread").__name__ == "Spread"
        assert plugins.source_of('{"of":"spread"}')
        with pytest.raises(SystemExit):
            main(["data", "list"])
        assert f"{own.stem}:data" in capsys.readouterr().out
        with pytest.raises(DataError, match="did you mean 'letters'"):
            load(DataSettings(name="lettres"))
    finally:
        plugins.discovered.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_sweep_with_a_method_and_data_in_a_file(own, tmp_path, capsys, workers):
    """Trials run in other processes, which import the file, too."""
    space = tmp_path / "space.yaml"
    base = [*QUICK, "evaluation.networks=[mlp]", "resources.threads=1"]
    space.write_text(
        yaml.safe_dump(
            {
                "base": "digits",
                "overrides": {"method": own.stem, "data": {"name": f"{own.stem}:data"}},
                "search": {"seed": {"grid": [0, 1]}},
                "scheduler": "none",
                "algorithm": "random",
            }
        )
    )
    arguments = ["tune", str(space), *base, "--import", str(own), "--out", str(tmp_path / "sweep")]
    arguments += ["--cache", str(tmp_path / "cache"), "--workers", workers]
    main_exit([*arguments, "--quiet", "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["finished"] == 2
    assert summary["failed"] == 0


def test_a_missing_file_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["recipes", "--import", str(tmp_path / "nothing.py")])
    assert stop.value.code == 2
    assert "there is no such file" in capsys.readouterr().err
    assert not Path("nothing.py").exists()
