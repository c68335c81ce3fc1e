"""What a method declares. The engine asks for these declarations and never for a method's name.

Defaults, settings and citations are read by commands that compute nothing, so modules of methods
import torch, and what needs it (terms, statistics, networks), only where terms are built.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, final

from rayd.config import (
    NETWORK_GROUPS,
    NetworkGroup,
    Precision,
    Recipe,
    Settings,
    TermSettings,
    validate,
)
from rayd.errors import ConfigError, unknown

if TYPE_CHECKING:
    from rayd.networks import LayerRole
    from rayd.objectives import StatisticSpec, Term
    from rayd.objectives.trajectory_matching import TrajectoryMatching


class Method(ABC):
    """A paper's method: the terms of its objective, its defaults, its needs and its citation.

    Adding one is a module beside this file with a subclass, its recipes, its tests. Methods are
    registered by a subclass that has a name.
    """

    name: ClassVar[str]
    """What recipes call it."""
    citation: ClassVar[str]
    """BibTeX of the paper."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings that the method lays under a recipe."""
    settings_type: ClassVar[type[Settings]] = Settings
    """Settings of its objective: what `objective:` of a recipe may hold."""
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
    registry: ClassVar[dict[str, type[Method]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            Method.registry[cls.name] = cls

    @final
    def __init__(self, recipe: Recipe):
        """Configure the method by a recipe.

        Raises:
            ConfigError: the recipe asks for what the method cannot do.
        """
        from rayd.objectives import REGULARISERS

        self.recipe = recipe
        self.settings = self.read(recipe.objective)
        own = self.objective()
        names = [term.name for term in own]
        added = sorted(recipe.terms.keys() - set(names))
        for name in added:
            if name not in REGULARISERS:
                raise ConfigError(
                    unknown("term", name, sorted({*names, *REGULARISERS}), f"method '{self.name}'")
                )
        for name in sorted(recipe.terms.keys() - set(added) - self._regularised):
            self._given(name, TermSettings)
        self._all = (*own, *(self.regulariser(name) for name in added))
        if self.needs_trained_observers and not recipe.observers.trained:
            raise ConfigError(
                f"Method '{self.name}' needs observers that know the classes: set 'observers.trained: true'."
            )
        for term in self.terms:
            self._check_panel(term)
            term.check(recipe)
        self._check_synthetic()
        self.check()

    def _check_synthetic(self) -> None:
        """Refuse to learn what nothing has a gradient for."""
        settings = self.recipe.synthetic
        if self.following is None and settings.step_size is not None:
            raise ConfigError(
                f"Method '{self.name}' learns no step size of students: set 'synthetic.step_size: null'."
            )
        if settings.labels == "hard":
            return
        if self.following is None and not any(term.learns_labels for term in self.terms):
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

    def _check_panel(self, term: Term) -> None:
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
                f"The term '{term.name}' looks at real mini-batches themselves, not at what can be measured of them once: set "
                "'real: sampled'."
            )

    @cached_property
    def _regularised(self) -> set[str]:
        """Names of the regularisers that the method itself has asked for."""
        return set()

    @final
    def regulariser(self, name: str, weight: float | None = None) -> Term:
        """A term of `rayd.objectives.REGULARISERS` with the recipe's settings for it.

        Args:
            name: which one.
            weight: default factor, in place of that of its paper.

        Raises:
            ConfigError: a setting of it does not exist, or its value does not fit.
        """
        from rayd.objectives import REGULARISERS

        self._regularised.add(name)
        kind = REGULARISERS[name]
        own = {key: value for key, value in self._given(name, kind.settings) if key != "weight"}
        return kind.make(**own) if weight is None else kind.make(**own, weight=weight)

    def _given(self, name: str, kind: type[TermSettings]) -> TermSettings:
        """What the recipe says of a term."""
        given = self.recipe.terms.get(name)
        tree = given.model_dump(exclude_unset=True) if given is not None else {}
        return validate(kind, tree, f"the term '{name}' of method '{self.name}'", f"terms.{name}")

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
        return validate(
            cls.settings_type, objective, f"the objective of method '{cls.name}'", "objective"
        )

    @abstractmethod
    def objective(self) -> tuple[Term, ...]:
        """The terms of the objective, with their default weights."""

    @property
    def following(self) -> TrajectoryMatching | None:
        """How students follow experts, beside the terms; None where they do not."""
        return None

    def check(self) -> None:
        """Refuse a recipe that the method cannot follow (a ConfigError that says what to use
        instead).
        """
        return

    @property
    def unused(self) -> dict[str, str]:
        """Parts of the recipe that the method does not look at, and why."""
        unused = {}
        if not self.needs_experts:
            unused["experts"] = f"method '{self.name}' follows no experts."
        if "classifiers" not in self.groups:
            unused["classifiers"] = f"no term of method '{self.name}' looks through classifiers."
        looking = any(self.recipe.network_group(group).trained for group in self.groups)
        if (
            not looking
            and self.recipe.labels.kind == "hard"
            and self.recipe.synthetic.init != "rded"
        ):
            unused["squeeze"] = f"method '{self.name}' trains no observers here."
        return unused

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The terms of the objective that count: what a weight of 0 switches off is neither
        measured nor looked at.
        """
        return tuple(term for term in self._all if self.weight(term) > 0)

    def weight(self, term: Term) -> float:
        """The factor of a term: the recipe's, else the term's own."""
        chosen = self.recipe.terms.get(term.name)
        return term.weight if chosen is None or chosen.weight is None else chosen.weight

    @property
    def averaging(self) -> float | None:
        """Decay of the moving average of the synthetic images that a term looks at; None where none
        does.
        """
        return next((term.averaging for term in self.terms if term.averaging is not None), None)

    def group_of(self, term: Term) -> NetworkGroup:
        """Which networks a term looks through: its own choice, but observers where they are
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
        """Whether they are trained on the real data before they look, or meanwhile."""
        queue = self.recipe.observers.model_pool
        return self.recipe.observers.trained or (queue is not None and queue.source == "real")

    @property
    def groups(self) -> tuple[NetworkGroup, ...]:
        """Who looks at the synthetic images, in a stable order."""
        looking = {self.group_of(term) for term in self.terms}
        return tuple(group for group in NETWORK_GROUPS if group in looking)

    def terms_of(self, group: NetworkGroup) -> tuple[Term, ...]:
        """The terms that look through one panel."""
        return tuple(term for term in self.terms if self.group_of(term) == group)

    def needs(self, group: NetworkGroup = "observers") -> tuple[StatisticSpec, ...]:
        """Statistics of the real data that a panel's terms ask for, each once, in a stable
        order.
        """
        return tuple(
            sorted(
                {need for term in self.terms_of(group) for need in term.needs},
                key=lambda need: need.key,
            )
        )

    def needs_batch(self, group: NetworkGroup = "observers") -> bool:
        """Whether a panel's terms look at real mini-batches themselves."""
        return any(term.needs_batch for term in self.terms_of(group))

    def samples(self, group: NetworkGroup = "observers") -> bool:
        """Whether a panel's terms look at anything of a real mini-batch, where the real side is
        sampled.
        """
        return self.needs_batch(group) or bool(self.needs(group))

    def taps(self, group: NetworkGroup = "observers") -> frozenset[LayerRole]:
        """Where a panel is listened to."""
        return frozenset().union(*(listened(term) for term in self.terms_of(group)))

    def optional_taps(self, group: NetworkGroup = "observers") -> frozenset[LayerRole]:
        """The taps that a network of a panel may lack: those that every term that listens there can
        do without.
        """
        required = frozenset().union(
            *(listened(term) - term.optional for term in self.terms_of(group))
        )
        return self.taps(group) - required


def listened(term: Term) -> frozenset[LayerRole]:
    """All taps that a term listens to."""
    return term.taps | {need.layer_role for need in term.needs}
