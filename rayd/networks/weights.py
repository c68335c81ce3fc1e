"""Networks that start from given weights: torchvision's, a safetensors file, or a state dict of
torch.

Every tensor must fit but the classifier's, and that only where the network is trained further.
Nothing is unpickled that could hold more than tensors: an archive of torch is read with
`weights_only`, a bare pickle not at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rayd.artifacts import file_hash, read_tensors
from rayd.errors import ArtifactError, ConfigError, RunError
from rayd.networks.registry import TORCHVISION as PREFIX

if TYPE_CHECKING:
    from rayd.config import ObserverNetworkSettings

TORCHVISION = "torchvision"
"""The value of `weights` that asks for torchvision's own."""
RESCALING = ("googlenet", "inception_v3")
"""Models whose weights expect images of another scale; torchvision rescales them only where it
loads the weights itself.
"""
OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
"""Names of tensors in torchvision's files of DenseNets and vision transformers, and what its models
call them now.
"""


@dataclass(frozen=True)
class _Weights:
    """What a source of weights holds."""

    label: str
    """The source, for sentences."""
    tensors: dict[str, Tensor]
    """By the names of the network's state dict."""
    class_names: tuple[str, ...] | None
    """The classes of its classifier in label order, if it says so."""


def fingerprint(settings: ObserverNetworkSettings) -> str | None:
    """What tells the weights that a network starts from, from others: a SHA-256 of the file, or
    torchvision's name for them.

    None without given weights.

    Raises:
        ArtifactError: there is no such file, or it cannot be read.
        ConfigError: torchvision has no weights for this network.
    """
    if settings.weights is None:
        return None
    if settings.weights == TORCHVISION:
        return str(_pretrained(settings.name))
    path = _existing(settings.weights)
    try:
        return file_hash(path)
    except OSError as error:
        raise ArtifactError(f"Cannot read '{path}': {error.strerror}.") from error


def load_weights(
    network: nn.Module, settings: ObserverNetworkSettings, class_names: Sequence[str], *, head: bool
) -> None:
    """Fill a network with the weights that its settings name; without any, leave it as it is.

    Args:
        network: built for `class_names`. It is filled in place, wholly or, if an error is raised,
            not at all.
        settings: its name and the source of the weights.
        class_names: the classes of the data in label order.
        head: True where the weights are used as they are, so that the classifier must come along
            and mean these classes; of torchvision's weights, it is made of the rows of these
            classes. With False, for weights that are trained further, a classifier of other classes
            or of another shape stays as it was initialised.

    Raises:
        ArtifactError: the file is missing or damaged, or holds more than tensors.
        ConfigError: the weights do not fit the network, or know other classes or another class
            order.
        RunError: torchvision's weights cannot be downloaded.
    """
    if settings.weights is None:
        return
    own: dict[str, Tensor] = network.state_dict()
    classifier = _classifier(network)
    if settings.weights == TORCHVISION:
        weights = _from_torchvision(settings.name, classifier, class_names if head else None)
    else:
        weights = _from_file(_existing(settings.weights))
    if head:
        _require_classes(weights, classifier, class_names)
    elif not _knows(weights, classifier, class_names, own):
        own = _without(own, classifier)
        weights = _Weights(weights.label, _without(weights.tensors, classifier), None)
    _require_fit(weights, own, settings.name)
    with torch.no_grad():
        for name, tensor in own.items():
            if name in weights.tensors:
                tensor.copy_(weights.tensors[name])


def _existing(weights: str) -> Path:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ArtifactError(
            f"'{path}' is missing; 'weights' of a network must be '{TORCHVISION}' or the path of a file."
        )
    return path


def _pretrained(name: str) -> Any:
    """The member of torchvision's enumeration of weights that it recommends for a network."""
    import torchvision

    model = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or model not in torchvision.models.list_models(
        module=torchvision.models
    ):
        raise ConfigError(
            f"Only networks '{PREFIX}<model>' can start from torchvision's weights. Got '{name}' instead."
        )
    if model in RESCALING:
        raise ConfigError(
            f"Network '{name}' cannot start from torchvision's weights, which were trained on images of another scale."
        )
    return torchvision.models.get_model_weights(model).DEFAULT


def _from_torchvision(name: str, classifier: str, class_names: Sequence[str] | None) -> _Weights:
    """Torchvision's weights of a network, with the rows of the given classes alone in the
    classifier.
    """
    pretrained = _pretrained(name)
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(pretrained.url).name
    try:
        tensors = pretrained.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, HTTPException) as error:
        raise RunError(
            f"Cannot download the weights of network '{name}': {getattr(error, 'reason', None) or error}; download "
            f"{pretrained.url} elsewhere and put it at '{kept}', or give its path as 'weights'."
        ) from error
    except (RuntimeError, UnpicklingError, EOFError) as error:
        raise ArtifactError(
            f"What torch got from {pretrained.url} or keeps at '{kept}' is damaged: {_first_line(error)}; remove it and try "
            "again."
        ) from error
    tensors = _renamed(tensors)
    if class_names is not None:
        rows = _rows(str(pretrained), pretrained.meta["categories"], class_names)
        tensors = {
            name: tensor[rows] if name.startswith(classifier) else tensor
            for name, tensor in tensors.items()
        }
    return _Weights(f"'{pretrained}'", tensors, None)


def _rows(label: str, known: list[str], class_names: Sequence[str]) -> list[int]:
    """Where the classes are among those that torchvision's weights know; all rows for as many
    classes of other names.

    Raises:
        ConfigError: a class is none of those that the weights know.
    """
    plain = [_plain(name) for name in known]
    rows = []
    for name in class_names:
        if known.count(name) == 1:
            rows.append(known.index(name))
        elif plain.count(_plain(name)) == 1:
            rows.append(plain.index(_plain(name)))
        elif len(class_names) == len(known):
            return list(range(len(known)))
        else:
            raise ConfigError(
                f"Weights '{label}' are used as they are, so every class must be one of the {len(known)} that they know. Got "
                f"'{name}' instead."
            )
    return rows


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ")


