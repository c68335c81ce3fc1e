"""Class-incremental learning on a few digits: memories grow, and later classes are not seen."""

from pathlib import Path

import numpy as np
import pytest

from rayd.applications.continual import (
    Curve,
    _archive,
    _on,
    _Scenario,
    chart,
    class_order,
    learn,
    text,
)
from rayd.engine.reading import read
from rayd.errors import ConfigError, OutputError
from rayd.evaluation.student import train
from tests.conftest import tiny
from tests.runs import QUIET


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


@pytest.mark.parametrize(
    "data", [{"imbalance": 10}, {"validation_fraction": 0.2}, {"classes": ["0", "1", "2", "3"]}]
)
def test_a_step_distils_all_images_that_others_choose_from(tmp_path: Path, data):
    """Nothing is cut, set aside or selected a second time."""
    recipe = tiny(data=data)
    real = read(recipe.data, None, None, QUIET)
    steps = tuple(np.split(class_order(real.classes, 0), 2))
    scenario = _Scenario(recipe, real, steps, 0)
    archive = _archive(tmp_path / "step.npz", real, steps[0])
    own = read(_on(recipe, archive, scenario).data, None, None, QUIET)
    counts = [len(real.train.class_index[label]) for label in steps[0]]
    assert [len(rows) for rows in own.train.class_index] == counts
    assert own.train.class_names == tuple(real.train.class_names[label] for label in steps[0])
    assert (own.validation is None) == (real.validation is None)


def test_another_number_of_steps_needs_another_folder(tmp_path: Path):
    real = read(tiny().data, None, None, QUIET)
    order = class_order(10, 0)
    path = _archive(tmp_path / "step.npz", real, order[:2])
    before = path.read_bytes()
    assert _archive(path, real, order[:2]).read_bytes() == before
    with pytest.raises(OutputError, match="choose another --out"):
        _archive(path, real, order[:5])
    assert path.read_bytes() == before


def test_a_network_has_its_own_step_size(tmp_path: Path, monkeypatch):
    seen = []

    def trained(training, network, settings, **rest):
        seen.append(settings.learning_rate)
        return train(training, network, settings, **{**rest, "epochs": 1})

    monkeypatch.setattr("rayd.applications.continual.train", trained)
    networks = [{"name": "convnet", "width": 8, "depth": 2, "learning_rate": 0.003}]
    recipe = tiny(evaluation={"networks": networks, "seeds": 1})
    learn(recipe, tmp_path, steps=1, orders=1, methods=["random"], progress=QUIET)
    assert seen == [0.003]


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


def test_memories_of_the_same_name_are_refused(tmp_path: Path):
    files = []
    for folder in ("a", "b"):
        file = tmp_path / folder / "mine.yaml"
        file.parent.mkdir()
        file.write_text("base: digits\n")
        files.append(str(file))
    with pytest.raises(ConfigError, match="whose names must differ"):
        learn(few(), tmp_path / "out", steps=5, methods=files, progress=QUIET)


def test_orders_are_seeded_permutations():
    assert sorted(class_order(10, 3)) == list(range(10))
    assert class_order(10, 0).tolist() != class_order(10, 1).tolist()


def test_curves_are_averaged_over_orders_and_students():
    curve = Curve("random", (2, 4), ((0.8, 0.9), (0.5, 0.7)))
    assert curve.means == pytest.approx((0.85, 0.6))
    assert curve.stds == pytest.approx((0.1 / 2**0.5, 0.2 / 2**0.5))
    assert chart([curve]).size == (560, 380)


def test_a_distillation_has_more_than_one_class_and_something_is_compared(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"at least two classes\. Got 10 steps of one class each"):
        learn(few(), tmp_path, steps=10, orders=1, progress=QUIET)
    for nothing in ({"methods": []}, {"orders": 0}):
        with pytest.raises(ConfigError, match="over at least one order"):
            learn(few(), tmp_path, steps=5, **nothing, progress=QUIET)


def test_a_step_without_colours_is_remembered_as_the_colour_images_that_it_is_of(tmp_path: Path):
    """Whitening does not take images of fewer channels for others."""
    draws = np.random.default_rng(0)
    arrays = {}
    for split, each in (("train", 6), ("test", 2)):
        labels = np.repeat(np.arange(4), each)
        images = draws.integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
        grey = np.isin(labels, class_order(4, 0)[:2])
        images[grey] = images[grey][..., :1]
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    np.savez(tmp_path / "data.npz", **arrays)
    data = {"name": str(tmp_path / "data.npz"), "normalization": "zca"}
    recipe = tiny(data=data, evaluation={"seeds": 1, "epochs": 1}, synthesis={"steps": 1})
    (curve,) = learn(
        recipe,
        str(tmp_path / "out"),
        steps=2,
        orders=1,
        methods=["distilled"],
        cache=tmp_path / "c",
        progress=QUIET,
    )
    assert [len(row) for row in curve.accuracies] == [1, 1]
