"""A report groups students by set and network, keeps every run, and puts random images beside the
distilled ones.
"""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from rayd.config import Recipe
from rayd.data import Standardization
from rayd.distilled import Distilled
from rayd.errors import ArtifactError
from rayd.evaluation.remarks import at_chance
from rayd.evaluation.report import Report
from rayd.evaluation.student import StudentResult


def recipe(imbalance: float = 1.0, **evaluation: object) -> Recipe:
    data = {"name": "digits", "imbalance": imbalance, "validation_fraction": 0.1}
    content = {
        "name": "dm-digits",
        "method": "dm",
        "data": data,
        "ipc": 2,
        "evaluation": evaluation,
    }
    labels = {"kind": "online"} if "loss" in evaluation else {}
    return Recipe.model_validate({**content, "labels": labels})


def distilled() -> Distilled:
    card = {"storage": {"numbers": {"images": 8}, "bytes": {"images": 32}}}
    normalization = Standardization(torch.zeros(1), torch.ones(1))
    return Distilled(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), ["a", "b"], normalization, card)


def student(
    accuracy: float,
    seed: int = 0,
    network: str = "convnet",
    per_class: tuple[float | None, ...] = (0.9, 0.7),
    selection: str = "last",
) -> StudentResult:
    return StudentResult(network, seed, accuracy, None, per_class, 0.1, 10, 1.5, selection)


def build(*students: tuple[str, StudentResult], **of: float) -> Report:
    return Report.build(recipe(**of), students, distilled(), {"synthesize": 3.0})


def test_students_are_grouped_and_every_run_is_kept():
    report = build(
        ("random", student(0.5, 0)),
        ("distilled", student(0.9, 1)),
        ("distilled", student(0.8, 0)),
        ("distilled", student(0.7, 0, "mlp")),
    )
    found = {(r.set, r.network): r for r in report.results}
    assert set(found) == {("distilled", "convnet"), ("random", "convnet"), ("distilled", "mlp")}
    first = found["distilled", "convnet"]
    assert first.test_accuracy.runs == (0.8, 0.9)
    assert first.test_accuracy.mean == pytest.approx(0.85)
    assert first.test_accuracy.std == pytest.approx(0.05 * 2**0.5)
    assert first.seeds == (0, 1)
    assert first.seconds == 3.0
    assert found["random", "convnet"].test_accuracy.std is None


def test_selections_of_the_same_students_are_apart():
    students = [
        student(0.8 if s == "last" else 0.9, seed, selection=s)
        for seed in (0, 1)
        for s in ("last", "validation-best")
    ]
    report = build(
        *(("distilled", each) for each in students),
        ("random", student(0.1)),
        epoch=["last", "validation-best"],
    )
    assert [(r.set, r.epoch, r.test_accuracy.mean, r.seeds) for r in report.results] == [
        ("distilled", "last", 0.8, (0, 1)),
        ("random", "last", 0.1, (0,)),
        ("distilled", "validation-best", 0.9, (0, 1)),
    ]
    assert (
        "convnet  random     not evaluated         -  validation-best        -"
        in report.text().splitlines()
    )
    merged = report.merge(build(("distilled", student(0.7, 0)), ("distilled", student(0.7, 1))))
    assert [r.test_accuracy.mean for r in merged.results] == pytest.approx([0.7, 0.1, 0.9])


def test_the_protocol_names_the_kind_of_labels():
    soft = recipe(loss="kl")
    (result,) = Report.build(soft, [("distilled", student(0.5))], distilled(), {}).results
    assert result.protocol.startswith("soft-label, 1000 epochs")
    assert "kl T=20" in result.protocol


def test_classes_are_averaged_over_students():
    students = [
        student(0.5, seed, per_class=(accuracy, None)) for seed, accuracy in enumerate((0.2, 0.4))
    ]
    (result,) = build(*(("distilled", each) for each in students)).results
    assert result.per_class == (pytest.approx(0.3), None)


def test_head_and_tail_only_where_training_is_long_tailed():
    runs = ("distilled", student(0.5, per_class=(0.9, 0.8, 0.7, 0.1, None)))
    (balanced,) = build(runs).results
    assert balanced.head_accuracy is balanced.tail_accuracy is None
    (tailed,) = build(runs, imbalance=100.0).results
    assert tailed.head_accuracy == pytest.approx(0.8)
    assert tailed.tail_accuracy == pytest.approx(0.1)


