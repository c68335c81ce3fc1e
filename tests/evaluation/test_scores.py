"""Scores against values worked out by hand, and what an evaluation trains for them."""

import json
import math
from dataclasses import asdict, replace

import pytest

from rayd.errors import ArtifactError
from rayd.evaluation.report import Report
from rayd.evaluation.scores import (
    Difference,
    augmentation_robust_score,
    label_robust_score,
    normalized,
    scores_of,
)
from rayd.evaluation.variants import Variant, needs_teachers, variants
from tests.conftest import tiny
from tests.evaluation.test_report import build, distilled, recipe, student


@pytest.mark.parametrize(("alpha", "score"), [(-1, 0.0), (0, 0.2689414), (1, 1.0)])
def test_normalization_maps_fractions_to_the_unit_interval(alpha, score):
    assert normalized(alpha) == pytest.approx(score, abs=1e-7)


def test_label_robust_score_by_hand():
    """alpha = 0.5 * 0.2 - 0.5 * 0.1 = 0.05, and with w = 1 the IOR alone."""
    expected = (math.e**0.05 - 1 / math.e) / (math.e - 1 / math.e)
    assert label_robust_score(0.2, 0.1) == pytest.approx(expected)
    assert label_robust_score(0.2, 0.1, weight=1) == pytest.approx(normalized(0.2))
    assert label_robust_score(0.2, 0.1, weight=0) == pytest.approx(normalized(-0.1))


def test_augmentation_robust_score_by_hand():
    assert augmentation_robust_score(0.3, 0.1) == pytest.approx(normalized(0.2))
    assert augmentation_robust_score(0.3, 0.1, weight=0.75) == pytest.approx(normalized(0.25))


@pytest.mark.parametrize(
    ("real", "hard", "own", "random", "weight", "score"),
    [
        (0.9, 0.5, 0.7, 0.6, 0.5, 0.2096783673804665),
        (0.9, 0.5, 0.7, 0.6, 0.2, 0.15867018410437037),
        (0.85, 0.9, 0.3, 0.5, 0.5, 0.23819923268679175),
        (0.85, 0.9, 0.3, 0.5, 0.2, 0.26894142136999516),
        # hard labels throughout
        (0.9, 0.5, 0.5, 0.6, 0.5, 0.17483020955155323),
        (0.976, 0.941, 0.941, 0.770, 0.5, 0.29887897966186566),
    ],
)
def test_label_robust_score_is_that_of_the_published_package(
    real, hard, own, random, weight, score
):
    """`compute_metrics` of ddranking 0.2.0, `LabelRobustScoreSoft` and `LabelRobustScoreHard`, with
    its trainings replaced by these accuracies, fractions in place of its percent.
    """
    assert label_robust_score(own - random, real - hard, weight) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(
    ("augmented", "plain", "weight", "score"),
    [
        (0.7 - 0.6, 0.4 - 0.5, 0.5, 0.26894142136999516),
        (0.7 - 0.6, 0.4 - 0.5, 0.2, 0.24416461433017767),
        (0.941 - 0.770, 0.90 - 0.72, 0.5, 0.3505623343204157),
        (0.941 - 0.770, 0.90 - 0.72, 0.2, 0.35193330022962066),
    ],
)
def test_augmentation_robust_score_is_that_of_the_published_package(
    augmented, plain, weight, score
):
    """The same of `AugmentationRobustScore`."""
    found = augmentation_robust_score(augmented, plain, weight)
    assert found == pytest.approx(score, abs=1e-12)


def test_percent_in_the_published_package_leaves_the_unit_interval():
    """It gives -0.157 to accuracies of 90, 50, 70 and 60 percent, whose score is 0.210."""
    assert label_robust_score(70 - 60, 90 - 50) == pytest.approx(-0.1565175126007507, abs=1e-12)
    assert label_robust_score(0.7 - 0.6, 0.9 - 0.5) == pytest.approx(0.2096783673804665)


def soft_report() -> Report:
    """Two students a set: soft labels raise random images more than distilled ones."""
    soft = [("distilled", (0.7, 0.8)), ("random", (0.6, 0.5))]
    hard = [("distilled", (0.5, 0.6)), ("random", (0.4, 0.4)), ("whole", (0.9, 0.9))]
    runs = [
        (Variant(name), student(accuracy, seed))
        for name, accuracies in soft
        for seed, accuracy in enumerate(accuracies)
    ]
    runs += [
        (Variant(name, hard_labels=True), student(accuracy, seed))
        for name, accuracies in [*hard, ("equal-storage", (0.65, 0.85))]
        for seed, accuracy in enumerate(accuracies)
    ]
    return Report.build(recipe(loss="kl"), runs, distilled(), {})


