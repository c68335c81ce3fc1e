r"""Selection of k images per class: coreset baselines and initial images for distillation.

With the n features :math:`x_i` (d,) of one class and their mean :math:`\mu` (d,):

- `random`: k images drawn without replacement.
- `herding` (Welling, "Herding dynamical weights to learn", ICML 2009; greedy and without
  replacement as in iCaRL, Rebuffi et al., CVPR 2017): image after image, the one that brings the
  mean of the chosen closest to :math:`\mu`,

  .. math:: i_t = \arg\min_i \Big\| \mu - \tfrac{1}{t} \big( x_i + \sum_{s<t} x_{i_s} \big) \Big\|

- `k_center` (greedy farthest point; Sener and Savarese, ICLR 2018): first the image nearest
  :math:`\mu`, then image after image the one farthest from all the chosen,

  .. math:: i_t = \arg\max_i \min_{s<t} \| x_i - x_{i_s} \|

- `forgetting` (Toneva et al., ICLR 2019): those most often forgotten in training.
- `el2n` (Paul et al., NeurIPS 2021): those of the largest error early in training.
- `difficulty`: k neighbours in the order of that error, easy ones if k is small and hard ones if it
  is large, as Sorscher et al. advise ("Beyond neural scaling laws", NeurIPS 2022). Of the n - k
  images that are left out, the share k / n is easier than these, the others are harder.

Scores of the last three are those of `rayd.training.image_ranking`. A few of the hardest images do
not represent their class: on the 8x8 digits with one image a class, students reach 0.32 by
forgetting and 0.27 by errors (random images 0.77, difficulty 0.84, herding 0.89); with ten 0.86
(0.97, 0.91, 0.96).

Every function returns rows sorted by class, class 0's first, and within a class in the order of
choice: the first j of a choice of k are the choice of j, except with `difficulty`. Ties go to the
first row. If a class has fewer than k images, as in the tail of a long-tailed set, `select` takes all
of them, and then again in the same order: as if with replacement, but no image twice before each was
taken once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from rayd.data.images import ImageSet, Rows
from rayd.data.normalization import Normalization
from rayd.errors import ConfigError, DataError, unknown

Pick = Callable[[Tensor, int], Tensor]
"""Maps the features (n, d) of one class to the positions (k,) of the k chosen."""


def select(
    how: str,
    image_set: ImageSet,
    per_class: int,
    normalization: Normalization,
    generator: torch.Generator,
    scores: Mapping[str, Tensor] | None = None,
) -> Rows:
    """Select rows of `per_class` images of every class, int64 (classes * per_class,).

    The features of herding and k-center are the normalised pixels, flattened, in float32. One class
    is normalised at a time, so memory holds the largest class and not the set.

    Args:
        how: `random`, `herding`, `k-center`, `forgetting`, `el2n` or `difficulty`.
        image_set: images to choose from.
        per_class: images of each class, k.
        normalization: maps pixels to features; unused by `random`.
        generator: random generator; used by `random` only.
        scores: of all images, (N,) each, by name; used by the last three.

    Raises:
        ConfigError: the selection method is unknown, or its scores are not given.
        DataError: a class has no image.
    """
    if how == "random":
        return random(image_set, per_class, generator)
    if how not in GREEDY and how not in SCORED:
        raise ConfigError(unknown("selection", how, ["random", *GREEDY, *SCORED]))
    if how in SCORED and not scores:
        raise ConfigError(f"Selection '{how}' needs scores of the images: run the stage 'rank'.")
    chosen = []
    for name, rows in zip(image_set.class_names, image_set.class_index, strict=True):
        _require(f"'{name}'", len(rows), 1)
        count = min(per_class, len(rows))
        if how in SCORED:
            assert scores is not None
            values = scores[SCORED[how]][torch.from_numpy(rows)]
            order = _neighbours(values, count) if how == "difficulty" else _highest(values, count)
        else:
            features = normalization(torch.from_numpy(image_set.images[rows])).flatten(1)
            order = GREEDY[how](features, count)
        picked = rows[order.numpy()]
        chosen.append(np.resize(picked, per_class))
    return np.concatenate(chosen)


def random(image_set: ImageSet, per_class: int, generator: torch.Generator) -> Rows:
    """Draw `per_class` images of every class, without replacement while any are left.

    Raises:
        DataError: a class has no image.
    """
    chosen = []
    for name, rows in zip(image_set.class_names, image_set.class_index, strict=True):
        _require(f"'{name}'", len(rows), 1)
        drawn = torch.randperm(len(rows), generator=generator)[:per_class].numpy()
        chosen.append(np.resize(rows[drawn], per_class))
    return np.concatenate(chosen)


def herding(features: Tensor, labels: Tensor, per_class: int) -> Rows:
    """Select rows whose mean greedily approximates the class mean.

    Args:
        features: (N, d).
        labels: class indices (N,).
        per_class: rows of each class.

    Raises:
        DataError: a class has fewer than `per_class` rows.
    """
    return _by_class(features, labels, per_class, _herd)


def k_center(features: Tensor, labels: Tensor, per_class: int) -> Rows:
    """Select rows that greedily minimise the largest distance to a chosen row of the class.

    Args:
        features: (N, d).
        labels: class indices (N,).
        per_class: rows of each class.

    Raises:
        DataError: a class has fewer than `per_class` rows.
    """
    return _by_class(features, labels, per_class, _cover)


def _by_class(features: Tensor, labels: Tensor, per_class: int, pick: Pick) -> Rows:
    chosen = []
    for label in range(len(labels.bincount())):
        rows = (labels == label).nonzero().squeeze(1)
        _require(str(label), len(rows), per_class)
        chosen.append(rows[pick(features[rows], per_class)])
    return torch.cat(chosen).cpu().numpy()


def _require(name: str, count: int, per_class: int) -> None:
    if count < per_class:
        raise DataError(
            f"Class {name} must have at least the {per_class} image(s) to choose. "
            f"Got {count} instead."
        )


def _herd(features: Tensor, count: int) -> Tensor:
    """Positions chosen by herding, in the order of choice."""
    centred = features - features.mean(0)
    squares = torch.linalg.vecdot(centred, centred)
    total = torch.zeros_like(centred[0])
    chosen = torch.empty(count, dtype=torch.long, device=features.device)
    for step in range(count):
        # |total + x|^2 without |total|^2, which is the same for every x
        distance = squares + 2 * (centred @ total)
        distance[chosen[:step]] = torch.inf
        chosen[step] = distance.argmin()
        total += centred[chosen[step]]
    return chosen


def _cover(features: Tensor, count: int) -> Tensor:
    """Positions chosen by greedy k-center, in the order of choice."""

    def distances(point: Tensor) -> Tensor:
        # exact differences: the expanded square loses the distance of near duplicates to rounding
        return torch.cdist(
            features, point.unsqueeze(0), compute_mode="donot_use_mm_for_euclid_dist"
        ).squeeze(1)

    chosen = torch.empty(count, dtype=torch.long, device=features.device)
    chosen[:1] = distances(features.mean(0)).argmin()
    nearest = torch.full_like(features[:, 0], torch.inf)
    for step in range(1, count):
        torch.minimum(nearest, distances(features[chosen[step - 1]]), out=nearest)
        # negative, so that not even a duplicate is chosen twice
        nearest[chosen[step - 1]] = -1
        chosen[step] = nearest.argmax()
    return chosen


def _highest(scores: Tensor, count: int) -> Tensor:
    """Positions of the highest scores, highest first."""
    return scores.argsort(descending=True, stable=True)[:count]


def _neighbours(scores: Tensor, count: int) -> Tensor:
    """Positions of `count` neighbours in the order from easy to hard; see `difficulty` above."""
    first = count * (len(scores) - count) // len(scores)
    return scores.argsort(stable=True)[first : first + count]


SCORED: Mapping[str, str] = {"forgetting": "forgetting", "el2n": "el2n", "difficulty": "el2n"}
"""Selections by scores, with the score of each."""
GREEDY: Mapping[str, Pick] = {"herding": _herd, "k-center": _cover}
"""Deterministic selections, by the setting's value."""
