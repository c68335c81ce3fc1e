"""DCC: gradients of all classes together, so that contrasts between classes are matched.

Saehyung Lee, Sanghyuk Chun, Sangwon Jung, Sangdoo Yun and Sungroh Yoon, "Dataset Condensation with
Contrastive Signals", ICML 2022.

    minimise over S   E_theta0 [ sum_{t < o} D( sum_c grad_theta CE(A(T_c); theta_t), sum_c grad_theta CE(A(S_c); theta_t) ) ]
    theta_{t+1} = theta_t after i epochs of SGD on S

with the symbols of `rayd.methods.dc`: where DC and DSA compare the gradients class by class, those of
all classes are added up first. What two classes share in their gradients then cancels or adds up on
both sides alike, and what tells them apart is left; that is what fine-grained classes need.

Networks are warmed up on two levels: the first 250 of the 1,000 are compared class by class, as in DSA,
in their first 10 steps (`terms.gradient.warm_up`). Up to ten images a class that is all steps of theirs.

Everything else is DSA's: the augmentation, real images first, loops by images per class, a fresh
network after each; but for one image a class, whose networks are used for 10 steps, too, with 5 epochs
between them. The paper calls this DSAC, and DCC the same without augmentation; the numbers that IID's
paper quotes as DCC are those of DSAC on CIFAR.

**Released code**, which all of this follows: the sum over classes of a side is a mean, which does
not change the cosine distance, and gradients of a class are means over its images.

Use it in place of DSA where classes are alike; it needs `real: sampled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayd.config import Recipe, merge
from rayd.methods.dc import NETWORKS, SiameseDatasetCondensation, loops
from rayd.objectives import GradientMatching, Term
from rayd.objectives.gradients import WarmUp

FEW: tuple[int, int] = (10, 5)
"""Outer and inner loops for fewer than ten images per class."""


class ContrastiveCondensation(SiameseDatasetCondensation):
    """DSA with the gradients of all classes added up before they are compared."""

    name = "dcc"
    version = 1  # without a warm-up before
    citation = """@inproceedings{lee2022dcc,
  title     = {Dataset Condensation with Contrastive Signals},
  author    = {Lee, Saehyung and Chun, Sanghyuk and Jung, Sangwon and Yun, Sangdoo and Yoon, Sungroh},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2022}
}"""

    @classmethod
    def defaults_at(cls, ipc: int) -> Mapping[str, Any]:
        """Those of DSA, with more loops for few images per class."""
        outer, inner = FEW if ipc < 10 else loops(ipc)
        paced = {
            "synthesis": {"steps": NETWORKS * outer},
            "observers": {"model_pool": {"push_every": outer, "train_epochs": inner}},
        }
        return merge(super().defaults_at(ipc), paced)

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """One term: the distance of summed gradients, after the warm-up."""
        pool = recipe.observers.model_pool
        used = pool.push_every if pool is not None else None
        return (GradientMatching(classes="together", warm_up=WarmUp(per_network=used or 1)),)
