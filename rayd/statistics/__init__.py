"""Statistics of features, which are monoids; transforms from feature maps to feature vectors.

To add a statistic, see `rayd.statistics.base`; a transform is a class in
`rayd.statistics.transforms`.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from rayd import plugins
from rayd.config.choices import Kernel, Scale
from rayd.errors import ConfigError, unknown
from rayd.statistics.base import Statistic
from rayd.statistics.characteristic_function import CharacteristicFunction
from rayd.statistics.covariance import Covariance
from rayd.statistics.frequencies import Frequencies
from rayd.statistics.kinds import AtFrequencies, ByClass, Pooled, StatisticKind
from rayd.statistics.label_correlation import LabelCorrelation
from rayd.statistics.local_covariance import LocalCovariance
from rayd.statistics.moments import Moments
from rayd.statistics.transforms import (
    Attention,
    Channels,
    Flat,
    Normalized,
    Patches,
    SampleMoments,
    Transform,
    Vectors,
)

T = TypeVar("T")

__all__ = [
    "AtFrequencies",
    "Attention",
    "ByClass",
    "Channels",
    "CharacteristicFunction",
    "Covariance",
    "Flat",
    "Frequencies",
    "Kernel",
    "LabelCorrelation",
    "LocalCovariance",
    "Moments",
    "Normalized",
    "Patches",
    "Pooled",
    "SampleMoments",
    "Scale",
    "Statistic",
    "StatisticKind",
    "Transform",
    "Vectors",
    "get",
    "get_transform",
]


def get(name: str) -> type[Statistic]:
    """Look up a statistic by the name of its class, of an entry point, or by `package.module:Name`.

    >>> get("Moments") is Moments
    True

    Raises:
        ConfigError: there is none, or the name refers to something else.
    """
    return _find(name, Statistic, Statistic.registry, "statistic")


def get_transform(name: str) -> Transform:
    """Look up a transform without settings, by name as in `get`, and construct it.

    >>> get_transform("Channels") == Channels()
    True

    Raises:
        ConfigError: there is none, or it needs settings.
    """
    found = _find(name, Transform, Transform.registry, "transform")
    try:
        return found()
    except TypeError as error:
        raise ConfigError(
            f"Transform '{name}' needs settings ({error}): name a subclass that sets them."
        ) from error


def _find(name: str, base: Any, registry: Mapping[str, type[T]], noun: str) -> type[T]:
    """Look up a subclass of `base` by name."""
    if name in registry:
        return registry[name]
    found = plugins.find("statistics", name)
    if found is None:
        raise ConfigError(unknown(noun, name, [*registry, *plugins.names("statistics")]))
    if not isinstance(found, type) or not issubclass(found, base):
        raise ConfigError(
            f"'{name}' must be a subclass of rayd.statistics.{base.__name__}. Got {found!r}."
        )
    kind: type[T] = found
    return kind