def _from_file(path: Path) -> _Weights:
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        return _Weights(f"'{path}'", _renamed(tensors), _class_names(path, metadata))
    return _Weights(f"'{path}'", _renamed(_state_dict(path)), None)


def _class_names(path: Path, metadata: dict[str, Any]) -> tuple[str, ...] | None:
    names = metadata.get("class_names")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ArtifactError(
            f"'class_names' in '{path}' must be a list of names. Got {names!r} instead."
        )
    return tuple(names)


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of an archive of torch, which may lie under 'state_dict' or 'model'."""
    pickled = f"'{path}' is a pickle that holds more than tensors, which rayd never loads; convert it to safetensors."
    try:
        with path.open("rb") as file:
            magic = file.read(2)
    except OSError as error:
        raise ArtifactError(f"Cannot read '{path}': {error.strerror}.") from error
    if magic[:1] == b"\x80":
        raise ArtifactError(pickled)
    if magic != b"PK":
        raise ArtifactError(
            f"'{path}' is no checkpoint of torch; a safetensors file must end in '.safetensors'."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ArtifactError(pickled) from error
    except Exception as error:  # a damaged archive can make torch raise anything
        raise ArtifactError(
            f"'{path}' is truncated or no checkpoint of torch: {_first_line(error)}."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ArtifactError(
            f"'{path}' must hold a state dict, that is tensors by name. Got {type(content).__name__} instead."
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ArtifactError(
                f"'{path}' must hold a state dict, that is tensors by name. Got {name!r}: {type(value).__name__} instead."
            )
    return content


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".:")


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names of today's modules, without the prefix of a network that was trained on several
    devices.
    """
    wrapped = all(name.startswith("module.") for name in tensors)
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.") if wrapped else name
        for old, new in OLD_NAMES:
            name = old.sub(new, name)
        renamed[name] = tensor
    return renamed


def _classifier(network: nn.Module) -> str:
    """The prefix of the classifier's tensors: the last linear layer, or the last convolution of a
    network without any.
    """
    for kind in (nn.Linear, nn.Conv2d):
        found = [name for name, module in network.named_modules() if isinstance(module, kind)]
        if found:
            return f"{found[-1]}."
    raise ConfigError(
        f"A network must have a linear layer or a convolution. Got {type(network).__name__} instead."
    )


def _without(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def _knows(
    weights: _Weights, classifier: str, class_names: Sequence[str], own: dict[str, Tensor]
) -> bool:
    """Whether the weights have a classifier of this shape and, as far as they say so, of these
    classes.
    """
    named = weights.class_names is None or weights.class_names == tuple(class_names)
    shapes = {name: tensor.shape for name, tensor in own.items() if name.startswith(classifier)}
    return named and all(
        name in weights.tensors and weights.tensors[name].shape == shapes[name] for name in shapes
    )


def _require_classes(weights: _Weights, classifier: str, class_names: Sequence[str]) -> None:
    """Raise a ConfigError if the classifier is of other classes, or of these in another order."""
    known = weights.class_names
    if known is not None and known != tuple(class_names):
        if sorted(known) == sorted(class_names):
            position = next(
                row
                for row, pair in enumerate(zip(known, class_names, strict=True))
                if pair[0] != pair[1]
            )
            raise ConfigError(
                f"Weights {weights.label} know the classes of the data in another class order: class {position} is "
                f"'{known[position]}' there and '{class_names[position]}' in the data."
            )
        foreign = [name for name in class_names if name not in known]
        lacking = [name for name in known if name not in class_names]
        which = (
            f"class '{foreign[0]}' of the data is none of theirs"
            if foreign
            else f"the data have no class '{lacking[0]}'"
        )
        raise ConfigError(
            f"Weights {weights.label} are used as they are, but know other classes: {which}."
        )
    for name, tensor in weights.tensors.items():
        if name.startswith(classifier) and tensor.shape[:1] != (len(class_names),):
            raise ConfigError(
                f"Weights {weights.label} are used as they are, so their classifier must have {len(class_names)} classes. Got "
                f"'{name}' of shape {tuple(tensor.shape)} instead."
            )


def _require_fit(weights: _Weights, own: dict[str, Tensor], network: str) -> None:
    """Raise a ConfigError that names the first tensor that is missing, too many, or of another
    shape.
    """
    misfit = f"Weights {weights.label} do not fit network '{network}'"
    for name, tensor in own.items():
        given = weights.tensors.get(name)
        if given is None:
            if name.endswith(
                "num_batches_tracked"
            ):  # files from before torch counted batches have none, and nothing reads it
                continue
            raise ConfigError(
                f"{misfit}: they have no tensor '{name}' of shape {tuple(tensor.shape)}."
            )
        if given.shape != tensor.shape:
            raise ConfigError(
                f"{misfit}: tensor '{name}' is of shape {tuple(given.shape)} there and {tuple(tensor.shape)} in the network."
            )
        if given.is_floating_point() != tensor.is_floating_point():
            raise ConfigError(
                f"{misfit}: tensor '{name}' is {given.dtype} there and {tensor.dtype} in the network."
            )
    foreign = next((name for name in weights.tensors if name not in own), None)
    if foreign is not None:
        raise ConfigError(
            f"{misfit}, which has no tensor '{foreign}' of shape {tuple(weights.tensors[foreign].shape)}."
        )
