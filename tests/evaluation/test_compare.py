"""Runs are compared over distillations and students, architectures in a matrix and a chart."""

import json
from pathlib import Path
from typing import Any

import pytest

from rayd import hub
from rayd.artifacts import write_json
from rayd.config import MeasuredResult
from rayd.engine.evaluate import keep_chart
from rayd.errors import ArtifactError
from rayd.evaluation.compare import compare
from rayd.evaluation.report import Report
from rayd.evaluation.scores import label_robust_score
from rayd.evaluation.set_result import ON_VALIDATION
from rayd.evaluation.variants import Variant
from rayd.page.charts import bars_of
from rayd.recipes import resolve
from tests.evaluation.test_report import build, distilled, recipe, student
from tests.test_cli import run
from tests.test_export import distilled as exported


def kept(folder: Path, seed: int, accuracies: tuple[float, ...], random: float = 0.5) -> Path:
    """A run's directory with a report."""
    runs = [("distilled", student(accuracy, number)) for number, accuracy in enumerate(accuracies)]
    runs += [("random", student(random, number)) for number in range(len(accuracies))]
    runs += [("whole", student(0.95, number)) for number in range(len(accuracies))]
    write_json(folder / "evaluation.json", build(*runs).to_json())
    write_json(folder / "distilled" / "card.json", {"seed": seed})
    return folder


def test_deviations_over_distillations_and_over_students(tmp_path):
    paths = [
        kept(tmp_path / "a", 0, (0.8, 0.9)),
        kept(tmp_path / "b", 1, (0.7, 0.8)),
    ]
    (group,) = compare(paths).groups
    ours = group.accuracies["distilled"]
    assert ours.runs == pytest.approx((0.85, 0.75))
    assert ours.mean == pytest.approx(0.8)
    assert ours.std == pytest.approx(0.1 / 2**0.5)
    assert ours.students == pytest.approx(0.1 / 2**0.5)
    assert group.scores["IOR"].runs == pytest.approx((0.35, 0.25))
    assert group.scores["HLR"].mean == pytest.approx(0.15)
    assert group.accuracies["random"].std == 0
    text = compare(paths).text()
    assert "dm-digits with convnet (2 distillations, 2 students each)" in text
    assert "0.800 ± 0.071   ± 0.071 over students" in text
    assert max(map(len, text.splitlines())) <= 80


def test_equal_sets_are_one_distillation(tmp_path, caplog):
    """As of a copy, or of a run that was repeated with its seed."""
    paths = [kept(tmp_path / name, 0, (0.8, 0.9)) for name in ("a", "copy")]
    paths.append(kept(tmp_path / "b", 1, (0.7, 0.8)))
    for path, digest in zip(paths, ("one", "one", "two"), strict=True):
        write_json(path / "distilled" / "card.json", {"seed": 0, "sha256": digest})
    (group,) = compare(paths).groups
    assert group.accuracies["distilled"].runs == pytest.approx((0.85, 0.75))
    assert [record.getMessage() for record in caplog.records] == [
        f"'{paths[1]}' holds the same set as '{paths[0]}'; they count as one distillation."
    ]


def test_a_group_gives_the_fields_of_a_measured_result(tmp_path):
    paths = [kept(tmp_path / "a", 0, (0.8, 0.9)), kept(tmp_path / "b", 1, (0.7, 0.8))]
    found = compare(paths).groups[0].measured()
    result = MeasuredResult(
        **found, seeds="0 1", command="rayd distill", commit="0", hardware="a machine", seconds=1
    )
    assert (result.accuracy, result.std) == (0.8, 0.071)
    assert (result.random, result.whole) == (0.5, 0.95)
    assert (result.ior, result.hlr, result.hard_labels) == (0.3, 0.15, None)
    assert result.ior_std == result.hlr_std == 0.071
    assert result.lrs == pytest.approx(label_robust_score(0.3, 0.15), abs=1e-3)


def test_soft_labels_are_measured_beside_hard_ones(tmp_path):
    write_json(tmp_path / "evaluation.json", several().to_json())
    write_json(tmp_path / "distilled" / "card.json", {"seed": 0})
    found = compare([tmp_path]).groups[0].measured()
    assert (found["accuracy"], found["hard_labels"]) == (0.6, 0.4)
    assert (found["random"], found["random_hard_labels"]) == (0.7, 0.5)


