"""The JSON schema of recipe files: what editors accept is what rayd reads."""

import json

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from rayd import recipes
from rayd.cli import app
from rayd.recipes.schema import schema


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    made = schema()
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


def test_schema_accepts_every_resolved_recipe(validator):
    for name in recipes.names():
        tree = yaml.safe_load(recipes.resolve(name).to_yaml())
        assert [error.message for error in validator.iter_errors(tree)] == [], name


@pytest.mark.parametrize(
    "tree",
    [
        {"base": "digits", "ipc": 5},
        {"base": {"method": "dm", "data": "digits"}},
        {"method": "dm", "data": "digits", "observers": {"networks": "mlp"}},
        {
            "method": "dm",
            "data": {"name": "digits"},
            "evaluation": {"networks": ["mlp", "convnet"]},
        },
        {"method": "edc", "data": "digits", "terms": {"flatness": {"weight": 0.5}}},
        {"method": "edc", "data": "digits", "terms": {"flatness": {"weight": None}}},
        # 'kind' may stand in the base
        {"base": "digits", "synthetic": {"rank": 3}},
        {"base": "digits", "synthetic": {"kind": "lowrank", "rank": 3}},
        {"base": "digits", "evaluation": {"transform": {"rand_augment": 1, "magnitude": 3}}},
    ],
)
def test_schema_accepts_abbreviations(validator, tree):
    assert [error.message for error in validator.iter_errors(tree)] == []


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"base": "digits", "ipcc": 5}, "'ipcc' was unexpected"),
        ({"method": "cfm", "data": "digits", "objective": {"nope": 1}}, "'nope' was unexpected"),
        ({"method": "cfmm", "data": "digits"}, "'cfmm' is not one of"),
        ({"base": "digits", "ipc": 0}, "less than the minimum"),
        ({"method": "dm"}, "is not valid under any of the given schemas"),
        ({"base": "digits", "synthetic": {"kind": "pixels", "rank": 3}}, "8 was expected"),
        (
            {"base": "digits", "evaluation": {"transform": {"rand_augment": 0, "magnitude": 3}}},
            "9 was expected",
        ),
        (
            {"method": "csdm", "data": "digits", "terms": {"characteristic_function": {"kern": 1}}},
            "'kern' was unexpected",
        ),
        (
            {
                "method": "csdm",
                "data": "digits",
                "terms": {"characteristic_function": {"kernel": "gaussian", "smoothness": 0.5}},
            },
            "1.5 was expected",
        ),
    ],
)
def test_schema_refuses_what_rayd_refuses(validator, tree, message):
    assert any(message in error.message for error in validator.iter_errors(tree))


def test_command_line_prints_the_schema():
    result = CliRunner().invoke(app, ["recipes", "--schema"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == schema()
