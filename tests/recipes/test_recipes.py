"""Every built-in recipe is valid, cites its method, and says where its numbers come from."""

import pytest

from rayd import methods, recipes
from rayd.citations import citations
from rayd.config import Recipe
from rayd.errors import ConfigError


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_whole(name):
    recipe = recipes.resolve(name)
    assert recipe.name == name
    assert recipe.summary
    assert citations(recipe, methods.get(recipe.method).citation)[0].startswith("@")
    if recipe.paper is not None:
        assert recipe.paper.source
        assert "random" in recipe.evaluation.baselines
    assert recipes.assemble(Recipe.model_validate_json(recipe.model_dump_json()).model_dump()) == recipe


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: dm\ndata: {name: digits}\nsynthesis: {steps: 7, momentum: 0.1}\n")
    recipe = recipes.resolve(path, {"synthesis": {"steps": 9}})
    assert (recipe.name, recipe.synthesis.steps, recipe.synthesis.momentum, recipe.ipc) == ("mine", 9, 0.1, 1)


def test_the_papers_number_stays_with_its_cell():
    assert recipes.resolve("dm-cifar10-ipc10", {"synthesis": {"steps": 9}}).paper is not None
    assert recipes.resolve("dm-cifar10-ipc10", {"ipc": 20}).paper is None
    assert recipes.resolve("dm-cifar10-ipc10", {"data": {"name": "svhn"}}).paper is None


def test_names_near_and_far():
    with pytest.raises(ConfigError, match="did you mean 'dm-cifar10-ipc1'"):
        recipes.resolve("dm-cifar10-ipc2")
    with pytest.raises(ConfigError, match="Cannot read the recipe"):
        recipes.resolve("there/is/none.yaml")
