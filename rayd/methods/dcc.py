"""DCC: gradients of all classes together, so that contrasts between classes are matched.

Saehyung Lee, Sanghyuk Chun, Sangwon Jung, Sangdoo Yun and Sungroh Yoon, "Dataset Condensation with
Contrastive Signals", ICML 2022.

    minimise over S   E_theta0 [ sum_{t < o} D( sum_c grad_theta CE(A(T_c); theta_t), sum_c grad_theta CE(A(S_c); theta_t) ) ]
    theta_{t+1} = theta_t after i epochs of SGD on S

with the symbols of `rayd.methods.dc`: where DC and DSA compare the gradients class by class, those
of all classes are summed first. Components that the gradients of two classes share then cancel or
add up in the same way on both sides, and those that distinguish the classes remain, which is what
fine-grained classes need.

There is a warm-up on two levels: the first 250 of the 1,000 networks are compared class by class,
as in DSA, in their first 10 steps (`terms.gradient.warm_up`). Up to ten images per class, these are
all of their steps.

Everything else is as in DSA: the augmentation, the initial real images, the loops by images per
class, and a fresh network after each. The exception is one image per class, for which networks are
also used for 10 steps, with 5 epochs in between. The paper calls this DSAC, and the same without
augmentation DCC; the numbers that IID's paper quotes as DCC are those of DSAC on CIFAR.

**Released code**, which all of this follows: the sum over the classes of each side is a mean, which
does not change the cosine distance, and the gradient of a class is a mean over its images.

Use it in place of DSA if classes are similar; it needs `real: sampled`.
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
    """DSA with the gradients of all classes summed before they are compared."""

    name = "dcc"
    version = 1  # version 0 had no warm-up
    citation = """@inproceedings{lee2022dcc,
  title     = {Dataset Condensation with Contrastive Signals},
  author    = {Lee, Saehyung and Chun, Sanghyuk and Jung, Sangwon and Yun, Sangdoo and Yoon, Sungroh},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2022}
}"""

    @classmethod
    def defaults_at(cls, ipc: int) -> Mapping[str, Any]:
        """The defaults of DSA, with more loops for few images per class."""
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
