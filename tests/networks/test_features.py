"""Taps hear the right layers, in order, and leave the network as it was."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from rayd.config import NetworkSettings
from rayd.data import ImageShape
from rayd.errors import ConfigError
from rayd.networks import FeatureExtractor, LayerRole, Observation, build, names

CIFAR = (3, 32, 32)
DIGITS = (1, 8, 8)


def network(name: str, shape: tuple[int, int, int] = CIFAR, **options: object) -> nn.Module:
    return build(NetworkSettings(name=name, **options), shape, 10, seed=0)


def small_convnet(norm: str = "instance") -> nn.Module:
    return network("convnet", DIGITS, width=4, norm=norm)


def hooks(network: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()
    )


def classified(network: nn.Module, observation: Observation) -> Tensor:
    """What the last linear layer of the network makes of the observed features."""
    classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    logits: Tensor = classifier(observation.layers[LayerRole.FEATURES][0])
    return logits


@pytest.mark.parametrize("name", names())
def test_features_are_what_the_classifier_reads(name: str) -> None:
    tapped = FeatureExtractor(network(name), [LayerRole.FEATURES], CIFAR).eval()
    observation = tapped(torch.randn(2, *CIFAR))
    torch.testing.assert_close(classified(tapped.network, observation), observation.logits)
    (features,) = observation.layers[LayerRole.FEATURES]
    assert features.ndim == 2
    assert tapped.dimensions(LayerRole.FEATURES) == [tuple(features.shape[1:])]
    assert tapped.layers(LayerRole.FEATURES) == ["classifier"]


@pytest.mark.parametrize(
    ("name", "d", "side"),
    [("convnet", 128, 4), ("alexnet", 192, 4), ("vgg11", 512, 1), ("resnet18_ap", 512, 4)],
)
def test_last_map_flattens_to_the_features(name: str, d: int, side: int) -> None:
    tapped = FeatureExtractor(network(name), {LayerRole.FEATURES, LayerRole.LAST_MAP}, CIFAR).eval()
    observation = tapped(torch.randn(2, *CIFAR))
    (last,) = observation.layers[LayerRole.LAST_MAP]
    (features,) = observation.layers[LayerRole.FEATURES]
    assert tapped.dimensions(LayerRole.LAST_MAP) == [(d, side, side)]
    torch.testing.assert_close(last.flatten(1), features)


GLOBALLY_POOLED = ["resnet18", "mobilenet_v2", "shufflenet_v2", "wrn16_2"]


@pytest.mark.parametrize(
    "name", [*GLOBALLY_POOLED, "torchvision/resnet18", "torchvision/shufflenet_v2_x0_5"]
)
def test_last_map_of_a_globally_pooled_network_averages_to_the_features(name: str) -> None:
    tapped = FeatureExtractor(network(name), {LayerRole.FEATURES, LayerRole.LAST_MAP}, CIFAR).eval()
    observation = tapped(torch.randn(2, *CIFAR))
    (last,) = observation.layers[LayerRole.LAST_MAP]
    (features,) = observation.layers[LayerRole.FEATURES]
    torch.testing.assert_close(last.mean((2, 3)), features)
    if "resnet18" in name:
        assert tapped.dimensions(LayerRole.LAST_MAP) == [(512, 4, 4)]


def test_squeeze_and_excitation_is_not_global_pooling() -> None:
    shape = (3, 48, 48)
    tapped = FeatureExtractor(
        network("torchvision/mobilenet_v3_small", shape), {LayerRole.LAST_MAP}, shape
    )
    assert tapped.dimensions(LayerRole.LAST_MAP) == [(576, 2, 2)]


def test_bn_inputs_have_the_running_statistics_of_one_full_momentum_pass() -> None:
    tapped = FeatureExtractor(network("resnet18"), {LayerRole.BN_INPUTS}, CIFAR)
    norms = [tapped.network.get_submodule(name) for name in tapped.layers(LayerRole.BN_INPUTS)]
    assert len(norms) == 20
    for norm in norms:
        assert isinstance(norm, nn.BatchNorm2d)
        norm.momentum = 1.0
    with torch.no_grad():
        heard = tapped(torch.randn(2, *CIFAR)).layers[LayerRole.BN_INPUTS]
    for norm, maps in zip(norms, heard, strict=True):
        torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            norm.running_var, maps.transpose(0, 1).flatten(1).var(1), atol=1e-5, rtol=1e-4
        )


def test_taps_come_in_order_of_execution_with_their_dimensions() -> None:
    tapped = FeatureExtractor(small_convnet("batch"), set(LayerRole), DIGITS)
    assert tapped.layers(LayerRole.CONV_INPUTS) == ["features.0", "features.4", "features.8"]
    assert tapped.layers(LayerRole.BN_INPUTS) == ["features.1", "features.5", "features.9"]
    assert tapped.dimensions(LayerRole.CONV_INPUTS) == [(1, 8, 8), (4, 4, 4), (4, 2, 2)]
    assert tapped.dimensions(LayerRole.BN_INPUTS) == [(4, 8, 8), (4, 4, 4), (4, 2, 2)]
    images = torch.randn(3, *DIGITS)
    observation = tapped(images)
    assert observation.layers[LayerRole.CONV_INPUTS][0] is images
    for tap in LayerRole:
        assert [tuple(t.shape) for t in observation.layers[tap]] == [
            (3, *shape) for shape in tapped.dimensions(tap)
        ]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("convnet", [(128, 16, 16), (128, 8, 8), (128, 4, 4)]),
        ("vgg11", [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)]),
        ("resnet18", [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]),
        ("wrn16_2", [(32, 32, 32), (64, 16, 16), (128, 8, 8)]),
    ],
)
def test_block_outputs_are_the_maps_after_blocks_and_stages(name, shapes) -> None:
    tapped = FeatureExtractor(network(name), {LayerRole.BLOCK_OUTPUTS, LayerRole.LAST_MAP}, CIFAR)
    assert tapped.dimensions(LayerRole.BLOCK_OUTPUTS) == shapes
    layers = tapped.eval()(torch.randn(2, *CIFAR)).layers
    assert layers[LayerRole.BLOCK_OUTPUTS][-1] is layers[LayerRole.LAST_MAP][0]


def test_block_outputs_of_a_convnet_are_what_its_blocks_return() -> None:
    convnet = small_convnet("batch").eval()
    tapped = FeatureExtractor(convnet, {LayerRole.BLOCK_OUTPUTS}, DIGITS)
    images = torch.randn(2, *DIGITS)
    heard = tapped(images).layers[LayerRole.BLOCK_OUTPUTS]
    layers = list(convnet.get_submodule("features"))
    for block, maps in enumerate(heard):
        images = nn.Sequential(*layers[4 * block : 4 * block + 4])(images)
        assert torch.equal(maps, images)
    assert len(heard) == 3


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("torchvision/resnet18", [64, 128, 256, 512]),
        ("torchvision/resnet50", [256, 512, 1024, 2048]),
    ],
)
def test_block_outputs_of_a_resnet_are_what_its_stages_return(name, channels) -> None:
    """Not what its stem pools, nor maps inside a bottleneck whose stride is in the middle."""
    shape = ImageShape(3, 64, 64)
    residual = network(name, shape).eval()
    found = {}
    for stage in range(1, 5):
        module = residual.get_submodule(f"layer{stage}")
        module.register_forward_hook(lambda _, __, out, stage=stage: found.update({stage: out}))
    tapped = FeatureExtractor(residual, {LayerRole.BLOCK_OUTPUTS}, shape)
    maps = tapped(torch.randn(1, *shape)).layers[LayerRole.BLOCK_OUTPUTS]
    assert [one.shape[1] for one in maps] == channels
    for stage, one in enumerate(maps, 1):
        assert torch.equal(one, found[stage])


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_shortcut_projections_can_be_left_out(name: str) -> None:
    residual = network(name)
    every = FeatureExtractor(residual, {LayerRole.CONV_INPUTS}, CIFAR).layers(LayerRole.CONV_INPUTS)
    distinct = FeatureExtractor(residual, {LayerRole.CONV_PATH}, CIFAR).layers(LayerRole.CONV_PATH)
    projections = [layer for layer in every if residual.get_submodule(layer).kernel_size == (1, 1)]
    assert len(projections) == 3
    assert distinct == [layer for layer in every if layer not in projections]


def test_gradients_flow_from_taps_to_the_images() -> None:
    tapped = FeatureExtractor(small_convnet("batch"), set(LayerRole), DIGITS)
    images = torch.randn(3, *DIGITS, requires_grad=True)
    layers = tapped(images).layers
    for tap in (LayerRole.FEATURES, LayerRole.LAST_MAP, LayerRole.BN_INPUTS):
        (gradient,) = torch.autograd.grad(layers[tap][-1].square().sum(), images, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_nothing_of_the_network_changes_when_it_is_tapped() -> None:
    observer = small_convnet("batch")
    observer.get_submodule("features.1").eval()
    modes = [module.training for module in observer.modules()]
    before = {key: value.clone() for key, value in observer.state_dict().items()}
    rng = torch.get_rng_state()
    FeatureExtractor(observer, set(LayerRole), DIGITS)
    assert [module.training for module in observer.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in observer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert hooks(observer) == 0


def test_no_hook_is_left_after_use_or_failure() -> None:
    tapped = FeatureExtractor(small_convnet(), {LayerRole.FEATURES, LayerRole.CONV_INPUTS}, DIGITS)
    tapped(torch.randn(1, *DIGITS))
    assert hooks(tapped.network) == 0
    with pytest.raises(RuntimeError):
        tapped(torch.randn(1, 2, 8, 8))
    assert hooks(tapped.network) == 0
    assert tapped(torch.randn(1, *DIGITS)).logits.shape == (1, 10)


def test_no_hook_is_left_when_the_rehearsal_fails() -> None:
    observer = small_convnet()
    with pytest.raises(RuntimeError):
        FeatureExtractor(observer, {LayerRole.FEATURES}, (3, 8, 8))
    assert hooks(observer) == 0
    assert observer.training


def test_foreign_hooks_stay() -> None:
    observer = small_convnet()
    calls: list[int] = []
    observer.register_forward_hook(lambda *_: calls.append(1))
    tapped = FeatureExtractor(observer, {LayerRole.FEATURES}, DIGITS)
    tapped(torch.randn(1, *DIGITS))
    assert hooks(observer) == 1
    assert len(calls) == 2


def test_works_without_gradients_and_under_autocast() -> None:
    tapped = FeatureExtractor(small_convnet("batch"), set(LayerRole), DIGITS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        observation = tapped(torch.randn(2, *DIGITS))
    assert observation.layers[LayerRole.BN_INPUTS][0].dtype == torch.bfloat16
    assert not observation.layers[LayerRole.FEATURES][0].requires_grad


def test_works_in_a_functional_call() -> None:
    tapped = FeatureExtractor(small_convnet(), {LayerRole.FEATURES}, DIGITS)
    images = torch.randn(2, *DIGITS)
    parameters = {name: parameter.detach() for name, parameter in tapped.named_parameters()}

    def energy(parameters: dict[str, Tensor]) -> Tensor:
        observation: Observation = functional_call(tapped, parameters, (images,))
        return observation.layers[LayerRole.FEATURES][0].square().sum()

    gradients = grad(energy)(parameters)
    energy_of_network = tapped(images).layers[LayerRole.FEATURES][0].square().sum()
    expected = torch.autograd.grad(
        energy_of_network, tapped.network.get_parameter("features.0.weight")
    )[0]
    torch.testing.assert_close(gradients["network.features.0.weight"], expected)


def test_a_copy_listens_to_the_copied_network() -> None:
    tapped = FeatureExtractor(small_convnet(), {LayerRole.FEATURES}, DIGITS)
    copied = deepcopy(tapped)
    with torch.no_grad():
        copied.network.get_parameter("features.0.weight").zero_()
    images = torch.randn(2, *DIGITS)
    torch.testing.assert_close(classified(copied.network, copied(images)), copied(images).logits)
    assert not torch.equal(
        copied(images).layers[LayerRole.FEATURES][0], tapped(images).layers[LayerRole.FEATURES][0]
    )


def test_works_in_double_precision() -> None:
    tapped = FeatureExtractor(small_convnet().double(), {LayerRole.FEATURES}, DIGITS)
    assert (
        tapped(torch.randn(1, *DIGITS, dtype=torch.float64)).layers[LayerRole.FEATURES][0].dtype
        == torch.float64
    )


class Thrifty(nn.Module):
    """A user's network that shares its layers, pools by function, and names inputs by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU()
        self.hidden = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.conv(self.relu(self.conv(input=images))))
        pooled = nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1)
        logits: Tensor = self.hidden(self.relu(self.hidden(pooled)))
        return logits


