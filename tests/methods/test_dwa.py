"""DWA: weights climb the loss of a block's first images, and variances weigh more."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from rayd import methods, networks
from rayd.artifacts import content_hash
from rayd.config import NetworkSettings, Recipe
from rayd.data import load
from rayd.engine import observer_tasks as module
from rayd.engine.ascent import climb
from rayd.engine.distill import distill
from rayd.engine.network_ids import network_ids
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.pool import LocalRef
from rayd.errors import ConfigError
from rayd.networks import FeatureExtractor, LayerRole
from rayd.objectives import Context, NormalizationMatching
from rayd.recipes import assemble
from tests.conftest import tiny
from tests.engine.test_observer import question
from tests.faults import break_off
from tests.runs import QUIET

NETWORK = {"name": "convnet", "depth": 2, "width": 6, "norm": "batch"}


def dwa(**overrides: object) -> Recipe:
    base = {
        "method": "dwa",
        "data": "digits",
        "ipc": 2,
        "observers": {"networks": [NETWORK], "batch_size": 512},
        "squeeze": {"epochs": 1, "batch_size": 256, "transform": {"shift": 0, "flip": False}},
        "synthesis": {"steps": 4, "block": "classes", "log_every": 2, "transform": {"roll": 0}},
        "evaluation": {"networks": [NETWORK], "seeds": 1, "epochs": 1, "baselines": []},
    }
    return assemble(base, overrides)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(10, 1, 8, 8, generator=draws), torch.arange(10)


def network(seed: int = 0) -> nn.Module:
    return networks.build(NetworkSettings(**NETWORK), (1, 8, 8), 10, seed=seed).eval()


def climbed_slowly(found: nn.Module, images, labels, steps: int, length: float) -> nn.Module:
    """By the optimizer of torch, with a step size of its own for every step."""
    for _ in range(steps):
        found.zero_grad()
        functional.cross_entropy(found(images), labels).backward()
        norm = sum(float(p.grad.square().sum()) for p in found.parameters()) ** 0.5
        torch.optim.SGD(found.parameters(), length / steps / norm, maximize=True).step()
    return found


def test_weights_climb_by_steps_of_equal_length():
    images, labels = batch(0)
    found = network()
    before = {name: value.clone() for name, value in found.state_dict().items()}
    climb(found, images, labels, 5, 0.4)
    expected = climbed_slowly(network(), images, labels, 5, 0.4)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-5, atol=1e-6)
        if "running" in name:
            assert torch.equal(value, before[name])
    assert not any(weight.requires_grad for weight in found.parameters())

    def loss(one: nn.Module) -> float:
        return float(functional.cross_entropy(one(images), labels).detach())

    assert loss(found) > loss(network())


def test_every_block_is_matched_through_weights_of_its_own(monkeypatch):
    """The gradient is that of the plain recipe through the network that climbed by hand."""
    recipe = dwa()
    data = load(recipe.data)
    (network_id,) = network_ids(recipe)
    state = {name: value.clone() for name, value in network(3).state_dict().items()}
    plain = dwa(observers={"ascent_steps": 0})
    measuring = ObserverTasks(plain, DatasetInfo.of(data))
    shard = LocalRef((data.train.images[:], data.train.labels))
    real = LocalRef(measuring.measure_alone(network_id, LocalRef(state), shard))
    observers = ObserverTasks(recipe, DatasetInfo.of(data))

    def gradient(by: ObserverTasks, of: Recipe, weights: dict, seed: int) -> torch.Tensor:
        images, labels = batch(seed)
        task = question(
            of, LocalRef({"images": images, "labels": labels}), LocalRef({"images": images}), real
        )
        task = module.GradientTask(**{**vars(task), "weights": LocalRef(weights)})
        return by.gradient(task).gradients["images"]

    for seed in (0, 1, 0):
        by_hand = climbed_slowly(network(3), *batch(seed), 12, 0.015)
        expected = gradient(
            ObserverTasks(plain, DatasetInfo.of(data)), plain, dict(by_hand.state_dict()), seed
        )
        found = gradient(observers, recipe, state, seed)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        usual = gradient(measuring, plain, state, seed)
        assert not torch.allclose(found, usual, rtol=1e-3, atol=1e-5)


def test_variances_weigh_as_set():
    images, labels = batch(0)
    extractor = FeatureExtractor(network(), [LayerRole.BN_INPUTS], (1, 8, 8))
    real_images, real_labels = batch(1)
    values = []
    for weight in (0.0, 1.0, 11.0):
        term = NormalizationMatching(variance_weight=weight)
        (spec,) = term.specs
        statistics = spec.empty(10, extractor.dimensions(spec.layer_role))
        spec.update(statistics, extractor(real_images), real_labels)
        statistics = tuple(one.to(dtype=torch.float32) for one in statistics)
        value = term({spec: statistics}, extractor(images), labels, Context())
        values.append(float(value.detach()))
    means, plain, weighted = values
    assert weighted == pytest.approx(means + 11 * (plain - means), rel=1e-5)
    assert plain > means > 0


def test_declarations_and_keys():
    recipe = dwa()
    terms = {term.name: term for term in methods.build(recipe).terms}
    assert terms["moments"].variance_weight == 11
    assert (recipe.synthetic.init, recipe.observers.ascent_steps) == ("real", 12)
    plain = tiny().identity()
    assert not any(name.startswith("ascent") for name in plain["observers"])
    assert content_hash(recipe.identity()) != content_hash(
        dwa(observers={"ascent_steps": 3}).identity()
    )
    with pytest.raises(ConfigError, match="needs fixed observers"):
        tiny(real="sampled", observers={"ascent_steps": 3})


def test_a_run_differs_from_one_whose_weights_stay(tmp_path):
    sets = []
    for steps in (12, 0):
        recipe = dwa(observers={"ascent_steps": steps})
        sets.append(distill(recipe, tmp_path / str(steps), progress=QUIET).distilled.images)
    assert sets[0].shape == (20, 1, 8, 8)
    assert not torch.equal(*sets)


def test_weights_of_a_resumed_run_climb_the_loss_of_the_first_images(tmp_path):
    recipe = dwa(
        ipc=1,
        observers={"ascent_length": 1.0},
        synthesis={"checkpoint_every": 2},
        evaluation={"comparisons": []},
    )
    whole = distill(recipe, tmp_path / "whole", cache=tmp_path / "a", progress=QUIET)
    break_off(recipe, tmp_path / "broken", 3, cache=tmp_path / "b")
    resumed = distill(
        recipe, tmp_path / "broken", cache=tmp_path / "b", resume=True, progress=QUIET
    )
    assert torch.equal(resumed.distilled.images, whole.distilled.images)
