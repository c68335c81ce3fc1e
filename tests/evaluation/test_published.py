"""The paper's number stands beside a result only where the settings are the recipe's."""

import pytest

from rayd import recipes
from rayd.evaluation.published import Published, departures
from rayd.evaluation.report import Report
from tests.evaluation.test_report import distilled, student

NAME = "dm-cifar10-ipc1"
NETWORK = recipes.resolve(NAME).evaluation.networks[0].label


def report(**overrides: object) -> Report:
    made = recipes.resolve(NAME, overrides)
    runs = [(name, student(0.25, network=NETWORK)) for name in ("distilled", "random")]
    return Report.build(made, runs, distilled(), {})


def test_the_recipe_itself_has_the_papers_number():
    made = report()
    ours, random = made.results
    assert ours.paper == Published(0.26, 0.008, ours.paper.source)
    assert random.paper is None
    assert "paper: 0.260 ± 0.008 (" in made.text()
    assert "differs from the recipe" not in made.text()
    assert Report.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("evaluation.seeds", 1),
        ("observers.networks.width", 16),
        ("synthesis.steps", 5),
        ("evaluation.epochs", 20),
        ("terms.cross_entropy.weight", 0.1),
        ("data.validation_fraction", 0.1),
    ],
)
def test_other_settings_lose_it_and_are_named(setting, value):
    made = report(**{setting: value})
    assert made.results[0].paper is None
    assert "paper:" not in made.text()
    assert f"'{NAME}'" in made.text() or made.recipe != NAME


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed", 3),
        ("evaluation.seeds", 20),
        ("evaluation.baselines", ["whole"]),
        ("evaluation.comparisons", []),
        ("resources.workers", 4),
        ("synthesis.log_every", 7),
    ],
)
def test_what_changes_no_result_keeps_it(setting, value):
    assert departures(recipes.resolve(NAME, {setting: value})) == ()
    assert report(**{setting: value}).results[0].paper is not None


def test_a_synthesis_that_a_callback_ended_has_no_number():
    """Callbacks are no settings of a result, but the set is not the one of all steps."""
    ended = distilled()
    ended.card["ended_at_step"] = 200
    runs = [("distilled", student(0.25, network=NETWORK))]
    made = Report.build(recipes.resolve(NAME), runs, ended, {})
    assert made.results[0].paper is None
    assert "differs from the recipe 'dm-cifar10-ipc1' in callbacks" in made.text()


def test_another_network_has_no_number():
    made = recipes.resolve(NAME, {"evaluation.networks": ["mlp", NETWORK.partition("-")[0]]})
    assert Published.beside(made, "mlp") is None
    assert Published.beside(made, NETWORK) is not None


def test_a_file_on_a_recipe_is_compared_with_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {NAME}\nresources: {{workers: 2}}\n")
    assert Published.beside(recipes.resolve(path), NETWORK) is not None
    path.write_text(f"base: {NAME}\nsynthesis: {{steps: 9}}\n")
    assert departures(recipes.resolve(path)) == ("synthesis.steps",)
    assert Published.beside(recipes.resolve(path), NETWORK) is None


def test_a_precision_that_the_machine_chose_is_no_departure():
    made = recipes.resolve(NAME)
    chosen = made.synthesis.model_copy(update={"precision": "bfloat16"})
    assert departures(made.model_copy(update={"synthesis": chosen})) == ()


def test_missing_baselines_are_named_with_the_setting_that_adds_them():
    text = report().text()
    assert "no HLR and LRS: the whole set was not evaluated" in text.replace("\n  ", " ")
    alone = Report.build(
        recipes.resolve(NAME), [("distilled", student(0.25, network=NETWORK))], distilled(), {}
    ).text()
    assert "no IOR, HLR and LRS: random images and the whole set were not evaluated" in (
        alone.replace("\n  ", " ")
    )


def test_one_student_has_no_deviation():
    assert "±" not in report(**{"evaluation.seeds": 1}).text().partition("IOR: ")[0]
