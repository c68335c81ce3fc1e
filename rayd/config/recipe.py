"""`Recipe`: the settings of a whole run, and checks of those that must fit each other.

These are one of five levels of checks, see `rayd.config`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from rayd.config.base import Settings
from rayd.config.callbacks import NamedCallback
from rayd.config.data import DataSettings
from rayd.config.observers import NetworkGroupSettings, NetworkSettings, ObserverSettings
from rayd.config.ranking import RANKED, RankingSettings
from rayd.config.reading import lookup, with_old_names, without
from rayd.config.resources import ResourceSettings
from rayd.config.synthesis import SynthesisSettings, SyntheticSettings
from rayd.config.training import (
    ClassifierSettings,
    EvaluationSettings,
    LabelSettings,
    SqueezeSettings,
)
from rayd.config.trajectories import ExpertSettings

NetworkGroup = Literal["observers", "classifiers"]
"""A group of networks: observers, or classifiers for terms whose observers do not know classes."""
NETWORK_GROUPS: tuple[NetworkGroup, ...] = get_args(NetworkGroup)
"""All groups, in a stable order."""


NOT_KEYED: Mapping[str, Any] = {
    "observers.order": "turn",
    "classifiers.order": "turn",
    "observers.ascent_steps": 0,
    "observers.ascent_length": 0.015,
    "synthesis.sam_radius": 0.0,
    "synthesis.split": 1,
    "synthetic.hallucinators": 5,
    "synthetic.kernel_size": 3,
}
"""Settings that are newer than existing cache keys, with the value that is equivalent to their
absence: with these values they are left out of the key, so that earlier synthetic sets are still
found.
"""


class TermSettings(Settings):
    """A term of the objective: its weight, and settings of the term's own class.

    The class (`rayd.objectives`) refuses settings that it does not have.
    """

    model_config = ConfigDict(extra="allow")

    weight: float | None = Field(default=None, ge=0)
    """Weight of the term; by default the method's, or that of the term's paper; 0 disables it."""


ACCURACY = "accuracy"
"""Metric of most published results: test accuracy as a fraction."""


class PaperResult(Settings):
    """Published result that the recipe is compared with."""

    network: str | None = None
    """Network that was tested; null if the paper does not specify it."""
    metric: str = ACCURACY
    """Measured quantity: `accuracy`, a fraction, or a description that includes the unit."""
    value: float
    """The published value."""
    std: float | None = Field(default=None, ge=0)
    """Standard deviation of the value."""
    table: str
    """Paper and table."""
    setting: str = ""
    """Differences from the recipe; empty if there are none."""
    note: str = ""
    """Remarks, such as other values that papers state for the same setting."""

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, given: Any) -> Any:
        """Accept `accuracy` and `source`, the names of `value` and `table` in the version before."""
        if not isinstance(given, Mapping):
            return given
        former = {"accuracy": "value", "source": "table"}
        return {former.get(name, name): value for name, value in given.items()}

    @model_validator(mode="after")
    def _is_fraction(self) -> PaperResult:
        if self.metric == ACCURACY and not 0 <= self.value <= 1:
            raise ValueError(f"an accuracy is a fraction in [0, 1]. Got {self.value:g} instead")
        return self

    @property
    def of_recipe(self) -> bool:
        """Whether it is an accuracy of the recipe itself, without differences."""
        return self.metric == ACCURACY and not self.setting


def _results(given: object) -> object:
    """Accept a single result or null, as recipes of the version before have it."""
    if given is None:
        return ()
    return (given,) if isinstance(given, Mapping | PaperResult) else given


def own_result(results: Sequence[PaperResult]) -> PaperResult | None:
    """The recipe's own accuracy among its published results, of which it is the first."""
    return results[0] if results and results[0].of_recipe else None


PaperResults = Annotated[tuple[PaperResult, ...], BeforeValidator(_results)]
"""Published results of one recipe."""


