"""Pruning of channels against masked networks, and slimming on a few digits."""

import json

import pytest
import torch
from torch import nn

from rayd.applications.slimming import (
    Slimmed,
    _Slimming,
    _training,
    chart,
    prune,
    scales,
    slim,
    small_vgg,
    text,
)
from rayd.config import NetworkSettings
from rayd.data import ImageShape, Standardization, load
from rayd.distilled import Distilled
from rayd.engine.distill import distill
from rayd.engine.progress import Progress
from rayd.errors import ConfigError
from rayd.networks import build
from tests.conftest import tiny
from tests.test_cli import run

SHAPE = ImageShape(1, 8, 8)


def drawn(network: nn.Module) -> nn.Module:
    """A network in eval mode whose scales, biases and running statistics are not the initial ones."""
    draws = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.copy_(torch.randn(module.weight.shape, generator=draws))
                module.bias.copy_(torch.randn(module.bias.shape, generator=draws))
                module.running_mean.copy_(torch.randn(module.bias.shape, generator=draws))
                module.running_var.copy_(torch.rand(module.bias.shape, generator=draws) + 0.5)
    return network.eval()


def test_learned_labels_are_left_aside():
    """All sets are compared under hard labels."""
    normalization = Standardization(torch.zeros(1), torch.ones(1))
    labels = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    learned = Distilled(torch.zeros(2, 1, 8, 8), labels, ["a", "b"], normalization, {})
    training = _training("distilled", learned, None, None, 0)
    assert training.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "network",
    [
        lambda: small_vgg(SHAPE, 10),
        lambda: build(
            NetworkSettings(name="convnet", width=8, depth=2, norm="batch"), SHAPE, 10, seed=0
        ),
    ],
    ids=["small_vgg", "convnet"],
)
def test_a_pruned_network_computes_what_a_masked_one_does(network):
    whole = drawn(network())
    smaller = prune(whole, 0.5)
    threshold = torch.cat([scale.abs() for scale in scales(whole)]).median()
    kept = [int((scale.abs() > threshold).sum()) for scale in scales(whole)]
    assert [len(scale) for scale in scales(smaller)] == kept
    with torch.no_grad():
        for module in whole.modules():
            if isinstance(module, nn.BatchNorm2d):
                mask = module.weight.abs() > threshold
                module.weight *= mask
                module.bias *= mask
    images = torch.randn(4, *SHAPE)
    assert torch.allclose(smaller(images), whole(images), atol=1e-4)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in whole.parameters())


def test_every_layer_keeps_its_largest_channel():
    network = drawn(small_vgg(SHAPE, 10))
    with torch.no_grad():
        for number, scale in enumerate(scales(network)):
            scale.copy_(torch.linspace(1, 2, len(scale)) * 10.0**number)
    smaller = prune(network, 0.9)
    assert [len(scale) for scale in scales(smaller)][:2] == [1, 1]
    assert scales(smaller)[0].item() == pytest.approx(2)
    assert torch.isfinite(smaller(torch.randn(2, *SHAPE))).all()


def test_nothing_is_pruned_at_zero_and_the_given_network_stays():
    network = drawn(small_vgg(SHAPE, 10))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(2, *SHAPE)
    assert torch.equal(prune(network, 0.0)(images), network(images))
    prune(network, 0.7)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_networks_of_other_forms_are_refused():
    residual = build(
        NetworkSettings(name="resnet18", norm="batch"), ImageShape(3, 32, 32), 10, seed=0
    )
    with pytest.raises(ConfigError, match="Slimming needs a chain of convolutions"):
        prune(residual, 0.5)
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\)\. Got 1"):
        prune(small_vgg(SHAPE, 10), 1)


def test_sets_are_slimmed_and_compared():
    recipe = tiny(
        ipc=3, evaluation={"epochs": 40, "whole_epochs": 2, "augmentation": None, "batch_size": 32}
    )
    data = load(recipe.data)
    rows = [row for index in data.train.class_index for row in index[:3]]
    images = data.normalization(torch.from_numpy(data.train.images[rows]))
    labels = torch.from_numpy(data.train.labels[rows])
    distilled = Distilled(images, labels, data.class_names, data.normalization)
    ours, random, whole = slim(
        distilled,
        recipe,
        data,
        sets=["distilled", "random", "whole"],
        shares=(0.0, 0.5),
        seeds=2,
    )
    assert (ours.set, random.set, whole.set) == ("distilled", "random", "whole")
    assert ours.parameters[0] == 1.0
    assert ours.parameters[1] < 0.7
    assert [len(row) for row in ours.tuned] == [2, 2]
    # more than chance, both whole and with half the channels
    assert min(ours.tuned[0]) > 0.3
    assert min(whole.tuned[1]) > 0.3
    assert ours.sparsity == 0.7
    assert text([ours, random]).splitlines()[0].split()[-3:] == ["0%", "50%", "penalty"]
    assert chart([ours, random]).size == (680, 400)
    with pytest.raises(ConfigError, match="Sets are distilled"):
        slim(distilled, recipe, data, sets=["nearest"])
    with pytest.raises(ConfigError, match="needs a validation split, and 'digits' has none"):
        slim(distilled, recipe, data, sparsity=[0.0, 0.7])


