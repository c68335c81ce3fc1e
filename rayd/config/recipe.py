"""A run as a whole: one `Recipe`."""

from __future__ import annotations

from typing import Any, Literal, get_args

import yaml
from pydantic import ConfigDict, Field, model_validator

from rayd.config.base import Settings
from rayd.config.data import DataSettings
from rayd.config.observers import NetworkGroupSettings, ObserverSettings
from rayd.config.reading import with_old_names
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
"""Who looks: the networks through which real and synthetic images are compared, or those beside
them.
"""
NETWORK_GROUPS: tuple[NetworkGroup, ...] = get_args(NetworkGroup)
"""All of them, in a stable order."""


class TermSettings(Settings):
    """What a recipe says of a term. Beside the weight, it may hold the settings of the term's own
    class (`rayd.objectives`), which refuses all others.
    """

    model_config = ConfigDict(extra="allow")

    weight: float | None = Field(default=None, ge=0)
    """Factor of the term; absent: the method's, or that of the term's paper; 0 switches it off."""


class PaperResult(Settings):
    """The number that the recipe is held against."""

    accuracy: float = Field(ge=0, le=1)
    """Test accuracy, a fraction."""
    std: float | None = Field(default=None, ge=0, le=1)
    """Its standard deviation, a fraction."""
    source: str
    """Paper and table."""


class MeasuredResult(Settings):
    """A result that this code reached: enough to run it again."""

    accuracy: float = Field(ge=0, le=1)
    """Test accuracy of the distilled set, a fraction."""
    std: float | None = Field(default=None, ge=0, le=1)
    """Standard deviation over `seeds`."""
    random: float | None = Field(default=None, ge=0, le=1)
    """Test accuracy of random images under the same protocol."""
    whole: float | None = Field(default=None, ge=0, le=1)
    """Test accuracy of the whole training set under the same protocol."""
    seeds: str
    """Which distillation and student seeds."""
    command: str
    """The command that gives it."""
    commit: str
    """Revision of this repository."""
    hardware: str
    """Machine it ran on."""
    seconds: float = Field(ge=0)
    """Wall-clock seconds of the whole command."""
    note: str = ""
    """What else must be known."""


