"""Registry of architectures. An architecture is a decorated builder function.

A builder takes the shape of the images and the number of classes; its keyword-only arguments are
the options of the architecture, with the field's defaults:

    @architecture("vgg11", norms=("instance", "batch"))
    def vgg11(shape: ImageShape, classes: int, *, norm: Norm = "instance") -> nn.Module: ...
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from rayd import plugins
from rayd.errors import ConfigError, unknown
from rayd.networks.normalization import Norm

if TYPE_CHECKING:
    from rayd.config import NetworkSettings
    from rayd.data.images import ImageShape

TORCHVISION = "torchvision/"
"""Prefix of torchvision's models."""
TIMM = "timm/"
"""Prefix of the models of timm, an optional dependency."""

Builder = Callable[..., nn.Module]
B = TypeVar("B", bound=Builder)


@dataclass(frozen=True)
class Architecture:
    """An entry of the registry."""

    name: str
    """Name in settings."""
    builder: Builder
    """Builds the network from a shape, a number of classes, and options."""
    options: tuple[str, ...]
    """Options that the builder takes, a subset of `depth`, `width` and `norm`."""
    norms: tuple[Norm, ...]
    """Supported values of `norm`."""

    def build(self, spec: NetworkSettings, shape: ImageShape, classes: int) -> nn.Module:
        """Build the network described by `spec`.

        Raises:
            ConfigError: `spec` sets an option that the architecture does not have, or the images
                are too small.
        """
        self.check(spec)
        return self.builder(shape, classes, **given_options(spec))

    def check(self, spec: NetworkSettings) -> None:
        """Raise a ConfigError for options that the architecture does not have."""
        refuse_options(spec.name, given_options(spec), self.options)
        if spec.norm is not None and spec.norm not in self.norms:
            raise ConfigError(
                f"The norm of network '{spec.name}' must be one of {', '.join(self.norms)}. "
                f"Got '{spec.norm}' instead."
            )


_ARCHITECTURES: dict[str, Architecture] = {}


def architecture(name: str, *, norms: tuple[Norm, ...] = ()) -> Callable[[B], B]:
    """Register a builder under a name."""

    def register(builder: B) -> B:
        options = tuple(
            p.name
            for p in signature(builder).parameters.values()
            if p.kind is Parameter.KEYWORD_ONLY
        )
        _ARCHITECTURES[name] = Architecture(name, builder, options, norms)
        plugins.own(name, builder)
        return builder

    return register


def register_part(name: str, part: object) -> None:
    """Register a user's network: a function that builds one, a class, or a module.

    Args:
        name: name in settings.
        part: a function or class that takes the shape of the images and the number of classes, or
            no arguments; or a module, of which copies with new initial weights are used.

    Raises:
        ConfigError: it is none of these, a function or class that takes other arguments, or a
            module whose weights cannot be reset.
    """
    if not isinstance(part, nn.Module) and not callable(part):
        raise ConfigError(
            f"Network '{name}' must be a torch module or a function that builds one. "
            f"Got {type(part).__name__} instead."
        )
    if isinstance(part, nn.Module):
        _check_resettable(name, part)
    else:
        _check_arguments(name, part)

    def builder(shape: ImageShape, classes: int) -> nn.Module:
        if isinstance(part, nn.Module):
            network = _drawn_anew(part)
        else:
            given = (shape, classes) if _takes_arguments(part) else ()
            network = part(*given)
        _check_logits(name, network, shape, classes)
        return network

    _ARCHITECTURES[name] = Architecture(name, builder, (), ())


def _takes_arguments(part: Callable[..., object]) -> bool:
    """Whether a builder has parameters without a default."""
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return any(
        parameter.kind in kinds and parameter.default is Parameter.empty
        for parameter in signature(part).parameters.values()
    )


def _check_arguments(name: str, part: Callable[..., object]) -> None:
    """Refuse a builder that can be called neither with shape and classes nor without arguments."""
    parameters = signature(part)
    given = ("shape", "classes") if _takes_arguments(part) else ()
    try:
        parameters.bind(*given)
    except TypeError as error:
        raise ConfigError(
            f"The builder of network '{name}' must take the shape of the images and the number of "
            f"classes, in this order, or nothing. Got {parameters} instead."
        ) from error


