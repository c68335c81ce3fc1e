"""Keywords of the Python functions are the settings of a recipe."""

import inspect
from typing import get_type_hints

import pytest

import rayd
from rayd.config import Recipe
from rayd.keywords import Keywords, RecipeKeywords

NO_SETTINGS = {"name", "paper", "measured"}


def test_keywords_are_the_settings_of_a_recipe():
    known = set(Recipe.model_fields) - NO_SETTINGS
    assert set(get_type_hints(RecipeKeywords)) == known
    given = set(inspect.signature(rayd.distill).parameters)
    assert set(get_type_hints(Keywords)) == known - given


@pytest.mark.parametrize("function", ["distill", "plan", "tune", "evaluate"])
def test_functions_take_typed_keywords(function):
    parameters = inspect.signature(getattr(rayd, function)).parameters
    assert "Keywords]" in str(parameters["overrides"].annotation)
    assert "settings" in parameters


def test_help_answers_what_a_user_asks():
    text = inspect.getdoc(rayd.distill)
    for asked in ("resume", "rayd.plan", "workers", "train", "Raises:", "settings", "quiet"):
        assert asked in text
    documented = text.split("Args:")[1].split("Returns:")[0]
    for name in inspect.signature(rayd.distill).parameters:
        assert f"{name}:" in documented, name


@pytest.mark.parametrize("name", [name for name in rayd.__all__ if name != "__version__"])
def test_everything_public_is_documented(name):
    public = getattr(rayd, name)
    assert inspect.getdoc(public)
    if not inspect.ismodule(public):
        return
    for member in getattr(public, "__all__", ()):
        value = getattr(public, member)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"{name}.{member}"
