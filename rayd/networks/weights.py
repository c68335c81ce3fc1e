"""Initial weights of networks: torchvision's, a safetensors file, or a state dict of torch.

All tensors must fit; the classifier's may differ only if the network is trained further. Nothing
except tensors is unpickled: torch's files, including those in the format before torch 1.6, are read
with `weights_only`; plain pickles are rejected.
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
from rayd.names import expanded
from rayd.networks.registry import TORCHVISION as PREFIX

if TYPE_CHECKING:
    from rayd.config import ObserverNetworkSettings

TORCHVISION = "torchvision"
"""Value of the setting `weights` for the pretrained weights that torchvision recommends; the name of
others may follow a slash, as in `torchvision/IMAGENET1K_V1`.
"""
RESCALING = ("googlenet", "inception_v3")
"""Models whose pretrained weights expect a different input scale, which torchvision applies only
when it loads the weights itself.
"""
OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
"""Renamed tensors: patterns of names in torchvision's files, and their current names."""
COMPILED = "_orig_mod."
"""Prefix that `torch.compile` adds to names, of the whole network or of a submodule."""
OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of files written by torch before version 1.6, which are not archives."""


@dataclass(frozen=True)
class _Weights:
    """Content of a source of weights."""

    label: str
    """Name of the source, for error messages."""
    tensors: dict[str, Tensor]
    """Tensors by their names in the network's state dict."""
    class_names: tuple[str, ...] | None
    """Classes of its classifier in label order, if recorded."""


def fingerprint(settings: ObserverNetworkSettings) -> str | None:
    """Identifier of a network's initial weights: SHA-256 of the file, or torchvision's name.

    None without given weights.

    Raises:
        ArtifactError: the file is missing or unreadable.
        ConfigError: torchvision has no weights for this network.
    """
    if settings.weights is None:
        return None
    if _of_torchvision(settings.weights):
        return str(_pretrained(settings.name, settings.weights))
    path = _existing(settings.weights)
    try:
        return file_hash(path)
    except OSError as error:
        raise ArtifactError(f"Cannot read '{path}': {error.strerror}.") from error


def load_weights(
    network: nn.Module, settings: ObserverNetworkSettings, class_names: Sequence[str], *, head: bool
) -> None:
    """Load the weights named by a network's settings, in place; without any, do nothing.

    Args:
        network: network for `class_names`; unchanged if an error is raised.
        settings: settings of the network, including the source of the weights.
        class_names: classes of the data in label order.
        head: True if the weights are used without training, so that the classifier must be loaded
            and have these classes; for torchvision's weights, it gets the rows of these classes.
            False if the network is trained further: a classifier of other classes or another shape
            keeps its initialisation.

    Raises:
        ArtifactError: the file is missing or damaged, or contains more than tensors.
        ConfigError: the weights do not fit the network, or have other classes or another class
            order.
        RunError: torchvision's weights cannot be downloaded.
    """
    if settings.weights is None:
        return
    own: dict[str, Tensor] = network.state_dict()
    classifier = _classifier(network)
    if _of_torchvision(settings.weights):
        pretrained = _pretrained(settings.name, settings.weights)
        weights = _from_torchvision(
            settings.name, pretrained, classifier, class_names if head else None
        )
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
    path = expanded(weights)
    if not path.is_file():
        raise ArtifactError(
            f"'{path}' is missing; 'weights' of a network must be '{TORCHVISION}' "
            "or the path of a file."
        )
    return path


def _of_torchvision(weights: str) -> bool:
    """Whether the setting `weights` names those of torchvision rather than a file."""
    return weights == TORCHVISION or weights.startswith(f"{TORCHVISION}/")


