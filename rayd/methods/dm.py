"""DM: distribution matching with randomly initialised networks.

Bo Zhao and Hakan Bilen, "Dataset Condensation with Distribution Matching", WACV 2023.

    minimise over S   E_theta [ sum_c || mean_{x in T_c} psi_theta(A(x)) - mean_{s in S_c} psi_theta(A(s)) ||^2 ]

    T_c  real images of class c              psi_theta  a ConvNet up to its classifier, theta drawn from the initialisation
    S_c  synthetic images of class c         A          one differentiable augmentation, the same for both sides (DSA)

Paper and released code agree: a fresh network, 256 real images per class and one SGD step for all
classes (momentum 0.5) in each of 20,000 iterations, summed (not averaged) over the 2,048 feature
dimensions. That is `real: sampled`.

`real: measured`, the default, takes the expectation over theta and A from a pool of fixed pairs
instead: each observer keeps one network and one draw of the augmentation, through which *all* real
images are measured once. The cost of a step then does not depend on the amount of real data, and
the real side has no sampling noise; accuracy is limited by the size of the pool.

Use it as the cheap baseline that needs no trained network, and as the first thing to try on new
data.
"""

from __future__ import annotations

from rayd.config import Recipe
from rayd.methods.base import Method
from rayd.objectives import MeanMatching, Term


class DistributionMatching(Method):
    """Class-wise feature means in random networks."""

    name = "dm"
    citation = """@inproceedings{zhao2023dm,
  title     = {Dataset Condensation with Distribution Matching},
  author    = {Zhao, Bo and Bilen, Hakan},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
  year      = {2023}
}"""

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """One term: the squared distance of class means of the features before the classifier."""
        return (MeanMatching(),)
