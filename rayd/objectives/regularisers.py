"""Terms that any method may add to its objective by their name: `terms.<name>.weight=...`, and
`terms.<name>.<setting>=...`.

A new one is an entry here: what makes it, and the settings that it takes, which are the keyword
arguments of its constructor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from rayd.config import TermSettings
from rayd.objectives.classification import ClassAware, CrossEntropy
from rayd.objectives.densification import Densification, DensificationSettings
from rayd.objectives.flatness import Flatness, FlatnessSettings
from rayd.objectives.relations import Centralization, CentralizationSettings, CovarianceMatching
from rayd.objectives.terms import Term


class Regulariser(NamedTuple):
    """A kind of term."""

    make: Callable[..., Term]
    """From its settings, as keyword arguments, to the term with the weight of its paper."""
    settings: type[TermSettings]
    """What `terms.<name>` may hold."""


REGULARISERS: Mapping[str, Regulariser] = {
    "centralization": Regulariser(Centralization, CentralizationSettings),
    "class_aware": Regulariser(ClassAware, TermSettings),
    "covariance": Regulariser(CovarianceMatching, TermSettings),
    "cross_entropy": Regulariser(CrossEntropy, TermSettings),
    "densification": Regulariser(Densification, DensificationSettings),
    "flatness": Regulariser(Flatness, FlatnessSettings),
}
"""By name."""