def test_other_settings_are_another_group_paired_by_seed(tmp_path):
    first = [kept(tmp_path / f"a{seed}", seed, (0.8 + seed / 10,)) for seed in (0, 1)]
    second = [kept(tmp_path / f"b{seed}", seed, (0.7 + seed / 5,)) for seed in (1, 0)]
    for path in second:
        content = json.loads((path / "evaluation.json").read_text())
        write_json(path / "evaluation.json", {**content, "departures": ["synthesis.steps"]})
    ours, theirs = compare([*first, *second]).groups
    assert ours.paired is None
    assert sorted(theirs.paired.runs) == pytest.approx([-0.1, 0.0])
    assert "other synthesis.steps" in theirs.title


def configured(folder: Path, seed: int, accuracy: float, *more: Report, **settings: Any) -> Path:
    """A run's directory with a report and a card that holds the recipe; `more` was added later."""
    own = resolve("digits", {"seed": seed, **settings})
    report = Report.build(own, [("distilled", student(accuracy))], distilled(), {})
    for later in more:
        report = report.merge(later)
    write_json(folder / "evaluation.json", report.to_json())
    config = own.model_dump(mode="json", exclude={"resources"})
    write_json(folder / "distilled" / "card.json", {"seed": seed, "config": config})
    return folder


def test_other_values_of_a_setting_are_another_group(tmp_path):
    """Reports name the settings that differ from the recipe; their values are on the cards."""
    values = (100, 100, 200)
    paths = [
        configured(tmp_path / str(seed), seed, 0.5 + seed / 10, **{"synthesis.steps": steps})
        for seed, steps in enumerate(values)
    ]
    found = compare(paths)
    assert [group.seeds for group in found.groups] == [(0, 1), (2,)]
    assert "digits with convnet, other synthesis.steps=100 (2 distillations" in found.text()
    assert "digits with convnet, other synthesis.steps=200 (1 distillation" in found.text()


def test_precision_that_the_machine_chose_does_not_part_distillations(tmp_path):
    paths = [
        configured(tmp_path / precision, seed, 0.5, **{"synthesis.precision": precision})
        for seed, precision in enumerate(("float32", "bfloat16"))
    ]
    (group,) = compare(paths).groups
    assert group.seeds == (0, 1)


def test_data_that_have_changed_are_another_group(tmp_path):
    """The same folder of images, some of which came later."""
    paths = [configured(tmp_path / str(seed), seed, 0.5) for seed in range(3)]
    for path, fingerprint in zip(paths, ("before", "before", "after"), strict=True):
        card = json.loads((path / "distilled" / "card.json").read_text())
        data = {"name": "photos", "fingerprint": fingerprint}
        write_json(path / "distilled" / "card.json", {**card, "data": data})
    assert [group.seeds for group in compare(paths).groups] == [(0, 1), (2,)]


def test_a_run_that_was_evaluated_again_is_one_distillation(tmp_path):
    shorter = resolve("digits", {"evaluation.epochs": 20})
    later = Report.build(shorter, [("distilled", student(0.1))], distilled(), {})
    paths = [configured(tmp_path / "a", 0, 0.8), configured(tmp_path / "b", 0, 0.9, later)]
    first, second = compare(paths).groups
    assert second.accuracies["distilled"].runs == (0.9,)
    assert second.accuracies["distilled"].std is None
    assert second.paired.runs == (pytest.approx(0.1),)
    assert first.paired is None


def test_results_of_an_earlier_protocol_are_another_group(tmp_path):
    """A run that was continued with fewer epochs has both results, and the card of the second."""
    longer = Report.build(resolve("digits"), [("distilled", student(0.9))], distilled(), {})
    paths = [configured(tmp_path / name, 0, 0.5, **{"evaluation.epochs": 20}) for name in "ab"]
    second = longer.merge(Report.kept(paths[1]))
    write_json(paths[1] / "evaluation.json", second.to_json())
    ours, theirs = compare(paths).groups
    assert ours.title.endswith("other evaluation.epochs=20")
    assert theirs.title.endswith("other evaluation.epochs")
    assert theirs.accuracies["distilled"].runs == (0.9,)


def test_runs_on_other_data_have_no_difference(tmp_path):
    first, second = (kept(tmp_path / name, 0, (0.8,)) for name in "ab")
    content = json.loads((second / "evaluation.json").read_text())
    write_json(second / "evaluation.json", {**content, "data": "mnist"})
    ours, theirs = compare([first, second]).groups
    assert (ours.data, theirs.data) == ("digits", "mnist")
    assert theirs.paired is None


