"""Where the synthetic set starts: at real images, at a selection of them, or at noise."""

from __future__ import annotations

import logging

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
from rayd.synthetic.kinds import restore
from rayd.synthetic.learned_step_size import WithLearnedStepSize
from rayd.synthetic.lowrank import choose, fit, random_factors, spread
from rayd.synthetic.partitioned import shrink
from rayd.synthetic.rded import check_candidates
from rayd.synthetic.soft_labels import agreed_logits, class_logits, random_logits

SPARE = 20
"""Real images of a class beyond twice those wanted, of which the ones that no expert knows are left
out.
"""

log = logging.getLogger(__name__)


def first_labels(recipe: Recipe, data: ImageData) -> Tensor:
    """Class indices (n,), sorted, of what is stored before the first step: `recipe.ipc` images a
    class, or what a budget buys.

    Raises:
        ConfigError: the budget is too small.
    """
    if recipe.synthetic.kind != "lowrank":
        return torch.arange(data.classes).repeat_interleave(recipe.ipc)
    sets, sharing = _sharing(recipe, data)
    return spread(sets * sharing, data.classes)


def image_count(recipe: Recipe, data: ImageData) -> int:
    """Images that the set decodes to."""
    return len(first_labels(recipe, data)) * recipe.synthetic.expansion


def _sharing(recipe: Recipe, data: ImageData) -> tuple[int, int]:
    """Sets of low-rank factors, and images of each."""
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
    recipe: Recipe, data: ImageData, stitched: Tensor | None = None, logits: Tensor | None = None
) -> SyntheticSet:
    """The synthetic set before the first step.

    Real images are drawn, or selected by herding or k-center on normalised pixels; noise is
    standard normal in normalised space. Low-rank images start as near to them as they can. RDED's
    images, uint8 (n, C, H, W), come ready-made as `stitched`: an observer has a say in them. Labels
    that experts give come as what they say of `candidates`, `logits` (experts, candidates,
    classes).

    A class with fewer real images gives each of them before any is taken again; `check_budget` says
    which runs may do that.

    Raises:
        ConfigError: a budget is too small.
        DataError: a class has no image.
    """
    settings = recipe.synthetic
    hard = first_labels(recipe, data)
    draws = seeding.generator(recipe.seed, "initial images")
    labels = hard
    if settings.labels == "random":
        labels = random_logits(
            len(hard), data.classes, seeding.generator(recipe.seed, "initial labels")
        )
    if settings.labels == "classes":
        labels = class_logits(hard, data.classes)
    if settings.init == "noise" and settings.kind == "lowrank":
        factors = random_factors(
            len(hard), _sharing(recipe, data)[0], settings.rank, data.shape, draws
        )
        return _paced(recipe, factors._asdict() | {"labels": labels})
    if settings.init == "noise":
        images = torch.randn(len(hard), *data.shape, generator=draws)
    elif stitched is not None:
        images = data.normalization(stitched)
    else:
        counts = hard.bincount(minlength=data.classes) * settings.expansion
        if settings.labels == "experts":
            assert logits is not None
            rows, labels = _known(candidates(recipe, data), data.train.labels, logits, counts)
        else:
            rows = _leading(_selected(recipe, data, int(counts.max()), draws), counts)
        images = data.normalization(torch.from_numpy(data.train.images[rows]))
    if settings.kind == "lowrank":
        factors = fit(images, _sharing(recipe, data)[0], settings.rank)
        return _paced(recipe, factors._asdict() | {"labels": labels})
    if settings.kind == "partitioned" and settings.init not in ("noise", "rded"):
        images = shrink(images, settings.factor)
    return _paced(recipe, {"images": images, "labels": labels})


def candidates(recipe: Recipe, data: ImageData) -> Rows:
    """Rows of the real images that experts are asked about, as many of each class, sorted by
    class.
    """
    most = int(first_labels(recipe, data).bincount().max())
    draws = seeding.generator(recipe.seed, "initial images")
    return _selected(
        recipe, data, max(most, min(2 * most + SPARE, int(data.train.counts.min()))), draws
    )


