"""The benchmark that measures recipes and writes their results."""

import json
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import yaml

from benchmarks import applications, studies
from benchmarks.campaign import Campaign, _rows, candidates, entry_text, write
from rayd import results
from rayd.applications.continual import Curve
from rayd.applications.slimming import Slimmed
from rayd.results.applications import ApplicationResult
from rayd.results.studies import StudyResult
from tuning.space import load

ROW = {
    "network": "convnet-d2-w64",
    "epoch": "last",
    "augmented": True,
    "seeds": [0, 1],
    "labels": "hard",
}
METHODS = {"dm": False, "dc": False, "sre2l": True, "rded": True, "mtt": True, "ls-mtt": True}


def evaluation(distilled, random):
    rows = [("distilled", distilled), ("random", random)]
    return {
        "results": [
            ROW | {"set": name, "test_accuracy": {"mean": accuracy}} for name, accuracy in rows
        ],
        "scores": [{"network": "convnet-d2-w64", "ior": {"mean": distilled - random}, "lrs": 0.3}],
    }


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYD_CACHE", str(tmp_path / "cache"))
    campaign = Campaign(tmp_path / "campaign", seeds=3, settings=["ipc=2"])
    figures = {"commit": "abc", "date": "2026-11-29", "seconds": 2.0, "cpu_seconds": 1.0}
    for seed, accuracy in enumerate((0.9, 0.92, 0.94)):
        path = campaign._figures("digits", seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        run = figures | {"peak_memory_mb": 500 + seed, "evaluation": evaluation(accuracy, 0.8)}
        path.write_text(json.dumps(run))
    return campaign


def test_a_result_is_over_distillations_and_names_its_command(campaign):
    entry = campaign.result("digits")
    assert (entry["accuracy"], entry["std"]) == (0.92, 0.02)
    assert (entry["random"], entry["ior"], entry["ior_std"]) == (0.8, 0.12, 0.02)
    assert (entry["seconds"], entry["cpu_seconds"], entry["peak_memory_mb"]) == (6, 3, 502)
    assert entry["command"] == (
        "for s in 0 1 2; do rayd distill digits seed=$s observers.seed=$s ipc=2 --out runs/$s; done"
    )
    assert entry["note"] == "0.900 0.920 0.940"


def test_random_images_beside_learned_labels_are_of_both_kinds():
    """They have hard labels, and no others."""
    kinds = [("distilled", "learned"), ("distilled", "hard"), ("random", "hard")]
    rows = [
        ROW | {"set": name, "labels": labels, "test_accuracy": {"mean": 0.9 - number / 10}}
        for number, (name, labels) in enumerate(kinds)
    ]
    found = _rows({"results": rows})
    assert (found["distilled", None], found["distilled", "hard"]) == (0.9, 0.8)
    assert found["random", None] == found["random", "hard"] == 0.7


def test_rows_are_of_the_first_tested_epoch(campaign):
    rows = evaluation(0.9, 0.8)["results"]
    best = [row | {"epoch": "validation-best"} for row in rows]
    assert _rows({"results": best})["distilled", None] == 0.9


def test_processor_time_of_resumed_runs_is_left_out(campaign):
    path = campaign._figures("digits", 1)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resumed": True}))
    assert "cpu_seconds" not in campaign.result("digits")


def test_distillations_that_follow_experts_have_experts_of_their_own(campaign):
    assert campaign.command("mtt-digits", 2)[3:6] == [
        "seed=2",
        "observers.seed=2",
        "experts.seed=2",
    ]
    assert campaign.command("digits", 2)[3:5] == ["seed=2", "observers.seed=2"]


def test_time_of_distillations_is_told_without_the_experts_that_they_share(campaign):
    for seed, (stage, seconds) in enumerate(
        (("experts", 100.0), ("evaluate", 2.0), ("evaluate", 4.0))
    ):
        path = campaign._figures("mtt-digits", seed)
        run = json.loads(campaign._figures("digits", seed).read_text())
        campaign._out("mtt-digits", seed).mkdir(parents=True)
        path.write_text(json.dumps(run | {"cpu_seconds": seconds}))
        line = json.dumps({"stage": stage, "finished": True})
        (campaign._out("mtt-digits", seed) / "metrics.jsonl").write_text(line + "\n")
    entry = campaign.result("mtt-digits")
    assert (entry["cpu_seconds"], entry["cpu_seconds_given_experts"]) == (106, 3)

    # a resumed run took more than its last process did
    path = campaign._figures("mtt-digits", 1)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resumed": True}))
    entry = campaign.result("mtt-digits")
    assert "cpu_seconds" not in entry
    assert entry["cpu_seconds_given_experts"] == 4


def test_finished_runs_are_not_run_again(campaign, monkeypatch):
    monkeypatch.setattr(Campaign, "_run", lambda *_: pytest.fail("ran"))
    assert campaign.complete("digits", deadline=0)


def test_a_result_takes_the_place_of_that_with_its_settings(campaign, tmp_path, monkeypatch):
    before = [
        {"accuracy": 0.6, "command": "rayd distill digits"},
        {"accuracy": 0.5, "note": "0.500 0.500; of old", "command": "rayd distill digits 'ipc=2'"},
    ]
    kept = "# Results.\n\nother:\n  - accuracy: 0.1\n\n"
    path = tmp_path / "digits.yaml"
    path.write_text(kept + entry_text("digits", *before))
    measured = campaign.result("digits")
    monkeypatch.setattr(results, "entries", cache(lambda: {"digits": before}))
    assert write("digits", measured, tmp_path) == path
    text = path.read_text()
    found = yaml.safe_load(text)
    assert text.startswith(kept)
    assert list(found) == ["other", "digits"]
    assert [one["accuracy"] for one in found["digits"]] == [0.6, 0.92]
    assert found["digits"][1]["note"] == "0.900 0.920 0.940; of old"
    monkeypatch.setattr(results, "entries", cache(lambda: found))
    again = yaml.safe_load(write("digits", found["digits"][1], tmp_path).read_text())
    assert again == found, "remarks are not written twice"


def test_sets_judged_once_more_are_a_second_entry(campaign, tmp_path, monkeypatch):
    students = ["evaluation.protocol=dsa", "evaluation.epochs=300"]
    for seed, accuracy in enumerate((0.7, 0.8, 0.9)):
        path = campaign._figures("digits", seed, students)
        figures = {"commit": "abc", "date": "2026-11-29", "seconds": 2.0, "cpu_seconds": 1.0}
        run = figures | {"peak_memory_mb": 500, "evaluation": evaluation(accuracy, 0.6)}
        path.write_text(json.dumps(run))
    own, again = campaign.result("digits"), campaign.result("digits", students)
    assert (own["accuracy"], again["accuracy"]) == (0.92, 0.8)
    assert (
        "rayd evaluate runs/$s evaluation.protocol=dsa evaluation.epochs=300; done"
        in (again["command"])
    )
    written: dict[str, list] = {}
    monkeypatch.setattr(results, "entries", cache(lambda: written))
    for entry in (own, again, own | {"accuracy": 0.93}, again | {"accuracy": 0.81}):
        written |= yaml.safe_load(write("digits", entry, tmp_path).read_text())
    assert [one["accuracy"] for one in written["digits"]] == [0.93, 0.81]


def test_students_of_the_recipe_itself_do_not_judge_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYD_CACHE", str(tmp_path / "cache"))
    students = ["evaluation.protocol=dsa", "evaluation.epochs=300", "evaluation.seeds=2"]
    campaign = Campaign(tmp_path, 1, [], [*students, "evaluation.learned_step_size=false"])
    judged = {name: campaign.judges_again(f"{name}-cifar10-ipc1-equal") for name in METHODS}
    assert judged == METHODS
    assert not Campaign(tmp_path, 1, []).judges_again("mtt-cifar10-ipc1-equal")


def test_recipes_with_a_result_are_left_out_unless_asked_for():
    assert "digits" not in candidates(["digits"], again=False)
    assert list(candidates(["digits"], again=True)) == ["digits"]


def test_an_application_keeps_every_accuracy_and_its_commands(tmp_path, monkeypatch):
    # also where the sources are not a repository
    monkeypatch.setattr(applications, "commit", lambda: "abc")
    curve = Curve("random", (2, 4), ((0.81, 0.79), (0.5, 0.61234)))
    content = json.loads(json.dumps({"curves": [curve.to_json()]}))
    entry = applications.result(content, "digits", ["rayd apply continual digits"], 12.4)
    path = applications.write("continual-digits", entry, tmp_path)
    kept = ApplicationResult.model_validate(yaml.safe_load(path.read_text()))
    assert (kept.columns, kept.cpu_seconds) == (("2 classes", "4 classes"), 12)
    assert kept.rows == {"random": ((0.81, 0.79), (0.5, 0.6123))}
    assert kept.command == "rayd apply continual digits"


def test_rows_of_slimming_are_the_sets_with_their_penalties():
    one = Slimmed("herding", (0.0, 0.5), (1.0, 0.3), ((0.5,), (0.4,)), ((0.9,), (0.8,)), 0.35)
    found = applications.accuracies(json.loads(json.dumps({"sets": [one.to_json()]})))
    assert found["columns"] == ["0% pruned", "50% pruned"]
    assert found["rows"] == {"herding, penalty 0.35": [[0.9], [0.8]]}


def test_results_of_a_study_are_its_table(tmp_path, monkeypatch):
    table = [
        {
            "name": "all three",
            "validation_accuracy": "0.88431",
            "std": "0.01",
            "distillations": "3",
            "Table 3": "0.527",
            "std of Table 3": "",
        },
        {
            "name": "none: MTT",
            "validation_accuracy": "0.824",
            "std": "",
            "distillations": "3",
            "Table 3": "",
            "std of Table 3": "",
        },
    ]
    space = load("ls-mtt-ablation-digits")
    made = {"commit": "abc", "date": "2026-11-29"}
    command = "rayd tune ls-mtt-ablation-digits --out sweeps/x"
    entry = studies.result(space, table, command, 2, **made)
    path = applications.write("ls-mtt-ablation-digits", entry, tmp_path)
    read = StudyResult(**yaml.safe_load(path.read_text()))
    monkeypatch.setattr(results.studies, "entries", lambda: {"ls-mtt-ablation-digits": read})
    heading, title, command_block, rows, remark = results.studies.tables()
    assert heading == "## ls-mtt-ablation-digits"
    assert title == f"{space.summary}."
    assert command_block == f"```bash\n{command}\n```"
    assert rows.splitlines() == [
        "| | here | Table 3 |",
        "|---|---|---|",
        "| all three | 0.884 ± 0.010 | 0.527 |",
        "| none: MTT | 0.824 |  |",
    ]
    assert "± is over 3 distillations with 2 students each. Revision abc" in remark
    with pytest.raises(ValueError, match="lacks none: MTT"):
        studies.result(space, [{**table[1], "validation_accuracy": ""}], command, 2, **made)
    with pytest.raises(ValueError, match="lacks none: MTT"):
        studies.result(space, [table[0], {**table[1], "distillations": "2"}], command, 2, **made)


def test_a_study_that_failed_is_said_and_tried_again(tmp_path, monkeypatch, capsys):
    """Its table lacks rows, and stands there although the sweep ended in an error."""
    name = "ls-mtt-ablation-digits"
    table = tmp_path / name / "study.csv"
    table.parent.mkdir()
    table.write_text("name,validation_accuracy,std,distillations\nall three,,,0\n")
    tried = []

    def run(command):
        tried.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(studies.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["studies", str(tmp_path), name])
    studies.main()
    assert len(tried) == 1
    assert f"{name}: failed" in capsys.readouterr().out
    made = {"commit": "abc", "date": "2026-11-29"}
    (tmp_path / f"{name}.json").write_text(json.dumps(made))
    studies.main()
    assert len(tried) == 1
    assert "lacks all three" in capsys.readouterr().out


def test_results_of_studies_have_the_rows_of_their_spaces():
    for name, result in results.studies.entries().items():
        space = load(name)
        assert result.title == space.summary
        assert [*result.rows] == [*space.rows]
