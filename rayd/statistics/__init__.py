"""The monoids: what is measured of real features and matched by synthetic ones."""

from rayd.config.choices import Kernel, Scale
from rayd.statistics.base import Statistic
from rayd.statistics.characteristic_function import CharacteristicFunction
from rayd.statistics.covariance import Covariance
from rayd.statistics.frequencies import Frequencies
from rayd.statistics.label_correlation import LabelCorrelation
from rayd.statistics.local_covariance import LocalCovariance
from rayd.statistics.moments import Moments
from rayd.statistics.views import SampleMoments, View, dimension, sample_moments, size, vectors

__all__ = [
    "CharacteristicFunction",
    "Covariance",
    "Frequencies",
    "Kernel",
    "LabelCorrelation",
    "LocalCovariance",
    "Moments",
    "SampleMoments",
    "Scale",
    "Statistic",
    "View",
    "dimension",
    "sample_moments",
    "size",
    "vectors",
]
