"""Class-incremental learning on a few digits: memories grow, and later classes are not seen."""

from pathlib import Path

import numpy as np
import pytest

from rayd.applications.continual import Curve, chart, class_order, learn, text
from rayd.engine.progress import Progress
from rayd.errors import ConfigError
from tests.conftest import tiny

QUIET = Progress(quiet=True)


def few():
    return tiny(evaluation={"seeds": 2, "epochs": 30, "augmentation": None}, synthesis={"steps": 3})


def test_every_memory_has_an_accuracy_after_every_step(tmp_path: Path):
    methods = ["distilled", "random", "herding", "whole"]
    curves = learn(
        few(), tmp_path, steps=5, orders=1, methods=methods, cache=tmp_path / "c", progress=QUIET
    )
    assert [curve.method for curve in curves] == methods
    for curve in curves:
        assert curve.classes == (2, 4, 6, 8, 10)
        assert [len(row) for row in curve.accuracies] == [2] * 5
        # two digits are told apart better than by chance, which falls as more are seen
        assert curve.means[0] > 0.6
    assert text(curves).splitlines()[0].split()[:3] == ["memory", "2", "classes"]
    again = learn(
        few(),
        tmp_path,
        steps=5,
        orders=1,
        methods=["distilled"],
        cache=tmp_path / "c",
        progress=QUIET,
    )
    assert again == (curves[0],)


def test_a_step_distils_its_own_classes_alone(tmp_path: Path):
    learn(
        few(),
        tmp_path,
        steps=5,
        orders=1,
        methods=["distilled"],
        cache=tmp_path / "c",
        progress=QUIET,
    )
    order = class_order(10, 0)
    for step in range(5):
        archive = np.load(tmp_path / f"distilled-order0-step{step}.npz")
        names = [str(label) for label in order[2 * step : 2 * step + 2]]
        assert archive["class_names"].tolist() == names
        assert set(archive["y_train"].tolist()) == {0, 1}


def test_a_memory_is_named_for_the_file_of_its_recipe(tmp_path: Path):
    file = tmp_path / "elsewhere" / "fewer.yaml"
    file.parent.mkdir()
    file.write_text("base: digits\nobservers: {pool: 1, per_step: 1}\nsynthesis: {steps: 1}\n")
    (curve,) = learn(
        few(),
        tmp_path / "out",
        steps=1,
        orders=1,
        methods=[str(file)],
        cache=tmp_path / "c",
        progress=QUIET,
    )
    assert curve.method == "fewer"
    assert (tmp_path / "out" / "fewer-order0-step0" / "distilled").is_dir()


def test_steps_divide_the_classes(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"must divide the 10 classes of 'digits'\. Got 3"):
        learn(few(), tmp_path, steps=3, orders=1, progress=QUIET)


def test_orders_are_seeded_permutations():
    assert sorted(class_order(10, 3)) == list(range(10))
    assert class_order(10, 0).tolist() != class_order(10, 1).tolist()


def test_curves_are_averaged_over_orders_and_students():
    curve = Curve("random", (2, 4), ((0.8, 0.9), (0.5, 0.7)))
    assert curve.means == pytest.approx((0.85, 0.6))
    assert curve.stds == pytest.approx((0.1 / 2**0.5, 0.2 / 2**0.5))
    assert chart([curve]).size == (560, 380)