def test_scores_of_a_set_with_soft_labels():
    (scores,) = soft_report().scores
    assert scores.ior.mean == pytest.approx(0.2)
    assert scores.ior.runs == pytest.approx((0.1, 0.3))
    assert scores.ior.std == pytest.approx(0.2 / math.sqrt(2))
    assert scores.hard_ior.mean == pytest.approx(0.15)
    assert scores.hlr.mean == pytest.approx(0.35)
    assert scores.over_equal_storage.mean == pytest.approx(0.0)
    assert scores.lrs == pytest.approx(normalized(0.5 * 0.2 - 0.5 * 0.35))
    assert scores.label_robust(1.0) == pytest.approx(normalized(0.2))
    assert scores.ars is None


def test_scores_of_a_set_with_hard_labels():
    runs = [("distilled", 0.94), ("random", 0.77), ("whole", 0.976)]
    report = build(*((name, student(accuracy)) for name, accuracy in runs))
    (scores,) = report.scores
    assert (scores.ior.mean, scores.hlr.mean) == (pytest.approx(0.17), pytest.approx(0.036))
    assert scores.hard_ior is None
    assert scores.ior.std is None
    assert scores.lrs == pytest.approx(normalized((0.17 - 0.036) / 2))
    assert "IOR +0.170, HLR +0.036, LRS 0.298" in report.text()


def test_augmentation_robust_score_needs_students_without_augmentation():
    runs = [
        (Variant("distilled"), 0.9),
        (Variant("random"), 0.6),
        (Variant("distilled", augmented=False), 0.5),
        (Variant("random", augmented=False), 0.6),
    ]
    report = build(*((one, student(accuracy)) for one, accuracy in runs))
    (scores,) = report.scores
    assert scores.ior.mean == pytest.approx(0.3)
    assert scores.plain_ior.mean == pytest.approx(-0.1)
    assert scores.ars == pytest.approx(normalized(0.1))
    assert [result.augmented for result in report.results] == [True, True, False, False]


def test_differences_are_paired_by_seed():
    report = build(
        ("distilled", student(0.8, 0)),
        ("distilled", student(0.9, 2)),
        ("random", student(0.5, 1)),
        ("random", student(0.6, 2)),
    )
    ours, theirs = report.results
    assert Difference.of(ours, theirs).runs == (pytest.approx(0.3),)
    assert Difference.of(ours, replace(theirs, seeds=(5, 6))) is None


def test_scores_are_written_and_read_and_an_edited_one_is_refused():
    report = soft_report()
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["scores"][0]["hlr"]["mean"] == pytest.approx(0.35)
    assert Report.from_json(content) == report
    content["scores"][0]["lrs"] = 0.9
    with pytest.raises(ArtifactError, match="its scores are not those of its accuracies"):
        Report.from_json(content)


def test_a_report_of_an_older_version_is_read_and_scored():
    content = json.loads(json.dumps(soft_report().to_json()))
    del content["scores"]
    for result in content["results"]:
        del result["labels"], result["augmented"]
    (scores,) = Report.from_json(content).scores
    assert scores.hlr.mean == pytest.approx(0.35)


def test_merged_reports_are_scored_together():
    ours = build(("distilled", student(0.8)))
    assert ours.scores == ()
    (scores,) = ours.merge(build(("random", student(0.6)))).scores
    assert scores.ior.mean == pytest.approx(0.2)


def test_labels_are_a_column_where_they_differ():
    text = soft_report().text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[:3] == ["network", "set", "labels"]
    assert [line.split()[1:3] for line in lines[2:8]] == [
        ["distilled", "soft"],
        ["random", "soft"],
        ["distilled", "hard"],
        ["random", "hard"],
        ["equal-storage", "hard"],
        ["whole", "hard"],
    ]
    assert "soft-label" not in text
    (brief,) = soft_report().brief()
    assert "distilled 0.750 ± 0.071, random 0.550 ± 0.071" in brief
    assert "distilled, hard labels 0.550 ± 0.071" in brief


SOFT = {"labels": {"kind": "online"}, "observers": {"trained": True}}


@pytest.mark.parametrize(
    ("comparisons", "more", "learned", "added"),
    [
        ([], {}, False, []),
        (["hard-labels"], {}, False, []),
        (["hard-labels"], {}, True, [Variant("distilled", hard_labels=True)]),
        (["equal-storage"], {}, False, [Variant("equal-storage")]),
        (
            ["hard-labels", "equal-storage"],
            SOFT,
            False,
            [
                Variant("distilled", hard_labels=True),
                Variant("random", hard_labels=True),
                Variant("equal-storage", hard_labels=True),
            ],
        ),
        (
            ["no-augmentation"],
            {},
            False,
            [Variant("distilled", augmented=False), Variant("random", augmented=False)],
        ),
    ],
)
def test_comparisons_add_students(comparisons, more, learned, added):
    evaluation = {"baselines": ["random"], "comparisons": comparisons}
    if more:
        evaluation["loss"] = "kl"
    made = tiny(evaluation=evaluation, **more)
    assert variants(made, learned) == [Variant("distilled"), Variant("random"), *added]