def test_single_runs_have_no_deviation(tmp_path):
    (group,) = compare([kept(tmp_path / "a", 0, (0.8,))]).groups
    assert group.lines()[1] == "  distilled  0.800"


def test_command_compares_and_names_what_lacks_a_report(tmp_path, capsys):
    path = kept(tmp_path / "a", 0, (0.8, 0.9))
    code, text, _ = run(capsys, "compare", str(path))
    assert (code, "LRS" in text) == (0, True)
    _, document, _ = run(capsys, "compare", str(path), "--json")
    assert json.loads(document)["groups"][0]["seeds"] == [0]
    with pytest.raises(ArtifactError, match=r"holds no evaluation\.json.*a run that has ended"):
        compare([tmp_path])
    (path / "distilled").rename(tmp_path / "b c")
    with pytest.raises(ArtifactError, match=r"'rayd evaluate '.*/b c'' writes one"):
        compare([tmp_path / "b c"])


def test_accuracies_of_the_validation_split_are_named_as_such(tmp_path):
    """Those of a sweep's trials: no difference from a run, whose accuracies are of the test split."""
    path = kept(tmp_path / "a", 0, (0.8, 0.9))
    trial = kept(tmp_path / "b", 0, (0.85, 0.95))
    content = json.loads((trial / "evaluation.json").read_text())
    for result in content["results"]:
        result["protocol"] += f", {ON_VALIDATION}"
    write_json(trial / "evaluation.json", content)
    first, second = compare([path, trial]).groups
    assert (first.is_on_validation, second.is_on_validation) == (False, True)
    assert second.title == "dm-digits with convnet, on the validation split"
    assert second.paired is None
    report = Report.from_json(content)
    assert "distilled 0.900 ± 0.071 on the validation split" in report.brief()[0]
    assert bars_of(report.results)[0].label == ("distilled, convnet, on the validation split")
    assert "accuracy" not in hub.readme(exported(), report)
    assert "## Test accuracy" in hub.readme(exported(), Report.kept(path))


def test_a_run_that_is_named_twice_is_one_distillation(tmp_path, monkeypatch):
    path = kept(tmp_path / "a", 0, (0.8, 0.9))
    other = kept(tmp_path / "b", 1, (0.7, 0.8))
    monkeypatch.chdir(tmp_path)
    (group,) = compare([path, Path("a"), other]).groups
    assert group.directories == (str(path), str(other))
    assert group.accuracies["distilled"].std == pytest.approx(0.1 / 2**0.5)


def several() -> Report:
    sets = ("distilled", "random")
    runs = [
        (Variant(name, hard_labels=hard), student(0.6 + number / 10 - hard / 5, network=network))
        for number, name in enumerate(sets)
        for network in ("convnet", "mlp", "alexnet")
        for hard in (False, True)
    ]
    return Report.build(recipe(loss="kl"), runs, distilled(), {})


def test_several_architectures_make_a_matrix():
    matrix = several().matrix()
    assert matrix.networks == ("convnet", "mlp", "alexnet")
    columns = ("distilled", "random", "distilled, hard labels", "random, hard labels")
    assert matrix.columns == columns
    assert matrix.cells["mlp", "random, hard labels"] == pytest.approx(0.5)
    lines = matrix.lines()
    assert lines[-1].split()[0] == "mean"
    assert max(map(len, lines)) <= 80
    assert lines[-1] in several().text()
    assert "mean" not in build(("distilled", student(0.5))).text().splitlines()[-1]


def test_differences_are_those_of_one_architecture(tmp_path):
    for name in ("a", "b"):
        write_json(tmp_path / name / "evaluation.json", several().to_json())
    content = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    write_json(tmp_path / "b" / "evaluation.json", {**content, "departures": ["synthesis.steps"]})
    groups = compare([tmp_path / "a", tmp_path / "b"]).groups
    assert [group.network for group in groups] == ["convnet", "mlp", "alexnet"] * 2
    assert [group.paired is None for group in groups] == [True] * 3 + [False] * 3
    assert all(group.paired.runs == (0.0,) for group in groups[3:])


def test_chart_of_architectures_is_written_for_several(tmp_path):
    path = keep_chart(several(), tmp_path)
    assert path == tmp_path / "architectures.png"
    assert path.stat().st_size > 1000
    assert keep_chart(build(("distilled", student(0.5))), tmp_path / "one") is None
