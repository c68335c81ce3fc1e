"""MobileNetV2, ShuffleNetV2 and Wide ResNet compute what their papers say, and every layer can be
observed.
"""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, linear, relu

from rayd.config import NetworkSettings
from rayd.networks import FeatureExtractor, LayerRole, build
from rayd.networks.mobilenet import InvertedResidual

CIFAR = (3, 32, 32)
DIGITS = (1, 8, 8)
NAMES = ["mobilenet_v2", "shufflenet_v2", "wrn16_2"]


def network(name: str, shape: tuple[int, int, int] = CIFAR, **options: object) -> nn.Module:
    return build(NetworkSettings(name=name, **options), shape, 10, seed=0)


def with_statistics(network: nn.Module) -> nn.Module:
    """In eval mode, with scales, shifts and running statistics that no two channels share, so that
    a mixed-up layer shows.
    """
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    return network.eval()


def images(shape: tuple[int, int, int] = CIFAR) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))


def test_shufflenet_is_torchvision_s_with_a_pointwise_stem() -> None:
    ours = with_statistics(network("shufflenet_v2"))
    reference = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=10)
    reference.conv1[0] = nn.Conv2d(3, 24, kernel_size=1, bias=False)
    reference.maxpool = nn.Identity()
    tensors = zip(reference.state_dict(), ours.state_dict().values(), strict=True)
    reference.load_state_dict(dict(tensors))
    torch.testing.assert_close(ours(images()), reference.eval()(images()))


@pytest.mark.parametrize(("outputs", "stride"), [(8, 1), (12, 2)])
def test_inverted_residual_is_torchvision_s_with_another_relu(outputs: int, stride: int) -> None:
    ours = with_statistics(InvertedResidual(8, outputs, expansion=6, stride=stride))
    reference = torchvision.models.mobilenetv2.InvertedResidual(8, outputs, stride, 6).eval()
    for index in (0, 1):
        reference.conv[index][2] = nn.ReLU()
    reference.load_state_dict(
        dict(zip(reference.state_dict(), ours.state_dict().values(), strict=True))
    )
    maps = images((8, 7, 7))
    torch.testing.assert_close(ours(maps), reference(maps))


def test_inverted_residual_has_no_shortcut_where_channels_change() -> None:
    changing = with_statistics(InvertedResidual(8, 12, expansion=6, stride=1))
    equal = with_statistics(InvertedResidual(8, 8, expansion=6, stride=1))
    maps = images((8, 5, 5))
    torch.testing.assert_close(changing(maps), changing.residual(maps))
    torch.testing.assert_close(equal(maps), maps + equal.residual(maps))


def test_mobilenet_is_torchvision_s_of_half_width_but_for_its_first_block() -> None:
    ours = with_statistics(network("mobilenet_v2"))
    strides = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)]
    strides += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    reference = torchvision.models.MobileNetV2(10, 0.5, strides, round_nearest=4)
    # torchvision's first block has no expansion
    reference.features[1] = ours.get_submodule("features.1")
    for name, module in list(reference.named_modules()):
        if isinstance(module, nn.ReLU6):
            reference.set_submodule(name, nn.ReLU())
    tensors = zip(reference.state_dict(), ours.state_dict().values(), strict=True)
    reference.load_state_dict(dict(tensors))
    torch.testing.assert_close(ours(images()), reference.eval()(images()))


def test_wide_resnet_is_its_definition_layer_by_layer() -> None:
    ours = with_statistics(network("wide_resnet", DIGITS, depth=10, width=3)).double()
    state = iter(ours.state_dict().values())

    def normalised(
        maps: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor, _: Tensor
    ) -> Tensor:
        return batch_norm(maps, mean, var, scale, shift)

    def take(count: int) -> list[Tensor]:
        return [next(state) for _ in range(count)]

    maps = conv2d(images(DIGITS).double(), *take(1), padding=1)
    for stride in (1, 2, 2):
        active = relu(normalised(maps, *take(5)))
        residual = conv2d(active, *take(1), stride=stride, padding=1)
        residual = conv2d(relu(normalised(residual, *take(5))), *take(1), padding=1)
        maps = residual + conv2d(active, *take(1), stride=stride)
    pooled = relu(normalised(maps, *take(5))).mean((2, 3))
    torch.testing.assert_close(ours(images(DIGITS).double()), linear(pooled, *take(2)))


