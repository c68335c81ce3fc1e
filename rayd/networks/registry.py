"""Registry of architectures. An architecture is a decorated builder function.

A builder takes the shape of the images and the number of classes; its keyword-only arguments are
the options of the architecture, with the field's defaults:

    @architecture("vgg11", norms=("instance", "batch"))
    def vgg11(shape: ImageShape, classes: int, *, norm: Norm = "instance") -> nn.Module: ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from rayd.errors import ConfigError, unknown
from rayd.networks.normalization import Norm

if TYPE_CHECKING:
    from rayd.config import NetworkSettings
    from rayd.data.images import ImageShape

TORCHVISION = "torchvision/"
"""Prefix of torchvision's models."""
TIMM = "timm/"
"""Prefix of the models of timm, which is an extra."""

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
    """Subset of `depth`, `width` and `norm` that the builder takes."""
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
        return builder

    return register


def names() -> list[str]:
    """Names of the registered architectures, sorted; `torchvision/<model>` and `timm/<model>` are
    also accepted.
    """
    return sorted(_ARCHITECTURES)


def find(name: str) -> Architecture:
    """Look up an architecture by name.

    Raises:
        ConfigError: it is unknown; the message names the nearest.
    """
    if name not in _ARCHITECTURES:
        raise ConfigError(
            unknown("network", name, [*names(), "torchvision/<model>", "timm/<model>"])
        )
    return _ARCHITECTURES[name]


def check(spec: NetworkSettings) -> None:
    """Check that a network and its options exist, independent of the images.

    Models of torchvision and timm are not looked up, as that would import them.

    Raises:
        ConfigError: the network or an option is unknown; the message names the nearest. Or timm is
            needed and missing.
    """
    if spec.name.startswith(TIMM):
        require_timm(spec.name)
    if spec.name.startswith((TORCHVISION, TIMM)):
        refuse_options(spec.name, given_options(spec))
    else:
        find(spec.name).check(spec)


def given_options(spec: NetworkSettings) -> dict[str, int | str]:
    """Architecture options set in `spec`: all settings but those of other purpose."""
    return spec.model_dump(exclude={"name", "weights", "learning_rate"}, exclude_none=True)


def require_timm(name: str) -> None:
    """Raise a ConfigError where timm is not installed, which a network needs."""
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

    Zhao et al. (ICLR 2021) so bring the images of MNIST, 28x28, to the maps of 32x32 ones.
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
