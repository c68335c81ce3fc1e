"""Architectures by name. One architecture is one decorated builder.

A builder takes the shape of the images and the number of classes; its keyword-only arguments are
the options that the architecture has, with the field's defaults:

    @architecture("vgg11", norms=("instance", "batch"))
    def vgg11(shape: ImageShape, classes: int, *, norm: Norm = "instance") -> nn.Module: ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from rayd.errors import ConfigError, unknown
from rayd.networks.normalization import Norm

if TYPE_CHECKING:
    from rayd.config import NetworkSettings
    from rayd.data.images import ImageShape

TORCHVISION = "torchvision/"
"""How the names of torchvision's models begin."""

Builder = Callable[..., nn.Module]
B = TypeVar("B", bound=Builder)


@dataclass(frozen=True)
class Architecture:
    """One entry of the registry."""

    name: str
    """The name that settings use."""
    builder: Builder
    """Makes the network from a shape, a number of classes, and options."""
    options: tuple[str, ...]
    """Which of `depth`, `width` and `norm` the builder takes."""
    norms: tuple[Norm, ...]
    """The values of `norm` that it takes."""

    def build(self, spec: NetworkSettings, shape: ImageShape, classes: int) -> nn.Module:
        """The network that `spec` describes.

        Raises:
            ConfigError: `spec` sets an option that the architecture does not have, or the images
                are too small for it.
        """
        self.check(spec)
        return self.builder(shape, classes, **given_options(spec))

    def check(self, spec: NetworkSettings) -> None:
        """Refuse options that the architecture does not have (a ConfigError), whatever the
        images.
        """
        refuse_options(spec.name, given_options(spec), self.options)
        if spec.norm is not None and spec.norm not in self.norms:
            raise ConfigError(
                f"The norm of network '{spec.name}' must be one of {', '.join(self.norms)}. Got '{spec.norm}' instead."
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
        return builder

    return register


def names() -> list[str]:
    """The names of the registered architectures, sorted; `torchvision/<model>` names work
    besides.
    """
    return sorted(_ARCHITECTURES)


def find(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        ConfigError: there is none; the sentence names the nearest.
    """
    if name not in _ARCHITECTURES:
        raise ConfigError(unknown("network", name, [*names(), "torchvision/<model>"]))
    return _ARCHITECTURES[name]


def check(spec: NetworkSettings) -> None:
    """Refuse a network that does not exist, or an option that it does not have, whatever the
    images.

    Models of torchvision are not looked up, which would import it.

    Raises:
        ConfigError: says what is wrong, and names the nearest architecture.
    """
    if spec.name.startswith(TORCHVISION):
        refuse_options(spec.name, given_options(spec))
    else:
        find(spec.name).check(spec)


def given_options(spec: NetworkSettings) -> dict[str, int | str]:
    """The options of the architecture that `spec` sets; its name and the weights of an observer are
    none.
    """
    return spec.model_dump(exclude={"name", "weights"}, exclude_none=True)


def refuse_options(name: str, given: dict[str, int | str], known: tuple[str, ...] = ()) -> None:
    """Raise a ConfigError if an option is given that the architecture does not have."""
    for option, value in given.items():
        if option not in known:
            has = f"it has {' and '.join(known)}" if known else "it has no options"
            raise ConfigError(
                f"Network '{name}' has no option '{option}'; {has}. Got {option}={value} instead."
            )


def require_side(name: str, shape: ImageShape, least: int) -> None:
    """Raise a ConfigError if a side of the images is below `least` pixels, where the network's maps
    would vanish.
    """
    _, height, width = shape
    if min(height, width) < least:
        raise ConfigError(
            f"Network '{name}' needs images of at least {least}x{least} pixels. Got {height}x{width} instead."
        )
