"""Results show themselves: a line at the prompt, HTML in a notebook."""

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.nn import functional

import rayd
from rayd.config import parse_overrides
from rayd.distilled import Distilled
from rayd.errors import ArtifactError
from rayd.shown import report_rows
from tests.evaluation.test_scores import soft_report
from tests.test_cli import QUICK


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    return rayd.distill(
        "digits",
        out=folder / "run",
        cache=folder / "cache",
        quiet=True,
        settings={**parse_overrides(QUICK), "synthesis.log_every": 2},
    )


def test_results_have_a_short_repr_and_html(run):
    plan = rayd.plan("digits", settings=parse_overrides(QUICK))
    assert repr(rayd.compare(run)) == "Comparison(groups=1)"
    for result in (run, run.report, run.distilled, run.recipe, plan):
        assert len(repr(result)) < 200, repr(result)
        assert "<" in result._repr_html_()
    assert "data:image/png;base64," in run._repr_html_()
    assert "distilled" in run.report._repr_html_()


def test_results_draw_figures_that_notebooks_show(run):
    for result in (run, run.report, run.distilled):
        figure = result.plot()
        assert isinstance(figure, Figure)
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert "loss" in [axes.get_title() for axes in run.plot().axes]
    bars = [label.get_text() for label in run.report.plot().axes[0].get_yticklabels()]
    assert bars == [f"{result.set}, {result.network}" for result in run.report.results]


def test_a_run_without_logged_steps_has_no_curves(run, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ArtifactError, match=r"no curves.*synthesis\.log_every"):
        dataclasses.replace(run, directory=tmp_path).plot()


def test_a_page_of_a_run_and_a_comparison(run, tmp_path):
    assert rayd.report(run, tmp_path / "page.html") == tmp_path / "page.html"
    assert "digits" in (tmp_path / "page.html").read_text()
    # the same run, by its result and by its directory, is one distillation
    (group,) = rayd.compare(run, run.directory).groups
    mean = next(result for result in run.report.results if result.set == "distilled")
    assert group.accuracies["distilled"].runs == (mean.test_accuracy.mean,)
    with pytest.raises(rayd.RaydError, match=r"rayd\.compare"):
        rayd.compare()
    with pytest.raises(rayd.RaydError, match="holds no"):
        rayd.compare(tmp_path)


def test_html_escapes_names():
    assert "<script>" not in rayd.recipes.resolve("digits", {"name": "<script>"})._repr_html_()


def test_rows_of_a_report_say_their_labels_and_augmentation():
    rows = report_rows(soft_report())
    found = [(row["set"], row["labels"], row["augmented"]) for row in rows]
    assert found[:3] == [
        ("distilled", "soft", True),
        ("random", "soft", True),
        ("distilled", "hard", True),
    ]
    assert len(set(found)) == len(found)
    assert "distilled, hard labels" in soft_report()._repr_html_()


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
    assert table["label"][:] == run.distilled.hard_labels.tolist()
    assert table.features["label"].names == list(run.distilled.class_names)
    pixels = np.stack([np.asarray(image) for image in table["image"]])
    assert np.array_equal(pixels[:, None], run.distilled.pixels().numpy())
    soft = Distilled(
        run.distilled.images,
        functional.one_hot(run.distilled.labels).float(),
        run.distilled.class_names,
        run.distilled.normalization,
    )
    rows = soft.to_hf_dataset()
    assert rows["label"][:] == table["label"][:]
    assert rows[0]["soft_label"] == soft.labels[0].tolist()


def test_a_mistake_in_a_plan_is_a_sentence():
    with pytest.raises(rayd.RaydError, match=r"did you mean 'synthesis\.steps'"):
        rayd.plan("digits", settings={"synthesis.stepz": 3})
