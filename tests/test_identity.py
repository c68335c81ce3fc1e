"""Digests of objects: of all that changes what they compute, and of nothing else."""

import functools
import logging
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rayd import plugins
from rayd.identity import identity, imports

SCRIPT = """
from typing import ClassVar

from torch import nn

from rayd import plugins
from rayd.artifacts import content_hash
from rayd.methods import Method
from rayd.objectives.terms import Term

SCALE = {scale}
UNUSED = {unused}


def shade(images):
    return SCALE * images.square().mean()


class Shade(Term):
    name: ClassVar[str] = "shade"
    for_any_method: ClassVar[bool] = True

    def __call__(self, real, seen, labels, context):
        return shade(seen.images)


class Shading(Method):
    name: ClassVar[str] = "shading"
    citation: ClassVar[str] = ""

    @classmethod
    def objective(cls, recipe):
        return (Shade(weight=2.0),)


def build(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * SCALE, classes))


class Halved(nn.Linear):
    def forward(self, images):
        return super().forward(images.flatten(1)) / SCALE


print(content_hash({{"terms": {{"shade": {{"weight": 1.0}}}}}}))
print(plugins.name_of("methods", Shading), content_hash({{"method": "shading"}}))
print(plugins.name_of("networks", build))
print(plugins.name_of("networks", lambda shape, classes: build(shape, classes)))
print(plugins.name_of("networks", Halved(64, 10)))
print(content_hash({{"method": "dm"}}))
"""
"""Parts of a script, none of which contains the number on which all depend."""


def content_hash_of(part):
    """The digest of a part, all of whose modules are the user's but torch."""
    return identity(part, lambda module: None, lambda module: not module.startswith("torch"))


def _run(folder, scale, unused=0):
    file = folder / "script.py"
    file.write_text(SCRIPT.format(scale=scale, unused=unused))
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_parts_of_a_script_depend_on_what_they_use(tmp_path):
    """And not on what they do not: results of one version of a script are not those of another."""
    first = _run(tmp_path, scale=1)
    assert _run(tmp_path, scale=1, unused=3) == first
    other = _run(tmp_path, scale=2)
    assert len(first) == len(other) == 6
    assert [one == two for one, two in zip(first, other, strict=True)] == [False] * 5 + [True]


WITH_WORKERS = """
import sys
from typing import ClassVar

import rayd
from rayd.objectives.terms import Term


class Shade(Term):
    name: ClassVar[str] = "shade"
    for_any_method: ClassVar[bool] = True

    def __call__(self, real, seen, labels, context):
        return seen.images.square().mean()


if __name__ == "__main__":
    for workers in (0, 2):
        run = rayd.distill(
            "digits",
            out=f"{sys.argv[1]}/run{workers}",
            cache=f"{sys.argv[1]}/cache{workers}",
            workers=workers,
            quiet=True,
            settings={
                "terms.shade.weight": 10.0,
                "synthesis.steps": 2,
                "observers.pool": 2,
                "evaluation.epochs": 1,
                "evaluation.seeds": 1,
                "evaluation.baselines": [],
                "evaluation.comparisons": [],
            },
        )
"""


@pytest.mark.slow
def test_a_term_of_a_script_is_known_to_workers(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(WITH_WORKERS)
    subprocess.run([sys.executable, file, tmp_path], check=True, capture_output=True)
    sets = [tmp_path / f"run{workers}" / "distilled" / "data.safetensors" for workers in (0, 2)]
    assert sets[0].read_bytes() == sets[1].read_bytes()


def _make(width):
    def build(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, classes))

    return build


def _build(shape, classes, width=4):
    return _make(width)(shape, classes)


class Factory:
    """An object that is called."""

    def __init__(self, width):
        self.width = width

    def __call__(self, shape, classes):
        return _make(self.width)(shape, classes)

    def method(self, shape, classes):
        return self(shape, classes)


class Scaled(nn.Module):
    """A module with a setting that its text does not show."""

    def __init__(self, scale):
        super().__init__()
        self._scale = scale
        self.linear = nn.Linear(64, 10)

    def forward(self, images):
        return self._scale * self.linear(images.flatten(1))


