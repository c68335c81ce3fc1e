"""HaBa: what it declares, what its adversary learns, and runs on digits."""

import pytest
import torch

from rayd import methods
from rayd.engine.distill import distill
from rayd.errors import ConfigError
from rayd.recipes import assemble, resolve
from tests.conftest import tiny
from tests.engine.test_trajectory_matching import following
from tests.runs import QUIET, steps_of


def test_declarations():
    method = methods.build(assemble({"method": "haba", "data": "cifar10", "ipc": 10}))
    (term,) = method.terms
    assert (term.name, term.weight, term.per_basis) == ("hallucinator_contrast", 0.1, 5)
    recipe = method.recipe
    assert (recipe.synthetic.kind, recipe.synthetic.expansion) == ("hallucinated", 5)
    assert (recipe.synthesis.steps, recipe.synthesis.learning_rate) == (15_000, 100.0)
    assert recipe.synthesis.momentum == 0.95
    adversary = recipe.observers.model_pool
    assert (adversary.capacity, adversary.source, adversary.loss) == (1, "synthetic", "contrast")
    assert (adversary.learning_rate, adversary.momentum) == (0.001, 0.9)
    assert method.trajectory_objective is not None


@pytest.mark.parametrize(
    ("cell", "steps", "most"), [("ipc1", 50, 2), ("ipc10", 30, 20), ("ipc50", 30, 20)]
)
def test_recipes_are_the_released_commands(cell, steps, most):
    recipe = resolve(f"haba-cifar10-{cell}")
    objective = methods.build(recipe).settings
    assert (objective.steps, objective.epochs, objective.start.most) == (steps, 2, most)
    # each step as many images as there are bases
    assert objective.batch_size == 10 * recipe.ipc
    assert recipe.data.normalization == "zca"
    # as many steps of a student as 1,000 epochs of the bases
    batches = -(-10 * recipe.ipc * 5 // recipe.evaluation.batch_size)
    assert batches * recipe.evaluation.epochs == 1000 * -(-10 * recipe.ipc // 256)


def test_hallucinators_are_held_apart_and_the_adversary_learns(tmp_path):
    """With the term alone (no students' pull) images of one basis come apart."""
    losses = {}
    for weight in (0.001, 1000.0):
        recipe = following(
            "haba",
            terms={"hallucinator_contrast": {"weight": weight}},
            synthesis={"steps": 40, "learning_rate": 0.01, "optimizer": "adam", "momentum": 0.9},
            evaluation={"epochs": 1},
        )
        run = distill(recipe, tmp_path / str(weight), progress=QUIET)
        losses[weight] = [line["hallucinator_contrast"] for line in steps_of(run.directory)]
    assert losses[1000.0][-1] < losses[1000.0][0]
    assert losses[1000.0][-1] < losses[0.001][-1]


def test_distilled_set_has_all_images_and_the_storage_of_bases_and_hallucinators(tmp_path):
    run = distill(following("haba"), tmp_path / "run", progress=QUIET)
    assert len(run.distilled.images) == 2 * 10 * 5
    assert run.distilled.labels.bincount().tolist() == [10] * 10
    # 20 bases of 64 pixels, 5 hallucinators of (9 + 1) * 2 + 2 * 36 numbers
    numbers = sum(run.distilled.card["storage"]["numbers"].values())
    assert numbers == 20 * 64 + 5 * (20 + 72)
    again = (
        type(run.distilled).load(run.directory) if hasattr(type(run.distilled), "load") else None
    )
    assert again is None or torch.equal(again.images, run.distilled.images)


def test_contrast_needs_images_of_one_basis():
    with pytest.raises(ConfigError, match=r"set 'model_pool\.source: synthetic'"):
        tiny(real="sampled", observers={"model_pool": {"loss": "contrast"}})
