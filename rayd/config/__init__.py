"""Settings of a run: typed, documented and validated.

A run is described by one `Recipe`, built in layers of increasing priority: the defaults here, the
method's defaults, the recipe file, and `key.sub=value` overrides. All layers are validated the same
way; an unknown key raises an error that names the nearest known one, and a setting of another
variant (`When`) is rejected where it has no effect.

Settings are checked in this order; each check knows more than those before it:

1. individually: types, ranges and validators of the models here (`rayd.config.reading.validate`
   words the errors), and those of a method's terms and its `objective`;
2. together: settings without an effect (`When`, `Settings.without_effect`, `Method.unused`;
   `rayd.recipes.assemble` decides which of them are errors);
3. by the method: combinations that it, or one of its terms, does not support (`Method.__init__`,
   `Method.check`, `Term.check`);
4. before data are read: names of networks and augmentations
   (`rayd.engine.preflight.check_settings`);
5. with the data, the networks and the cluster (`rayd.engine.preflight.preflight`), before any long
   work starts.
"""

from rayd.config.base import Precision, Settings, When, merge
from rayd.config.data import DataSettings
from rayd.config.filters import FilterScheduleSettings, FilterSettings
from rayd.config.observers import (
    DSA_STRATEGY,
    ModelPoolSettings,
    NetworkGroupSettings,
    NetworkSettings,
    ObserverNetworkSettings,
    ObserverSettings,
    StudentNetworkSettings,
)
from rayd.config.protocols import with_protocol
from rayd.config.ranking import RankingSettings
from rayd.config.reading import (
    check_some,
    flat,
    given_resources,
    lookup,
    nested,
    packaged_yaml,
    parse_overrides,
    read_yaml,
    validate,
    with_new_names,
    without,
    without_unknown,
)
from rayd.config.recipe import (
    NETWORK_GROUPS,
    MeasuredResult,
    NetworkGroup,
    PaperResult,
    PaperResults,
    Recipe,
    TermSettings,
    own_result,
)
from rayd.config.resources import ResourceSettings
from rayd.config.synthesis import SynthesisSettings, SyntheticSettings
from rayd.config.training import (
    NOT_OF_A_STUDENT,
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
    "NOT_OF_A_STUDENT",
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
    "PaperResult",
    "PaperResults",
    "Precision",
    "RankingSettings",
    "Recipe",
    "ResourceSettings",
    "ScheduleSettings",
    "Settings",
    "SqueezeSettings",
    "StartSettings",
    "StudentNetworkSettings",
    "SynthesisSettings",
    "SyntheticSettings",
    "TermSettings",
    "TrainingSettings",
    "TrajectorySettings",
    "TransformSettings",
    "When",
    "check_some",
    "flat",
    "given_resources",
    "lookup",
    "merge",
    "nested",
    "own_result",
    "packaged_yaml",
    "parse_overrides",
    "read_yaml",
    "validate",
    "with_new_names",
    "with_protocol",
    "without",
    "without_unknown",
]