class Filtered(nn.Module):
    """A module with constants that are not drawn anew."""

    def __init__(self, value):
        super().__init__()
        self.register_buffer("kernel", torch.full((3,), value))


@pytest.mark.parametrize(
    "make",
    [
        _make,
        lambda width: functools.partial(_build, width=width),
        lambda width: functools.partial(_build, (1, 8, 8), 10, width),
        Factory,
        lambda width: Factory(width).method,
        lambda width: lambda shape, classes: _build(shape, classes, width),
        lambda width: lambda shape, classes, width=width: _build(shape, classes, width),
        Scaled,
        Filtered,
        lambda width: nn.Sequential(nn.Flatten(), Scaled(width)),
        lambda width: nn.Linear(64, width),
        lambda width: nn.Dropout(width / 100),
    ],
)
def test_networks_that_differ_have_different_names(make):
    """`rayd.distill(network=...)` with one, and then with the other, must not give the first set."""
    names = [plugins.name_of("networks", make(width)) for width in (8, 8, 64)]
    assert names[0] == names[1]
    assert names[0] != names[2]


def _executed(constants):
    """A function without a file, as from a prompt."""
    known: dict[str, Any] = {}
    exec(f"def build(images): return images.mean({constants})", known)
    return known["build"]


def _with_private_attribute(width):
    class Local:
        _width = width

    return Local


def _hooked(width):
    network = nn.Linear(64, 10)
    network.register_forward_hook(lambda module, inputs, output: output * width)
    return network


def _held(width):
    """An object whose container has a method of its own."""

    class Widths(dict[str, int]):
        def first(self):
            return width

    return Widths(a=1)


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (_executed("(2, 3)"), _executed("(2, 3)"), _executed("(1, 2)")),
        (_executed("dim=1"), _executed("dim=1"), _executed("axis=1")),
        (_executed("-1 in {1, 2}"), _executed("-1 in {1, 2}"), _executed("-1 in {1, 3}")),
        *((make(0.5), make(0.5), make(0.25)) for make in (_with_private_attribute, _hooked, _held)),
        # of an installed package
        tuple(map(get_ema_multi_avg_fn, (0.5, 0.5, 0.25))),
    ],
)
def test_what_an_object_computes_is_part_of_it(one, same, other):
    assert content_hash_of(one) == content_hash_of(same) != content_hash_of(other)


def test_a_logger_is_its_name():
    """It knows all other loggers, which change while modules are imported."""
    log = logging.getLogger("tests.identity")

    class Local:
        def __call__(self):
            log.info("called")

    before = content_hash_of(Local())
    logging.getLogger("tests.another").setLevel(logging.ERROR)
    assert content_hash_of(Local()) == before


def test_weights_that_are_drawn_anew_are_no_part_of_a_network():
    networks = [nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)) for _ in range(2)]
    networks[1](torch.rand(8, 4))
    names = {plugins.name_of("networks", network.train(False)) for network in networks}
    assert len(names) == 1


def test_objects_that_hold_themselves_are_described_once():
    factory = Factory(3)
    factory.own = [factory]
    assert plugins.name_of("networks", factory) == plugins.name_of("networks", factory)


IMPORTS = """
from rayd import plugins


def build(shape, classes):
    from torch import nn
    from lazily import WIDTH

    return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, classes))


print(plugins.name_of("networks", build))
"""


def test_modules_imported_inside_a_function_count(tmp_path):
    """Whether they are already imported or not."""
    found = []
    for width, head in ((64, ""), (64, "import lazily"), (65, "")):
        (tmp_path / "lazily.py").write_text(f"WIDTH = {width}\n")
        file = tmp_path / "script.py"
        file.write_text(f"{head}\n{IMPORTS}")
        done = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True)
        found.append(done.stdout)
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("import a.b", "", {"a", "a.b"}),
        ("def f():\n    from a import b", "", {"a", "a.b"}),
        ("    from . import b", "a", {"a", "a.b"}),
        ("from ..c import d", "a.b", {"a", "a.c", "a.c.d"}),
        ("from ... import d", "a.b", set()),
        ("from . import d", "", set()),
        ("key=lambda x: x),", "", set()),
    ],
)
def test_imports_of_a_source(source, package, expected):
    assert imports(source, package) == expected
