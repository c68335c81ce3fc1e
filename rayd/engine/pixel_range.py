"""A warning about synthetic images whose pixels have left the range of real ones by far.

Matching through networks with instance normalisation does not see the scale of an image, so that
step sizes that are too large end in pixels hundreds of times out of range. Such images train the
networks they were made with, and may train others badly; nobody can look at them or store them as
images.
"""

from __future__ import annotations

from rayd.config import Recipe
from rayd.distilled import Distilled

FAR = 2.0
"""Widths of the data's range by which a pixel must lie outside of it to count."""
SHARE = 0.05
"""Share of such pixels from which on a set is warned about; sets that DM learns from digits have
none.
"""


def out_of_range(recipe: Recipe, distilled: Distilled) -> str | None:
    """What to say of a set whose pixels are far out of range, and what to try; None if they are
    not.

    Args:
        recipe: what the set was made by.
        distilled: the set.
    """
    pixels = distilled.normalization.inverse(distilled.images)
    far = ((pixels < -FAR) | (pixels > 1 + FAR)).double().mean().item()
    if far < SHARE:
        return None
    outside = ((pixels < 0) | (pixels > 1)).double().mean().item()
    return (
        f"{outside:.0%} of the distilled pixels are out of the data's range, which is 0 to 1: they run from "
        f"{pixels.min().item():.3g} to {pixels.max().item():.3g}, which networks with instance normalisation do not "
        f"notice and others do; {_remedy(recipe)}."
    )


def _remedy(recipe: Recipe) -> str:
    if recipe.synthetic.kind == "lowrank":
        return "lower synthesis.learning_rates.left and .right"
    if recipe.data.normalization == "zca":
        return "lower synthesis.learning_rate"
    return "keep them in range with synthesis.clip=true, or lower synthesis.learning_rate"