def test_wide_resnet_blocks_of_equal_width_pass_their_input_on() -> None:
    block = with_statistics(network("wide_resnet", DIGITS, depth=16)).get_submodule("features.2")
    maps = images((32, 8, 8))
    with torch.no_grad():
        block.get_parameter("residual.3.weight").zero_()
        torch.testing.assert_close(block(maps), maps)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"depth": 28, "width": 10}, 36_479_194),
        ({"depth": 40, "width": 2}, 2_243_546),
        ({"depth": 16, "width": 1}, 175_066),
    ],
)
def test_wide_resnets_have_the_published_sizes(options: dict[str, int], parameters: int) -> None:
    assert (
        sum(parameter.numel() for parameter in network("wide_resnet", **options).parameters())
        == parameters
    )


@pytest.mark.parametrize(
    ("name", "last", "norms", "convolutions", "shared"),
    [
        ("mobilenet_v2", (1280, 2, 2), 53, 53, 0),
        ("shufflenet_v2", (1024, 4, 4), 56, 56, 3),
        ("wrn16_2", (128, 8, 8), 13, 16, 3),
    ],
)
def test_every_layer_is_tapped(
    name: str, last: tuple[int, ...], norms: int, convolutions: int, shared: int
) -> None:
    observer = network(name)
    tapped = FeatureExtractor(observer, set(LayerRole), CIFAR)
    assert [len(tapped.layers(tap)) for tap in (LayerRole.BN_INPUTS, LayerRole.CONV_INPUTS)] == [
        norms,
        convolutions,
    ]
    assert tapped.dimensions(LayerRole.LAST_MAP) == [last]
    assert (
        len(FeatureExtractor(observer, {LayerRole.CONV_PATH}, CIFAR).layers(LayerRole.CONV_PATH))
        == convolutions - shared
    )


def test_the_projections_are_what_the_path_leaves_out() -> None:
    observer = network("wrn16_2")
    every = FeatureExtractor(observer, {LayerRole.CONV_INPUTS}, CIFAR).layers(LayerRole.CONV_INPUTS)
    kept = FeatureExtractor(observer, {LayerRole.CONV_PATH}, CIFAR).layers(LayerRole.CONV_PATH)
    assert all("shortcut" in layer or "projection" in layer for layer in set(every) - set(kept))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_was_tapped_is_changed_afterwards(name: str) -> None:
    tapped = FeatureExtractor(network(name), set(LayerRole), CIFAR)
    seen: list[tuple[Tensor, int]] = []
    for module in tapped.network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.AdaptiveAvgPool2d | nn.Linear):
            module.register_forward_pre_hook(
                lambda _, inputs: seen.append((inputs[0], inputs[0]._version))
            )
    observation = tapped(images().requires_grad_())
    assert len(seen) == 2 + sum(
        len(observation.layers[tap]) for tap in (LayerRole.BN_INPUTS, LayerRole.CONV_INPUTS)
    )
    assert all(tensor._version == version for tensor, version in seen)
    assert not any(getattr(module, "inplace", False) for module in tapped.network.modules())


@pytest.mark.parametrize("name", NAMES)
def test_every_tap_reaches_back_to_the_images(name: str) -> None:
    tapped = FeatureExtractor(network(name, DIGITS), set(LayerRole), DIGITS)
    pixels = images(DIGITS).requires_grad_()
    layers = tapped(pixels).layers
    for tap in LayerRole:
        (gradient,) = torch.autograd.grad(layers[tap][-1].square().sum(), pixels, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_fixes_the_weights(name: str) -> None:
    first, again, other = (
        build(NetworkSettings(name=name), DIGITS, 3, seed=seed).state_dict() for seed in (5, 5, 6)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    weights = [key for key, tensor in first.items() if tensor.ndim > 1]
    assert weights
    assert not any(torch.equal(first[key], other[key]) for key in weights)
