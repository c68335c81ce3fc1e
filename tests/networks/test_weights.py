"""Given weights fill a network or are refused with a sentence; nothing but tensors is ever
unpickled.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import DenseNet, ShuffleNet_V2_X0_5_Weights, VisionTransformer

from rayd.artifacts import write_tensors
from rayd.config import ObserverNetworkSettings
from rayd.errors import ArtifactError, ConfigError, RunError
from rayd.networks import build
from rayd.networks.weights import fingerprint, load_weights

DIGITS = (1, 8, 8)
CLASSES = ["cat", "dog", "frog"]
SHUFFLENET = "torchvision/shufflenet_v2_x0_5"
IMAGENET = ShuffleNet_V2_X0_5_Weights.DEFAULT.meta["categories"]

Download = Callable[..., object]


def small(
    weights: Path | str | None = None, classes: int = 3, seed: int = 0, **options: object
) -> tuple[nn.Module, ...]:
    """A ConvNet with batch normalisation, and its settings."""
    options = {"name": "convnet", "depth": 1, "width": 4, "norm": "batch", **options}
    settings = ObserverNetworkSettings(weights=str(weights) if weights else None, **options)
    return build(settings, DIGITS, classes, seed=seed), settings


def trained(classes: int = 3, **options: object) -> dict[str, Tensor]:
    """Tensors of a ConvNet of another seed whose running statistics are not those of a new one."""
    state = small(classes=classes, seed=1, **options)[0].state_dict()
    state["features.1.running_mean"] += 0.5
    state["features.1.num_batches_tracked"] += 7
    return dict(state)


def same(network: nn.Module, tensors: dict[str, Tensor]) -> bool:
    state = network.state_dict()
    return state.keys() == tensors.keys() and all(
        torch.equal(state[name], tensors[name]) for name in state
    )


def refusal(
    path: Path, kind: type[Exception] = ConfigError, *, head: bool = True, **options: object
) -> str:
    """The sentence with which weights are refused, after a look that nothing of the network was
    changed.
    """
    network, settings = small(path, **options)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(kind) as error:
        load_weights(network, settings, CLASSES, head=head)
    assert same(network, before)
    return str(error.value)


@pytest.fixture
def safetensors(tmp_path: Path) -> Path:
    return tmp_path / "w.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "w.pth"


# Files


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("metadata", [None, {"class_names": CLASSES}])
def test_safetensors_fill_the_network(
    safetensors: Path, metadata: dict[str, object] | None, head: bool
) -> None:
    write_tensors(safetensors, trained(), metadata)
    network, settings = small(safetensors)
    load_weights(network, settings, CLASSES, head=head)
    assert same(network, trained())
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"state_dict": tensors, "epoch": 3, "arch": "convnet"},
        lambda tensors: {"model": tensors, "optimizer": {"lr": 0.1}},
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {
            "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}
        },
        lambda tensors: {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {f"_orig_mod.module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {
            name.replace("features.", "features._orig_mod."): tensor
            for name, tensor in tensors.items()
        },
        lambda tensors: {
            name: nn.Parameter(tensor) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        },
        lambda tensors: {
            name: tensor.double() if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        },
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_of_torch_fill_the_network(
    checkpoint: Path, wrap: Callable[[dict[str, Tensor]], object], zipped: bool
) -> None:
    torch.save(wrap(trained()), checkpoint, _use_new_zipfile_serialization=zipped)
    network, settings = small(checkpoint)
    load_weights(network, settings, CLASSES, head=True)
    assert same(network, trained())


def test_without_weights_nothing_changes() -> None:
    network, settings = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_weights(network, settings, CLASSES, head=True)
    assert same(network, before)


def test_files_of_before_batches_were_counted_are_taken(safetensors: Path) -> None:
    tensors = trained()
    del tensors["features.1.num_batches_tracked"]
    write_tensors(safetensors, tensors)
    network, settings = small(safetensors)
    load_weights(network, settings, CLASSES, head=True)
    assert same(network, {**trained(), "features.1.num_batches_tracked": torch.tensor(0)})


def old_name_of_densenet(name: str) -> str:
    return name.replace("denselayer1.norm", "denselayer1.norm.").replace(
        "denselayer1.conv", "denselayer1.conv."
    )


def old_name_of_transformer(name: str) -> str:
    return name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")


@pytest.mark.parametrize(
    ("make", "old_name"),
    [
        (lambda: DenseNet(4, (1, 1), 4, num_classes=3), old_name_of_densenet),
        (lambda: VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=3), old_name_of_transformer),
    ],
)
def test_files_with_torchvision_s_old_names_are_taken(
    checkpoint: Path, make: Callable[[], nn.Module], old_name: Callable[[str], str]
) -> None:
    given = make().state_dict()
    network = make()
    old = {old_name(name): tensor for name, tensor in given.items()}
    assert old.keys() != given.keys()
    torch.save(old, checkpoint)
    load_weights(network, ObserverNetworkSettings(weights=str(checkpoint)), CLASSES, head=True)
    assert same(network, given)


# The classifier


@pytest.mark.parametrize("classes", [5, 0])
def test_a_classifier_that_does_not_fit_starts_anew_where_it_is_trained_further(
    safetensors: Path, classes: int
) -> None:
    tensors = trained(classes or 3)
    if not classes:
        tensors = {
            name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")
        }
    write_tensors(safetensors, tensors)
    network, settings = small(safetensors)
    fresh = {
        name: t.clone()
        for name, t in network.state_dict().items()
        if name.startswith("classifier.")
    }
    load_weights(network, settings, CLASSES, head=False)
    assert same(network, {**trained(), **fresh})


@pytest.mark.parametrize("known", [["dog", "cat", "frog"], ["cat", "dog", "horse"]])
def test_a_classifier_of_other_classes_starts_anew_where_it_is_trained_further(
    safetensors: Path, known: list[str]
) -> None:
    write_tensors(safetensors, trained(), {"class_names": known})
    network, settings = small(safetensors)
    fresh = network.get_parameter("classifier.weight").clone()
    load_weights(network, settings, CLASSES, head=False)
    assert torch.equal(network.get_parameter("classifier.weight"), fresh)
    assert torch.equal(network.state_dict()["features.0.weight"], trained()["features.0.weight"])


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        (
            ["cat", "frog", "dog"],
            "have the classes of the data in another class order: class 1 is 'frog' there and 'dog' in the data.",
        ),
        (
            ["cat", "horse", "frog"],
            "are used unchanged, but have other classes: class 'dog' of the data is not among them.",
        ),
        (
            ["cat", "dog", "frog", "horse"],
            "are used unchanged, but have other classes: the data have no class 'horse'.",
        ),
    ],
)
def test_weights_that_are_used_as_they_are_must_know_the_classes(
    safetensors: Path, known: list[str], sentence: str
) -> None:
    write_tensors(safetensors, trained(len(known)), {"class_names": known})
    assert f"Weights '{safetensors}' {sentence}" in refusal(safetensors)


def test_weights_that_are_used_as_they_are_must_have_as_many_classes(checkpoint: Path) -> None:
    torch.save(trained(5), checkpoint)
    assert refusal(checkpoint) == (
        f"Weights '{checkpoint}' are used unchanged, so their classifier must have 3 classes. Got 'classifier.weight' of "
        "shape (5, 64) instead."
    )


def test_weights_that_are_used_as_they_are_must_have_a_classifier(checkpoint: Path) -> None:
    torch.save(
        {name: t for name, t in trained().items() if not name.startswith("classifier.")}, checkpoint
    )
    assert "they have no tensor 'classifier.weight' of shape (3, 64)." in refusal(checkpoint)


def test_a_file_whose_class_names_are_no_names_is_refused(safetensors: Path) -> None:
    write_tensors(safetensors, trained(), {"class_names": [1, 2, 3]})
    assert "must be a list of names. Got [1, 2, 3] instead." in refusal(safetensors, ArtifactError)


# Everything else must fit


@pytest.mark.parametrize("head", [True, False])
def test_a_first_layer_of_other_channels_is_refused(checkpoint: Path, head: bool) -> None:
    colour = ObserverNetworkSettings(name="convnet", depth=1, width=4, norm="batch")
    torch.save(build(colour, (3, 8, 8), 3, seed=1).state_dict(), checkpoint)
    assert refusal(checkpoint, head=head) == (
        f"Weights '{checkpoint}' do not fit network 'convnet': tensor 'features.0.weight' is of shape (4, 3, 3, 3) there and "
        "(4, 1, 3, 3) in the network."
    )


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda t: t.pop("features.1.running_var"),
            "they have no tensor 'features.1.running_var' of shape (4,).",
        ),
        (
            lambda t: t.update(extra=torch.zeros(2, 3)),
            "which has no tensor 'extra' of shape (2, 3).",
        ),
        (
            lambda t: t.update({"features.0.weight": t["features.0.weight"].char()}),
            "tensor 'features.0.weight' is torch.int8 there and torch.float32 in the network.",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    checkpoint: Path, change: Callable[[dict[str, Tensor]], object], sentence: str, head: bool
) -> None:
    tensors = trained()
    change(tensors)
    torch.save(tensors, checkpoint)
    assert sentence in refusal(checkpoint, head=head)


# What is not loaded


class Bomb:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_bare_pickle_is_never_loaded(tmp_path: Path, name: str, protocol: int) -> None:
    path = tmp_path / name
    trace = tmp_path / "trace"
    path.write_bytes(pickle.dumps({"weight": Bomb(trace)}, protocol=protocol))
    assert "which rayd never loads; convert it to safetensors." in refusal(path, ArtifactError)
    assert not trace.exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_an_archive_that_holds_more_than_tensors_is_never_loaded(
    checkpoint: Path, tmp_path: Path, legacy: bool
) -> None:
    torch.save(
        {**trained(), "extra": Bomb(tmp_path / "trace")},
        checkpoint,
        _use_new_zipfile_serialization=not legacy,
    )
    assert refusal(checkpoint, ArtifactError) == (
        f"'{checkpoint}' is a pickle with more than tensors, which rayd never loads; convert it to safetensors."
    )
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "must contain a state dict, i.e. tensors by name. Got list instead."),
        ({}, "must contain a state dict, i.e. tensors by name. Got dict instead."),
        (
            {"epoch": 3, "net": {"weight": torch.zeros(1)}},
            "contains its state dict under 'net', and perhaps others; save only that one",
        ),
        (
            {"epoch": 3},
            "must contain a state dict, i.e. tensors by name. Got 'epoch': int instead.",
        ),
        (
            {0: torch.zeros(1)},
            "must contain a state dict, i.e. tensors by name. Got 0: Tensor instead.",
        ),
    ],
)
def test_an_archive_of_something_else_is_refused(
    checkpoint: Path, content: object, sentence: str
) -> None:
    torch.save(content, checkpoint)
    assert sentence in refusal(checkpoint, ArtifactError)


def test_a_truncated_archive_is_refused(checkpoint: Path) -> None:
    torch.save(trained(), checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert f"'{checkpoint}' is truncated or not a torch checkpoint: " in refusal(
        checkpoint, ArtifactError
    )


def test_a_file_of_another_kind_is_refused(checkpoint: Path) -> None:
    write_tensors(checkpoint, trained())
    assert "is not a torch checkpoint; a safetensors file must end in '.safetensors'." in refusal(
        checkpoint, ArtifactError
    )


def test_a_missing_file_is_named(safetensors: Path) -> None:
    sentence = f"'{safetensors}' is missing; 'weights' of a network must be 'torchvision' or the path of a file."
    assert refusal(safetensors, ArtifactError) == sentence
    with pytest.raises(ArtifactError, match="is missing"):
        fingerprint(small(safetensors)[1])


# Torchvision's weights


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What stands for torchvision's weights, which are not downloaded here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        tensors = torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict()

    def download(url: str, **options: object) -> dict[str, Tensor]:
        assert url == ShuffleNet_V2_X0_5_Weights.DEFAULT.url
        assert options["check_hash"]
        assert options["weights_only"]
        return tensors

    answer_downloads(monkeypatch, download)
    return tensors


def answer_downloads(monkeypatch: pytest.MonkeyPatch, download: Download) -> None:
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)


def shufflenet(
    classes: list[str], *, head: bool, shape: tuple[int, int, int] = (3, 32, 32)
) -> nn.Module:
    settings = ObserverNetworkSettings(name=SHUFFLENET, weights="torchvision")
    network = build(settings, shape, len(classes), seed=0)
    load_weights(network, settings, classes, head=head)
    return network


def test_classes_of_imagenet_take_their_rows(pretrained: dict[str, Tensor]) -> None:
    classes = ["tabby", "Great_White_Shark", "cardigan", "goldfish"]
    rows = [IMAGENET.index(name) for name in ("tabby", "great white shark", "cardigan", "goldfish")]
    state = shufflenet(classes, head=True).state_dict()
    assert torch.equal(state["fc.weight"], pretrained["fc.weight"][rows])
    assert torch.equal(state["fc.bias"], pretrained["fc.bias"][rows])
    assert all(
        torch.equal(state[name], pretrained[name]) for name in state if not name.startswith("fc.")
    )


def test_a_thousand_classes_take_the_classifier_in_their_own_order(
    pretrained: dict[str, Tensor],
) -> None:
    assert same(shufflenet(IMAGENET, head=True), pretrained)
    assert torch.equal(
        shufflenet(IMAGENET[::-1], head=True).state_dict()["fc.bias"], pretrained["fc.bias"].flip(0)
    )


@pytest.mark.parametrize("head", [True, False])
def test_a_thousand_classes_of_other_names_take_the_classifier_as_it_is(
    pretrained: dict[str, Tensor], head: bool
) -> None:
    assert same(shufflenet([f"n{label:08}" for label in range(1000)], head=head), pretrained)


@pytest.mark.parametrize("name", ["zebra crossing", "CARDIGAN"])
def test_a_class_that_imagenet_does_not_have_or_has_twice_is_named(
    pretrained: dict[str, Tensor], name: str
) -> None:
    with pytest.raises(ConfigError) as error:
        shufflenet(["tabby", name], head=True)
    assert str(error.value) == (
        "Weights 'ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1' are used unchanged, so every class must be one of the 1000 of "
        f"their classifier. Got '{name}' instead."
    )


def test_other_classes_get_a_new_classifier_where_it_is_trained_further(
    pretrained: dict[str, Tensor],
) -> None:
    state = shufflenet(["zebra crossing", "tabby"], head=False).state_dict()
    fresh = build(ObserverNetworkSettings(name=SHUFFLENET), (3, 32, 32), 2, seed=0).state_dict()
    assert all(
        torch.equal(state[name], (fresh if name.startswith("fc.") else pretrained)[name])
        for name in state
    )


def test_images_of_other_channels_are_refused(pretrained: dict[str, Tensor]) -> None:
    with pytest.raises(
        ConfigError, match=r"'conv1.0.weight' is of shape \(24, 3, 3, 3\) there and \(24, 1, 3, 3\)"
    ):
        shufflenet(["tabby", "goldfish"], head=False, shape=(1, 32, 32))


def test_the_stem_of_small_images_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_downloads(
        monkeypatch, lambda *_, **__: torchvision.models.resnet18(weights=None).state_dict()
    )
    settings = ObserverNetworkSettings(name="torchvision/resnet18", weights="torchvision")
    with pytest.raises(
        ConfigError, match=r"'conv1.weight' is of shape \(64, 3, 7, 7\) there and \(64, 3, 3, 3\)"
    ):
        load_weights(build(settings, (3, 32, 32), 3), settings, CLASSES, head=False)
    network = build(settings, (3, 65, 65), 3)
    load_weights(network, settings, CLASSES, head=False)


@pytest.mark.parametrize(
    "failure", [URLError("no route to host"), TimeoutError("no route to host")]
)
def test_a_failed_download_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise failure

    answer_downloads(monkeypatch, fail)
    with pytest.raises(RunError) as error:
        shufflenet(CLASSES, head=False)
    sentence = str(error.value)
    assert (
        f"Cannot download the weights of network '{SHUFFLENET}': no route to host; download https://"
        in sentence
    )
    assert f"checkpoints/{ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rsplit('/', 1)[1]}'" in sentence
    assert "give its path as 'weights'" in sentence


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("invalid hash value\nfor"), pickle.UnpicklingError("invalid hash value")],
)
def test_a_damaged_download_is_named(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(*_: object, **__: object) -> object:
        raise failure

    answer_downloads(monkeypatch, fail)
    with pytest.raises(
        ArtifactError, match=r"is damaged: invalid hash value; remove it and try again\.$"
    ):
        shufflenet(CLASSES, head=False)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "torchvision/resnet1", "torchvision/fcn_resnet50", "torchvision/inception_v3"],
)
def test_networks_that_torchvision_has_no_weights_for_are_refused(name: str) -> None:
    settings = ObserverNetworkSettings(name=name, weights="torchvision")
    with pytest.raises(ConfigError, match=f"'{name}'"):
        fingerprint(settings)
    with pytest.raises(ConfigError, match=f"'{name}'"):
        load_weights(small()[0], settings, CLASSES, head=False)


def test_every_classifier_of_torchvision_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "squeezenet1_1",
        "mnasnet0_5",
        "mobilenet_v3_small",
        "regnet_y_400mf",
        "efficientnet_b0",
    ]
    for name in names:
        given = torchvision.models.get_model(name, weights=None, num_classes=1000).state_dict()
        answer_downloads(monkeypatch, lambda *_, given=given, **__: dict(given))
        settings = ObserverNetworkSettings(name=f"torchvision/{name}", weights="torchvision")
        network = build(settings, (3, 64, 64), 2, seed=0)
        load_weights(network, settings, ["goldfish", "tench"], head=True)
        state = network.state_dict()
        chosen = [key for key in state if state[key].shape != given[key].shape]
        assert chosen
        assert all(
            torch.equal(state[key], given[key][[1, 0]] if key in chosen else given[key])
            for key in state
        )


# Fingerprints


def test_fingerprints_tell_weights_apart(safetensors: Path) -> None:
    write_tensors(safetensors, trained())
    first = fingerprint(small(safetensors)[1])
    assert first == hashlib.sha256(safetensors.read_bytes()).hexdigest()
    write_tensors(safetensors, trained(4))
    assert fingerprint(small(safetensors)[1]) != first
    assert fingerprint(small()[1]) is None
    assert fingerprint(
        ObserverNetworkSettings(name="torchvision/resnet50", weights="torchvision")
    ) == ("ResNet50_Weights.IMAGENET1K_V2")


def test_weights_of_a_version_can_be_named() -> None:
    def of(weights: str, name: str = "torchvision/mobilenet_v2") -> str | None:
        return fingerprint(ObserverNetworkSettings(name=name, weights=weights))

    assert of("torchvision") == "MobileNet_V2_Weights.IMAGENET1K_V2"
    assert of("torchvision/IMAGENET1K_V1") == "MobileNet_V2_Weights.IMAGENET1K_V1"
    assert of("torchvision/IMAGENET1K_V2") == of("torchvision")
    with pytest.raises(ConfigError) as error:
        of("torchvision/V1")
    assert str(error.value) == (
        "The weights of network 'torchvision/mobilenet_v2' must be torchvision or one of "
        "torchvision/IMAGENET1K_V1, torchvision/IMAGENET1K_V2. Got 'torchvision/V1' instead."
    )
    with pytest.raises(ConfigError, match="Only networks 'torchvision/<model>'"):
        of("torchvision/IMAGENET1K_V1", "resnet18")


def test_weights_of_a_version_are_those_that_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torchvision/resnet50"
    loaded = []

    def fetched(pretrained: object, **_: object) -> dict[str, Tensor]:
        loaded.append(str(pretrained))
        return dict(torchvision.models.resnet50().state_dict())

    monkeypatch.setattr(torchvision.models.ResNet50_Weights, "get_state_dict", fetched)
    settings = ObserverNetworkSettings(name=name, weights="torchvision/IMAGENET1K_V1")
    network = build(settings, (3, 224, 224), 1000, seed=0)
    load_weights(network, settings, [f"class {label}" for label in range(1000)], head=True)
    assert loaded == ["ResNet50_Weights.IMAGENET1K_V1"]
