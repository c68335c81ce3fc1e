"""Mappers and bases of a low-rank set: the factors that images share, and those of each image.

An image is U Sigma V^T channel by channel: all images of a mapper set share U and V^T, and each has
its own Sigma (`rayd.synthetic.lowrank`). The spectrum of an image's Sigma shows how much of the
rank it uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from rayd.analyses.base import Analysis, Subject
from rayd.errors import ArtifactError

SETS = 4
"""Maximum number of mapper sets to draw, a row each."""
IMAGES = 3
"""Maximum number of images to draw per set."""


def factors(subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
    """U (k, C, H, r), V^T (k, C, r, W) and Sigma (k m, C, r, r) of a low-rank set.

    Raises:
        ArtifactError: the set has another parameterisation.
    """
    state = subject.distilled.parameters
    if not {"left", "right", "bases"} <= state.keys():
        raise ArtifactError(
            f"'{subject.directory}' has no mappers and bases: its images are not low-rank; "
            "methods with 'synthetic.kind: lowrank', such as ls-mtt, make such sets."
        )
    return state["left"], state["right"], state["bases"]


def effective_rank(bases: Tensor) -> Tensor:
    """Exponential of the entropy of each matrix's normalised singular values.

    It is 1 for a matrix of rank one, and r if all r singular values are equal.

    Args:
        bases: (..., r, r).

    Returns:
        (...), float64.

    >>> round(effective_rank(torch.eye(3)).item(), 6)
    3.0
    """
    values = torch.linalg.svdvals(bases.double())
    shares = values / values.sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.exp(-torch.special.xlogy(shares, shares).sum(-1))


def analyse(subject: Subject) -> Analysis:
    """Draw the mappers of the first sets, and bases and images of their first images."""
    left, right, bases = factors(subject)
    sharing = len(bases) // len(left)
    ranks = effective_rank(bases)
    rank = bases.shape[-1]
    mean = float(ranks.mean())
    return Analysis(
        name="lowrank",
        title=f"Mappers and bases: {subject.title}",
        explanation=(
            f"The first of {len(left)} mapper sets, a row each: columns of U and rows of V^T "
            f"(first channel), which {sharing} images share, then bases Sigma and the images they "
            "make. Red is positive, blue negative; each picture has a scale of its own."
        ),
        picture=chart(
            left, right, bases, subject.distilled.pixels(), subject.title, _classes(subject)
        ),
        lines=(
            f"{len(left)} mapper sets of rank {rank}, {sharing} images each",
            f"effective rank of the bases {mean:.2f} of {rank} "
            f"(from {float(ranks.min()):.2f} to {float(ranks.max()):.2f})",
        ),
        numbers={
            "sets": len(left),
            "sharing": sharing,
            "rank": rank,
            "effective_rank": {
                "mean": mean,
                "least": float(ranks.min()),
                "most": float(ranks.max()),
            },
        },
    )


def _classes(subject: Subject) -> list[str]:
    """Name of the class of every image; of the likeliest class if labels are soft."""
    names = subject.distilled.class_names
    return [names[label] for label in subject.distilled.hard_labels.tolist()]


def chart(
    left: Tensor,
    right: Tensor,
    bases: Tensor,
    pixels: Tensor,
    title: str = "",
    classes: Sequence[str] = (),
) -> Image.Image:
    """Draw factors of the first channel, and images.

    Args:
        left: U (k, C, H, r).
        right: V^T (k, C, r, W).
        bases: Sigma (k m, C, r, r).
        pixels: uint8 (k m, C, H, W).
        title: heading.
        classes: name of the class of every image, which is written below it.
    """
    from rayd.drawing import as_image, new_figure, styled

    sharing = len(bases) // len(left)
    sets = min(SETS, len(left))
    images = min(IMAGES, sharing)
    with styled():
        figure = new_figure(110 * (2 + 2 * images) + 60, 135 * sets + 70)
        grid = figure.subplots(sets, 2 + 2 * images, squeeze=False)
        for number, row in enumerate(grid):
            _signed(row[0], left[number, 0], "U" if number == 0 else "")
            _signed(row[1], right[number, 0], "V^T" if number == 0 else "")
            row[0].set_ylabel(f"set {number + 1}")
            for place in range(images):
                index = number * sharing + place
                heading = f"Sigma {place + 1}" if number == 0 else ""
                _signed(row[2 + 2 * place], bases[index, 0], heading)
                axes = row[3 + 2 * place]
                shown = pixels[index].permute(1, 2, 0).squeeze(2).numpy()
                axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axes.set_title(f"image {place + 1}" if number == 0 else "")
                axes.set_xlabel(classes[index] if classes else "")
                _bare(axes)
        figure.suptitle(title)
        return as_image(figure)


def _signed(axes, matrix: Tensor, heading: str) -> None:  # type: ignore[no-untyped-def]
    values = matrix.detach().numpy()
    limit = float(abs(values).max()) or 1.0
    axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_title(heading)
    _bare(axes)


def _bare(axes) -> None:  # type: ignore[no-untyped-def]
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
