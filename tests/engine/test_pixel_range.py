"""Sets whose pixels leave the range of real ones by far are warned about, with what to try."""

import json
import logging
from dataclasses import asdict

import pytest
import torch

from rayd.card_format import PixelRange
from rayd.card_text import describe
from rayd.config import Recipe
from rayd.data import Standardization
from rayd.distilled import Distilled, load
from rayd.engine.distill import distill
from rayd.engine.pixel_range import out_of_range
from rayd.evaluation.report import Report
from tests.conftest import tiny
from tests.runs import NO_STUDENTS, QUIET


def with_pixels(*values: float) -> Distilled:
    """A set of one-pixel images that have these values, where 0 to 1 is the data's range."""
    images = torch.tensor(values).view(-1, 1, 1, 1)
    normalization = Standardization(torch.tensor([0.3]).double(), torch.tensor([0.5]).double())
    return Distilled(
        normalization.forward_unit(images), torch.arange(len(values)) % 2, ["a", "b"], normalization
    )


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({"method": "dm", "data": {"name": "digits"}, **changes})


def test_pixels_far_out_of_range_are_named_with_their_range():
    sentence = out_of_range(recipe(), with_pixels(0.5, 0.25, -40.0, 70.0))
    assert sentence is not None
    assert "50% of the distilled pixels are out of the data's range" in sentence
    assert "they run from -40 to 70" in sentence


def test_pixels_that_leave_the_range_a_little_are_not_mentioned():
    assert out_of_range(recipe(), with_pixels(-1.9, 2.9, 0.5)) is None
    assert out_of_range(recipe(), with_pixels(9.0, *[0.5] * 99)) is None


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({}, "synthesis.clip=true"),
        ({"synthetic": {"kind": "lowrank"}}, "lower synthesis.learning_rates.left and .right"),
        ({"data": {"name": "digits", "normalization": "zca"}}, "lower synthesis.learning_rate."),
    ],
)
def test_the_remedy_fits_the_set(changes, remedy):
    sentence = out_of_range(recipe(**changes), with_pixels(50.0, -50.0))
    assert sentence is not None
    assert remedy in sentence


@pytest.mark.parametrize(("rate", "warned"), [(1.0, False), (1000.0, True)])
def test_a_run_warns_at_the_end_of_its_synthesis(tmp_path, caplog, rate, warned):
    with caplog.at_level(logging.WARNING):
        distill(
            tiny(synthesis={"learning_rate": rate}, **NO_STUDENTS), tmp_path / "run", progress=QUIET
        )
    assert any("out of the data's range" in message for message in caplog.messages) is warned


@pytest.mark.parametrize(("rates", "warned"), [({}, False), ({"left": 1.0, "right": 1.0}, True)])
def test_low_rank_images_stay_near_the_range_by_default(tmp_path, caplog, rates, warned):
    """With the step size of pixels for their mappers they do not."""
    low_rank = {"kind": "lowrank", "rank": 3}
    synthesis = {"steps": 60, "learning_rates": rates}
    with caplog.at_level(logging.WARNING):
        run = distill(
            tiny(synthetic=low_rank, synthesis=synthesis, **NO_STUDENTS),
            tmp_path / "run",
            progress=QUIET,
        )
    pixels = run.distilled.normalization.inverse(run.distilled.images)
    assert bool((pixels.abs() > 10).any()) is warned
    assert any("out of the data's range" in message for message in caplog.messages) is warned


def test_how_many_values_are_out_of_range_stands_in_card_and_report(tmp_path):
    run = distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    values = run.distilled.normalization.inverse(run.distilled.images)
    measured = load(tmp_path / "run").card["pixel_range"]
    assert measured["outside"] == pytest.approx(
        ((values < -0.5 / 255) | (values > 1 + 0.5 / 255)).float().mean().item(), rel=1e-5
    )
    assert measured["least"] == pytest.approx(values.min().item(), rel=1e-5)
    assert measured["most"] == pytest.approx(values.max().item(), rel=1e-5)
    assert asdict(run.report.pixel_range) == measured
    share = f"{measured['outside']:.0%}".replace("%", " %")
    for text in (run.report.text(), describe(run.distilled)):
        assert f"{share} of the values lie outside 0..1" in " ".join(text.split())


def test_images_in_range_are_not_remarked_on():
    inside = with_pixels(0.0, 0.5, 1.0)
    assert inside.pixel_range.fits
    assert "outside" not in describe(inside)
    assert with_pixels(0.0, 1.01).pixel_range == PixelRange(0.5, 0.0, pytest.approx(1.01))


def test_a_report_of_an_older_version_has_no_range(tmp_path):
    run = distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    content = json.loads(json.dumps(run.report.to_json()))
    del content["pixel_range"]
    old = Report.from_json(content)
    assert old.pixel_range is None
    assert "outside" not in old.text()