def _check_resettable(name: str, module: nn.Module) -> None:
    """Refuse a module with parameters that no `reset_parameters` initialises."""
    for place, inner in module.named_modules():
        own = next(iter(inner.named_parameters(recurse=False)), None)
        if own is not None and not hasattr(inner, "reset_parameters"):
            where = f"{place}.{own[0]}" if place else own[0]
            raise ConfigError(
                f"The weights of network '{name}' cannot be reset: '{where}' belongs to a "
                "module without 'reset_parameters'. Give a function that builds the network."
            )


def _drawn_anew(module: nn.Module) -> nn.Module:
    """A copy of a module with new initial weights, in train mode on the CPU."""
    network = deepcopy(module).cpu().train().requires_grad_()
    for inner in network.modules():
        reset = getattr(inner, "reset_parameters", None)
        if callable(reset):
            reset()
    return network


def _check_logits(name: str, network: object, shape: ImageShape, classes: int) -> None:
    """Refuse a user's network that does not map images to logits of the classes."""
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"Network '{name}' must build a torch module. Got {type(network).__name__} instead."
        )
    was_training = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError) as error:
        why = str(error).strip().splitlines()[0]
        raise ConfigError(f"Network '{name}' fails on images {tuple(shape)}: {why}") from error
    network.train(was_training)
    got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if got != (2, classes):
        raise ConfigError(
            f"Network '{name}' must map two images to logits (2, {classes}), one for each class. "
            f"Got {got} instead."
        )


def names() -> list[str]:
    """Names of the registered architectures, sorted; `torchvision/<model>` and `timm/<model>` are
    also accepted.
    """
    return sorted(_ARCHITECTURES)


def find(name: str) -> Architecture:
    """Look up an architecture by name, or by `package.module:Name`.

    Raises:
        ConfigError: it is unknown; the message suggests the nearest name.
    """
    part = None if name in _ARCHITECTURES else plugins.find("networks", name)
    # importing a plug-in may have registered a builder under this name
    if part is not None and name not in _ARCHITECTURES:
        register_part(name, part)
    if name not in _ARCHITECTURES:
        raise ConfigError(
            unknown("network", name, [*names(), "torchvision/<model>", "timm/<model>"])
        )
    return _ARCHITECTURES[name]


def check(spec: NetworkSettings) -> None:
    """Check that a network and its options exist, independent of the images.

    Models of torchvision and timm are not looked up, as that would import them.

    Raises:
        ConfigError: the network or an option is unknown, with the nearest name in the message; or
            timm is needed and missing.
    """
    if spec.name.startswith(TIMM):
        require_timm(spec.name)
    if spec.name.startswith((TORCHVISION, TIMM)):
        refuse_options(spec.name, given_options(spec))
    else:
        find(spec.name).check(spec)


def given_options(spec: NetworkSettings) -> dict[str, int | str]:
    """Architecture options set in `spec`: all settings except those with another purpose."""
    return spec.model_dump(exclude={"name", "weights", "learning_rate"}, exclude_none=True)


def require_timm(name: str) -> None:
    """Raise a ConfigError if a network needs timm, which is not installed."""
    if find_spec("timm") is None:
        raise ConfigError(
            f"Network '{name}' needs the package timm, which is not installed: "
            "pip install 'rayd[timm]'."
        )


def refuse_options(name: str, given: dict[str, int | str], known: tuple[str, ...] = ()) -> None:
    """Raise a ConfigError for options that the architecture does not have."""
    for option, value in given.items():
        if option not in known:
            has = f"it has {' and '.join(known)}" if known else "it has no options"
            raise ConfigError(
                f"Network '{name}' has no option '{option}'; {has}. Got {option}={value} instead."
            )


def border_of(shape: ImageShape) -> int:
    """Additional padding of the first convolution: 2 for sides of 28 to 31 pixels, else 0.

    Zhao et al. (ICLR 2021) pad MNIST's images of 28x28 pixels in this way, so that maps have the
    same size as for images of 32x32.
    """
    return 2 if 28 <= min(shape[1:]) < 32 else 0


def require_side(name: str, shape: ImageShape, least: int) -> None:
    """Raise a ConfigError for images with a side below `least` pixels, whose maps would vanish."""
    _, height, width = shape
    if min(height, width) < least:
        raise ConfigError(
            f"Network '{name}' needs images of at least {least}x{least} pixels. "
            f"Got {height}x{width} instead."
        )
