"""Errors about batches of one image, which batch normalisation cannot take."""

import re

import pytest
import torch
from torch import nn

from rayd.config import RankingSettings
from rayd.errors import RunError
from rayd.training import single_images
from rayd.training.fitting import fit
from rayd.training.image_ranking import rank
from rayd.training.sets import TrainingSet


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_fit_names_the_batch_size():
    images = torch.rand(5, 1, 2, 2)
    labels = torch.tensor([0, 1, 0, 1, 0])
    with pytest.raises(RunError, match=r"its 5 images leave .*: set another 'batch_size'\.$"):
        fit(network(), images, labels, steps=3, batch_size=4)
    fit(network(), images, labels, steps=3, batch_size=3)


def test_ranking_names_its_setting():
    training = TrainingSet(torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 0, 1, 0]))
    settings = RankingSettings(epochs=2, early=1, batch_size=4)
    with pytest.raises(RunError, match=re.escape("set another 'ranking.batch_size'.")):
        list(rank(network(), training, settings, seed=0, device=torch.device("cpu")))


def test_other_errors_pass():
    refused = pytest.raises(ValueError, match="of another kind")
    with refused, single_images.explained("network", 5, "batch_size"):
        raise ValueError("of another kind")
