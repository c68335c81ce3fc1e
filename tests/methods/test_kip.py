"""KIP: what it declares, and runs on digits."""

import pytest

from rayd import methods
from rayd.engine.distill import distill
from rayd.engine.progress import Progress
from rayd.recipes import assemble
from tests.conftest import tiny
from tests.runs import steps_of


def test_declarations():
    method = methods.build(assemble({"method": "kip", "data": "cifar10", "ipc": 10}))
    (term,) = method.terms
    assert (term.name, term.network, term.depth) == ("kernel_regression", "fc", 1)
    assert term.relative_ridge == 1e-6
    recipe = method.recipe
    assert (recipe.real, recipe.data.normalization) == ("sampled", "zca-scaled")
    # 5,000 images a step
    assert recipe.observers.real_batch == 500
    assert (recipe.synthesis.optimizer, recipe.synthesis.learning_rate) == ("adam", 0.04)
    assert method.citation.startswith("@")


@pytest.mark.parametrize("labels", ["hard", "classes"])
def test_run_lowers_the_loss(tmp_path, labels):
    recipe = tiny(
        method="kip",
        data={"name": "digits", "normalization": "standard"},
        observers={"networks": {"name": "mlp", "width": 1}, "real_batch": 20, "per_step": 1},
        synthetic={"labels": labels},
        synthesis={"steps": 30, "log_every": 5},
        evaluation={"baselines": [], "epochs": 1, "seeds": 1},
    )
    run = distill(recipe, tmp_path / "run", progress=Progress(quiet=True))
    losses = [line["loss"] for line in steps_of(run.directory)]
    assert losses[-1] < 0.8 * losses[0]
    assert run.distilled.labels.is_floating_point() == (labels == "classes")
