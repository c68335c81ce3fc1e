"""Training sets of an evaluation, with the protocol's labels and augmentation or others.

Soft labels and augmentation explain much of what distilled sets reach ("DD-Ranking", Li et al.
2025), so students without them are trained on the same sets for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from rayd.config import EvaluationSettings, Recipe, TransformSettings

DISTILLED = "distilled"
"""Name of the set that is evaluated."""
EQUAL_STORAGE = "equal-storage"
"""Name of the random real images that take as many bytes as the distilled set."""


@dataclass(frozen=True)
class Variant:
    """A training set, and the deviations of its students from the protocol."""

    set: str
    """`distilled`, or the name of a baseline."""
    hard_labels: bool = False
    """Train on hard labels, under a protocol of soft ones."""
    augmented: bool = True
    """Augment and mix as in the protocol; else not at all."""

    @classmethod
    def of(cls, name: str | Variant) -> Variant:
        """The variant itself, or for a name, that set under the unmodified protocol."""
        return name if isinstance(name, Variant) else cls(name)

    @property
    def words(self) -> str:
        """Short description.

        >>> Variant("random", hard_labels=True).words
        'random, hard labels'
        """
        parts = [self.set]
        parts += ["hard labels"] if self.hard_labels and self.set != EQUAL_STORAGE else []
        parts += [] if self.augmented else ["no augmentation"]
        return ", ".join(parts)

    @property
    def is_comparison(self) -> bool:
        """Whether it is one of `evaluation.comparisons`, as opposed to a baseline."""
        return self.hard_labels or not self.augmented or self.set == EQUAL_STORAGE

    def applied(self, protocol: EvaluationSettings) -> EvaluationSettings:
        """The protocol as students of this variant follow it."""
        changes: dict[str, Any] = {}
        if self.hard_labels:
            changes |= {"loss": "cross-entropy", "hard_weight": 0.0}
        if not self.augmented:
            changes |= {"augmentation": None, "transform": TransformSettings(), "mix": "none"}
        return protocol.model_copy(update=changes)

    def ordering(self) -> tuple[bool, bool]:
        """Key that sorts the protocol's own students first."""
        return not self.augmented, self.hard_labels


@dataclass(frozen=True)
class _Comparisons:
    """Properties of a recipe that determine which comparisons apply."""

    soft: bool
    """Whether the protocol has soft labels by teachers."""
    learned: bool
    """Whether the distilled images come with soft labels of their own."""
    augmented: bool
    """Whether the protocol augments."""

    @classmethod
    def of(cls, recipe: Recipe, learned: bool) -> Self:
        settings = recipe.evaluation
        views = bool(settings.augmentation or settings.transform.summary or settings.mix != "none")
        soft = recipe.labels.kind != "hard"
        # online teachers label every batch, whatever labels the images have
        return cls(soft, learned and not soft, views)


def variants(recipe: Recipe, learned_labels: bool) -> list[Variant]:
    """List everything that an evaluation trains on.

    Args:
        recipe: its protocol, baselines and comparisons.
        learned_labels: whether the distilled images have soft labels that were learned with them.
    """
    wanted = recipe.evaluation.comparisons
    has = _Comparisons.of(recipe, learned_labels)
    names = [DISTILLED, *recipe.evaluation.baselines]
    found = [Variant(name) for name in names]
    if len(names) == 1:
        # an empty list of baselines means that only the set is evaluated
        return found
    if "hard-labels" in wanted and has.soft:
        found += [Variant(name, hard_labels=True) for name in names]
    elif "hard-labels" in wanted and has.learned:
        found.append(Variant(DISTILLED, hard_labels=True))
    if "equal-storage" in wanted:
        # hard labels of real images take no storage
        found.append(Variant(EQUAL_STORAGE, hard_labels=has.soft))
    if "no-augmentation" in wanted and has.augmented:
        found += [Variant(name, augmented=False) for name in names if name in (DISTILLED, "random")]
    return found


def needs_teachers(recipe: Recipe) -> bool:
    """Whether teachers label batches while students train.

    Stored labels are replayed to students of the distilled set under the protocol as it is; others
    need the teachers.
    """
    if recipe.labels.kind != "stored":
        return recipe.labels.kind == "online"
    others = set(variants(recipe, learned_labels=False)) - {Variant(DISTILLED)}
    return any(not variant.hard_labels for variant in others)
