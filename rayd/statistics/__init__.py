"""The monoids: what is measured of real features and matched by synthetic ones."""

from rayd.statistics.base import Statistic, View, vectors
from rayd.statistics.characteristic_function import CharacteristicFunction
from rayd.statistics.covariance import Covariance
from rayd.statistics.label_correlation import LabelCorrelation
from rayd.statistics.moments import Moments

__all__ = [
    "CharacteristicFunction",
    "Covariance",
    "LabelCorrelation",
    "Moments",
    "Statistic",
    "View",
    "vectors",
]
