"""Initialisation of the synthetic set: real images, a selection of them, or noise."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from rayd import seeding
from rayd.config import Recipe
from rayd.data import ImageData
from rayd.data.images import Rows
from rayd.data.selection import select
from rayd.data.splits import uneven
from rayd.errors import DataError
from rayd.synthetic.base import SyntheticSet
from rayd.synthetic.hallucinated import initial_hallucinators
from rayd.synthetic.kinds import restore
from rayd.synthetic.label_initialization import agreed_logits, class_logits, random_logits
from rayd.synthetic.learned_step_size import WithLearnedStepSize
from rayd.synthetic.lowrank import choose, fit, random_factors, spread
from rayd.synthetic.partitioned import shrink
from rayd.synthetic.rded import check_candidates

SPARE = 20
"""Candidates per class beyond twice the images needed, to drop those no expert knows."""

log = logging.getLogger(__name__)


def first_labels(recipe: Recipe, data: ImageData) -> Tensor:
    """Class indices (n,), sorted, of the stored images: `recipe.ipc` per class, or a budget's.

    Raises:
        ConfigError: the budget is too small.
    """
    if recipe.synthetic.kind != "lowrank":
        return torch.arange(data.classes).repeat_interleave(recipe.ipc)
    sets, images_per_set = _lowrank_sizes(recipe, data)
    return spread(sets * images_per_set, data.classes)


def image_count(recipe: Recipe, data: ImageData) -> int:
    """Number of images that the set decodes to."""
    return len(first_labels(recipe, data)) * recipe.synthetic.expansion


def _lowrank_sizes(recipe: Recipe, data: ImageData) -> tuple[int, int]:
    """Number of mapper sets of low-rank images, and of images per set."""
    settings = recipe.synthetic
    shape = data.shape
    budget = (
        settings.budget or recipe.ipc * data.classes * shape.channels * shape.height * shape.width
    )
    return choose(
        budget,
        settings.rank,
        shape,
        data.classes,
        soft=settings.labels != "hard",
        sets=settings.sets,
    )


def initial(
    recipe: Recipe,
    data: ImageData,
    stitched: Tensor | None = None,
    logits: Tensor | None = None,
    scores: Mapping[str, Tensor] | None = None,
) -> SyntheticSet:
    """Create the synthetic set before the first step.

    Real images are drawn, or selected on normalised pixels or by scores; noise is standard normal in
    normalised space. Low-rank images approximate real ones as closely as possible. If a class has
    too few real images, each is used before any is repeated; `check_budget` determines which runs
    may do that.

    Args:
        recipe: the run.
        data: the real images.
        stitched: RDED's images, uint8 (n, C, H, W), which depend on an observer.
        logits: predictions of experts on `candidates`, (experts, candidates, classes), for labels
            predicted by experts.
        scores: scores of the real images by name, for selections by them.

    Raises:
        ConfigError: a budget is too small.
        DataError: a class has no image.
    """
    settings = recipe.synthetic
    hard = first_labels(recipe, data)
    draws = seeding.generator(recipe.seed, "initial images")
    labels = _first_values_of_labels(recipe, hard, data.classes)
    if settings.init == "noise" and settings.kind == "lowrank":
        sets, _ = _lowrank_sizes(recipe, data)
        factors = random_factors(len(hard), sets, settings.rank, data.shape, draws)
        return _with_step_size(recipe, factors._asdict() | {"labels": labels})

    if settings.init == "noise":
        images = torch.randn(len(hard), *data.shape, generator=draws)
    elif stitched is not None:
        images = data.normalization(stitched)
    else:
        counts = hard.bincount(minlength=data.classes) * settings.parts
        if settings.labels == "experts":
            assert logits is not None
            rows, labels = _known(
                candidates(recipe, data, scores), data.train.labels, logits, counts
            )
        else:
            rows = _leading(_selected(recipe, data, int(counts.max()), draws, scores), counts)
        images = data.normalization(torch.from_numpy(data.train.images[rows]))
    return _with_step_size(recipe, _parameters(recipe, data, images, labels))


def _first_values_of_labels(recipe: Recipe, hard: Tensor, classes: int) -> Tensor:
    """Class indices (n,), or logits (n, classes) of learned labels.

    Labels predicted by experts are set together with the images.
    """
    if recipe.synthetic.labels == "random":
        draws = seeding.generator(recipe.seed, "initial labels")
        return random_logits(len(hard), classes, draws)
    if recipe.synthetic.labels == "classes":
        return class_logits(hard, classes)
    return hard


def _parameters(
    recipe: Recipe, data: ImageData, images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """State of a set that decodes to these images, as closely as its parameterisation allows."""
    settings = recipe.synthetic
    if settings.kind == "lowrank":
        sets, _ = _lowrank_sizes(recipe, data)
        return fit(images, sets, settings.rank)._asdict() | {"labels": labels}
    # noise and stitched images are stored images themselves, real ones the images they decode to
    if settings.kind == "partitioned" and settings.init not in ("noise", "rded"):
        images = shrink(images, settings.factor)
    state = {"images": images, "labels": labels}
    if settings.kind == "hallucinated":
        draws = seeding.generator(recipe.seed, "initial hallucinators")
        hallucinators = initial_hallucinators(
            settings.hallucinators, settings.kernel_size, data.shape, draws
        )
        state |= hallucinators._asdict()
    return state


def candidates(recipe: Recipe, data: ImageData, scores: Mapping[str, Tensor] | None = None) -> Rows:
    """Rows of the real images that experts label, equally many per class, sorted by class."""
    most = int(first_labels(recipe, data).bincount().max())
    draws = seeding.generator(recipe.seed, "initial images")
    with_spare = min(2 * most + SPARE, int(data.train.counts.min()))
    return _selected(recipe, data, max(most, with_spare), draws, scores)


def check_budget(recipe: Recipe, data: ImageData) -> None:
    """Reject more images per class than the smallest class has; warn only for long-tailed data.

    Raises:
        ConfigError: a budget is too small.
        DataError: the budget exceeds the smallest class; the message names both.
    """
    stored = int(first_labels(recipe, data).bincount().max())
    if recipe.synthetic.init == "rded":
        check_candidates(data.train, recipe.synthetic, recipe.ipc)
    counts = data.train.counts
    if recipe.real == "sampled" and recipe.observers.real_batch > counts.min():
        _warn_small_classes(
            data,
            "observers.real_batch",
            recipe.observers.real_batch,
            "a batch draws from them with replacement",
        )
    real_init = recipe.synthetic.init not in ("noise", "rded")
    selected_baselines = set(recipe.evaluation.baselines) - {"whole"}
    if not real_init and not selected_baselines:
        return
    smallest = int(counts.argmin())
    needed = stored * recipe.synthetic.parts if real_init else recipe.ipc
    if needed <= counts[smallest]:
        return
    if recipe.data.imbalance > 1 or uneven(counts):
        consequence = "initial images and baselines take theirs more than once"
        _warn_small_classes(data, "ipc", needed, consequence)
        return
    name = f"'{data.class_names[smallest]}' of '{data.name}'"
    size = counts[smallest]
    if recipe.synthetic.kind == "lowrank" and needed > recipe.ipc:
        raise DataError(
            "Low-rank images must not be more a class than the smallest class has: "
            f"{name} has {size} training images. Got {needed} instead; "
            "raise 'synthetic.rank', lower 'synthetic.budget', or start from noise."
        )
    each = f", {needed // recipe.ipc} real images in each" if needed > recipe.ipc else ""
    raise DataError(
        f"ipc must not exceed the smallest class: {name} has {size} training images. "
        f"Got {recipe.ipc}{each} instead."
    )


def _with_step_size(recipe: Recipe, state: dict[str, Tensor]) -> SyntheticSet:
    """Create a set from its state, with a learned step size if the recipe has one."""
    learned = restore(recipe.synthetic, state)
    step_size = recipe.synthetic.step_size
    return learned if step_size is None else WithLearnedStepSize(learned, step_size)


def _selected(
    recipe: Recipe,
    data: ImageData,
    per_class: int,
    draws: Generator,
    scores: Mapping[str, Tensor] | None,
) -> Rows:
    how = "random" if recipe.synthetic.init == "real" else recipe.synthetic.init
    return select(how, data.train, per_class, data.normalization, draws, scores)


def _leading(rows: Rows, counts: Tensor) -> Rows:
    """The first `counts` (classes,) rows of each class; input: equally many per class, sorted."""
    per_class = len(rows) // len(counts)
    rank = torch.arange(len(rows)) % per_class
    kept: Rows = rows[(rank < counts.repeat_interleave(per_class)).numpy()]
    return kept


def _known(rows: Rows, labels: Rows, logits: Tensor, counts: Tensor) -> tuple[Rows, Tensor]:
    """The first `counts` candidates of each class, with the mean logits of correct experts.

    Candidates that no expert knows are used only if the others do not suffice.
    """
    agreed, known = agreed_logits(logits, torch.from_numpy(labels[rows]))
    per_class = len(rows) // len(counts)
    # within a class, known candidates first; otherwise in their original order
    order = (~known).view(-1, per_class).int().argsort(dim=1, stable=True)
    order = (order + torch.arange(len(counts))[:, None] * per_class).flatten()
    chosen = torch.from_numpy(_leading(order.numpy(), counts))
    return rows[chosen.numpy()], agreed[chosen]


def _warn_small_classes(data: ImageData, setting: str, needed: int, consequence: str) -> None:
    small = [
        name
        for name, count in zip(data.class_names, data.train.counts, strict=True)
        if count < needed
    ]
    log.warning(
        "%d of the %d classes of '%s' have fewer training images than '%s' asks for "
        "(%d; '%s' has %d): %s.",
        len(small),
        data.classes,
        data.name,
        setting,
        needed,
        small[-1],
        data.train.counts[data.class_names.index(small[-1])],
        consequence,
    )
