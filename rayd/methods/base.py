"""Declarations of a method. The engine reads these declarations and never a method's name.

Defaults, settings and citations are read by commands that compute nothing, so modules of methods do
not import torch; terms, which are settings too, import it where they compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, final

from rayd import plugins
from rayd.config import (
    NETWORK_GROUPS,
    NetworkGroup,
    Precision,
    Recipe,
    Settings,
    merge,
    validate,
)
from rayd.config.choices import LayerRole
from rayd.config.ranking import RANKED
from rayd.config.reading import RENAMED_BY_METHOD
from rayd.errors import ConfigError, nearest, unknown
from rayd.objectives import Term

if TYPE_CHECKING:
    from rayd.objectives import StatisticSpec
    from rayd.objectives.trajectory_matching import TrajectoryObjective


_OF_TERMS = ("real", "observers.order", "observers.ascent_steps", "observers.model_pool")
"""Settings that only terms read, beside those of which `Method.unused` has more to say."""
_OF_NETWORKS = (
    "observers.networks",
    "observers.pool",
    "observers.trained",
    "observers.interpolate",
)
"""Settings of observers that have no effect where nothing is computed in them. `observers.seed` and
those of speed and arithmetic are left out, as commands give them for all methods alike.
"""


class Method(ABC):
    """A paper's method: the terms of its objective, its defaults, its needs and its citation.

    A subclass that has a `name` is registered. How to add one is in `rayd.methods`.
    """

    name: ClassVar[str]
    """Name in recipes."""
    citation: ClassVar[str]
    """BibTeX of the paper."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings that the method lays under a recipe."""
    settings_type: ClassVar[type[Settings]] = Settings
    """Settings beside those of its terms: what `objective:` of a recipe may hold."""
    needs_trained_observers: ClassVar[bool] = False
    """Whether its observers must know the classes, that is be trained on the real data or start
    from given weights.
    """
    needs_experts: ClassVar[bool] = False
    """Whether networks must be trained on the real data whose every epoch is kept, for students to
    follow.
    """
    least_precision: ClassVar[Mapping[str, Precision]] = {}
    """Coarsest arithmetic that `precision: auto` may choose, by section of the recipe (`observers`,
    `synthesis`, `experts`), where bfloat16 would spoil the method; an explicit setting is not
    overruled.
    """
    sequential: ClassVar[bool] = False
    """Whether blocks of the synthetic set follow one another, each finding in its terms' memory
    what the one before left there; else they do not know of each other and may go side by side.
    """
    version: ClassVar[int] = 0
    """Raised where results change though no setting of a recipe does, such as by other defaults of
    its terms: it is part of the key of a synthetic set.
    """
    registry: ClassVar[dict[str, type[Method]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            before = Method.registry.get(cls.name)
            # a cell of a notebook that is run again defines the same class anew
            if before is not None and _origin(before) != _origin(cls):
                raise ConfigError(
                    f"There are two methods named '{cls.name}', {_origin(before)} and "
                    f"{_origin(cls)}: rename one of them."
                )
            Method.registry[cls.name] = cls
            plugins.own(cls.name, cls)

    @final
    def __init__(self, recipe: Recipe):
        """Configure the method by a recipe.

        Raises:
            ConfigError: the method cannot do what the recipe demands.
        """
        self.recipe = recipe
        self.settings = self.read(recipe.objective)
        self._all = self.configured(recipe)
        if self.needs_trained_observers and not recipe.observers.trained:
            raise ConfigError(
                f"Method '{self.name}' needs observers that know the classes: set 'observers.trained: true'."
            )
        for term in self.terms:
            self._check_group(term)
            term.check(recipe)
        self._check_synthetic()
        self._check_split()
        self.check()

    def _check_synthetic(self) -> None:
        """Refuse to learn what nothing has a gradient for."""
        settings = self.recipe.synthetic
        if self.needs_experts and self.recipe.synthesis.sam_radius > 0:
            raise ConfigError(
                f"Method '{self.name}' follows experts, which takes no steps uphill: set "
                "'synthesis.sam_radius: 0'."
            )
        if not self.needs_experts and settings.step_size is not None:
            raise ConfigError(
                f"Method '{self.name}' learns no step size of students: set 'synthetic.step_size: null'."
            )
        if settings.labels == "hard":
            return
        if not self.needs_experts and not any(term.learns_labels for term in self.terms):
            raise ConfigError(
                f"Method '{self.name}' learns no labels: set 'synthetic.labels: hard'."
            )
        if settings.labels == "experts" and not self.needs_experts:
            raise ConfigError(
                f"Method '{self.name}' has no experts to label images: set 'synthetic.labels: classes'."
            )
        for term in self.terms:
            if not term.learns_labels:
                raise ConfigError(
                    f"The term '{term.name}' needs the class of each image: set 'synthetic.labels: hard', or leave it out."
                )

    def _check_split(self) -> None:
        """Refuse to cut the images of a step where something needs them all at once."""
        if self.recipe.synthesis.split == 1:
            return
        cure = "set 'synthesis.split: 1'."
        if self.needs_experts:
            raise ConfigError(f"Students of method '{self.name}' train on all images: {cure}")
        if self.recipe.real == "sampled":
            raise ConfigError(f"Real images are sampled for all images of a step at once: {cure}")
        if self.recipe.synthesis.sam_radius > 0:
            raise ConfigError(f"'synthesis.sam_radius' moves all images of a step at once: {cure}")
        for term in self.terms:
            if not term.splits:
                raise ConfigError(
                    f"The term '{term.name}' needs all images of a step at once: {cure}"
                )

    def _check_group(self, term: Term) -> None:
        group = self.group_of(term)
        know = (
            self._observers_classify
            if group == "observers"
            else self.recipe.network_group(group).trained
        )
        if term.needs_classes and not know:
            raise ConfigError(
                f"The term '{term.name}' needs {group} that know the classes: set '{group}.trained: true'."
            )
        if term.needs_batch and self.recipe.real == "measured":
            raise ConfigError(
                f"The term '{term.name}' needs real mini-batches, not statistics that can be measured once: set "
                "'real: sampled'."
            )

    @classmethod
    def configured(cls, recipe: Recipe) -> tuple[Term, ...]:
        """The terms of the objective with the recipe's settings for them, and those that the recipe
        adds.

        Raises:
            ConfigError: a term or a setting of it does not exist, or a value does not fit.
        """
        own = cls.objective(recipe)
        if not isinstance(own, Sequence) or not all(isinstance(term, Term) for term in own):
            raise ConfigError(
                f"'objective' of method '{cls.name}' must return a tuple of terms, such as "
                f"(MeanMatching(),). Got {own!r} instead."
            )
        names = {term.name for term in own}
        added = []
        for name in sorted(recipe.terms.keys() - names):
            # twice: what is found may be a module that registers the term when it is imported
            term = Term.registry.get(name) or plugins.find("terms", name) or Term.registry.get(name)
            if term is None:
                known = sorted({*names, *Term.registry})
                raise ConfigError(unknown("term", name, known, f"method '{cls.name}'"))
            added.append((term(), name))
        keyed = [*((term, term.name) for term in own), *added]
        return tuple(cls._configured(term, recipe, name) for term, name in keyed)

    @classmethod
    def _configured(cls, term: Term, recipe: Recipe, name: str) -> Term:
        """A term with the recipe's settings laid over its own; `name` is its key there."""
        given = recipe.terms.get(name)
        # only what the recipe says: defaults of the schema must not replace the method's own
        tree = given.model_dump(exclude_unset=True) if given is not None else {}
        if tree.get("weight") is None:
            tree.pop("weight", None)
        if not tree:
            return term
        return validate(
            type(term),
            merge(term.model_dump(exclude_unset=True), tree),
            f"the term '{term.name}' of method '{cls.name}'",
            f"terms.{term.name}",
        )

    @classmethod
    def defaults_at(cls, ipc: int) -> Mapping[str, Any]:
        """Settings that the method lays under a recipe with so many images per class."""
        return cls.defaults

    @classmethod
    def read(cls, objective: Mapping[str, Any]) -> Any:
        """The settings of the objective, an instance of `settings_type`.

        Raises:
            ConfigError: a key does not exist, or its value does not fit.
        """
        where = f"the objective of method '{cls.name}'"
        moved = RENAMED_BY_METHOD.get(cls.name, {})
        for key in objective.keys() - cls.settings_type.model_fields.keys():
            for near in nearest(f"objective.{key}", moved):
                raise ConfigError(
                    f"Unknown setting 'objective.{key}' in {where}; did you mean '{moved[near]}'?"
                )
        return validate(cls.settings_type, objective, where, "objective")

    @classmethod
    @abstractmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """The terms of the objective, with the method's defaults for their settings; of the recipe
        they may depend on data and budget.
        """

    @property
    def trajectory_objective(self) -> TrajectoryObjective | None:
        """Trajectory matching, in addition to the terms; None for methods without it."""
        return None

    def check(self) -> None:
        """Refuse a recipe that the method cannot follow (a ConfigError that says what to use
        instead).
        """
        return

    @property
    def unused(self) -> dict[str, str]:
        """Parts of the recipe that the method does not use, and why."""
        unused = {}
        if self.recipe.real == "measured":
            reason = "it belongs to 'real: sampled'. Got 'real: measured' instead."
            unused["observers.real_batch"] = reason
        if self.recipe.synthesis.block is None:
            unused["synthesis.order"] = (
                "it orders the images of blocks: set 'synthesis.block' besides."
            )
        if not self.needs_experts:
            unused["experts"] = f"method '{self.name}' follows no experts."
        if "classifiers" not in self.groups:
            unused["classifiers"] = f"no term of method '{self.name}' is computed in classifiers."
        if not {self.recipe.synthetic.init, *self.recipe.evaluation.baselines} & set(RANKED):
            unused["ranking"] = "no images are selected by how networks learn them."
        # teachers' labels and RDED's crops need networks without any term
        needs_teachers = self.recipe.labels.kind != "hard" or self.recipe.synthetic.init == "rded"
        any_trained = any(self.recipe.network_group(group).trained for group in self.groups)
        if not any_trained and not needs_teachers:
            unused["squeeze"] = f"method '{self.name}' trains no observers here."
        needs_teachers |= "rded" in self.recipe.evaluation.baselines
        if self.needs_experts and not self.groups:
            # no term compares images, so only networks that label or crop images are left
            reason = f"no term of method '{self.name}' is computed in observers."
            unused |= dict.fromkeys(_OF_TERMS, reason)
            unused["observers.augmentation"] = (
                f"students of method '{self.name}' have 'objective.augmentation'."
            )
            unused["observers.per_step"] = (
                f"method '{self.name}' averages over 'objective.per_step' students."
            )
            if not needs_teachers:
                reason = f"the networks of method '{self.name}' are those of 'experts.network'."
                unused |= dict.fromkeys(_OF_NETWORKS, reason)
        return unused

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The terms of the objective that count: what a weight of 0 switches off is neither
        measured nor computed.
        """
        return tuple(term for term in self._all if self.weight(term) > 0)

    def weight(self, term: Term) -> float:
        """The factor of a term."""
        return term.weight

    @property
    def averaging(self) -> float | None:
        """Decay of the moving average of the synthetic images that a term needs; None where none
        does.
        """
        return next((term.averaging for term in self.terms if term.averaging is not None), None)

    def group_of(self, term: Term) -> NetworkGroup:
        """Which networks a term is computed in: its own choice, but observers where they are
        classifiers enough, and classifiers where the observers do not know the classes that it must
        know.
        """
        if self.recipe.observers_classify:
            return "observers"
        return (
            "classifiers" if term.needs_classes and not self._observers_classify else term.through
        )

    @property
    def _observers_classify(self) -> bool:
        """Whether they are trained on the real data before the synthesis, or during it."""
        queue = self.recipe.observers.model_pool
        return self.recipe.observers.trained or (queue is not None and queue.source == "real")

    @cached_property
    def groups(self) -> tuple[NetworkGroup, ...]:
        """The groups of networks that terms are computed in, in a stable order."""
        return tuple(group for group in NETWORK_GROUPS if self._terms[group])

    @cached_property
    def _terms(self) -> dict[NetworkGroup, tuple[Term, ...]]:
        """The terms of each group; every step of the synthesis asks for them."""
        found = {}
        for group in NETWORK_GROUPS:
            found[group] = tuple(term for term in self.terms if self.group_of(term) == group)
        return found

    def terms_of(self, group: NetworkGroup) -> tuple[Term, ...]:
        """The terms that are computed in one group of networks."""
        return self._terms[group]

    def specs(self, group: NetworkGroup = "observers") -> tuple[StatisticSpec, ...]:
        """Statistics of the real data that the terms of a group spec, each once, in a stable
        order.
        """
        return self._specs[group]

    @cached_property
    def _specs(self) -> dict[NetworkGroup, tuple[StatisticSpec, ...]]:
        """The statistics of each group; every step of the synthesis asks for them."""
        found = {}
        for group in NETWORK_GROUPS:
            specs = {spec for term in self.terms_of(group) for spec in term.specs}
            # sorted, as sets have another order in every process
            found[group] = tuple(sorted(specs, key=lambda spec: spec.key))
        return found

    def needs_batch(self, group: NetworkGroup = "observers") -> bool:
        """Whether the terms of a group spec real mini-batches themselves."""
        return any(term.needs_batch for term in self.terms_of(group))

    def samples(self, group: NetworkGroup = "observers") -> bool:
        """Whether the terms of a group spec anything of a real mini-batch, where the real side is
        sampled.
        """
        return self.needs_batch(group) or bool(self.specs(group))

    def layer_roles(self, group: NetworkGroup = "observers") -> frozenset[LayerRole]:
        """The layers that the terms of a group read."""
        return frozenset().union(*(layers_of(term) for term in self.terms_of(group)))

    def optional_layer_roles(self, group: NetworkGroup = "observers") -> frozenset[LayerRole]:
        """The layers that a network of a group may lack."""
        required = frozenset().union(
            *(layers_of(term) - term.optional for term in self.terms_of(group))
        )
        return self.layer_roles(group) - required


def _origin(method: type[Method]) -> str:
    return f"{method.__module__}.{method.__qualname__}"


def layers_of(term: Term) -> frozenset[LayerRole]:
    """All layers that a term reads."""
    return term.layer_roles | {spec.layer_role for spec in term.specs}
