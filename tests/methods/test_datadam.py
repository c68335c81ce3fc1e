"""DataDAM: attention maps by class against a reference in float64, and a run."""

import pytest
import torch
from torch import Tensor, nn

from rayd import methods, networks
from rayd.config import NetworkSettings
from rayd.data.images import ImageShape
from rayd.engine.distill import distill
from rayd.engine.progress import Progress
from rayd.errors import ConfigError
from rayd.networks import FeatureExtractor
from rayd.objectives import Context
from rayd.recipes import assemble
from rayd.statistics import Attention, Normalized
from tests.conftest import tiny
from tests.runs import steps_of

SHAPE = ImageShape(3, 16, 16)
CLASSES = 3


def recipe(**terms: object):
    return assemble({"method": "datadam", "data": "digits", "terms": terms})


def convnet(depth: int = 3) -> nn.Module:
    settings = NetworkSettings(name="convnet", width=6, depth=depth)
    return networks.build(settings, SHAPE, CLASSES, seed=1).double().eval()


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    return torch.randn(count, *SHAPE, generator=draws, dtype=torch.float64), labels


def block_maps(network: nn.Module, batch: Tensor) -> list[Tensor]:
    """The outputs of pooling layers, by hooks of their own."""
    maps: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output: maps.append(output))
        for module in network.modules()
        if isinstance(module, nn.AvgPool2d)
    ]
    network(batch)
    for hook in hooks:
        hook.remove()
    return maps


def expected(network: nn.Module, real, synthetic, power: float) -> Tensor:
    """Loops over blocks and classes."""
    total = torch.zeros((), dtype=torch.float64)
    sides = [(block_maps(network, batch), labels) for batch, labels in (real, synthetic)]
    for block in range(len(sides[0][0]) - 1):
        for label in range(CLASSES):
            means = []
            for maps, labels in sides:
                attention = maps[block][labels == label].abs().pow(power).sum(1).flatten(1)
                lengths = attention.norm(dim=1, keepdim=True)
                means.append((attention / lengths).mean(0))
            total = total + (means[0] - means[1]).square().sum()
    return total


def attention_loss(network: nn.Module, real, synthetic, power: float = 4.0) -> Tensor:
    method = methods.build(recipe(attention={"power": power}))
    term, _ = method.terms
    extractor = FeatureExtractor(network, method.layer_roles("observers"), SHAPE)
    (spec,) = term.specs
    statistics = spec.empty(CLASSES, extractor.dimensions(spec.layer_role))
    spec.update(statistics, extractor(real[0]), real[1])
    return term({spec: statistics}, extractor(synthetic[0]), synthetic[1], Context())


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_loss_is_that_of_the_formula(power):
    network = convnet()
    real = images(12, seed=0)
    synthetic = images(6, seed=1)
    found = attention_loss(network, real, synthetic, power)
    torch.testing.assert_close(found, expected(network, real, synthetic, power), rtol=1e-9, atol=0)
    assert found > 0.001


def test_loss_vanishes_for_the_real_images_and_for_a_network_of_one_block():
    network = convnet()
    real = images(12, seed=0)
    assert attention_loss(network, real, real) < 1e-20
    assert attention_loss(convnet(depth=1), real, images(6, seed=1)) == 0


def test_gradient_of_the_loss():
    network = convnet()
    real = images(12, seed=0)
    start, labels = images(3, seed=1)

    def loss(flat: Tensor) -> Tensor:
        moved = torch.cat([flat.view(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)], 1).double()
        batch = start.clone()
        batch[:1, :, 4:6, 4:6] = batch[:1, :, 4:6, 4:6] + moved
        return attention_loss(network, real, (batch, labels))

    point = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, point, eps=1e-6, atol=1e-7)


def test_attention_map_sums_powers_over_channels():
    maps = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.0]]]])
    assert Attention(2.0).vectors(maps).tolist() == [[[10.0, 4.0]]]
    assert Attention(1.0).vectors(maps).tolist() == [[[4.0, 2.0]]]
    assert Normalized(Attention(2.0)).vectors(maps).norm().item() == pytest.approx(1)
    assert Attention(4.0).size((8, 5, 3)) == (1, 15)
    with pytest.raises(ValueError, match="finite and above 0"):
        Attention(0.0)


def test_settings():
    method = methods.build(recipe())
    assert [(term.name, method.weight(term)) for term in method.terms] == [
        ("attention", 1.0),
        ("mean", 0.01),
    ]
    with pytest.raises(ConfigError, match="greater than 0"):
        recipe(attention={"power": 0})


def test_network_without_maps_is_refused(tmp_path):
    changes = {"observers": {"networks": "mlp", "pool": 1, "per_step": 1}}
    with pytest.raises(ConfigError, match="'block_outputs'"):
        distill(tiny(method="datadam", **changes), tmp_path / "run", progress=Progress(quiet=True))
    assert not (tmp_path / "run").exists()


def test_run_lowers_the_loss(tmp_path):
    changes = {
        "observers": {"networks": {"name": "convnet", "width": 8, "depth": 2}, "pool": 2},
        "synthesis": {"steps": 40, "learning_rate": 10, "log_every": 10},
    }
    run = distill(
        tiny(method="datadam", **changes), tmp_path / "run", progress=Progress(quiet=True)
    )
    lines = steps_of(run.directory)
    losses = [line["loss"] for line in lines if "attention" in line]
    assert losses[-1] < losses[0]
