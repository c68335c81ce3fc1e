"""Every setting of a run, typed, documented and validated.

A run is described by one `Recipe`. It is built in layers, later ones winning: the defaults here,
the method's own defaults, the recipe file, and `key.sub=value` overrides. All layers are validated
the same way; a key that does not exist is an error that names the nearest one, and one that belongs
to another variant (`Only`) is refused where it would change nothing.
"""

from rayd.config.base import POSITIVE, Only, Precision, Settings, idle
from rayd.config.data import DataSettings
from rayd.config.filters import FilterScheduleSettings, FilterSettings
from rayd.config.observers import (
    DSA_STRATEGY,
    ModelPoolSettings,
    NetworkGroupSettings,
    NetworkSettings,
    ObserverNetworkSettings,
    ObserverSettings,
)
from rayd.config.reading import (
    check_some,
    given_resources,
    lookup,
    merge,
    nested,
    packaged_yaml,
    parse_overrides,
    prune,
    read_yaml,
    validate,
    with_new_names,
    without,
)
from rayd.config.recipe import (
    NETWORK_GROUPS,
    MeasuredResult,
    NetworkGroup,
    PaperResult,
    Recipe,
    TermSettings,
)
from rayd.config.resources import ResourceSettings
from rayd.config.synthesis import SynthesisSettings, SyntheticSettings
from rayd.config.training import (
    ClassifierSettings,
    EvaluationSettings,
    LabelSettings,
    ScheduleSettings,
    SqueezeSettings,
    TrainingSettings,
    TransformSettings,
)
from rayd.config.trajectories import ExpertSettings, StartSettings, TrajectorySettings

__all__ = [
    "DSA_STRATEGY",
    "NETWORK_GROUPS",
    "POSITIVE",
    "ClassifierSettings",
    "DataSettings",
    "EvaluationSettings",
    "ExpertSettings",
    "FilterScheduleSettings",
    "FilterSettings",
    "LabelSettings",
    "MeasuredResult",
    "ModelPoolSettings",
    "NetworkGroup",
    "NetworkGroupSettings",
    "NetworkSettings",
    "ObserverNetworkSettings",
    "ObserverSettings",
    "Only",
    "PaperResult",
    "Precision",
    "Recipe",
    "ResourceSettings",
    "ScheduleSettings",
    "Settings",
    "SqueezeSettings",
    "StartSettings",
    "SynthesisSettings",
    "SyntheticSettings",
    "TermSettings",
    "TrainingSettings",
    "TrajectorySettings",
    "TransformSettings",
    "check_some",
    "given_resources",
    "idle",
    "lookup",
    "merge",
    "nested",
    "packaged_yaml",
    "parse_overrides",
    "prune",
    "read_yaml",
    "validate",
    "with_new_names",
    "without",
]
