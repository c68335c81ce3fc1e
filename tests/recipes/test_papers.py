"""Published results of recipes are those that papers print, and none of a method is left out.

`papers.csv` holds the results as they are printed, from the papers; recipes have theirs from the
tables in `rayd/results/papers`, which people read and edit.
"""

import importlib.util
import re
from pathlib import Path

import pytest

from rayd import methods, recipes
from rayd.config import PaperResult, Recipe, validate
from rayd.errors import ConfigError
from rayd.networks import registry
from rayd.results import papers

ROWS = Path(__file__).with_name("papers.csv")
ELSEWHERE = {"deit_tiny": "timm", "swin_tiny": "swin_t", "shufflenet_v2": "shufflenet_v2_x0_5"}
"""Networks that papers call otherwise than torchvision, or that it has not."""


@pytest.fixture(scope="module")
def coverage():
    path = Path(__file__).parents[2] / "benchmarks/coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_of_papers", path)
    module = importlib.util.module_from_spec(spec)
    __import__("sys").modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def listed():
    return [headline.model_dump(mode="json") for headline in recipes.headlines()]


def test_no_result_of_a_recipe_differs_from_what_is_printed(coverage, listed):
    found = coverage.compare(coverage.rows_of(ROWS), listed)
    assert found.strange == []


def test_every_printed_result_of_a_known_method_belongs_to_a_recipe(coverage, listed):
    found = coverage.compare(coverage.rows_of(ROWS), listed)
    assert found.missing(methods.names()) == []


def test_a_changed_number_is_noticed(coverage, listed):
    changed = next(one for one in listed if one["name"] == "edc-tiny-imagenet-ipc50")
    first, *rest = changed["paper"]
    others = [one for one in listed if one is not changed]
    changed = changed | {"paper": [first | {"value": 0.572}, *rest]}
    found = coverage.compare(coverage.rows_of(ROWS), [*others, changed])
    assert found.strange == ["edc-tiny-imagenet-ipc50: 0.572 of resnet18 in EDC, Table 1"]
    assert [row.value for row in found.missing({"edc"})] == [0.565]


def test_results_are_of_recipes():
    assert set(papers.entries()) <= set(recipes.names())


@pytest.mark.parametrize("name", sorted(papers.entries()))
def test_the_first_result_is_of_the_recipes_own_student(name):
    recipe = recipes.resolve(name)
    first = recipe.paper[0]
    if not first.of_recipe:
        pytest.skip("no paper has an accuracy of this recipe")
    student = recipe.evaluation.networks[0]
    written = {student.name.rpartition("/")[2], f"{student.name}-w{student.width}"}
    assert first.network in written


@pytest.mark.parametrize("name", sorted(papers.entries()))
def test_tested_networks_exist(name):
    import torchvision

    known = {*registry.names(), *torchvision.models.list_models(module=torchvision.models)}
    for result in recipes.resolve(name).paper:
        network = re.sub(r"-w\d+$", "", result.network or "convnet")
        assert {network, ELSEWHERE.get(network, network)} & {*known, "timm"}, result


def test_entries_are_read_as_they_are_printed(tmp_path, monkeypatch):
    for name in papers._FILES:
        (tmp_path / f"{name}.yaml").write_text("[]")
    (tmp_path / "edc.yaml").write_text(
        """
- table: EDC, Table 1
  networks: [resnet18, resnet50]
  note: on one seed
  cells:
    one two: [32.60 ± 0.1; by eye, null]
- table: EDC, Table 2
  recipe: one
  metric: seconds
  settings:
    zeta 2: 598.0
""",
        encoding="utf-8",
    )
    monkeypatch.setattr(papers, "FOLDER", tmp_path)
    papers.entries.cache_clear()
    try:
        one = papers.of("one")
        two = papers.of("two")
    finally:
        papers.entries.cache_clear()
    accuracy = {
        "table": "EDC, Table 1",
        "value": 0.326,
        "network": "resnet18",
        "std": 0.001,
        "note": "by eye; on one seed",
    }
    assert two == [accuracy]
    assert one == [
        accuracy,
        {"table": "EDC, Table 2", "metric": "seconds", "value": 598.0, "setting": "zeta 2"},
    ]


def test_results_survive_yaml(tmp_path):
    recipe = recipes.resolve("edc-cifar10-ipc10")
    assert len(recipe.paper) > 50
    path = tmp_path / "mine.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert recipes.resolve(path).paper == recipe.paper
    # one line each
    assert recipe.to_yaml().count("\n- {network: ") + 6 == len(recipe.paper)


@pytest.mark.parametrize("former", [None, {"accuracy": 0.5, "std": 0.1, "source": "Table 1"}])
def test_results_of_the_version_before_are_read(former):
    recipe = Recipe(method="dm", data={"name": "digits"}, paper=former)
    expected = () if former is None else (PaperResult(value=0.5, std=0.1, table="Table 1"),)
    assert recipe.paper == expected


def test_an_accuracy_is_a_fraction():
    with pytest.raises(ConfigError, match=r"an accuracy is a fraction in \[0, 1\]. Got 48.6"):
        validate(PaperResult, {"value": 48.6, "table": "Table 1"})
    PaperResult(value=48.6, metric="seconds", table="Table 1")
