"""A warning about synthetic images whose pixels are far outside the range of real ones.

Networks with instance normalisation are invariant to the scale of an image, so step sizes that are
too large can lead to pixels hundreds of times out of range. Such images train the architecture for
which they were optimised, may train others badly, and cannot be viewed or stored as images.
"""

from __future__ import annotations

from rayd.config import Recipe
from rayd.distilled import Distilled

FAR = 2.0
"""Distance from the data's range, in widths of the range, from which a pixel counts as far out."""
SHARE = 0.05
"""Share of such pixels from which a warning is logged; sets learned by DM have none."""


def out_of_range(recipe: Recipe, distilled: Distilled) -> str | None:
    """A warning about a set whose pixels are far out of range, with a remedy; None otherwise.

    Args:
        recipe: recipe of the set's run.
        distilled: the set.
    """
    far = 0
    for part in distilled.denormalized():
        far += int(((part < -FAR) | (part > 1 + FAR)).sum())
    if far < SHARE * distilled.images.numel():
        return None
    found = distilled.pixel_range
    return (
        f"{found.outside:.0%} of the distilled pixels are out of the data's range, which is 0 to 1: they "
        f"run from {found.least:.3g} to {found.most:.3g}, which networks with "
        f"instance normalisation do not notice and others do; {_remedy(recipe)}."
    )


def _remedy(recipe: Recipe) -> str:
    if recipe.synthetic.kind == "lowrank":
        return "lower synthesis.learning_rates.left and .right"
    if recipe.data.normalization != "standard":
        return "lower synthesis.learning_rate"
    return (
        "keep them in range with synthesis.clip=true and synthesis.schedule=cosine, or lower "
        "synthesis.learning_rate"
    )