class MeasuredResult(Settings):
    """Result of this code, with everything needed to reproduce it."""

    accuracy: float = Field(ge=0, le=1)
    """Test accuracy of the distilled set, a fraction."""
    std: float | None = Field(default=None, ge=0, le=1)
    """Standard deviation over `seeds`."""
    random: float | None = Field(default=None, ge=0, le=1)
    """Test accuracy of random images under the same protocol and labels."""
    whole: float | None = Field(default=None, ge=0, le=1)
    """Test accuracy of the whole training set under the same protocol."""
    hard_labels: float | None = Field(default=None, ge=0, le=1)
    """Test accuracy of the distilled set under hard labels, where the protocol's are soft."""
    hard_labels_std: float | None = Field(default=None, ge=0, le=1)
    """Standard deviation of `hard_labels` over distillations."""
    random_hard_labels: float | None = Field(default=None, ge=0, le=1)
    """Test accuracy of random images under hard labels, where the protocol's are soft."""
    whole_hard_labels: float | None = Field(default=None, ge=0, le=1)
    """Test accuracy of the whole set under hard labels, where the protocol's are soft."""
    equal_storage: float | None = Field(default=None, ge=0, le=1)
    """Test accuracy of random real images that take as many bytes as the distilled set."""
    ior: float | None = Field(default=None, ge=-1, le=1)
    """Improvement over random images under the same labels."""
    ior_std: float | None = Field(default=None, ge=0, le=2)
    """Standard deviation of `ior` over distillations."""
    hlr: float | None = Field(default=None, ge=-1, le=1)
    """Accuracy on the whole set minus that on the distilled one, both under hard labels."""
    hlr_std: float | None = Field(default=None, ge=0, le=2)
    """Standard deviation of `hlr` over distillations."""
    lrs: float | None = Field(default=None, ge=0, le=1)
    """Label-robust score with w = 0.5."""
    seeds: str
    """Seeds of distillation and students."""
    command: str
    """Command that reproduces the result."""
    commit: str
    """Revision of this repository."""
    hardware: str
    """Machine that the result was obtained on."""
    date: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    """Day of the last run."""
    seconds: float = Field(ge=0)
    """Wall-clock seconds of the whole command."""
    cpu_seconds: float | None = Field(default=None, ge=0)
    """Processor seconds of the whole command, which depend less on other programs."""
    cpu_seconds_given_experts: float | None = Field(default=None, ge=0)
    """The same for a distillation with cached experts; mean over such distillations."""
    peak_memory_mb: int | None = Field(default=None, ge=0)
    """Largest resident memory of a process, in units of 2^20 bytes."""
    note: str = ""
    """Remarks."""