def test_head_classes_are_those_of_at_least_the_median_number_of_images():
    """In whatever order they stand: a class smaller than its share of a long tail keeps all it
    has.
    """
    runs = ("distilled", student(0.5, per_class=(0.9, 0.1, 0.7, None, 0.2, 0.8)))
    counts = [50, 4, 30, 6, 5, 20]
    (result,) = Report.build(recipe(100.0), [runs], distilled(), {}, counts).results
    assert result.head_accuracy == pytest.approx((0.9 + 0.7 + 0.8) / 3)
    assert result.tail_accuracy == pytest.approx((0.1 + 0.2) / 2)
    (uncut,) = Report.build(recipe(), [runs], distilled(), {}, counts).results
    assert uncut == result
    (balanced,) = Report.build(recipe(), [runs], distilled(), {}, [50, 40, 30, 26, 45, 50]).results
    assert balanced.head_accuracy is balanced.tail_accuracy is None
    (told,) = Report.build(recipe(100.0), [runs], distilled(), {}, [6, 5, 4, 3, 2, 1]).results
    assert told == build(runs, imbalance=100.0).results[0]


def test_json_has_the_documented_fields_and_comes_back():
    report = build(("distilled", student(0.9)), ("whole", student(0.95)))
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert {
        key: content[key] for key in ("recipe", "method", "data", "ipc", "storage_bytes", "seconds")
    } == {
        "recipe": "dm-digits",
        "method": "dm",
        "data": "digits",
        "ipc": 2,
        "storage_bytes": {"images": 32},
        "seconds": {"synthesize": 3.0},
    }
    assert content["results"][0] == {
        "set": "distilled",
        "network": "convnet",
        "protocol": "hard-label, 1000 epochs, color_crop_cutout_flip_scale_rotate",
        "test_accuracy": {"mean": 0.9, "std": None, "runs": [0.9]},
        "epoch": "last",
        "per_class": [0.9, 0.7],
        "head_accuracy": None,
        "tail_accuracy": None,
        "seeds": [0],
        "seconds": 1.5,
        "labels": "hard",
        "augmented": True,
        "paper": None,
        "devices": [],
        "bytes": 32,
        "confusion": [],
    }
    assert Report.from_json(content) == report


def edited(content: dict, key: str, value: object) -> dict:
    """A copy of JSON content whose value at a dotted key is another one, or absent if None."""
    content = json.loads(json.dumps(content))
    place = content
    *outer, last = key.split(".")
    for part in outer:
        place = place[int(part) if part.isdigit() else part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("recipe", None, "'evaluation.json' lacks recipe"),
        ("ipc", "1", "'ipc' in 'evaluation.json' must be a valid integer. Got '1' instead"),
        ("unknown", 1, "holds 'unknown', which rayd does not know"),
        ("results", {}, "'results' in 'evaluation.json' must be a valid array. Got {} instead"),
        ("results.0", {}, "'evaluation.json' lacks 'results.0.set'"),
        ("results.0.test_accuracy.mean", 88.3, "'results.0.test_accuracy.mean' in .* must be less"),
        ("results.0.test_accuracy.mean", 0.99, "the mean accuracy of 'distilled' is 0.9900"),
        ("results.0.test_accuracy.runs", [], "must have at least 1 item"),
        ("results.0.seeds", [], "has 2 students and 0 seeds"),
        ("results.0.per_class", ["a"], r"'results.0.per_class.0' in .* must be a valid number"),
    ],
)
def test_an_edited_report_is_refused_in_one_sentence(key, value, sentence):
    report = build(("distilled", student(0.9)), ("distilled", student(0.8, 1)))
    content = json.loads(json.dumps(report.to_json()))
    if key == "results.0":
        content["results"] = [value]
    else:
        content = edited(content, key, value)
    with pytest.raises(ArtifactError, match=sentence):
        Report.from_json(content)


def test_random_stands_beside_distilled():
    sets = ("whole", "k-center", "distilled", "random", "herding")
    report = build(
        *((name, student(0.5, network=network)) for name in sets for network in ("convnet", "mlp"))
    )
    order = ["distilled", "random", "herding", "k-center", "whole"]
    assert [(r.network, r.set) for r in report.results] == [
        (n, s) for n in ("convnet", "mlp") for s in order
    ]
    missing = build(("distilled", student(0.5)), ("whole", student(0.5))).text().splitlines()
    assert [line.split()[1] for line in missing[2:5]] == ["distilled", "random", "whole"]
    assert "not evaluated" in missing[3]


def test_text_and_table_show_the_same_aligned():
    report = build(
        ("distilled", student(0.875, 0)), ("distilled", student(0.885, 1)), ("random", student(0.5))
    )
    lines = report.text().splitlines()
    assert lines[0] == "dm-digits: dm on digits, 2 per class, 32 bytes"
    assert "0.880 ± 0.007" in lines[2]
    assert lines[1].index("test accuracy") + len("test accuracy") == lines[2].index(
        "0.880 ± 0.007"
    ) + len("0.880 ± 0.007")
    shown = io.StringIO()
    Console(file=shown, width=200).print(report.table())
    for word in ("0.880 ± 0.007", "distilled", "random", "0.500", "last"):
        assert word in shown.getvalue()


