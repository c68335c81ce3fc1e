"""Every setting of a run, typed, documented and validated.

A run is described by one `Recipe`. It is built in layers, later ones winning: the defaults below, the method's own defaults,
the recipe file, and `key.sub=value` overrides. All layers are validated the same way; a key that does not exist is an error
that names the nearest one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from rayd.errors import ConfigError, unknown

S = TypeVar("S", bound="Settings")

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""The augmentation of Zhao and Bilen (2021) for natural images; digits leave out `flip`."""


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values do not change once made."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


def _words(value: object) -> object:
    """Class names are text, also where they look like numbers; one name stands for a tuple of one."""
    names = [value] if isinstance(value, str | int) else value
    return [str(name) if isinstance(name, int) else name for name in names] if isinstance(names, list | tuple) else names


def _listed(value: object) -> object:
    """One element stands for a tuple of one; what is named twice counts once."""
    if isinstance(value, str | dict):
        return [value]
    if not isinstance(value, list | tuple):
        return value
    return [element for index, element in enumerate(value) if element not in value[:index]]


class DataSettings(Settings):
    """Which images, and which of them."""

    name: str
    """A known name (`rayd data list`), or the path of a Parquet folder, an image folder or an `.npz` file."""
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(_words)] = None
    """Keep only these classes, by name, in this order; all of them when absent."""
    imbalance: float = Field(default=1.0, ge=1.0)
    """Long-tailed subset: class c of C keeps n_max * imbalance^(-c/(C-1)) training images, truncated; 1 keeps all."""
    validation_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each class carved from the training split for selection; 0 leaves all of it for distillation."""
    split_seed: int = 42
    """Seed of the splits and subsets that are drawn; it belongs to the data, not to the run."""
    image_size: int | None = Field(default=None, ge=4)
    """Resize every image to this side in pixels; needed where the files have different sizes."""
    normalization: Literal["standard", "zca"] = "standard"
    """Per-channel mean and standard deviation of the training split, or ZCA whitening fitted on it."""


class NetworkSettings(Settings):
    """An architecture of the registry. A bare name stands for its defaults."""

    name: str = "convnet"
    """A known name: `convnet`, `mlp`, `alexnet`, `vgg11`, `resnet18`, ... or `torchvision/<model>`."""
    depth: int | None = Field(default=None, ge=1)
    """Number of blocks, where the architecture has that choice; absent: the field's choice for the image size."""
    width: int | None = Field(default=None, ge=1)
    """Channels of a block (ConvNet) or units of a layer (MLP), where the architecture has that choice."""
    norm: Literal["instance", "batch", "group", "layer", "none"] | None = None
    """Normalisation layers, where the architecture has that choice."""

    @property
    def label(self) -> str:
        """A short name that tells this architecture from its neighbours, for tables and file names."""
        parts = [self.name]
        parts += [f"d{self.depth}"] if self.depth is not None else []
        parts += [f"w{self.width}"] if self.width is not None else []
        parts += [self.norm] if self.norm is not None else []
        return "-".join(parts)


def _network_from_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Network = Annotated[NetworkSettings, BeforeValidator(_network_from_name)]


class ObserverSettings(Settings):
    """The networks through which real and synthetic images are compared."""

    network: Network = NetworkSettings()
    """Architecture of the observers."""
    pool: int = Field(default=20, ge=1)
    """How many fixed observers are measured (`real: measured`)."""
    seed: int = Field(default=0, ge=0)
    """Seed of the measured pool. It is not the run's seed: runs that differ in seed alone share what was measured."""
    per_step: int = Field(default=1, ge=1)
    """Observers whose gradients are averaged in one step; more than one lets workers share a step."""
    augmentation: str | None = DSA_STRATEGY
    """Siamese augmentation through which real and synthetic images are seen, operations joined by underscores; null for none.
    A measured observer keeps one draw for good; a sampled one draws for every class."""
    batch_size: int = Field(default=256, ge=1)
    """Images of one forward pass while measuring; changes speed and memory, results only by rounding."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the measuring forward pass; statistics are accumulated in float64 either way."""
    real_batch: int = Field(default=256, ge=1)
    """Real images drawn per class in a step (`real: sampled`); smaller classes are drawn with replacement."""


class SyntheticSettings(Settings):
    """What is learned, and where it starts."""

    kind: Literal["pixels"] = "pixels"
    """Parameterisation of the images."""
    init: Literal["real", "noise", "herding", "k-center"] = "real"
    """First images: drawn from the real ones, Gaussian noise, or a selection of the real ones."""


class SynthesisSettings(Settings):
    """How the synthetic set is optimised."""

    steps: int = Field(default=1000, ge=0)
    """Optimiser steps; 0 keeps the initial images."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the synthetic set's parameters."""
    learning_rate: float = Field(default=1.0, gt=0)
    """Step size of the parameters, in units of normalised pixels."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Momentum of SGD, first moment decay of Adam."""
    clip: bool = False
    """Keep images within the range of real pixels after every step, so that they can be stored as such."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the observers' forward and backward passes in a step."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between checkpoints, and between image grids in TensorBoard."""


