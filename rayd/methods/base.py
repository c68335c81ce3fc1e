"""Declarations of a method. The engine reads these declarations and never a method's name.

Defaults, settings and citations are read by commands that compute nothing, so modules of methods do
not import torch; terms, which are settings as well, import it in the functions that compute.
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
"""Settings that only terms read, except those for which `Method.unused` gives a specific reason."""
_OF_NETWORKS = (
    "observers.networks",
    "observers.pool",
    "observers.trained",
    "observers.interpolate",
)
"""Settings of observers that have no effect if nothing is computed in them. `observers.seed` and
those of speed and arithmetic are not listed, as commands set them for every method.
"""


class Method(ABC):
    """A paper's method: the terms of its objective, its defaults, its needs and its citation.

    A subclass that has a `name` is registered; `rayd.methods` describes how to add one.
    """

    name: ClassVar[str]
    """Name in recipes."""
    citation: ClassVar[str]
    """BibTeX of the paper."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults of the method, which a recipe overrides."""
    settings_type: ClassVar[type[Settings]] = Settings
    """Settings apart from those of its terms: the schema of a recipe's `objective:`."""
    needs_trained_observers: ClassVar[bool] = False
    """Whether its observers must classify, i.e. be trained on the real data or start from given
    weights.
    """
    needs_experts: ClassVar[bool] = False
    """Whether it needs expert trajectories: networks trained on the real data, with their
    parameters stored after every epoch.
    """
    least_precision: ClassVar[Mapping[str, Precision]] = {}
    """Lowest precision that `precision: auto` may choose, by section of the recipe (`observers`,
    `synthesis`, `experts`), for methods that would fail in bfloat16; explicit settings take
    precedence.
    """
    sequential: ClassVar[bool] = False
    """Whether blocks of the synthetic set are optimised one after another, each with the
    memory that its terms kept in the previous one; otherwise, blocks are independent and may run in
    parallel.
    """
    version: ClassVar[int] = 0
    """Increased when results change although the settings of recipes do not, for example by new
    defaults of its terms; part of the cache key of a synthetic set.
    """
    registry: ClassVar[dict[str, type[Method]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            before = Method.registry.get(cls.name)
            # rerunning a cell of a notebook redefines the same class
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
            ConfigError: the method cannot follow the recipe.
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
        """Refuse learned quantities for which no term has a gradient."""
        settings = self.recipe.synthetic
        if self.needs_experts and self.recipe.synthesis.sam_radius > 0:
            raise ConfigError(
                f"Method '{self.name}' matches trajectories, which does not support SAM: set "
                "'synthesis.sam_radius: 0'."
            )
        if not self.needs_experts and settings.step_size is not None:
            raise ConfigError(
                f"Method '{self.name}' learns no step size for students: set 'synthetic.step_size: null'."
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
                    f"The term '{term.name}' needs the class of each image: set 'synthetic.labels: hard', or remove the term."
                )

    def _check_split(self) -> None:
        """Refuse to split the images of a step if something needs all of them at once."""
        if self.recipe.synthesis.split == 1:
            return
        cure = "set 'synthesis.split: 1'."
        if self.needs_experts:
            raise ConfigError(f"Students of method '{self.name}' train on all images: {cure}")
        if self.recipe.real == "sampled":
            raise ConfigError(
                f"Sampled real images are compared with all images of a step at once: {cure}"
            )
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
        """The terms of the objective with the recipe's settings, and terms that the recipe adds.

        Raises:
            ConfigError: a term or one of its settings does not exist, or a value is invalid.
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
            # looked up twice, as the plug-in may be a module that registers the term on import
            term = Term.registry.get(name) or plugins.find("terms", name) or Term.registry.get(name)
            if term is None:
                known = sorted({*names, *Term.registry})
                raise ConfigError(unknown("term", name, known, f"method '{cls.name}'"))
            added.append((term(), name))
        keyed = [*((term, term.name) for term in own), *added]
        return tuple(cls._configured(term, recipe, name) for term, name in keyed)

    @classmethod
    def _configured(cls, term: Term, recipe: Recipe, name: str) -> Term:
        """Override a term's settings by the recipe's; `name` is its key there."""
        given = recipe.terms.get(name)
        # only settings given in the recipe: the schema's defaults must not replace the method's
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
        """Defaults of the method for recipes with `ipc` images per class."""
        return cls.defaults

    @classmethod
    def read(cls, objective: Mapping[str, Any]) -> Any:
        """The settings of the objective, an instance of `settings_type`.

        Raises:
            ConfigError: a key does not exist, or its value is invalid.
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
        """The terms of the objective, with the method's defaults for their settings. They may
        depend on the recipe's data and budget.
        """

    @property
    def trajectory_objective(self) -> TrajectoryObjective | None:
        """Trajectory matching, in addition to the terms; None for methods without it."""
        return None

    def check(self) -> None:
        """Raise a ConfigError, which says what to use instead, for a recipe that the method cannot
        follow.
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
                "it orders the images of blocks: set 'synthesis.block' as well."
            )
        if not self.needs_experts:
            unused["experts"] = f"method '{self.name}' uses no experts."
        if "classifiers" not in self.groups:
            unused["classifiers"] = f"no term of method '{self.name}' is computed in classifiers."
        if not {self.recipe.synthetic.init, *self.recipe.evaluation.baselines} & set(RANKED):
            unused["ranking"] = "no images are selected by a ranking."
        # teachers' labels and RDED's crops need networks even if no term does
        needs_teachers = self.recipe.labels.kind != "hard" or self.recipe.synthetic.init == "rded"
        any_trained = any(self.recipe.network_group(group).trained for group in self.groups)
        if not any_trained and not needs_teachers:
            unused["squeeze"] = f"method '{self.name}' trains no observers here."
        needs_teachers |= "rded" in self.recipe.evaluation.baselines
        if self.needs_experts and not self.groups:
            # no term compares images, so observers can only serve to label or crop images
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
        """The active terms: those of weight 0 are neither measured nor computed."""
        return tuple(term for term in self._all if self.weight(term) > 0)

    def weight(self, term: Term) -> float:
        """The weight of a term."""
        return term.weight

    @property
    def averaging(self) -> float | None:
        """Decay of the moving average of the synthetic images that a term needs; None if none
        does.
        """
        return next((term.averaging for term in self.terms if term.averaging is not None), None)

    def group_of(self, term: Term) -> NetworkGroup:
        """The group of networks in which a term is computed: the term's own choice, with two
        exceptions. Observers that can serve as classifiers are used for all terms, and a term that
        needs the classes is computed in classifiers if the observers do not know them.
        """
        if self.recipe.observers_classify:
            return "observers"
        return (
            "classifiers" if term.needs_classes and not self._observers_classify else term.through
        )

    @property
    def _observers_classify(self) -> bool:
        """Whether observers are trained on the real data, before the synthesis or during it."""
        queue = self.recipe.observers.model_pool
        return self.recipe.observers.trained or (queue is not None and queue.source == "real")

    @cached_property
    def groups(self) -> tuple[NetworkGroup, ...]:
        """The groups of networks in which terms are computed, in a stable order."""
        return tuple(group for group in NETWORK_GROUPS if self._terms[group])

    @cached_property
    def _terms(self) -> dict[NetworkGroup, tuple[Term, ...]]:
        """The terms of each group, cached because every step of the synthesis uses them."""
        found = {}
        for group in NETWORK_GROUPS:
            found[group] = tuple(term for term in self.terms if self.group_of(term) == group)
        return found

    def terms_of(self, group: NetworkGroup) -> tuple[Term, ...]:
        """The terms that are computed in a group of networks."""
        return self._terms[group]

    def specs(self, group: NetworkGroup = "observers") -> tuple[StatisticSpec, ...]:
        """Statistics of the real data that the terms of a group need, without duplicates, in a
        stable order.
        """
        return self._specs[group]

    @cached_property
    def _specs(self) -> dict[NetworkGroup, tuple[StatisticSpec, ...]]:
        """The statistics of each group, cached because every step of the synthesis uses them."""
        found = {}
        for group in NETWORK_GROUPS:
            specs = {spec for term in self.terms_of(group) for spec in term.specs}
            # sorted, as the order of a set differs between processes
            found[group] = tuple(sorted(specs, key=lambda spec: spec.key))
        return found

    def needs_batch(self, group: NetworkGroup = "observers") -> bool:
        """Whether terms of a group need real mini-batches themselves, not just statistics."""
        return any(term.needs_batch for term in self.terms_of(group))

    def samples(self, group: NetworkGroup = "observers") -> bool:
        """Whether terms of a group need anything of a real mini-batch if real data are sampled."""
        return self.needs_batch(group) or bool(self.specs(group))

    def layer_roles(self, group: NetworkGroup = "observers") -> frozenset[LayerRole]:
        """Roles of the layers that the terms of a group read."""
        return frozenset().union(*(layers_of(term) for term in self.terms_of(group)))

    def optional_layer_roles(self, group: NetworkGroup = "observers") -> frozenset[LayerRole]:
        """Roles of the layers that a network of a group may lack."""
        required = frozenset().union(
            *(layers_of(term) - term.optional for term in self.terms_of(group))
        )
        return self.layer_roles(group) - required


def _origin(method: type[Method]) -> str:
    return f"{method.__module__}.{method.__qualname__}"


def layers_of(term: Term) -> frozenset[LayerRole]:
    """Roles of all layers that a term reads."""
    return term.layer_roles | {spec.layer_role for spec in term.specs}
