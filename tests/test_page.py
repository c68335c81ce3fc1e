"""The page of a run: it shows what the run has, in any state, and needs nothing from elsewhere."""

import json
import re
import shutil
import xml.etree.ElementTree as ET

import pytest

import rayd
from rayd.errors import OutputError
from rayd.page import FILE, render, write

SETTINGS = {
    "synthesis.steps": 4,
    "synthesis.checkpoint_every": 1,
    "synthesis.log_every": 1,
    "evaluation.seeds": 2,
    "evaluation.epochs": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a few steps."""
    folder = tmp_path_factory.mktemp("page") / "run"
    rayd.distill("digits", out=folder, cache=folder.parent / "cache", quiet=True, **SETTINGS)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run that may be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def test_page_shows_accuracies_images_curves_and_settings(run):
    page = render(run)
    report = json.loads((run / "evaluation.json").read_text())
    for result in report["results"]:
        assert f"{result['test_accuracy']['mean']:.3f}" in page
    assert page.count("data:image/png;base64,") >= 4
    assert "synthesis.steps" in page
    assert "evaluation.precision" not in page.partition("The whole recipe")[0]
    assert "loss over step" in page
    assert "@inproceedings" in page


def test_page_needs_nothing_from_elsewhere(run):
    page = render(run)
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert "@import" not in page
    assert "<script src" not in page


def test_charts_are_svg_with_descriptions_and_distinct_identifiers(run):
    page = render(run)
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawn) >= 3
    identifiers = []
    for chart in drawn:
        root = ET.fromstring(chart)
        assert root.get("aria-label")
        identifiers += [each.get("id") for each in root.iter() if each.get("id")]
        used = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', chart))
        assert {name for pair in used for name in pair if name} <= set(identifiers)
    assert len(identifiers) == len(set(identifiers))


def test_page_of_an_interrupted_run_says_how_to_go_on(run):
    for name in ("evaluation.json", "distilled"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    status = json.loads((run / "status.json").read_text())
    status |= {"state": "failed", "error": "Memory <ran> out."}
    (run / "status.json").write_text(json.dumps(status))
    page = render(run)
    assert "This run is failed" in page
    assert "Memory &lt;ran&gt; out." in page
    assert "rayd distill --resume" in page


def test_damaged_report_and_log_are_left_out(run):
    (run / "evaluation.json").write_text("{")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"stage": "synthesize", "st')
    assert "Stages" in render(run)


def test_page_is_renewed_but_other_files_are_kept(run, tmp_path):
    assert write(run) == run / FILE
    assert write(run) == run / FILE
    other = tmp_path / "other.html"
    other.write_text("mine")
    with pytest.raises(OutputError, match="no page of rayd"):
        write(run, other)
    assert other.read_text() == "mine"


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(OutputError):
        write(tmp_path)
    assert not (tmp_path / FILE).exists()