Baseline = Literal["random", "herding", "k-center", "whole"]


class EvaluationSettings(Settings):
    """How students are trained on a set and tested: the hard-label protocol of Zhao and Bilen (2021)."""

    networks: Annotated[tuple[Network, ...], BeforeValidator(_listed), Field(min_length=1)] = (NetworkSettings(),)
    """Architectures of the students."""
    seeds: int = Field(default=3, ge=1)
    """Students per architecture, each from its own seed."""
    epochs: int = Field(default=1000, ge=1)
    """Passes over the set, for the distilled set and every baseline of its size."""
    whole_epochs: int | None = Field(default=None, ge=1)
    """Passes over the whole training set for the baseline `whole`; absent: the same number as `epochs`."""
    batch_size: int = Field(default=256, ge=1)
    """Images of a training batch."""
    learning_rate: float = Field(default=0.01, gt=0)
    """First step size of SGD."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD; rebuilt, hence lost, at the decay."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 penalty of SGD."""
    decay_at: float = Field(default=0.5, gt=0, le=1)
    """Share of the epochs after which the step size is divided by ten."""
    augmentation: str | None = DSA_STRATEGY
    """Augmentation of the training batches (per-sample parameters): operations joined by underscores; null for none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the students' forward and backward passes."""
    epoch: Literal["last", "validation-best"] = "last"
    """Which epoch's student is tested: the last, or the best on the validation split."""
    baselines: Annotated[tuple[Baseline, ...], BeforeValidator(_listed)] = ("random", "whole")
    """Sets trained under the same protocol beside the distilled one."""

    def epochs_on(self, set_name: str) -> int:
        """Passes over a set by name (`distilled`, `random`, ..., `whole`)."""
        return self.whole_epochs or self.epochs if set_name == "whole" else self.epochs

    def protocol_on(self, set_name: str) -> str:
        """The protocol in words that tell it from its variants: epochs, augmentation, and what else is not the default.

        >>> EvaluationSettings(augmentation="flip_crop", learning_rate=0.02).protocol_on("random")
        'hard-label, 1000 epochs, flip_crop, learning_rate 0.02'
        """
        words = [f"hard-label, {self.epochs_on(set_name)} epochs", self.augmentation or "no augmentation"]
        for name in ("batch_size", "learning_rate", "momentum", "weight_decay", "decay_at", "precision"):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                words.append(f"{name} {value}")
        return ", ".join(words)


class TermSettings(Settings):
    """One summand of the objective."""

    weight: float = Field(default=1.0, ge=0)
    """Factor of the term; 0 switches it off."""


class ResourceSettings(Settings):
    """Who does the work. Results do not depend on it, but for rounding between thread counts and devices."""

    workers: int = Field(default=0, ge=0)
    """Ray actors; 0 runs everything in this process, without Ray."""
    cpus_per_worker: float = Field(default=1.0, ge=0)
    """CPUs that Ray reserves for a worker."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for a worker; fractions share a device."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads of each worker; absent: `cpus_per_worker` on Ray, all cores in process."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Of work in this process: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`. Ray workers use the GPUs that they reserve."""
    address: str | None = None
    """Ray cluster to join; absent: a private one on this machine."""

    @model_validator(mode="after")
    def _consistent(self) -> ResourceSettings:
        if self.address is not None and self.workers == 0:
            raise ValueError(
                "a cluster's 'address' needs 'workers' above 0 (--workers N); with 0 all work is done in this process"
            )
        if self.device != "auto" and self.workers > 0:
            raise ValueError("'device' is for work in this process; Ray workers take what 'gpus_per_worker' reserves")
        return self


class PaperResult(Settings):
    """The number that the recipe is held against."""

    accuracy: float = Field(ge=0, le=1)
    """Test accuracy, a fraction."""
    std: float | None = Field(default=None, ge=0, le=1)
    """Its standard deviation, a fraction."""
    source: str
    """Paper and table."""


class MeasuredResult(Settings):
    """A result that this code reached: enough to run it again."""

    accuracy: float = Field(ge=0, le=1)
    """Test accuracy of the distilled set, a fraction."""
    std: float | None = Field(default=None, ge=0, le=1)
    """Standard deviation over `seeds`."""
    random: float | None = Field(default=None, ge=0, le=1)
    """Test accuracy of random images under the same protocol."""
    whole: float | None = Field(default=None, ge=0, le=1)
    """Test accuracy of the whole training set under the same protocol."""
    seeds: str
    """Which distillation and student seeds."""
    command: str
    """The command that gives it."""
    commit: str
    """Revision of this repository."""
    hardware: str
    """Machine it ran on."""
    seconds: float = Field(ge=0)
    """Wall-clock seconds of the whole command."""
    note: str = ""
    """What else must be known."""


