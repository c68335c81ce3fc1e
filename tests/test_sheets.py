"""Pictures of a set for the command line."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import rayd
from rayd.cli import app
from rayd.data import Standardization
from rayd.distilled import Distilled
from rayd.engine.runlog import RunLog
from rayd.engine.stages.blocks import SHEET_TAG
from rayd.errors import ArtifactError, ConfigError
from rayd.pictures import CELL, GAP, contact_sheet
from rayd.sheets import CAPTION, sheet


@pytest.fixture
def run(tmp_path):
    """A set of three classes, whose pictures were logged at steps 0, 10 and 20."""
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, 8, 8, generator=draws)
    labels = torch.arange(3).repeat(2)
    normalization = Standardization(torch.zeros(1), torch.ones(1))
    distilled = Distilled(images, labels, ["ant", "bee", "cat"], normalization)
    log = RunLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    for step in (0, 10, 20):
        earlier = Distilled(images * step / 20, labels, distilled.class_names, normalization)
        log.picture(SHEET_TAG, step, np.asarray(contact_sheet(earlier)))
    log.close()
    distilled.save(tmp_path / "distilled")
    return tmp_path


def test_sheet_shows_the_classes_that_are_named(run):
    whole = sheet(rayd.load(run))
    one = sheet(rayd.load(run), classes=["bee"])
    row = CELL + GAP
    assert one.height == row + GAP
    cut = np.asarray(whole)[row : 2 * row + GAP, -2 * row :]
    assert np.array_equal(np.asarray(one)[:, -2 * row :], cut)


def test_sheet_is_enlarged_by_whole_factors(run):
    small = np.asarray(sheet(rayd.load(run)))
    assert np.array_equal(np.asarray(sheet(rayd.load(run), scale=3))[::3, ::3], small)


def test_initial_images_stand_beside_the_distilled_ones(run):
    both = sheet(rayd.load(run), before=True)
    alone = sheet(rayd.load(run))
    assert both.size == (2 * alone.width, alone.height + CAPTION)
    assert np.array_equal(np.asarray(both)[CAPTION:, alone.width :], np.asarray(alone))
    # before the first step all pixels were black
    assert np.asarray(both)[CAPTION + GAP + 10, alone.width - GAP - 10].max() == 0


def test_steps_are_evenly_chosen(run):
    width = sheet(rayd.load(run)).width
    assert sheet(rayd.load(run), steps=2).width == 3 * width
    assert sheet(rayd.load(run), steps=9, before=True).width == 4 * width


def test_rows_of_earlier_pictures_are_those_of_the_classes(run):
    whole = np.asarray(sheet(rayd.load(run), steps=1, before=True))
    one = np.asarray(sheet(rayd.load(run), steps=1, before=True, classes=["cat"]))
    assert one.shape[0] == CAPTION + CELL + 2 * GAP
    assert one.shape[1] <= whole.shape[1]


def test_unknown_classes_and_missing_pictures_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'bee'"):
        sheet(rayd.load(run), classes=["bees"])
    rayd.load(run).save(tmp_path / "alone")
    with pytest.raises(ArtifactError, match="pictures of earlier steps"):
        sheet(rayd.load(tmp_path / "alone"), before=True)


def test_command_writes_what_is_asked_for(run):
    file = run / "out.png"
    words = ["show", str(run), "--png", str(file), "--before", "--class", "ant", "--scale", "2"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    expected = sheet(rayd.load(run), classes=["ant"], before=True, scale=2)
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(expected))


def test_command_shows_schedules(tmp_path):
    file = tmp_path / "schedule.png"
    words = ["show", "digits", "synthesis.steps=50", "--schedule", "--png", str(file)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "at 0, 12, 25, 38 and 50 steps" in done.output
    assert Image.open(file).width > 300


def test_settings_need_a_recipe(run):
    done = CliRunner().invoke(app, ["show", str(run), "ipc=5"])
    assert isinstance(done.exception, ConfigError)
