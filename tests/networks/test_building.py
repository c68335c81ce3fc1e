"""Networks by name: sizes, parameter counts, seeds, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rayd.config import NetworkSettings, ObserverNetworkSettings
from rayd.data import ImageShape
from rayd.errors import ConfigError
from rayd.networks import build, names, restore, uses_batch_statistics
from rayd.networks.convnet import default_depth
from rayd.networks.registry import register_part

CIFAR = (3, 32, 32)
DIGITS = (1, 8, 8)
LEAST_SIDES = {
    "alexnet": 8,
    "convnet": 2,
    "lenet": 12,
    "mlp": 1,
    "mobilenet_v2": 8,
    "resnet18": 1,
    "resnet18_ap": 8,
    "resnet18_pool4": 1,
    "shufflenet_v2": 8,
    "vgg11": 28,
    "wide_resnet": 4,
    "wrn16_2": 4,
}


def network(
    name: str, shape: tuple[int, int, int] = CIFAR, classes: int = 10, **options: object
) -> nn.Module:
    return build(NetworkSettings(name=name, **options), shape, classes, seed=0)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("convnet", 320_010),
        ("alexnet", 1_872_202),
        ("lenet", 62_006),
        ("mlp", 3072 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10),
        ("resnet18", 11_173_962),
        ("resnet18_ap", 11_173_962 + 15 * 512 * 10),
        ("vgg11", 9_231_114),
        ("mobilenet_v2", 697_546),
        ("shufflenet_v2", 351_466),
        ("wide_resnet", 691_674),
        ("wrn16_2", 691_674),
    ],
)
def test_parameter_counts_on_cifar(name: str, parameters: int) -> None:
    assert count(network(name)) == parameters


@pytest.mark.parametrize(
    ("name", "parameters", "last"),
    [
        ("convnet", 317_706, (128, 4, 4)),
        ("alexnet", 1_865_802, (192, 4, 4)),
        ("vgg11", 9_229_962, (512, 1, 1)),
    ],
)
def test_mnist_is_padded_to_the_maps_of_32_pixels(
    name: str, parameters: int, last: tuple[int, ...]
) -> None:
    student = network(name, (1, 28, 28))
    assert count(student) == parameters
    assert student.get_submodule("features")(torch.zeros(1, 1, 28, 28)).shape[1:] == last
    padded = nn.functional.pad(torch.rand(2, 1, 28, 28), (2, 2, 2, 2))
    large = network(name, (1, 32, 32))
    large.load_state_dict(student.state_dict())
    torch.testing.assert_close(student(padded[..., 2:30, 2:30]), large(padded))


@pytest.mark.parametrize(
    ("options", "shape", "parameters"),
    [
        ({}, (3, 64, 64), 320_010 + 9 * 128 * 128 + 3 * 128),
        ({"depth": 1, "width": 32}, CIFAR, 32 * 27 + 3 * 32 + 32 * 256 * 10 + 10),
        ({"norm": "none"}, CIFAR, 320_010 - 3 * 2 * 128),
        ({"norm": "batch"}, CIFAR, 320_010),
        ({"norm": "layer"}, CIFAR, 320_010 + 2 * 128 * (32**2 + 16**2 + 8**2 - 3)),
        ({}, DIGITS, 320_010 - 2 * 9 * 128 - 15 * 128 * 10),
    ],
)
def test_convnet_options(
    options: dict[str, object], shape: tuple[int, int, int], parameters: int
) -> None:
    assert count(network("convnet", shape, **options)) == parameters


def test_instance_norm_of_convnet_normalises_each_map_alone() -> None:
    observer = network("convnet", depth=1, width=4)
    convolution = observer.get_submodule("features.0")
    norm = observer.get_submodule("features.1")
    images = torch.randn(2, *CIFAR)
    expected = torch.nn.functional.instance_norm(convolution(images))
    torch.testing.assert_close(norm(convolution(images)), expected)


@pytest.mark.parametrize("name", LEAST_SIDES)
def test_smallest_images_train(name: str) -> None:
    side = LEAST_SIDES[name]
    student = network(name, (1, side, side), classes=3)
    assert student.training
    images = torch.randn(2, 1, side, side, requires_grad=True)
    logits = student(images)
    assert logits.shape == (2, 3)
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in student.parameters()
    )


@pytest.mark.parametrize("name", [name for name, side in LEAST_SIDES.items() if side > 1])
def test_images_that_would_vanish_are_refused(name: str) -> None:
    side = LEAST_SIDES[name]
    with pytest.raises(
        ConfigError,
        match=f"'{name}' needs images of at least {side}x{side} pixels. Got {side}x{side - 1}",
    ):
        network(name, (3, side, side - 1))


def test_depth_raises_the_least_side() -> None:
    with pytest.raises(ConfigError, match="at least 64x64"):
        network("convnet", depth=6)


def test_padding_counts_for_the_depth() -> None:
    """Images of 28 pixels are padded to 32, which five blocks halve to one pixel."""
    assert network("convnet", (1, 28, 28), depth=5)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(ConfigError, match=r"at least 64x64 pixels\. Got 28x28"):
        network("convnet", (1, 28, 28), depth=6)


def test_own_builders_with_other_arguments_are_refused() -> None:
    def of_classes(num_classes: int) -> nn.Module:
        return nn.Linear(1, num_classes)

    def of_a_keyword(shape: tuple[int, int, int], *, classes: int) -> nn.Module:
        return nn.Linear(shape[0], classes)

    for builder in (of_classes, of_a_keyword):
        with pytest.raises(ConfigError, match=r"'own' must take the shape .*Got \(.*classes: 'int"):
            register_part("own", builder)


def test_every_registered_name_is_tested() -> None:
    assert names() == sorted(LEAST_SIDES)


@pytest.mark.parametrize("name", LEAST_SIDES)
def test_oblong_images_work(name: str) -> None:
    assert network(name, (3, 32, 44), classes=2).eval()(torch.zeros(1, 3, 32, 44)).shape == (1, 2)


def test_default_depth_never_pools_to_nothing() -> None:
    assert [default_depth(side) for side in (4, 8, 28, 32, 64, 128, 256)] == [2, 3, 3, 3, 4, 5, 6]
    assert all(side >> default_depth(side) >= 1 for side in range(1, 300))


def test_resnet18_pools_four_by_four_at_32_pixels() -> None:
    student = network("resnet18").eval()
    maps = student.get_submodule("features")(torch.randn(2, *CIFAR))
    pooled = student.get_submodule("pool")(maps)
    torch.testing.assert_close(pooled, nn.functional.avg_pool2d(maps, 4))


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("convnet", ["instance", "batch", "group", "layer", "none"]),
        ("vgg11", ["instance", "batch"]),
        ("resnet18", ["batch", "instance", "group"]),
        ("resnet18_ap", ["batch", "instance", "group"]),
    ],
)
def test_norms(name: str, norms: list[str]) -> None:
    for norm in norms:
        assert uses_batch_statistics(network(name, norm=norm)) == (norm == "batch")


def test_seeded_weights_are_reproducible_and_private() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    spec = NetworkSettings(name="convnet", width=4)
    first, again, other = (build(spec, CIFAR, 10, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_a_written_default_does_not_change_the_weights() -> None:
    bare = build(NetworkSettings(name="mlp"), DIGITS, 10, seed=1).state_dict()
    written = build(
        NetworkSettings(name="mlp", depth=2, width=128), DIGITS, 10, seed=1
    ).state_dict()
    assert all(torch.equal(bare[key], written[key]) for key in bare)


def test_weights_to_start_from_are_no_option_of_the_architecture() -> None:
    spec = ObserverNetworkSettings(name="mlp", width=4, weights="somewhere.safetensors")
    assert count(build(spec, DIGITS, 10, seed=0)) == count(network("mlp", DIGITS, width=4))


def test_unseeded_weights_come_from_the_global_stream() -> None:
    spec = NetworkSettings(name="mlp", width=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = (build(spec, DIGITS, 10).state_dict() for _ in range(2))
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("convnett", {}, "Unknown network 'convnett'; did you mean 'convnet'?"),
        (
            "resnet18",
            {"depth": 5},
            "Network 'resnet18' has no option 'depth'; it has width and norm. Got depth=5 instead.",
        ),
        (
            "lenet",
            {"norm": "batch"},
            "Network 'lenet' has no option 'norm'; it has no options. Got norm=batch instead.",
        ),
        (
            "vgg11",
            {"norm": "layer"},
            "The norm of network 'vgg11' must be one of instance, batch. Got 'layer' instead.",
        ),
        ("convnet", {"width": 6, "norm": "group"}, "must be a multiple of 4. Got 6 instead."),
        (
            "wide_resnet",
            {"depth": 18},
            "'wide_resnet' must be 6n + 4: 10, 16, 22, 28, ... Got 18 instead.",
        ),
        (
            "wide_resnet",
            {"depth": 4},
            "'wide_resnet' must be 6n + 4: 10, 16, 22, 28, ... Got 4 instead.",
        ),
        (
            "wrn16_2",
            {"width": 4},
            "Network 'wrn16_2' has no option 'width'; it has no options. Got width=4 instead.",
        ),
        ("mobilenet_v2", {"norm": "instance"}, "has no option 'norm'"),
        ("torchvision/resnt18", {}, "did you mean 'torchvision/resnet18'?"),
        ("torchvision/resnet18", {"norm": "group"}, "has no option 'norm'"),
        ("torchvision/vit_b_16", {}, "a multiple of 16. Got 40x40"),
        ("torchvision/maxvit_t", {}, "a multiple of 224. Got 40x40"),
    ],
)
def test_mistakes_get_one_sentence(name: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        network(name, (3, 40, 40), **options)
    assert sentence in str(error.value)


def test_no_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one class"):
        network("mlp", classes=0)


def test_torchvision_resnet_gets_the_small_stem_up_to_64_pixels() -> None:
    student = network("torchvision/resnet18")
    assert count(student) == count(network("resnet18"))
    stem = student.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert student.get_submodule("layer4")[1].conv2.weight.shape == (512, 512, 3, 3)
    large = network("torchvision/resnet18", (3, 65, 65), classes=1000)
    assert count(large) == 11_689_512


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_271_432), ("resnet50", 23_910_152), ("resnet101", 42_902_280)],
)
def test_torchvision_resnets_of_any_depth_have_the_small_stem_on_tiny_imagenet(
    name: str, parameters: int
) -> None:
    student = network(f"torchvision/{name}", (3, 64, 64), classes=200)
    assert count(student) == parameters
    maps = student.get_submodule("conv1")(torch.zeros(1, 3, 64, 64))
    assert student.get_submodule("maxpool")(maps).shape == (1, 64, 64, 64)


def test_torchvision_models_take_any_channels() -> None:
    student = network("torchvision/shufflenet_v2_x0_5", (1, 32, 32), classes=4)
    assert student.training
    assert student.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    assert count(student) == 1_366_792 - 2 * 24 * 9 - (1024 + 1) * 996


def test_torchvision_models_refuse_images_that_vanish() -> None:
    with pytest.raises(
        ConfigError,
        match=r"'torchvision/squeezenet1_1' needs images of at least 17x17 pixels\. Got 16x16",
    ):
        network("torchvision/squeezenet1_1", (3, 16, 16))
    assert network("torchvision/squeezenet1_1", (3, 17, 17)).eval()(
        torch.zeros(1, 3, 17, 17)
    ).shape == (1, 10)


def test_plain_tensors_restore_a_network_that_asks_for_the_version_of_its_state():
    spec = NetworkSettings(name="torchvision/mnasnet0_5")
    one, other = (build(spec, ImageShape(*CIFAR), 10, seed=seed) for seed in (0, 1))
    restore(other, dict(one.state_dict()))
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("side", [8, 32])
def test_resnet_with_windows_of_four_pixels_is_the_usual_one_up_to_32_pixels(side: int) -> None:
    shape = ImageShape(3, side, side)
    usual, windows = (
        build(NetworkSettings(name=name, width=4), shape, 10, seed=0).eval()
        for name in ("resnet18", "resnet18_pool4")
    )
    restore(windows, dict(usual.state_dict()))
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(windows(images), usual(images))


def test_resnet_with_windows_of_four_pixels_has_2048_features_on_tiny_imagenet() -> None:
    student = network("resnet18_pool4", (3, 64, 64), classes=200)
    assert student.get_submodule("classifier").weight.shape == (200, 2048)
    assert student(torch.zeros(2, 3, 64, 64)).shape == (2, 200)


def test_deit_tiny_comes_from_timm() -> None:
    pytest.importorskip("timm")
    # 16x16 patches of 3 channels, 12 blocks of width 192, a class token and 196 positions
    student = network("timm/deit_tiny_patch16_224", (3, 224, 224), classes=1000)
    assert count(student) == 5_717_416
    small = network("timm/deit_tiny_patch16_224", (1, 32, 32), classes=7)
    assert small.training
    assert small.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert count(small) == 5_717_416 - 993 * 193 - 192 * 192 - 2 * 256 * 192
    plain = network("timm/resnet10t", (3, 40, 40), classes=5)
    assert plain.eval()(torch.zeros(2, 3, 40, 40)).shape == (2, 5)


def test_models_that_timm_lacks_or_cannot_build_get_one_sentence() -> None:
    pytest.importorskip("timm")
    for name, side, sentence in (
        ("timm/deit_tny_patch16_224", 32, "did you mean 'timm/deit_tiny_patch16_224'?"),
        ("timm/deit_tiny_patch16_224", 8, "cannot take images of 8x8 pixels"),
    ):
        with pytest.raises(ConfigError) as error:
            network(name, (3, side, side))
        assert sentence in str(error.value)
        assert "\n" not in str(error.value)


def test_models_of_timm_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from rayd.networks import registry

    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    spec = NetworkSettings(name="timm/deit_tiny_patch16_224")
    for refused in (lambda: registry.check(spec), lambda: network(spec.name)):
        with pytest.raises(ConfigError, match=r"pip install 'rayd\[timm\]'"):
            refused()
