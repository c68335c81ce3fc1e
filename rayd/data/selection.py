r"""Selection of k images per class: coreset baselines and initial images for distillation.

With the n features :math:`x_i` (d,) of one class and their mean :math:`\mu` (d,):

- `random`: k images drawn without replacement.
- `herding` (Welling, "Herding dynamical weights to learn", ICML 2009; greedy and without
  replacement as in iCaRL, Rebuffi et al., CVPR 2017): each step adds the image that brings the mean
  of the selected images closest to :math:`\mu`,

  .. math:: i_t = \arg\min_i \Big\| \mu - \tfrac{1}{t} \big( x_i + \sum_{s<t} x_{i_s} \big) \Big\|

- `k_center` (greedy farthest point; Sener and Savarese, ICLR 2018): starts with the image nearest
  :math:`\mu`; each further step adds the image farthest from all selected ones,

  .. math:: i_t = \arg\max_i \min_{s<t} \| x_i - x_{i_s} \|

- `forgetting` (Toneva et al., ICLR 2019): the k images forgotten most often during training.
- `el2n` (Paul et al., NeurIPS 2021): the k images with the largest error early in training.
- `difficulty`: k consecutive images in the order of that error, easy ones for small k and hard ones
  for large k, as Sorscher et al. advise ("Beyond neural scaling laws", NeurIPS 2022). Of the n - k
  remaining images, the share k / n is easier than the selected ones, the rest is harder.

The last three use the scores of `rayd.training.image_ranking`. The few hardest images do not
represent their class: on the 8x8 digits with one image per class, students reach 0.32 with
`forgetting` and 0.27 with `el2n` (random images 0.77, `difficulty` 0.84, herding 0.89); with ten
images per class, 0.86 (0.97, 0.91, 0.96).

All functions return rows sorted by class and, within a class, by selection step. Except with
`difficulty`, the first j of k selected images are the selection for j. The first row wins ties. If
a class has fewer than k images, as in the tail of a long-tailed set, `select` takes all of them and
then repeats them in the same order.
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
"""Maps the features (n, d) of one class to the positions (k,) of the selected images."""


def select(
    how: str,
    image_set: ImageSet,
    per_class: int,
    normalization: Normalization,
    generator: torch.Generator,
    scores: Mapping[str, Tensor] | None = None,
) -> Rows:
    """Select `per_class` images of every class; returns their rows, int64 (classes * per_class,).

    Herding and k-center use flattened normalised pixels in float32 as features. Classes are
    normalised one at a time, so that memory holds the features of one class, not of the whole set.

    Args:
        how: `random`, `herding`, `k-center`, `forgetting`, `el2n` or `difficulty`.
        image_set: images to select from.
        per_class: number of images per class, k.
        normalization: maps pixels to features; used by herding and k-center only.
        generator: random generator; used by `random` only.
        scores: scores of all images by name, (N,) each; used by the last three only.

    Raises:
        ConfigError: the selection method is unknown, or its scores are missing.
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
    """Draw `per_class` images of every class at random; a class that has fewer repeats its images.

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
        per_class: number of rows per class.

    Raises:
        DataError: a class has fewer than `per_class` rows.
    """
    return _by_class(features, labels, per_class, _herd)


def k_center(features: Tensor, labels: Tensor, per_class: int) -> Rows:
    """Select rows that greedily minimise the largest distance to a selected row of the class.

    Args:
        features: (N, d).
        labels: class indices (N,).
        per_class: number of rows per class.

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
            f"Class {name} must have at least {per_class} image(s) to select from. "
            f"Got {count} instead."
        )


def _herd(features: Tensor, count: int) -> Tensor:
    """Positions selected by herding, in order."""
    centred = features - features.mean(0)
    squares = torch.linalg.vecdot(centred, centred)
    total = torch.zeros_like(centred[0])
    chosen = torch.empty(count, dtype=torch.long, device=features.device)
    for step in range(count):
        # |total + x|^2 without |total|^2, which is equal for all x
        distance = squares + 2 * (centred @ total)
        distance[chosen[:step]] = torch.inf
        chosen[step] = distance.argmin()
        total += centred[chosen[step]]
    return chosen


def _cover(features: Tensor, count: int) -> Tensor:
    """Positions selected by greedy k-center, in order."""

    def distances(point: Tensor) -> Tensor:
        # computes differences, as the expanded square would round off distances of near duplicates
        return torch.cdist(
            features, point.unsqueeze(0), compute_mode="donot_use_mm_for_euclid_dist"
        ).squeeze(1)

    chosen = torch.empty(count, dtype=torch.long, device=features.device)
    chosen[:1] = distances(features.mean(0)).argmin()
    nearest = torch.full_like(features[:, 0], torch.inf)
    for step in range(1, count):
        torch.minimum(nearest, distances(features[chosen[step - 1]]), out=nearest)
        # negative, so that a selected row is never chosen again, even among duplicates
        nearest[chosen[step - 1]] = -1
        chosen[step] = nearest.argmax()
    return chosen


def _highest(scores: Tensor, count: int) -> Tensor:
    """Positions of the highest scores, highest first."""
    return scores.argsort(descending=True, stable=True)[:count]


def _neighbours(scores: Tensor, count: int) -> Tensor:
    """Positions of `count` consecutive images in the order from easy to hard; see `difficulty`."""
    first = count * (len(scores) - count) // len(scores)
    return scores.argsort(stable=True)[first : first + count]


SCORED: Mapping[str, str] = {"forgetting": "forgetting", "el2n": "el2n", "difficulty": "el2n"}
"""Selection methods based on scores, with the score that each uses."""
GREEDY: Mapping[str, Pick] = {"herding": _herd, "k-center": _cover}
"""Greedy selection methods, by the setting's value."""
