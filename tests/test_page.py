"""The page of a run: it shows what the run has, in any state, and needs nothing from elsewhere."""

import json
import re
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import rayd
from rayd import recipes
from rayd.errors import ArtifactError, OutputError
from rayd.evaluation.set_result import ON_VALIDATION
from rayd.page import FILE, charts, comparison, render, write
from rayd.page.run import command
from rayd.recipes.difference import differences
from tests.runs import log_of

SETTINGS = {
    "synthesis.steps": 4,
    "synthesis.checkpoint_every": 1,
    "synthesis.log_every": 1,
    "evaluation.seeds": 2,
    "evaluation.epochs": 1,
    "evaluation.whole_epochs": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a few steps."""
    folder = tmp_path_factory.mktemp("page") / "run"
    rayd.distill("digits", out=folder, cache=folder.parent / "cache", quiet=True, **SETTINGS)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run of other settings."""
    folder = tmp_path_factory.mktemp("page") / "other"
    settings = SETTINGS | {"ipc": 2}
    rayd.distill("digits", out=folder, cache=folder.parent / "cache", quiet=True, **settings)
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


def test_accuracies_of_a_trial_are_called_those_of_the_validation_split(run):
    report = json.loads((run / "evaluation.json").read_text())
    for result in report["results"]:
        result["protocol"] += f", {ON_VALIDATION}"
    (run / "evaluation.json").write_text(json.dumps(report))
    page = render(run)
    assert "</strong> validation accuracy, distilled" in page
    assert "</strong> test accuracy" not in page


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
    assert "This run failed" in page
    assert "Memory &lt;ran&gt; out." in page
    assert "rayd distill --resume" in page


def test_damaged_report_and_log_are_left_out(run):
    (run / "evaluation.json").write_text("{")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"stage": "synthesize", "finished": true}\n')
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


def test_page_says_what_is_taken_for_what(run):
    report = json.loads((run / "evaluation.json").read_text())
    mistakes = report["results"][0]["confusion"]
    assert mistakes
    for label, taken_for, share in mistakes:
        assert label != taken_for
        assert 0 < share <= 1
    page = render(run)
    table = page.partition('class="confusion')[2].partition("</table>")[0]
    assert table.count('<th scope="row">') == 10
    label, taken_for, share = mistakes[0]
    row = table.split('<th scope="row">')[1 + label]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row)
    assert cells[taken_for] == f"{share:.2f}"


def test_mistakes_of_a_class_and_its_accuracy_are_all_of_its_images(run):
    report = json.loads((run / "evaluation.json").read_text())
    for result in report["results"]:
        for label, right in enumerate(result["per_class"]):
            wrong = sum(share for known, _, share in result["confusion"] if known == label)
            assert right + wrong == pytest.approx(1, abs=1e-5)


def test_initial_images_are_beside_the_distilled_ones(run):
    page = render(run)
    assert "Before: the initial images" in page
    assert "After: the distilled images" in page
    steps = re.search(r"const frames = (.*);", page)
    assert [step for step, _ in json.loads(steps[1])] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("digits", {"seed": 3}, ["digits", "seed=3"]),
        # the recipe's stretch belongs to other schedules
        (
            "edc-digits",
            {"evaluation.schedule.name": "multistep"},
            ["edc-digits", "evaluation.schedule.name=multistep"],
        ),
        # 600 epochs are the recipe's, which the protocol would change
        (
            "digits",
            {"evaluation.protocol": "dsa", "evaluation.epochs": 600},
            ["runs/a/config.yaml"],
        ),
    ],
)
def test_command_of_a_page_repeats_its_run(name, settings, words):
    recipe = recipes.resolve(name, settings)
    changes = differences(recipes.resolve(name), recipe)
    given = shlex.split(command(recipe, Path("runs/a"), name, changes))
    assert given == ["rayd", "distill", *words, "--out", f"runs/{name}-again"]


def test_the_only_term_has_no_curve_beside_the_loss(run):
    assert any("mean" in line for line in log_of(run))
    page = render(run)
    assert "loss over step" in page
    assert "mean over step" not in page


def test_pages_of_many_classes_list_their_mistakes(run, monkeypatch):
    monkeypatch.setattr("rayd.page.confusion.MOST_CONFUSED", 5)
    page = render(run)
    assert "most frequent mistakes" in page
    assert 'class="confusion' not in page


def test_stages_have_their_peak_memory(run):
    ends = [line for line in log_of(run) if "finished" in line]
    assert ends
    assert all(line["peak_memory"] > 10**7 for line in ends)
    assert "peak memory" in render(run)


def test_comparison_begins_with_the_settings_that_differ(run, other):
    page = comparison.render([run, other])
    first = page.partition("<h2 ")[2]
    assert first.startswith('id="settings"')
    rows = first.partition("</table>")[0]
    assert "<code>ipc</code>" in rows
    assert "synthesis.steps" not in rows
    assert page.count("<figcaption>") == 2
    assert "loss over step" in page


def test_runs_of_a_comparison_have_reports(run, tmp_path):
    (run / "evaluation.json").unlink()
    with pytest.raises(ArtifactError, match="rayd evaluate"):
        comparison.write([run], tmp_path / "compare.html")


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
def test_browser_shows_pages_without_errors(run, other, tmp_path):
    """The slider's script runs: no messages in the console, every picture decoded."""
    pages = [write(run), comparison.write([run, other], tmp_path / "compare.html")]
    for page in pages:
        shown = in_browser(page, tmp_path)
        assert "CONSOLE" not in shown.stderr
        assert "<h1>" in shown.stdout
    # the same page with a step of the slider taken
    content = pages[0].read_text()
    moved = tmp_path / "moved.html"
    script = """<script>const slider = document.getElementById("step");
    slider.value = 1; slider.dispatchEvent(new Event("input"));</script></body>"""
    moved.write_text(content.replace("</body>", script))
    shown = in_browser(moved, tmp_path)
    assert "CONSOLE" not in shown.stderr
    assert 'aria-valuetext="step 1"' in shown.stdout
    assert "After step 1" in shown.stdout


def in_browser(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Standard output is the page after its scripts, standard error the console."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / 'browser'}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_legends_name_runs_that_begin_with_an_underscore():
    shown = {"_try": [0.1, 0.2], "base": [0.3, None]}
    drawn = [charts.classes(shown, ["left", "right"])]
    points = {"_try": [(0.0, 1.0), (1.0, 2.0)], "base": [(0.0, 1.0), (1.0, 3.0)]}
    drawn += charts.curves({"loss": points}, "step")
    for svg in drawn:
        texts = [element.text for element in ET.fromstring(svg).iter() if element.text]
        assert {"_try", "base"} <= set(texts)