class Recipe(Settings):
    """A whole run: method, data, budget, every setting, and the numbers it is held against."""

    name: str = "custom"
    """Name of the recipe."""
    summary: str = ""
    """One line: what it reproduces, and how it is reduced if it is."""
    method: str
    """A known method (`rayd recipes` shows which)."""
    data: DataSettings
    """The real images."""
    ipc: int = Field(default=1, ge=1)
    """Images per class: the budget."""
    seed: int = Field(default=0, ge=0)
    """Seed of the run; every random draw derives from it."""
    real: Literal["measured", "sampled"] = "measured"
    """Real side: statistics of the whole set measured once per observer, or a fresh network and mini-batch each step."""
    observers: ObserverSettings = ObserverSettings()
    """The networks that look."""
    synthetic: SyntheticSettings = SyntheticSettings()
    """What is learned."""
    synthesis: SynthesisSettings = SynthesisSettings()
    """How it is learned."""
    terms: dict[str, TermSettings] = Field(default_factory=dict)
    """Terms of the objective by name, over the method's own."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How it is judged."""
    resources: ResourceSettings = ResourceSettings()
    """Who does the work."""
    paper: PaperResult | None = None
    """The published number."""
    measured: tuple[MeasuredResult, ...] = ()
    """Our numbers."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.real == "measured" and self.observers.per_step > self.observers.pool:
            raise ValueError(
                f"'observers.per_step' ({self.observers.per_step}) must not exceed 'observers.pool' ({self.observers.pool})"
            )
        if self.synthesis.clip and self.data.normalization == "zca":
            raise ValueError(
                "'synthesis.clip' needs 'data.normalization: standard'; whitened images have no range of their own"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that decide the synthetic set: without its evaluation, who does the work, and how often it is logged."""
        return self.model_dump(
            mode="json",
            exclude={
                "name": True,
                "summary": True,
                "evaluation": True,
                "resources": True,
                "paper": True,
                "measured": True,
                "synthesis": {"log_every", "checkpoint_every"},
            },
        )

    def to_yaml(self) -> str:
        """The whole recipe, every default resolved, as YAML that `validate` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=False), sort_keys=False, width=120)


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """`["synthesis.steps=5", "ipc=2"]` as a nested mapping; values are read as YAML.

    Raises:
        ConfigError: an argument is not of the form `key.sub=value`.
    """
    tree: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"An override must look like key.sub=value. Got '{argument}' instead.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"The value of override '{argument}' is not valid YAML.") from error
        if isinstance(value, str):
            value = _number(value)
        branch: Any = value
        for part in reversed(key.split(".")):
            branch = {part: branch}
        tree = merge(tree, branch)
    return tree


def given_resources(workers: int | None, address: str | None) -> dict[str, Any]:
    """The overrides that `--workers` and `--address` stand for; what is not given stays as the recipe says."""
    given = {"workers": workers, "address": address}
    return {"resources": {key: value for key, value in given.items() if value is not None}}


def _number(text: str) -> float | str:
    """YAML 1.1 reads `1e-3` as text; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, mapping by mapping; anything else in `over` replaces what it covers."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        elif isinstance(below, str) and isinstance(value, Mapping) and key in ("network",):
            merged[key] = merge({"name": below}, value)
        else:
            merged[key] = value
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the recipe '{path}': {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not valid YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"'{path}' must hold a mapping of settings. Got {type(tree).__name__} instead.")
    return tree


def validate(model: type[S], tree: Mapping[str, Any], where: str = "the settings") -> S:
    """`tree` as `model`.

    Raises:
        ConfigError: a key is unknown, missing, or its value does not fit; the sentence names it, with the nearest known key.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(" ".join(_sentence(model, dict(e), where) for e in error.errors()[:3])) from error


def prune(model: type[Settings], tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` without the keys that `model` does not know: how settings that an older version wrote are read."""
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        field = model.model_fields.get(key)
        if field is None:
            continue
        inner = _settings_in(field.annotation)
        kept[key] = prune(inner, value) if inner is not None and isinstance(value, Mapping) and key != "terms" else value
    return kept


def _sentence(model: type[Settings], error: dict[str, Any], where: str) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        parent = _model_at(model, location[:-1])
        return unknown("setting", key, [".".join([*location[:-1], name]) for name in parent.model_fields], where)
    if error["type"] == "missing":
        return f"Setting '{key}' is missing in {where}."
    message = str(error["msg"]).removeprefix("Value error, ")
    if not key:
        return f"{message} (in {where})."
    return f"Setting '{key}' in {where} must fit: {message}. Got {error['input']!r} instead."


def _model_at(model: type[Settings], location: Iterable[str]) -> type[Settings]:
    """The settings class that stands at a path of keys (through optionals, tuples and mappings)."""
    for part in location:
        field = model.model_fields.get(part)
        if field is not None:
            model = _settings_in(field.annotation) or model
    return model


def _settings_in(annotation: object) -> type[Settings] | None:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    for inner in get_args(annotation):
        found = _settings_in(inner)
        if found is not None:
            return found
    return None
