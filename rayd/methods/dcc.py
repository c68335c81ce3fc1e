"""DCC: gradients of all classes together, so that contrasts between classes are matched.

Saehyung Lee, Sanghyuk Chun, Sangwon Jung, Sangdoo Yun and Sungroh Yoon, "Dataset Condensation with
Contrastive Signals", ICML 2022.

    minimise over S   E_theta0 [ sum_{t < o} D( sum_c grad_theta CE(A(T_c); theta_t), sum_c grad_theta CE(A(S_c); theta_t) ) ]
    theta_{t+1} = theta_t after i epochs of SGD on S

with the symbols of `rayd.methods.dc`: where DC and DSA compare the gradients class by class, those of
all classes are added up first. What two classes share in their gradients then cancels or adds up on
both sides alike, and what tells them apart is left; that is what fine-grained classes need.

Everything else is DSA's here: the augmentation, real images first, loops by images per class, a
fresh network after each. The paper also warms networks up, a strategy of two levels that its
abstract names; it is left out, as we have not read its details. Gradients of a class are means over
its images, so that all classes count the same.

Use it in place of DSA where classes are alike; it needs `real: sampled`.
"""

from __future__ import annotations

from rayd.config import Recipe
from rayd.methods.dc import SiameseDatasetCondensation
from rayd.objectives import GradientMatching, Term


class ContrastiveCondensation(SiameseDatasetCondensation):
    """DSA with the gradients of all classes added up before they are compared."""

    name = "dcc"
    citation = """@inproceedings{lee2022dcc,
  title     = {Dataset Condensation with Contrastive Signals},
  author    = {Lee, Saehyung and Chun, Sanghyuk and Jung, Sangwon and Yun, Sangdoo and Yoon, Sungroh},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2022}
}"""

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """One term: the distance of summed gradients."""
        return (GradientMatching(classes="together"),)