def test_layers_that_run_twice_are_heard_twice() -> None:
    shape = (3, 6, 6)
    tapped = FeatureExtractor(
        Thrifty(), {LayerRole.FEATURES, LayerRole.LAST_MAP, LayerRole.CONV_INPUTS}, shape
    )
    images = torch.randn(2, *shape)
    user = tapped.network
    observation = tapped(images)
    assert tapped.layers(LayerRole.CONV_INPUTS) == ["conv", "conv"]
    first, second = observation.layers[LayerRole.CONV_INPUTS]
    assert first is images
    torch.testing.assert_close(second, user.relu(user.conv(images)))
    (last,) = observation.layers[LayerRole.LAST_MAP]
    torch.testing.assert_close(last, user.relu(user.conv(second)))
    torch.testing.assert_close(
        observation.layers[LayerRole.FEATURES][0], user.relu(user.hidden(last.mean((2, 3))))
    )


class Inplace(nn.Module):
    """A user's residual network whose last activation is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(
            nn.functional.relu(self.block(images), inplace=True).mean((2, 3))
        )
        return logits


def test_in_place_activations_are_part_of_the_last_map() -> None:
    tapped = FeatureExtractor(Inplace(), {LayerRole.LAST_MAP, LayerRole.FEATURES}, (1, 8, 8))
    layers = tapped(torch.randn(2, 1, 8, 8)).layers
    torch.testing.assert_close(
        layers[LayerRole.LAST_MAP][0].mean((2, 3)), layers[LayerRole.FEATURES][0]
    )


@pytest.mark.parametrize(
    ("name", "tap", "sentence"),
    [
        (
            "mlp",
            LayerRole.LAST_MAP,
            "Layer role 'last_map' needs a convolutional map before the classifier; network Sequential has none.",
        ),
        ("convnet", LayerRole.BN_INPUTS, "Layer role 'bn_inputs' needs batch normalisation"),
        ("mlp", LayerRole.CONV_INPUTS, "Layer role 'conv_inputs' needs convolutions"),
        (
            "torchvision/squeezenet1_1",
            LayerRole.FEATURES,
            "Layer role 'features' needs a linear classifier; network SqueezeNet has none.",
        ),
    ],
)
def test_a_role_that_nobody_plays_is_an_error(name: str, tap: LayerRole, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        FeatureExtractor(network(name), {tap}, CIFAR)


def test_optional_taps_hear_what_there_is() -> None:
    layers = {LayerRole.BN_INPUTS, LayerRole.CONV_INPUTS}
    for norm, heard in (("batch", 3), ("instance", 0)):
        tapped = FeatureExtractor(
            small_convnet(norm), layers, DIGITS, optional={LayerRole.BN_INPUTS}
        )
        assert (
            len(tapped.dimensions(LayerRole.BN_INPUTS))
            == len(tapped.layers(LayerRole.BN_INPUTS))
            == heard
        )
        observation = tapped(torch.randn(2, *DIGITS))
        assert len(observation.layers[LayerRole.BN_INPUTS]) == heard
        assert len(observation.layers[LayerRole.CONV_INPUTS]) == 3
    with pytest.raises(ConfigError, match="conv_inputs"):
        FeatureExtractor(network("mlp"), layers, CIFAR, optional={LayerRole.BN_INPUTS})


def test_tokens_are_not_maps() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(1, 4, 4, stride=4)
            self.mix = nn.LayerNorm(4)
            self.head = nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(self.mix(self.patches(images).flatten(2).mT).mean(1))
            return logits

    assert FeatureExtractor(Tokens(), {LayerRole.FEATURES}, DIGITS).dimensions(
        LayerRole.FEATURES
    ) == [(4,)]
    with pytest.raises(ConfigError, match="last_map"):
        FeatureExtractor(Tokens(), {LayerRole.LAST_MAP}, DIGITS)
