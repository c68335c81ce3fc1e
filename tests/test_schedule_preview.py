"""What a recipe schedules: the curves are those that the engine follows."""

import pytest

from rayd import recipes, schedules
from rayd.schedule_preview import curves, figure, text


def curve(recipe, part):
    (found,) = [one for one in curves(recipe) if part in one.title]
    return found


def test_step_sizes_of_images_fall_along_the_cosine():
    recipe = recipes.resolve("edc-cifar10-ipc10")
    found = curve(recipe, "step size of the images")
    assert found.positions[-1] == recipe.synthesis.steps
    rates = [
        recipe.synthesis.learning_rate * schedules.half_cosine(step / recipe.synthesis.steps)
        for step in found.positions
    ]
    assert found.values == pytest.approx(rates)


def test_filters_change_with_blocks():
    recipe = recipes.resolve("cfm-cifar10-ipc10")
    found = curve(recipe, "beta of the filter")
    assert found.unit == "blocks"
    assert found.values[0] == 0.1
    assert found.values[-1] == pytest.approx(0)


def test_windows_of_expert_epochs_move():
    recipe = recipes.resolve("ls-mtt-digits")
    found = curve(recipe, "expert epochs")
    assert found.lower is not None
    assert found.values[0] < found.values[-1]
    assert all(low <= high for low, high in zip(found.lower, found.values, strict=True))


def test_students_decay_where_the_engine_does():
    recipe = recipes.resolve("digits")
    found = curve(recipe, "students")
    drop = next(i for i, value in enumerate(found.values) if value < found.values[0])
    (milestone,) = schedules.milestone_epochs(recipe.evaluation.schedule, recipe.evaluation.epochs)
    assert found.positions[drop - 1] < milestone <= found.positions[drop]


def test_crops_shrink_by_the_curriculum():
    found = curve(recipes.resolve("cda-tiny-imagenet-ipc50"), "crop")
    assert found.values[0] == 1
    assert found.values[-1] == pytest.approx(0.08)


def test_text_has_curves_that_change_first():
    lines = text(recipes.resolve("digits", {"synthesis.schedule": "constant"})).splitlines()
    assert "students" in lines[0]
    assert "images" in lines[2]
    assert "throughout" in lines[3]


@pytest.mark.parametrize("name", recipes.families())
def test_every_family_can_be_drawn(name):
    first = recipes.families()[name][0]
    recipe = recipes.resolve(first)
    assert text(recipe)
    if name == "digits":
        assert figure(recipe).axes
