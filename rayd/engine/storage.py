"""Storage that a distilled set needs besides its own tensors: teachers, or stored labels.

A set whose students learn from teachers is useless without them, so comparisons at equal storage
count them.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING

from rayd import networks, synthetic
from rayd.config import Recipe
from rayd.data import ImageData
from rayd.distilled import Distilled
from rayd.engine.network_ids import teachers
from rayd.synthetic import Storage
from rayd.synthetic.base import OF_TEACHERS, SOFT_LABELS, TEACHERS

if TYPE_CHECKING:
    from rayd.engine.costs import Costs


def teacher_storage(recipe: Recipe, data: ImageData) -> Storage:
    """Numbers and bytes of the teachers that label online; empty if there are none."""
    if recipe.labels.kind != "online":
        return Storage({}, {})
    numbers = 0
    size = 0
    for teacher in teachers(recipe):
        network = networks.build(teacher.architecture, data.shape, data.classes, seed=0)
        tensors = network.state_dict().values()
        numbers += sum(tensor.numel() for tensor in tensors)
        size += sum(tensor.nbytes for tensor in tensors)
    return Storage({TEACHERS: numbers}, {TEACHERS: size})


def with_labels_of(distilled: Distilled, recipe: Recipe, data: ImageData) -> Distilled:
    """The set with a card that counts exactly the storage that the labels of a recipe need.

    That is the teachers, or stored labels, or neither: students under hard labels only need the
    images.
    """
    before = distilled.storage
    extra = teacher_storage(recipe, data)
    needed = {SOFT_LABELS} if recipe.labels.kind == "stored" else set(extra.bytes)
    kept = before.without(OF_TEACHERS - needed)
    storage = Storage(kept.numbers | extra.numbers, kept.bytes | extra.bytes)
    if storage == before:
        return distilled
    counted = copy.copy(distilled)
    counted.card = {**distilled.card, "storage": asdict(storage)}
    return counted


def planned_storage(recipe: Recipe, data: ImageData, costs: Costs) -> int:
    """Predicted bytes of a run's set, with its labels or teachers."""
    own = costs.start().storage().total_bytes
    return own + teacher_storage(recipe, data).total_bytes + label_bytes(recipe, data)


def label_bytes(recipe: Recipe, data: ImageData) -> int:
    """Bytes of the logits of stored labels; crops and mixes are negligible."""
    if recipe.labels.kind != "stored":
        return 0
    images = synthetic.image_count(recipe, data)
    numbers = recipe.evaluation.epochs * images * data.classes
    return numbers * (2 if recipe.labels.precision == "float16" else 4)
