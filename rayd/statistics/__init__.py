"""Statistics of features, which are monoids; transforms from feature maps to feature vectors."""

from rayd.config.choices import Kernel, Scale
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
]
