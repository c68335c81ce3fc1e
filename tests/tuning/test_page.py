"""The page of a sweep, made from the files that a sweep leaves."""

import html
import re

import pytest

from rayd import page
from rayd.artifacts import write_json
from rayd.errors import ArtifactError, OutputError, RaydError
from tests.tuning.spaces import small
from tuning import table
from tuning.directory import SWEEP, write_configuration
from tuning.page import read_trials, render
from tuning.space import ResolvedSpace
from tuning.summaries import Summary
from tuning.summaries import summary as read_summary

SPACE = small(
    samples=3,
    objectives=["validation_accuracy", "seconds"],
    search={
        "synthesis.learning_rate": {"loguniform": [0.1, 10.0]},
        "synthesis.optimizer": {"choice": ["sgd", "adam"]},
    },
)


def row(trial: str, accuracy: float | None, seconds: float, **more: object) -> table.Row:
    known = {
        "trial": trial,
        "status": "finished",
        "settings": {"synthesis.learning_rate": 0.5, "synthesis.optimizer": "sgd"},
        "own": False,
        "fraction": 1.0,
        "validation_accuracy": accuracy,
        "validation_std": 0.01,
        "storage_bytes": 2560,
        "seconds": seconds,
        "reason": "",
        "run": f"{trial}/run",
    }
    return table.Row(**(known | more))


TRIALS = [
    row("own", 0.9, 9.0, own=True),
    row("good", 0.95, 10.0),
    row("slow", 0.85, 30.0),
    row("gone", None, 1.0, status="failed", fraction=0.0, reason="Memory <ran> out.", settings={}),
]


def summary(best: str | None, importance: dict[str, float]) -> Summary:
    return Summary(
        space=SPACE.name,
        trials=4,
        finished=3,
        failed=1,
        best=best,
        settings={},
        validation_accuracy=0.95,
        own_validation_accuracy=0.9,
        test_accuracy=0.93,
        test_std=0.01,
        importance=importance,
        pareto=["good", "own"],
        confirmed={"best": [0.94, 0.95]},
    )


@pytest.fixture
def sweep(tmp_path):
    """The files of a sweep."""
    write_configuration(tmp_path / SWEEP, {"space": SPACE.model_dump(mode="json")})
    table.write(tmp_path / "trials", table.columns(ResolvedSpace(SPACE), TRIALS))
    shares = {"synthesis.learning_rate": 0.8, "synthesis.optimizer": 0.2}
    write_json(tmp_path / "summary.json", summary("good", shares).to_json())
    return tmp_path


def test_trials_are_read_as_they_were_written(sweep):
    assert read_trials(sweep / "trials.csv", SPACE) == TRIALS


def test_page_shows_trials_importance_slices_and_front(sweep):
    shown = render(sweep)
    first, *others = re.findall(r"<tr><td class=\"name\">(\w+)", shown.partition('id="trials"')[2])
    assert first == "good"
    assert set(others) == {"own", "slow", "gone"}
    assert "Memory &lt;ran&gt; out." in shown
    assert 'aria-label="Importance of settings: synthesis.learning_rate 0.80' in shown
    assert "Validation accuracy of trials against synthesis.learning_rate" in shown
    front = shown.partition('id="pareto"')[2]
    assert "good, own" in front
    assert "0.940, 0.950 on the validation split" in shown


def test_importance_of_few_trials_is_not_shown(sweep):
    write_json(sweep / "summary.json", summary("good", {}).to_json())
    assert "Not estimated" in render(sweep)


def test_page_of_a_sweep_without_a_finished_trial_says_so(sweep):
    table.write(sweep / "trials", table.columns(ResolvedSpace(SPACE), TRIALS[3:]))
    write_json(sweep / "summary.json", summary(None, {}).to_json())
    assert "No trial finished" in render(sweep)


def test_page_of_a_sweep_whose_best_settings_are_not_tested_yet(sweep):
    """Killed while it distilled them: there is no summary, or one of fewer trials."""
    fewer = summary("own", {}).to_json() | {"trials": 2, "test_accuracy": 0.77}
    write_json(sweep / "summary.json", fewer)
    for shown in (render(sweep), (sweep / "summary.json").unlink() or render(sweep)):
        assert "No trial finished" not in shown
        assert "have not been tested yet" in shown
        assert "0.770" not in shown
        assert "<strong>0.950</strong> best validation accuracy, trial good" in shown
        assert "<strong>0.900</strong> with the recipe" in shown


def test_commands_of_a_page_can_be_copied(sweep):
    named = sweep.with_name("my sweep")
    sweep.rename(named)
    assert f"rayd distill '{named}/best.yaml' --out" in html.unescape(render(named))


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        (
            "sweep.yaml",
            "space: {base: digits, later: 3}",
            r"Unknown setting 'later' in the space of",
        ),
        ("sweep.yaml", "other: 1", r"'base' is missing in the space of"),
        ("trials.csv", "a,b\n1,2\n", r"trials\.csv' is not a table of trials"),
    ],
)
def test_files_of_another_version_are_a_sentence(sweep, file, content, sentence):
    (sweep / file).write_text(content)
    with pytest.raises(RaydError, match=sentence):
        render(sweep)


def test_damaged_summary_is_named(sweep):
    write_json(sweep / "summary.json", {"space": "small"})
    with pytest.raises(ArtifactError, match=r"summary\.json' lacks trials"):
        read_summary(sweep)


def test_report_of_a_directory_tells_a_sweep_from_a_run(sweep):
    assert page.write(sweep) == sweep / "report.html"
    assert "a sweep of rayd" in (sweep / "report.html").read_text()


def test_sweep_without_results_is_refused(sweep):
    (sweep / "trials.csv").unlink()
    with pytest.raises(OutputError, match="--resume"):
        page.write(sweep)
