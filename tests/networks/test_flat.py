"""A network as a function of one vector is the network."""

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from rayd.config import NetworkSettings
from rayd.data import ImageShape
from rayd.errors import ConfigError
from rayd.networks import build
from rayd.networks.flat import FlatNetwork

SHAPE = ImageShape(3, 16, 16)
IMAGES = torch.randn(5, *SHAPE)


def network(**settings) -> nn.Module:
    return build(
        NetworkSettings.model_validate({"name": "convnet", "width": 4, **settings}),
        SHAPE,
        7,
        seed=0,
    )


@pytest.mark.parametrize(
    "settings", [{}, {"norm": "group"}, {"norm": "none", "depth": 1}, {"name": "mlp"}]
)
def test_it_says_what_the_network_says(settings):
    plain = network(**settings)
    flat = FlatNetwork(plain)
    # weights at another place in memory: matrix products may be summed in another order
    torch.testing.assert_close(flat(flat.vector(), IMAGES), plain(IMAGES), rtol=1e-5, atol=1e-6)
    assert (
        flat.size
        == sum(parameter.numel() for parameter in plain.parameters())
        == len(flat.vector())
    )


def test_the_vector_is_that_of_the_parameters_in_order():
    plain = network()
    assert torch.equal(
        FlatNetwork(plain).vector(), nn.utils.parameters_to_vector(plain.parameters())
    )
    assert list(FlatNetwork(plain).shapes) == [name for name, _ in plain.named_parameters()]


def test_a_vector_can_be_loaded_and_is_a_copy():
    one = FlatNetwork(network())
    other = FlatNetwork(build(NetworkSettings(name="convnet", width=4), SHAPE, 7, seed=1))
    vector = one.vector()
    before = other(vector, IMAGES)
    other.load(vector)
    assert torch.equal(other.vector(), vector)
    assert torch.equal(other(other.vector(), IMAGES), before)
    other.load(torch.zeros(other.size))
    assert vector.any()


def test_it_does_not_touch_the_network_s_own_parameters():
    plain = network()
    flat = FlatNetwork(plain)
    vector = (flat.vector() + 1).requires_grad_()
    flat(vector, IMAGES).sum().backward()
    assert vector.grad is not None
    assert all(parameter.grad is None for parameter in plain.parameters())


def test_networks_with_statistics_or_dropout_are_refused():
    with pytest.raises(
        ConfigError,
        match=r"norm 'instance'.*Got Sequential with 'features\.1\.running_mean' instead",
    ):
        FlatNetwork(network(norm="batch"))
    with pytest.raises(ConfigError, match="must not use dropout"):
        FlatNetwork(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(768, 7)))


@pytest.mark.parametrize(
    ("layer", "is_random"),
    [
        (StochasticDepth(0.1, "row"), True),
        (StochasticDepth(0.0, "row"), False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (nn.MultiheadAttention(4, 2), False),
    ],
)
def test_networks_with_other_random_layers_are_refused(layer, is_random):
    """ConvNeXt has stochastic depth, and neither buffers nor dropout."""
    own = nn.Sequential(nn.Flatten(), nn.Linear(768, 7), layer)
    if not is_random:
        assert FlatNetwork(own).size > 0
        return
    with pytest.raises(ConfigError, match="dropout or stochastic depth"):
        FlatNetwork(own)