def test_penalty_is_chosen_on_the_validation_split(monkeypatch):
    recipe = tiny(
        ipc=3,
        data={"validation_fraction": 0.2},
        evaluation={"epochs": 20, "augmentation": None, "batch_size": 32},
    )
    data = load(recipe.data)
    rows = [row for index in data.train.class_index for row in index[:3]]
    images = data.normalization(torch.from_numpy(data.train.images[rows]))
    labels = torch.from_numpy(data.train.labels[rows])
    distilled = Distilled(images, labels, data.class_names, data.normalization)
    judged = []
    accuracy = _Slimming.accuracy
    monkeypatch.setattr(
        _Slimming,
        "accuracy",
        lambda self, network, split: judged.append(split) or accuracy(self, network, split),
    )
    # a penalty of 50 switches every channel off: what is left is chance
    (chosen,) = slim(
        distilled,
        recipe,
        data,
        sets=["distilled"],
        shares=(0.0, 0.5),
        sparsity=[50.0, 0.0],
        seeds=1,
    )
    assert chosen.sparsity == 0.0
    assert [split is data.validation for split in judged] == [True] * 4 + [False] * 4
    assert [split is data.test for split in judged] == [False] * 4 + [True] * 4
    (alone,) = slim(
        distilled, recipe, data, sets=["distilled"], shares=(0.0, 0.5), sparsity=0.0, seeds=1
    )
    assert alone == chosen


def test_results_become_json():
    one = Slimmed("random", (0.0,), (1.0,), ((0.5,),), ((0.6,),), sparsity=0.7)
    assert one.to_json()["tuned"] == ((0.6,),)


def test_command_slims_a_run(tmp_path, capsys):
    recipe = tiny(evaluation={"augmentation": None, "baselines": ["random"]})
    distill(recipe, tmp_path / "run", cache=tmp_path / "c", progress=Progress(quiet=True))
    words = ["apply", "slimming", str(tmp_path / "run"), "--out", str(tmp_path / "use"), "--quiet"]
    rest = ["--set", "distilled", "--set", "random", "--share", "0.5", "--seeds", "1", "--json"]
    code, document, error = run(capsys, *words, *rest)
    assert (code, error) == (0, "")
    assert [one["set"] for one in json.loads(document)] == ["distilled", "random"]
    assert (tmp_path / "use" / "slimming.png").stat().st_size > 1000
    code, _, error = run(capsys, *words, *rest, "ipc=3")
    assert (code, "evaluation" in error) == (2, True)


@pytest.fixture(scope="module")
def untrained():
    """A set, a recipe and data with which nothing needs to be trained."""
    recipe = tiny(evaluation={"epochs": 1, "augmentation": None})
    data = load(recipe.data)
    images = data.normalization(torch.from_numpy(data.train.images[:10]))
    labels = torch.from_numpy(data.train.labels[:10])
    distilled = Distilled(images, labels, data.class_names, data.normalization)
    return distilled, recipe, data


def test_what_cannot_be_slimmed_is_refused_before_training(untrained, monkeypatch):
    monkeypatch.setattr(_Slimming, "_train", lambda *_: pytest.fail("a network was trained"))
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\)\. Got 1\.0"):
        slim(*untrained, shares=(0.0, 1.0))
    plain = NetworkSettings(name="convnet", width=8, depth=2)
    with pytest.raises(ConfigError, match="Slimming needs a chain of convolutions"):
        slim(*untrained, network=plain)
    for nothing in ({"sets": ()}, {"shares": ()}, {"seeds": 0}):
        with pytest.raises(ConfigError, match="at least one set, share and network"):
            slim(*untrained, **nothing)
    for penalties in (-0.5, ()):
        with pytest.raises(ConfigError, match="at least one finite number from 0 on"):
            slim(*untrained, sparsity=penalties)


def test_penalties_are_distances_of_sgd(untrained):
    """Adam would move all scales by the same, whatever the penalty is."""
    distilled, recipe, data = untrained
    evaluation = recipe.evaluation.model_copy(update={"optimizer": "adamw"})
    adaptive = recipe.model_copy(update={"evaluation": evaluation})
    with pytest.raises(ConfigError, match=r"optimizer=adamw: add evaluation\.optimizer=sgd"):
        slim(distilled, adaptive, data)
    (found,) = slim(
        distilled, adaptive, data, sparsity=0.0, sets=["distilled"], shares=(0.5,), seeds=1
    )
    assert found.sparsity == 0.0


def test_scales_of_further_normalisations_are_not_taken_for_others():
    def block(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]

    end = [nn.Flatten(), nn.Linear(64, 2)]
    assert len(prune(nn.Sequential(*block(1), *block(4), *end), 0.5)) == 8
    twice = nn.Sequential(*block(1), nn.BatchNorm2d(4), *block(4), *end)
    before = nn.Sequential(nn.BatchNorm2d(1), *block(1), *block(4), *end)
    for network in (twice, before):
        with pytest.raises(ConfigError, match="Slimming needs a chain of convolutions"):
            prune(network, 0.5)