def test_without_baselines_there_are_no_comparisons():
    alone = {"baselines": [], "comparisons": ["hard-labels", "equal-storage", "no-augmentation"]}
    assert variants(tiny(evaluation=alone), True) == [Variant("distilled")]


def test_without_augmentation_there_is_nothing_to_compare():
    plain = {"baselines": ["random"], "comparisons": ["no-augmentation"], "augmentation": None}
    assert variants(tiny(evaluation=plain), False) == [Variant("distilled"), Variant("random")]


@pytest.mark.parametrize(
    ("kind", "evaluation", "needed"),
    [
        ("online", {"baselines": []}, True),
        ("stored", {"baselines": []}, False),
        ("stored", {"baselines": ["random"]}, True),
    ],
)
def test_teachers_are_needed_where_labels_are_not_replayed(kind, evaluation, needed):
    changes = {"labels": {"kind": kind}, "evaluation": {"loss": "kl", **evaluation}}
    assert needs_teachers(tiny(observers={"trained": True}, **changes)) == needed


def test_a_variant_changes_the_protocol():
    protocol = tiny(
        evaluation={"loss": "kl", "hard_weight": 0.1, "mix": "cutmix"}, **SOFT
    ).evaluation
    hard = Variant("random", hard_labels=True).applied(protocol)
    assert (hard.loss, hard.hard_weight, hard.mix) == ("cross-entropy", 0.0, "cutmix")
    plain = Variant("random", augmented=False).applied(protocol)
    assert (plain.augmentation, plain.mix, plain.loss) == (None, "none", "kl")
    assert Variant("random").applied(protocol) == protocol


def test_remarks_say_under_which_labels_random_images_are_better():
    runs = [("distilled", 0.6), ("random", 0.5)]
    hard = [("distilled", 0.3), ("random", 0.4), ("equal-storage", 0.9)]
    students = [(Variant(name), student(accuracy)) for name, accuracy in runs]
    students += [(Variant(name, hard_labels=True), student(accuracy)) for name, accuracy in hard]
    made = Report.build(recipe(loss="kl"), students, distilled(), {})
    below, *others = made.remarks()
    assert "(0.300 against 0.400 with convnet, hard labels): try" in below
    assert others == [
        "Random real images of as many bytes are above the distilled ones "
        "(0.600 against 0.900 with convnet, soft labels)."
    ]


def of_protocol(epochs: int, **accuracies: float) -> Report:
    return Report.build(
        recipe(epochs=epochs, whole_epochs=30),
        [(name, student(accuracy)) for name, accuracy in accuracies.items()],
        distilled(),
        {},
    )


def test_results_of_different_protocols_make_no_score():
    """A set that a later evaluation trained for fewer epochs has the baselines of these."""
    first = of_protocol(600, distilled=0.9)
    merged = first.merge(of_protocol(20, random=0.4))
    assert merged.scores == ()
    lacking = (
        "no IOR, HLR and LRS: random images and the whole set were not evaluated under the same"
    )
    assert lacking in merged.text().replace("\n ", "")
    merged = merged.merge(of_protocol(20, distilled=0.5, whole=0.95))
    (scores,) = merged.scores
    assert (scores.ior.mean, scores.hlr.mean) == (pytest.approx(0.1), pytest.approx(0.45))
    assert not any("below random" in remark for remark in merged.remarks())
    (own,) = merged.merge(of_protocol(600, random=0.6)).scores
    assert own.ior.mean == pytest.approx(0.3)
    content = json.loads(json.dumps(merged.to_json()))
    # as older versions wrote it
    mixed = scores_of(merged.results, mixed=True)
    content["scores"] = json.loads(json.dumps([asdict(one) for one in mixed]))
    assert content["scores"][0]["ior"]["mean"] == pytest.approx(0.5)
    assert Report.from_json(content).scores == merged.scores


def test_equal_storage_is_compared_with_students_of_as_many_epochs():
    """A later evaluation of fewer epochs neither replaces it nor makes a score with the first."""
    first = of_protocol(600, distilled=0.9, **{"equal-storage": 0.8})
    merged = first.merge(of_protocol(20, distilled=0.3, **{"equal-storage": 0.2}))
    kept = [r.test_accuracy.mean for r in merged.results if r.set == "equal-storage"]
    assert kept == pytest.approx([0.8, 0.2])
    (scores,) = merged.scores
    assert scores.over_equal_storage.mean == pytest.approx(0.1)
    assert "steps of 600 epochs" in merged.text()


def test_equal_storage_of_an_older_report_is_replaced():
    """Older versions did not say of how many epochs its students took the steps."""
    first = of_protocol(600, distilled=0.9, **{"equal-storage": 0.7})
    content = json.loads(
        json.dumps(first.to_json()).replace("steps of 600 epochs", "as many steps")
    )
    older = Report.from_json(content)
    assert older.scores == first.scores
    merged = older.merge(of_protocol(600, **{"equal-storage": 0.8}))
    assert [r.test_accuracy.mean for r in merged.results] == pytest.approx([0.9, 0.8])
