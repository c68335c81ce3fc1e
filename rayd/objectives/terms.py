"""Terms of an objective, and what they are given.

An objective is a weighted sum of terms. A term maps an observer's output on the synthetic images
(an `Observation`) and, where it compares with the real data, statistics of the same observer's
output on them, to a scalar. It declares the statistics that it needs; the engine measures them
once, over the whole real set, or samples them, as the recipe has it: that makes no difference to the term.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from pydantic import Field

from rayd import plugins
from rayd.config import NetworkGroup, Recipe, Settings
from rayd.config.choices import LayerRole

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rayd.networks import Observation
    from rayd.objectives.specification import StatisticSpec
    from rayd.statistics import Statistic


def _no_draws(purpose: str) -> torch.Generator:
    raise RuntimeError(f"This context has no generator for the purpose '{purpose}'.")


def _no_average() -> Any:
    raise RuntimeError(
        "There is no moving average of the images: the term must have an 'averaging' decay."
    )


RealStatistics: TypeAlias = "Mapping[StatisticSpec, tuple[Statistic, ...]]"
"""Statistics of the real data by need, one a layer."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The real mini-batch of a step, as the observer gets it."""

    images: Tensor
    """Network input (N, C, H, W), augmented like the synthetic images."""
    labels: Tensor
    """Class indices (N,)."""
    look: Callable[[], Observation]
    """Forwards them; the observer's output has no graph."""


@dataclass(frozen=True)
class Context:
    """Everything that a term may depend on beside the images of the step."""

    generator: Callable[[str], torch.Generator] = _no_draws
    """A private generator for a purpose; equal in every repetition of the step."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """State of the term from call to call, for this observer and this block of images: read it,
    and write the new values. Tensors in it are without graph and must not be changed in place.
    They may be on the host while the images are on a GPU, as after a resume or where another worker
    computed the last step: move what you read, e.g. `kept.to(features)`.
    """
    average_logits: Callable[[], Tensor] = _no_average
    """Logits (N, classes) of the moving average of the images, under the same view, without
    graph; for terms with an `averaging` decay.
    """
    average_observation: Callable[[], Observation] = _no_average
    """The observer's output on the moving average of the images, under the same view, without
    graph; for terms with an `averaging` decay.
    """
    accuracy: float | Tensor = 0.0
    """Fraction of the real training images that the observer gets right, a number or a scalar on a
    device; 0 for one that was not trained.
    """
    progress: float = 0.0
    """Share of the block's steps that are done, in [0, 1)."""
    step: int = 0
    """The step of the block, from 0."""
    block: int = 0
    """Which block of images, from 0."""
    blocks: int = 1
    """Blocks in all. Where a method's blocks follow one another (`sequential`), a block's first
    call finds in `memory` what the last call of the block before left there.
    """
    class_counts: Tensor | None = None
    """Real images of each class of the training split (classes,); always given in a run."""
    network: nn.Module | None = None
    """The observer's network, frozen; a term must leave it as it is."""
    batch: Batch | None = None
    """The real mini-batch, for terms that need it."""

    def seen_through(self) -> tuple[nn.Module, Batch]:
        """Network and real mini-batch.

        Raises:
            RuntimeError: they did not come: the term must have `needs_batch`.
        """
        if self.network is None or self.batch is None:
            raise RuntimeError("There is no real mini-batch: the term must have 'needs_batch'.")
        return self.network, self.batch


class Term(Settings, ABC):
    """One summand of an objective: its settings, with its mathematics as a method.

    The fields of its class are what `terms.<name>` of a recipe may hold. Recipes are read without
    torch, so modules of terms import it, and what needs it, inside their functions.
    """

    name: ClassVar[str]
    """Name in recipes (`terms.<name>`) and logs."""
    former_name: ClassVar[str] = ""
    """Name in checkpoints of the version before, where that was another."""
    for_any_method: ClassVar[bool] = False
    """Whether recipes may add it to the objective of a method that does not have it."""
    through: ClassVar[NetworkGroup] = "observers"
    """Which networks it is computed in."""
    needs_classes: ClassVar[bool] = False
    """Whether these networks must know the classes, that is be trained on the real data."""
    needs_batch: ClassVar[bool] = False
    """Whether it takes a real mini-batch itself, not a statistic; only `real: sampled` has one."""
    splits: ClassVar[bool] = False
    """Whether the images of a step may be in parts (`synthesis.split`): it reads logits, features
    and statistics alone (see `rayd.objectives.batch_parts`), and goes through the network only once.
    """
    learns_labels: ClassVar[bool] = False
    """Whether it accepts rows of probabilities for labels, and has a gradient for them."""
    registry: ClassVar[dict[str, type[Term]]] = {}
    """The terms that recipes may add to the objective of any method, by name."""

    weight: float = Field(default=1.0, ge=0)
    """Factor of the term; 0 switches it off."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.for_any_method and "name" in cls.__dict__:
            Term.registry[cls.name] = cls
            plugins.own(cls.name, cls)

    @property
    def specs(self) -> tuple[StatisticSpec, ...]:
        """Statistics of the real data that it compares with."""
        return ()

    @property
    def layer_roles(self) -> frozenset[LayerRole]:
        """Layers that it reads besides those of the statistics."""
        return frozenset()

    @property
    def optional(self) -> frozenset[LayerRole]:
        """Which of all these layers a network may lack; the term then does without."""
        return frozenset()

    @property
    def averaging(self) -> float | None:
        """Decay of the moving average of the synthetic images that it compares with; None where it
        needs none.
        """
        return None

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that gives the term nothing to work on (a ConfigError that says what to
        use instead).
        """
        return

    def precise(self, real: RealStatistics, seen: Observation, context: Context) -> Observation:
        """An observer's output in the precision in which the term takes its statistics: that of the
        features, unless the term needs more. Parts of the images (`splits`) are summarised in it.
        """
        return seen

    @abstractmethod
    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """The unweighted value, a scalar, differentiable in the observer's output on the
        synthetic images.

        Args:
            real: statistics of the real data, those of `specs` among them.
            seen: an observer's output on the synthetic images.
            labels: class indices (N,), or rows of probabilities where the term `learns_labels`.
            context: what it may depend on besides.
        """