class Recipe(Settings):
    """A whole run: method, data, budget, every setting, and the numbers it is held against."""

    name: str = "custom"
    """Name of the recipe."""
    summary: str = ""
    """One line: what it reproduces, and how it is reduced if it is."""
    method: str
    """A known method (`rayd recipes` shows which)."""
    data: DataSettings
    """The real images."""
    ipc: int = Field(default=1, ge=1)
    """Images per class: the budget."""
    seed: int = Field(default=0, ge=0)
    """Seed of the run; every random draw derives from it."""
    real: Literal["measured", "sampled"] = "measured"
    """Real side: statistics of the whole set measured once per observer, or a fresh mini-batch each
    step, and a fresh network too unless observers are trained.
    """
    observers: ObserverSettings = ObserverSettings()
    """The networks that look."""
    squeeze: SqueezeSettings = SqueezeSettings()
    """How they are trained, where they are."""
    classifiers: ClassifierSettings | None = None
    """Networks beside the observers, for terms that look through others; absent: the observers if
    they are trained (where they are interpolated, the same networks at their trained weights), else
    ResNet-18s as in IID.
    """
    experts: ExpertSettings = ExpertSettings()
    """The networks whose training students are to follow, for methods that match trajectories."""
    synthetic: SyntheticSettings = SyntheticSettings()
    """What is learned."""
    synthesis: SynthesisSettings = SynthesisSettings()
    """How it is learned."""
    terms: dict[str, TermSettings] = Field(default_factory=dict)
    """Terms of the objective by name: weights of the method's own, and terms that any method may
    add, such as `terms.centralization.weight=0.05`.
    """
    objective: dict[str, Any] = Field(default_factory=dict)
    """Settings of the method's objective; each method has its own."""
    labels: LabelSettings = LabelSettings()
    """What students learn from."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How it is judged."""
    resources: ResourceSettings = ResourceSettings()
    """Who does the work."""
    paper: PaperResult | None = None
    """The published number."""
    measured: tuple[MeasuredResult, ...] = ()
    """Our numbers."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        fixed = self.real == "measured" or self.observers.trained
        if fixed and self.observers.per_step > self.observers.count:
            raise ValueError(
                f"'observers.per_step' ({self.observers.per_step}) must not exceed the number of observers "
                f"({self.observers.count}: 'observers.pool' of each of 'observers.networks')"
            )
        if self.observers.trained and self.observers.model_pool is not None:
            raise ValueError(
                "'observers.trained' and 'observers.model_pool' exclude each other: a queue's networks change"
            )
        if self.observers.model_pool is not None and self.real == "measured":
            raise ValueError(
                "'observers.model_pool' needs 'real: sampled'; networks that change cannot be measured once"
            )
        for name in NETWORK_GROUPS:
            if self.network_group(name).interpolate and not self.network_group(name).trained:
                raise ValueError(
                    f"'{name}.interpolate' needs trained weights: set '{name}.trained: true'"
                )
        if self.classifiers is not None and self.classifiers.squeeze.workers != 1:
            raise ValueError(
                "'classifiers.squeeze.workers' must be 1: 'squeeze.workers' holds for classifiers too"
            )
        if self.classifiers is not None and self.classifiers.per_step > self.classifiers.count:
            raise ValueError(
                f"'classifiers.per_step' ({self.classifiers.per_step}) must not exceed the number "
                f"of classifiers ({self.classifiers.count})"
            )
        if self.synthesis.curriculum != "none" and self.synthesis.transform.crop is None:
            raise ValueError(
                "'synthesis.curriculum' is one of crops: set 'synthesis.transform.crop', e.g. [0.08, 1]"
            )
        if self.observers.trained and self.squeeze.epochs == 0 and self.observers.pool > 1:
            raise ValueError(
                "'squeeze.epochs: 0' takes weights as they are: copies ('observers.pool') would all be the same"
            )
        if self.synthetic.init == "rded" and not self.observers.trained:
            raise ValueError(
                "'synthetic.init: rded' needs an observer that knows the classes: set 'observers.trained: true'"
            )
        if self.labels.kind == "hard" and self.evaluation.loss != "cross-entropy":
            raise ValueError(
                f"'evaluation.loss: {self.evaluation.loss}' needs teachers: set 'labels.kind' to online or stored"
            )
        if self.labels.kind != "hard" and self.evaluation.loss == "cross-entropy":
            raise ValueError(f"'labels.kind: {self.labels.kind}' needs 'evaluation.loss' kl or mse")
        if self.synthesis.block is not None and self.synthetic.step_size is not None:
            raise ValueError(
                "'synthesis.block' must be null where a step size is learned: it belongs to all images together"
            )
        if self.synthesis.clip and self.data.normalization == "zca":
            raise ValueError(
                "'synthesis.clip' needs 'data.normalization: standard'; whitened images have no range of their own"
            )
        return self

    @property
    def usual_image_size(self) -> int:
        """Side in pixels that images of different sizes are best scaled to: 224 for networks of
        torchvision, else 32.
        """
        groups = [self.observers, *([self.classifiers] if self.classifiers is not None else [])]
        networks = [
            *self.evaluation.networks,
            *(network for group in groups for network in group.networks),
        ]
        return 224 if any(network.name.startswith("torchvision/") for network in networks) else 32

    def network_group(self, name: NetworkGroup) -> NetworkGroupSettings:
        """The settings of those who look."""
        return self.observers if name == "observers" else self.classifier_settings

    def squeezing(self, name: NetworkGroup) -> SqueezeSettings:
        """How a panel is trained."""
        return self.squeeze if name == "observers" else self.classifier_settings.squeeze

    @property
    def observers_classify(self) -> bool:
        """Whether the observers are classifiers enough: there are no others, and they stand at the
        weights that were trained.
        """
        return (
            self.classifiers is None and self.observers.trained and not self.observers.interpolate
        )

    @property
    def classifier_settings(self) -> ClassifierSettings:
        """The settings of the classifiers: those of the recipe, else interpolated observers at
        their trained weights, else IID's.
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

    def identity(self) -> dict[str, Any]:
        """The settings that decide the synthetic set: without its evaluation, who does the work,
        and how often it is logged.
        """
        settings = self.model_dump(
            mode="json",
            exclude={
                "name": True,
                "summary": True,
                "data": {"stream"},
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
        return with_old_names(settings)

    def to_yaml(self) -> str:
        """The whole recipe, every default resolved, as YAML that `validate` reads back to an equal
        recipe.
        """
        return yaml.safe_dump(
            self.model_dump(mode="json", exclude_none=False), sort_keys=False, width=120
        )