def check_budget(recipe: Recipe, data: ImageData) -> None:
    """Refuse more images per class than the smallest class has; of an uneven set, warn that images
    are taken repeatedly.

    Raises:
        ConfigError: a budget is too small.
        DataError: names the class, its size and the budget.
    """
    stored = int(first_labels(recipe, data).bincount().max())
    if recipe.synthetic.init == "rded":
        check_candidates(data.train, recipe.synthetic, recipe.ipc)
    counts = data.train.counts
    if recipe.real == "sampled" and recipe.observers.real_batch > counts.min():
        _say(
            data,
            "observers.real_batch",
            recipe.observers.real_batch,
            "a batch draws from them with replacement",
        )
    if recipe.synthetic.init in ("noise", "rded") and not {"random", "herding", "k-center"} & set(
        recipe.evaluation.baselines
    ):
        return
    smallest = int(counts.argmin())
    wanted = (
        stored * recipe.synthetic.expansion
        if recipe.synthetic.init not in ("noise", "rded")
        else recipe.ipc
    )
    if wanted <= counts[smallest]:
        return
    if recipe.data.imbalance > 1 or uneven(counts):
        _say(data, "ipc", wanted, "first images and baselines take theirs more than once")
        return
    name = f"'{data.class_names[smallest]}' of '{data.name}'"
    size = counts[smallest]
    if recipe.synthetic.kind == "lowrank" and wanted > recipe.ipc:
        raise DataError(
            f"Low-rank images must not be more a class than the smallest class has: {name} has {size} training images. Got "
            f"{wanted} instead; raise 'synthetic.rank', lower 'synthetic.budget', or start from noise."
        )
    each = f", {wanted // recipe.ipc} real images in each" if wanted > recipe.ipc else ""
    raise DataError(
        f"ipc must not exceed the smallest class: {name} has {size} training images. Got {recipe.ipc}{each} instead."
    )


def _paced(recipe: Recipe, state: dict[str, Tensor]) -> SyntheticSet:
    """The set of this state, with a step size where one is learned."""
    learned = restore(recipe.synthetic, state)
    step_size = recipe.synthetic.step_size
    return learned if step_size is None else WithLearnedStepSize(learned, step_size)


def _selected(recipe: Recipe, data: ImageData, per_class: int, draws: Generator) -> Rows:
    how = "random" if recipe.synthetic.init == "real" else recipe.synthetic.init
    return select(how, data.train, per_class, data.normalization, draws)


def _leading(rows: Rows, counts: Tensor) -> Rows:
    """Of rows with as many of each class, sorted by class, the first `counts` (classes,) of
    each.
    """
    per_class = len(rows) // len(counts)
    place = torch.arange(len(rows)) % per_class
    kept: Rows = rows[(place < counts.repeat_interleave(per_class)).numpy()]
    return kept


def _known(rows: Rows, labels: Rows, logits: Tensor, counts: Tensor) -> tuple[Rows, Tensor]:
    """Of candidates, the first `counts` of each class that an expert knows, and what these say;
    others only to fill up.
    """
    agreed, known = agreed_logits(logits, torch.from_numpy(labels[rows]))
    per_class = len(rows) // len(counts)
    # of each class, the known ones first, both in their order
    order = (~known).view(-1, per_class).int().argsort(dim=1, stable=True)
    order = (order + torch.arange(len(counts))[:, None] * per_class).flatten()
    chosen = torch.from_numpy(_leading(order.numpy(), counts))
    return rows[chosen.numpy()], agreed[chosen]


def _say(data: ImageData, setting: str, wanted: int, consequence: str) -> None:
    few = [
        name
        for name, count in zip(data.class_names, data.train.counts, strict=True)
        if count < wanted
    ]
    log.warning(
        "%d of the %d classes of '%s' have fewer training images than '%s' asks for (%d; '%s' has %d): %s.",
        *(
            len(few),
            data.classes,
            data.name,
            setting,
            wanted,
            few[-1],
            data.train.counts[data.class_names.index(few[-1])],
        ),
        consequence,
    )
