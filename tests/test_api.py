"""The Python API: keywords, errors in its own words, and the example in the README."""

from contextlib import nullcontext
from pathlib import Path

import pytest

import rayd
from rayd.errors import ConfigError, OutputError
from tests.test_cli import QUICK


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with settings by dotted key."""
    folder = tmp_path_factory.mktemp("api")
    settings = rayd.config.parse_overrides(QUICK)
    rayd.distill("digits", out=folder / "run", cache=folder / "cache", quiet=True, **settings)
    return folder / "run"


def test_settings_may_be_dotted_keys(finished, tmp_path):
    """They are the same settings, and so the same run."""
    again = rayd.distill(
        "digits",
        out=finished,
        cache=finished.parent / "cache",
        resume=True,
        quiet=True,
        evaluation={
            "epochs": 2,
            "whole_epochs": 1,
            "networks": [{"name": "convnet", "depth": 2, "width": 8}],
        },
        **{
            "synthesis.steps": 6,
            "observers.pool": 2,
            "observers.networks.width": 8,
            "evaluation.seeds": 1,
        },
    )
    assert (again.recipe.synthesis.steps, again.recipe.evaluation.seeds) == (6, 1)
    report = rayd.evaluate(
        finished, quiet=True, cache=finished.parent / "cache", **{"evaluation.baselines": []}
    )
    assert [result.set for result in report.results] == ["distilled"]
    with pytest.raises(
        ConfigError, match=r"must have the form key or key\.sub\. Got 'synthesis\.\.steps' instead"
    ):
        rayd.distill("digits", out=tmp_path / "run", **{"synthesis..steps": 6})


def test_a_set_is_evaluated_with_the_threads_of_its_run(finished, monkeypatch):
    """The recipe's one thread, though the card holds no resources; another number where it is asked
    for.
    """
    counts: list[int | None] = []
    monkeypatch.setattr(
        "rayd.devices.thread_limit", lambda threads: counts.append(threads) or nullcontext()
    )
    for resources in ({}, {"threads": 2}):
        settings = {"resources": resources, "evaluation.baselines": []}
        rayd.evaluate(finished, quiet=True, cache=finished.parent / "cache", **settings)
    assert counts == [1, 2]


def test_a_run_is_continued_by_its_directory_alone(finished):
    run = rayd.distill(resume=finished, cache=finished.parent / "cache", quiet=True)
    assert (run.directory, run.recipe.synthesis.steps) == (finished, 6)
    assert len(run.distilled) == 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "digits"}, "add resume=True to continue it, or choose another out"),
        (
            {"name": "digits", "resume": True},
            r"choose another out, or continue .* with rayd\.distill\(resume='.*/run'\)",
        ),
        (
            {"name": "digits", "resume": True, "overwrite": True},
            "give resume=True or overwrite=True, not both",
        ),
    ],
)
def test_errors_name_keywords_not_options(finished, arguments, sentence):
    with pytest.raises(OutputError, match=sentence) as error:
        rayd.distill(**arguments, out=finished, quiet=True)
    assert "--" not in str(error.value)


def test_a_run_must_be_named(finished):
    with pytest.raises(ConfigError, match="Name a recipe"):
        rayd.distill()
    with pytest.raises(ConfigError, match="omit the recipe's name and out"):
        rayd.distill("digits", resume=finished)
