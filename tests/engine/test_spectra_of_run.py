"""Charts of the spectra of a finished run: from the store alone, or one sentence that says what is
gone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from rayd import analyses, layer_spectra
from rayd.distilled import load
from rayd.engine import spectra_of_run
from rayd.engine.distill import distill
from rayd.engine.worker import Worker
from rayd.errors import ArtifactError
from rayd.layer_spectra import HEADING, HEIGHT, WIDTH
from rayd.objectives.filters import Ridge
from tests.conftest import tiny
from tests.engine.test_sequential import cfm
from tests.runs import NO_STUDENTS, QUIET
from tests.test_cli import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of CFM through two observers with three convolutions in all, and its store."""
    folder = tmp_path_factory.mktemp("spectra")
    distill(cfm(**NO_STUDENTS), folder / "run", cache=folder / "cache", progress=QUIET)
    return folder


def test_a_command_draws_every_layer_of_every_observer(capsys, finished, tmp_path):
    code, text, _ = run(
        capsys, "show", "--spectrum", str(finished / "run"), "--cache", str(finished / "cache")
    )
    assert code == 0
    assert "30 images" in text
    with Image.open(finished / "run" / "distilled" / "spectrum.png") as image:
        layers = sum(len(names) for names in layers_of(finished).values())
        assert layers == 3
        assert image.size == (layers * WIDTH, HEADING + HEIGHT)
    again = ["show", str(finished / "run"), "--spectrum", "--cache", str(finished / "cache")]
    assert "exists already" in run(capsys, *again)[2]
    assert run(capsys, *again, "--png", str(tmp_path / "here.png"))[0] == 0
    assert load(finished / "run").card["method"] == "cfm"


def layers_of(finished: Path) -> dict[str, list[layer_spectra.LayerSpectrum]]:
    """What is drawn, by observer."""
    found = spectra_of_run.of_distilled(
        load(finished / "run"), cache=finished / "cache", progress=QUIET
    )
    assert isinstance(found.filter, Ridge)
    # the last of three blocks: 0.1 (1 + cos(2 pi / 3)) / 2
    assert found.filter.beta == pytest.approx(0.025)
    assert min(found.chart().size) > 200
    by_observer: dict[str, list[layer_spectra.LayerSpectrum]] = {}
    for layer in found.layers:
        by_observer.setdefault(layer.name.split(":")[0], []).append(layer)
    return by_observer


def test_the_curves_are_those_of_what_observers_hear(finished):
    drawn = layers_of(finished)
    assert len(drawn) == 2
    images = load(finished / "run").images
    for layers in drawn.values():
        # the first convolution reads the pixels themselves
        torch.testing.assert_close(
            layers[0].synthetic[0], images.double().var(correction=0), rtol=1e-9, atol=0
        )
        assert all(len(layer.real) == len(layer.synthetic) for layer in layers)
        assert all((layer.real.diff() <= 1e-12).all() for layer in layers)


def test_the_analysis_tells_what_each_layer_of_each_observer_lacks(finished):
    found = analyses.run(finished / "run", "spectra", cache=finished / "cache", progress=QUIET)
    layers = [layer for group in layers_of(finished).values() for layer in group]
    assert found.numbers["how"] == "filter"
    assert [one["name"] for one in found.numbers["layers"]] == [layer.name for layer in layers]
    assert found.numbers["layers"][0]["real"] == layers[0].real.tolist()
    assert [line.split()[0] for line in found.lines[1:-1]] == [
        layer.name.split()[0] for layer in layers
    ]
    assert max(map(len, found.lines)) <= 80


def test_nothing_is_measured_or_trained_for_it(finished, monkeypatch):
    monkeypatch.setattr(Worker, "measure", None)
    monkeypatch.setattr(Worker, "squeeze", None)
    layers_of(finished)


@pytest.mark.parametrize("stage", ["measure", "squeeze"])
def test_what_the_store_has_lost_is_said(capsys, finished, tmp_path, stage):
    shutil.copytree(finished / "cache", tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / stage)
    code, _, error = run(
        capsys,
        "show",
        str(finished / "run"),
        "--spectrum",
        "--png",
        str(tmp_path / "x.png"),
        "--cache",
        str(tmp_path / "cache"),
    )
    assert code == 2
    assert "are not in the store" in error
    assert "Traceback" not in error
    assert not (tmp_path / "x.png").exists()


def test_methods_without_a_filter_have_none(tmp_path):
    distill(tiny(synthesis={"steps": 1}, **NO_STUDENTS), tmp_path / "run", progress=QUIET)
    with pytest.raises(
        ArtifactError, match="method 'dm' neither measures nor matches; cfm and unidd do"
    ):
        spectra_of_run.from_distilled(load(tmp_path / "run"), progress=QUIET)