class Recipe(Settings):
    """A whole run: method, data, budget, all settings, and reference results."""

    name: str = "custom"
    """Name of the recipe."""
    summary: str = ""
    """One line: the reproduced result, and any reduction."""
    method: str
    """A known method (see `rayd recipes`)."""
    data: DataSettings
    """Real images."""
    ipc: int = Field(default=1, ge=1)
    """Images per class."""
    seed: int = Field(default=0, ge=0)
    """Seed of the run; every random draw derives from it."""
    real: Literal["measured", "sampled"] = "measured"
    """Real images in the loss: statistics of the whole set measured once per observer, or a
    mini-batch drawn in each step, with a fresh network unless observers are trained.
    """
    observers: ObserverSettings = ObserverSettings()
    """Networks whose features are compared."""
    squeeze: SqueezeSettings = SqueezeSettings()
    """Training of the observers, if they are trained."""
    classifiers: ClassifierSettings | None = None
    """Networks that know the classes, for terms whose observers do not; by default the observers if
    they are trained (interpolated ones at their trained weights), else ResNet-18s as in IID.
    """
    experts: ExpertSettings = ExpertSettings()
    """Training of expert trajectories, for methods that match trajectories."""
    ranking: RankingSettings = RankingSettings()
    """Networks that rank the real images, if some are selected by rank."""
    synthetic: SyntheticSettings = SyntheticSettings()
    """Parameterisation and initialisation of the synthetic set."""
    synthesis: SynthesisSettings = SynthesisSettings()
    """Optimisation of the synthetic set."""
    terms: dict[str, TermSettings] = Field(default_factory=dict)
    """Terms of the objective by name: settings of the method's own terms, and terms added to them,
    such as `terms.centralization.weight=0.05`.
    """
    objective: dict[str, Any] = Field(default_factory=dict)
    """Settings of the method's objective, for methods that match trajectories."""
    labels: LabelSettings = LabelSettings()
    """Labels that students are trained with."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Evaluation of the synthetic set."""
    resources: ResourceSettings = ResourceSettings()
    """Where computation runs."""
    # neither results nor cards depend on callbacks: `to_yaml` alone writes them
    callbacks: tuple[NamedCallback, ...] = Field(default=(), exclude=True)
    """Callbacks of the run, such as `[csv, {name: early-stopping, patience: 5}]`."""
    paper: PaperResults = ()
    """Published results, the recipe's own network first."""
    measured: tuple[MeasuredResult, ...] = ()
    """Results of this code."""

    @model_validator(mode="after")
    def _model_pool_fits(self) -> Recipe:
        if self.observers.model_pool is not None and self.observers.trained:
            raise ValueError(
                "'observers.trained' and 'observers.model_pool' exclude each other: "
                "a pool's networks change"
            )
        if self.observers.model_pool is not None and self.real == "measured":
            raise ValueError(
                "'observers.model_pool' needs 'real: sampled'; "
                "networks that change cannot be measured once"
            )
        fixed = self.real == "measured" or self.observers.trained
        if self.observers.ascent_steps > 0 and not fixed:
            raise ValueError(
                "'observers.ascent_steps' needs fixed observers: set 'observers.trained: true' or "
                "'real: measured'"
            )
        return self

    @model_validator(mode="after")
    def _network_groups_fit(self) -> Recipe:
        for name in NETWORK_GROUPS:
            group = self.network_group(name)
            fresh = name == "observers" and self.real == "sampled" and not group.trained
            if group.per_step > group.count and not fresh:
                raise ValueError(
                    f"'{name}.per_step' ({group.per_step}) must not exceed the number of {name} "
                    f"({group.count}: '{name}.pool' of each of '{name}.networks')"
                )
            if group.interpolate and not group.trained:
                raise ValueError(
                    f"'{name}.interpolate' needs trained weights: set '{name}.trained: true'"
                )
        return self

    @model_validator(mode="after")
    def _squeeze_fits(self) -> Recipe:
        if self.observers.trained and self.squeeze.epochs == 0 and self.observers.pool > 1:
            raise ValueError(
                "with 'squeeze.epochs: 0' the given weights are used unchanged, "
                "so 'observers.pool' must be 1"
            )
        if self.classifiers is not None and self.classifiers.squeeze.workers != 1:
            raise ValueError(
                "'classifiers.squeeze.workers' must be 1: "
                "'squeeze.workers' holds for classifiers too"
            )
        return self

    @model_validator(mode="after")
    def _synthetic_set_fits(self) -> Recipe:
        if self.synthetic.init == "rded" and not self.observers.trained:
            raise ValueError(
                "'synthetic.init: rded' needs an observer that knows the classes: "
                "set 'observers.trained: true'"
            )
        if self.synthesis.block is not None and self.synthetic.step_size is not None:
            raise ValueError(
                "'synthesis.block' must be null where a step size is learned: "
                "it belongs to all images together"
            )
        if self.synthetic.kind == "hallucinated" and self.synthesis.clip:
            raise ValueError(
                "'synthetic.kind: hallucinated' cannot be kept in a range: set 'synthesis.clip: false'"
            )
        if self.synthetic.kind == "hallucinated" and self.synthesis.block is not None:
            raise ValueError(
                "'synthesis.block' must be null with 'synthetic.kind: hallucinated': "
                "hallucinators belong to all images together"
            )
        if self.synthesis.clip and self.data.normalization != "standard":
            raise ValueError(
                "'synthesis.clip' needs 'data.normalization: standard'; "
                "whitened images have no pixel range"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit_loss(self) -> Recipe:
        if self.labels.kind == "hard" and self.evaluation.loss != "cross-entropy":
            raise ValueError(
                f"'evaluation.loss: {self.evaluation.loss}' needs teachers: "
                "set 'labels.kind' to online or stored"
            )
        if self.labels.kind != "hard" and self.evaluation.loss == "cross-entropy":
            raise ValueError(f"'labels.kind: {self.labels.kind}' needs 'evaluation.loss' kl or mse")
        return self

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}, method={self.method}, data={self.data.name}, ipc={self.ipc})"

    def _repr_html_(self) -> str:
        """All settings, in a notebook."""
        from html import escape

        return f"<pre>{escape(self.to_yaml())}</pre>"

    @property
    def usual_image_size(self) -> int:
        """Recommended side in pixels for images of varying size: 224 for networks of torchvision
        and timm, else 32.
        """
        groups = [self.observers, *([self.classifiers] if self.classifiers is not None else [])]
        networks: list[NetworkSettings] = [*self.evaluation.networks]
        for group in groups:
            networks += group.networks
        return (
            224
            if any(network.name.startswith(("torchvision/", "timm/")) for network in networks)
            else 32
        )

    def network_group(self, name: NetworkGroup) -> NetworkGroupSettings:
        """Settings of a group of networks."""
        return self.observers if name == "observers" else self.classifier_settings

    def squeezing(self, name: NetworkGroup) -> SqueezeSettings:
        """Training settings of a group of networks."""
        return self.squeeze if name == "observers" else self.classifier_settings.squeeze

    def squeezing_key(self, name: NetworkGroup) -> str:
        """Key of these settings in a recipe."""
        # classifiers beside interpolated observers are these at their trained weights
        of_observers = self.classifiers is None and self.observers.interpolate
        return "squeeze" if name == "observers" or of_observers else "classifiers.squeeze"

    @property
    def observers_classify(self) -> bool:
        """Whether the observers serve as classifiers: trained, not interpolated, none given."""
        return (
            self.classifiers is None and self.observers.trained and not self.observers.interpolate
        )

    @property
    def classifier_settings(self) -> ClassifierSettings:
        """Settings of the classifiers.

        Those of the recipe if given, else those of interpolated observers at their trained weights,
        else IID's.
        """
        if self.classifiers is not None:
            return self.classifiers
        if not self.observers.interpolate:
            default = ClassifierSettings()
            squeeze = default.squeeze.model_copy(update={"precision": self.squeeze.precision})
            return default.model_copy(
                update={"precision": self.observers.precision, "squeeze": squeeze}
            )
        same = {name: getattr(self.observers, name) for name in NetworkGroupSettings.model_fields}
        return ClassifierSettings(**{**same, "interpolate": False, "squeeze": self.squeeze})

    @property
    def published(self) -> PaperResult | None:
        """Published accuracy of the recipe as it stands, by its own students; None without one."""
        return own_result(self.paper)

    def identity(self) -> dict[str, Any]:
        """Settings that determine the synthetic set, without evaluation, resources and logging."""
        settings = self.model_dump(
            mode="json",
            exclude={
                "name": True,
                "summary": True,
                "data": {"stream", "copies"},
                "evaluation": True,
                "labels": True,
                "resources": True,
                "paper": True,
                "measured": True,
                "synthesis": {"log_every", "checkpoint_every"},
                "observers": {"networks": {"__all__": {"weights"}}},
                "classifiers": {"networks": {"__all__": {"weights"}}},
            },
        )
        as_before = [key for key, value in NOT_KEYED.items() if lookup(settings, key) == value]
        unused = [] if self.synthetic.init in RANKED else ["ranking"]
        return with_old_names(without(settings, [*as_before, *unused]))

    def to_yaml(self) -> str:
        """YAML of the whole recipe with all defaults; `validate` restores an equal recipe."""
        settings = self.model_dump(mode="json")
        published = settings.pop("paper")
        measured = settings.pop("measured")
        if self.callbacks:
            settings["callbacks"] = [one.model_dump(mode="json") for one in self.callbacks]
        text = yaml.safe_dump(settings, sort_keys=False, width=120)
        if not published:
            text += "paper: []\n"
        else:
            # one line a result: some recipes have dozens
            lines = [result.model_dump(exclude_defaults=True) for result in self.paper]
            text += yaml.safe_dump(
                {"paper": lines},
                sort_keys=False,
                width=10_000,
                default_flow_style=None,
                allow_unicode=True,
            )
        return text + yaml.safe_dump({"measured": measured}, sort_keys=False, width=120)
