"""Base class of the terms of an objective, and their context.

An objective is a weighted sum of terms. A term maps an observer's output on the synthetic images
(an `Observation`) and, where it compares with the real data, statistics of the same observer's
output on them, to a scalar. It declares the statistics that it needs; the engine measures them
once, over the whole real set, or computes them on sampled batches, depending on the recipe; for the
term this makes no difference.
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
"""Statistics of the real data by specification, one per layer."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The real mini-batch of a step, in the form of the observer's input."""

    images: Tensor
    """Network input (N, C, H, W), augmented like the synthetic images."""
    labels: Tensor
    """Class indices (N,)."""
    look: Callable[[], Observation]
    """Forwards them; the observer's output has no graph."""


@dataclass(frozen=True)
class Context:
    """Everything that a term may depend on besides the images of the step."""

    generator: Callable[[str], torch.Generator] = _no_draws
    """Returns a private generator for a purpose, with the same state whenever the step is repeated.
    """
    memory: dict[str, Tensor] = field(default_factory=dict)
    """State of the term between calls, for this observer and this block of images, to be read and
    updated. Its tensors must have no graph and must not be modified in place. They may be on the
    host while the images are on a GPU, for example after a resume or if another worker computed the
    last step, so move them when reading, e.g. `kept.to(features)`.
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
    """Fraction of the real training images that the observer classifies correctly, a number or a
    scalar tensor; 0 for an untrained one.
    """
    progress: float = 0.0
    """Share of the block's steps that are done, in [0, 1)."""
    step: int = 0
    """Index of the step of the block, from 0."""
    block: int = 0
    """Index of the block of images, from 0."""
    blocks: int = 1
    """Number of blocks. If a method's blocks are sequential (`sequential`), the `memory` of a
    block's first call is that of the last call of the previous block.
    """
    class_counts: Tensor | None = None
    """Number of real images of each class in the training split (classes,); always given in a run.
    """
    network: nn.Module | None = None
    """The observer's network, frozen; a term must not modify it."""
    batch: Batch | None = None
    """The real mini-batch, for terms that need it."""

    def seen_through(self) -> tuple[nn.Module, Batch]:
        """Network and real mini-batch.

        Raises:
            RuntimeError: they are missing, as the term does not have `needs_batch`.
        """
        if self.network is None or self.batch is None:
            raise RuntimeError("There is no real mini-batch: the term must have 'needs_batch'.")
        return self.network, self.batch


class Term(Settings, ABC):
    """One summand of an objective: its settings, with its mathematics as a method.

    The fields of its class are the settings `terms.<name>` of a recipe. Recipes are read without
    torch, so modules of terms import it, and modules that need it, inside their functions.
    """

    name: ClassVar[str]
    """Name in recipes (`terms.<name>`) and logs."""
    former_name: ClassVar[str] = ""
    """Name in checkpoints of the previous version, if it was different."""
    for_any_method: ClassVar[bool] = False
    """Whether recipes may add it to the objective of a method that does not have it."""
    through: ClassVar[NetworkGroup] = "observers"
    """Group of networks in which it is computed."""
    needs_classes: ClassVar[bool] = False
    """Whether these networks must know the classes, i.e. be trained on the real data."""
    needs_batch: ClassVar[bool] = False
    """Whether it needs a real mini-batch itself, not a statistic; only with `real: sampled`."""
    splits: ClassVar[bool] = False
    """Whether the images of a step may be split into parts (`synthesis.split`): the term must read
    only logits, features and statistics (see `rayd.objectives.batch_parts`), and must not forward
    images through the network itself.
    """
    learns_labels: ClassVar[bool] = False
    """Whether it accepts rows of probabilities as labels, and has a gradient for them."""
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
        """Layers that a network may lack; the term is then computed without them."""
        return frozenset()

    @property
    def averaging(self) -> float | None:
        """Decay of the moving average of the synthetic images with which it compares; None if it
        needs none.
        """
        return None

    def check(self, recipe: Recipe) -> None:
        """Raise a ConfigError, which says what to use instead, for a recipe in which the term
        cannot be computed.
        """
        return

    def precise(self, real: RealStatistics, seen: Observation, context: Context) -> Observation:
        """An observer's output in the precision in which the term computes its statistics: that of
        the features, unless the term needs a higher one. It is also used for summaries of parts of
        the images (`splits`).
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
            context: everything else that it may depend on.
        """