def test_table_has_80_columns_and_says_once_what_rows_share():
    sets = ("distilled", "random", "whole")
    evaluation = {
        "augmentation": "color_crop_cutout_scale_rotate",
        "epochs": 600,
        "whole_epochs": 30,
    }
    report = build(*((name, student(0.9, network="convnet-d2-w64")) for name in sets), **evaluation)
    lines = report.text().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["network", "set", "test", "accuracy", "seconds", "protocol"]
    assert [line.split("  ")[-1] for line in lines[2:5]] == [
        "600 epochs",
        "600 epochs",
        "30 epochs",
    ]
    assert lines[5] == "protocol: 1 student, hard-label, color_crop_cutout_scale_rotate, last epoch"


def test_long_protocols_follow_below_the_table():
    report = build(
        ("distilled", student(0.9, network="torchvision/shufflenet_v2_x0_5")),
        ("random", student(0.1)),
    )
    long = replace(
        report.results[0],
        protocol="learned-label, 300 epochs, kl T=20, no augmentation, learning_rate 0.0213",
    )
    lines = replace(report, results=(long, report.results[1])).text().splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "0.900" in line)
    assert row.split()[-1] == "1"
    assert "protocol 1: learned-label, 300 epochs, kl T=20, no augmentation, learning_rate" in lines


def test_head_and_tail_are_shown_where_they_are_known():
    runs = [
        (name, student(0.5, per_class=(0.9, 0.8, 0.7, 0.1))) for name in ("distilled", "random")
    ]
    assert "head" not in build(*runs).text()
    lines = build(*runs, imbalance=100.0).text().splitlines()
    assert lines[1].split()[4:6] == ["head", "tail"]
    assert lines[2].split()[3:5] == ["0.850", "0.400"]


def test_students_at_chance_are_marked():
    """AlexNet gives each of its images the same class; the other network has learned a little."""
    stuck = student(0.103, network="alexnet", per_class=(1.0, *[0.0] * 9))
    learned = student(0.12, per_class=(0.3, *[0.1] * 9))
    report = build(
        ("distilled", stuck), ("random", stuck), ("distilled", learned), ("random", learned)
    )
    text = report.text()
    assert text.count("0.103 *") == 2
    assert "0.120 *" not in text
    assert "* at chance: alexnet did not learn (distilled, random); try" in text
    assert len(report.remarks()) == 1


def test_chance_is_that_of_the_classes_whatever_their_sizes():
    """Nine in ten test images are of the class that the student always names."""
    (result,) = build(("distilled", student(0.9, per_class=(1.0, 0.0)))).results
    assert at_chance(result)
    (result,) = build(("distilled", student(0.6, per_class=(0.9, 0.3)))).results
    assert not at_chance(result)


def test_a_set_below_random_images_gets_a_sentence_with_what_to_try():
    runs = [("distilled", student(0.538, seed)) for seed in (0, 1)] + [
        ("random", student(0.712, seed)) for seed in (0, 1)
    ]
    (sentence,) = build(*runs).remarks()
    assert "below random ones of the same budget (0.538 against 0.712 with convnet)" in sentence
    assert "synthesis.learning_rate" in sentence
    known = replace(build(*runs), method="edc")
    assert "try the recipe 'edc-digits'" in known.remarks()[0]
    assert replace(known, recipe="edc-digits").remarks() == [sentence]


def test_what_lies_within_the_spread_of_students_is_not_called_below():
    spread = [
        ("distilled", student(0.70, 0)),
        ("random", student(0.68, 0)),
        ("random", student(0.74, 1)),
    ]
    assert build(*spread).remarks() == []


def test_random_images_above_a_long_tail_are_explained():
    runs = [
        ("random", student(0.9, per_class=(0.9, 0.9))),
        ("whole", student(0.8, per_class=(1.0, 0.6))),
    ]
    (sentence,) = build(*runs, imbalance=20.0).remarks()
    assert (
        "Random images are above the whole set with convnet, because they are balanced" in sentence
    )
    assert build(*runs).remarks() == []


def test_merge_keeps_what_the_newer_report_lacks():
    old = build(("distilled", student(0.5)), ("whole", student(0.9)))
    new = build(("distilled", student(0.6)), ("random", student(0.4)))
    merged = old.merge(new)
    assert [(r.set, r.test_accuracy.mean) for r in merged.results] == [
        ("distilled", 0.6),
        ("random", 0.4),
        ("whole", 0.9),
    ]
