"""Results show themselves: a line at the prompt, HTML in a notebook."""

import pytest
import torch

import rayd
from rayd.config import parse_overrides
from tests.test_cli import QUICK


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    return rayd.distill(
        "digits",
        out=folder / "run",
        cache=folder / "cache",
        quiet=True,
        settings=parse_overrides(QUICK),
    )


def test_results_have_a_short_repr_and_html(run):
    for result in (run, run.report, run.distilled, run.recipe):
        assert len(repr(result)) < 200, repr(result)
        assert "<" in result._repr_html_()
    assert "data:image/png;base64," in run._repr_html_()
    assert "distilled" in run.report._repr_html_()


def test_html_escapes_names():
    assert "<script>" not in rayd.recipes.resolve("digits", {"name": "<script>"})._repr_html_()


def test_a_report_as_a_table_of_pandas(run):
    pytest.importorskip("pandas")
    table = run.report.to_pandas()
    assert len(table) == len(run.report.results)
    assert table["test_accuracy"].between(0, 1).all()


def test_a_loader_of_the_set(run):
    images, labels = next(iter(run.distilled.dataloader(batch_size=4, shuffle=False)))
    assert torch.equal(images, run.distilled.images[:4])
    assert torch.equal(labels, run.distilled.labels[:4])


def test_a_hugging_face_data_set_of_the_set(run):
    pytest.importorskip("datasets")
    table = run.distilled.to_hf_dataset()
    assert table["label"] == run.distilled.hard_labels.tolist()


def test_a_mistake_in_a_plan_is_a_sentence():
    with pytest.raises(rayd.RaydError, match=r"did you mean 'synthesis\.steps'"):
        rayd.plan("digits", settings={"synthesis.stepz": 3})