def _pretrained(name: str, weights: str) -> Any:
    """Torchvision's weights (an enumeration member) for a network: those named, or its default."""
    import torchvision

    model = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or model not in torchvision.models.list_models(
        module=torchvision.models
    ):
        raise ConfigError(
            f"Only networks '{PREFIX}<model>' can start from torchvision's weights. "
            f"Got '{name}' instead."
        )
    if model in RESCALING:
        raise ConfigError(
            f"Network '{name}' cannot start from torchvision's weights, "
            "which were trained on images of another scale."
        )
    known = torchvision.models.get_model_weights(model)
    wanted = weights.partition("/")[2]
    if not wanted:
        return known.DEFAULT
    if wanted not in known.__members__:
        names = ", ".join(f"{TORCHVISION}/{member.name}" for member in known)
        raise ConfigError(
            f"The weights of network '{name}' must be {TORCHVISION} or one of {names}. "
            f"Got '{weights}' instead."
        )
    return known[wanted]


def _from_torchvision(
    name: str, pretrained: Any, classifier: str, class_names: Sequence[str] | None
) -> _Weights:
    """Torchvision's weights of a network, with the classifier's rows limited to given classes."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(pretrained.url).name
    try:
        tensors = pretrained.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, HTTPException) as error:
        raise RunError(
            f"Cannot download the weights of network '{name}': "
            f"{getattr(error, 'reason', None) or error}; download {pretrained.url} elsewhere "
            f"and put it at '{path}', or give its path as 'weights'."
        ) from error
    except (RuntimeError, UnpicklingError, EOFError) as error:
        raise ArtifactError(
            f"The file downloaded from {pretrained.url} or kept at '{path}' is damaged: "
            f"{_first_line(error)}; remove it and try again."
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
    """Rows of the classes in torchvision's classifier; all rows if only the spelling differs.

    Raises:
        ConfigError: a class is not among those of the weights.
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
                f"Weights '{label}' are used unchanged, so every class must be one of the "
                f"{len(known)} of their classifier. Got '{name}' instead."
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
    """Tensors of a torch archive, at the top level or under 'state_dict' or 'model'."""
    content = _archive(path)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if isinstance(content, dict) and (name := _nested(content)) is not None:
        raise ArtifactError(
            f"'{path}' contains its state dict under '{name}', and perhaps others; save only that one, "
            f"as in torch.save(checkpoint['{name}'], path)."
        )
    if not isinstance(content, dict) or not content:
        raise ArtifactError(
            f"'{path}' must contain a state dict, i.e. tensors by name. "
            f"Got {type(content).__name__} instead."
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ArtifactError(
                f"'{path}' must contain a state dict, i.e. tensors by name. "
                f"Got {name!r}: {type(value).__name__} instead."
            )
    return content


def _archive(path: Path) -> Any:
    """Load a torch archive, refusing pickles of anything except tensors."""
    pickled = (
        f"'{path}' is a pickle with more than tensors, which rayd never loads; "
        "convert it to safetensors."
    )
    try:
        with path.open("rb") as file:
            magic = file.read(len(OLD_FORMAT))
    except OSError as error:
        raise ArtifactError(f"Cannot read '{path}': {error.strerror}.") from error
    is_old = magic == OLD_FORMAT
    if magic[:1] == b"\x80" and not is_old:
        raise ArtifactError(pickled)
    if magic[:2] != b"PK" and not is_old:
        raise ArtifactError(
            f"'{path}' is not a torch checkpoint; a safetensors file must end in '.safetensors'."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ArtifactError(pickled) from error
    except Exception as error:  # torch raises various exceptions for damaged archives
        raise ArtifactError(
            f"'{path}' is truncated or not a torch checkpoint: {_first_line(error)}."
        ) from error


def _nested(content: dict[Any, Any]) -> str | None:
    """Name of the first entry that contains tensors by name."""
    for name, value in content.items():
        if isinstance(value, dict) and value and all(isinstance(v, Tensor) for v in value.values()):
            return str(name)
    return None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".:")


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to current module names, without prefixes of `DataParallel` and `compile`."""
    renamed = {}
    tensors = {name.replace(COMPILED, ""): tensor for name, tensor in tensors.items()}
    wrapped = all(name.startswith("module.") for name in tensors)
    for name, tensor in tensors.items():
        name = name.removeprefix("module.") if wrapped else name
        for old, new in OLD_NAMES:
            name = old.sub(new, name)
        renamed[name] = tensor
    return renamed


def _classifier(network: nn.Module) -> str:
    """Prefix of the classifier's tensors: the last linear layer, else the last convolution."""
    for kind in (nn.Linear, nn.Conv2d):
        found = [name for name, module in network.named_modules() if isinstance(module, kind)]
        if found:
            return f"{found[-1]}."
    raise ConfigError(
        "A network must have a linear layer or a convolution. "
        f"Got {type(network).__name__} instead."
    )


def _without(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def _knows(
    weights: _Weights, classifier: str, class_names: Sequence[str], own: dict[str, Tensor]
) -> bool:
    """Whether the weights have a classifier of this shape and, if recorded, of these classes."""
    named = weights.class_names is None or weights.class_names == tuple(class_names)
    shapes = {name: tensor.shape for name, tensor in own.items() if name.startswith(classifier)}
    return named and all(
        name in weights.tensors and weights.tensors[name].shape == shapes[name] for name in shapes
    )


def _require_classes(weights: _Weights, classifier: str, class_names: Sequence[str]) -> None:
    """Raise a ConfigError if the classifier has other classes, or another order of them."""
    known = weights.class_names
    if known is not None and known != tuple(class_names):
        if sorted(known) == sorted(class_names):
            pairs = enumerate(zip(known, class_names, strict=True))
            position = next(row for row, (theirs, ours) in pairs if theirs != ours)
            raise ConfigError(
                f"Weights {weights.label} have the classes of the data in another class order: "
                f"class {position} is '{known[position]}' there and '{class_names[position]}' "
                "in the data."
            )
        foreign = [name for name in class_names if name not in known]
        lacking = [name for name in known if name not in class_names]
        which = (
            f"class '{foreign[0]}' of the data is not among them"
            if foreign
            else f"the data have no class '{lacking[0]}'"
        )
        raise ConfigError(
            f"Weights {weights.label} are used unchanged, but have other classes: {which}."
        )
    for name, tensor in weights.tensors.items():
        if name.startswith(classifier) and tensor.shape[:1] != (len(class_names),):
            raise ConfigError(
                f"Weights {weights.label} are used unchanged, so their classifier must have "
                f"{len(class_names)} classes. "
                f"Got '{name}' of shape {tuple(tensor.shape)} instead."
            )


def _require_fit(weights: _Weights, own: dict[str, Tensor], network: str) -> None:
    """Raise a ConfigError naming the first tensor that is missing, unknown or misshapen."""
    misfit = f"Weights {weights.label} do not fit network '{network}'"
    for name, tensor in own.items():
        given = weights.tensors.get(name)
        if given is None:
            # absent from old checkpoints, and not used
            if name.endswith("num_batches_tracked"):
                continue
            raise ConfigError(
                f"{misfit}: they have no tensor '{name}' of shape {tuple(tensor.shape)}."
            )
        if given.shape != tensor.shape:
            raise ConfigError(
                f"{misfit}: tensor '{name}' is of shape {tuple(given.shape)} there "
                f"and {tuple(tensor.shape)} in the network."
            )
        if given.is_floating_point() != tensor.is_floating_point():
            raise ConfigError(
                f"{misfit}: tensor '{name}' is {given.dtype} there "
                f"and {tensor.dtype} in the network."
            )
    foreign = next((name for name in weights.tensors if name not in own), None)
    if foreign is not None:
        raise ConfigError(
            f"{misfit}, which has no tensor '{foreign}' "
            f"of shape {tuple(weights.tensors[foreign].shape)}."
        )
