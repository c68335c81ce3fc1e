"""IID: two relations that means leave out, between samples and between features, as terms on DM and
on IDM.

Wenxiao Deng, Wenbin Li, Tianyu Ding, Lei Wang, Hongguang Zhang, Kuihua Huang, Jing Huo and Yang
Gao, "Exploiting Inter-sample and Inter-feature Relations in Dataset Distillation", CVPR 2024.

    minimise over S   L_base + lambda_CC L_CC + lambda_CM L_CM

    L_base  that of DM or of IDM
    L_CC  class centralization, in a network drawn from a pool that was trained on the real data        lambda_CC  0.05
    L_CM  covariance matching of local descriptors, in the network of L_base        lambda_CM  0.01

The terms are in `rayd.objectives.relations`, with their symbols; any method may add them
(`terms.centralization.weight=0.05`).

**Paper and released code differ.** The paper's weights are 0.05 and 0.01 for 1 and 10 images per
class, 0.003 and 0.01 for 50. The code has 0.05 and 0.01 on DM, but 0.01 and 0.03 on IDM, whatever
the number of images; the paper's are the defaults here. The code draws one of 1,000 ResNet-18 with
instance normalisation in each step, each trained for 40 epochs, the default; here they are the
`classifiers`, ten unless said otherwise, squeezed once like all observers, of which a step draws
one (`classifiers.order`). For 64 pixels they keep 2 x 2 positions of the last map, 2,048 features,
as there. The recipes follow the
paper: 30 epochs (`classifiers.squeeze.epochs`), images of step size 1 on IDM, too (IDM's own is 0.2
with momentum 0.5, here 0.4 without), 256 real images of a class but for CIFAR with one image, and
five students. Eq. 3 has an exponential whose scale the paper does not state, so that L_CC keeps
the form of the code: see `rayd.objectives.relations`.

A covariance needs two images of a class: with one, DM has no L_CM, while IDM expands it to four.

`real: measured`, the default on DM, measures means and covariances of every class once over all
real images; on IDM networks change, so the real side is sampled as the paper has it.
"""

from __future__ import annotations

from rayd.config import Recipe
from rayd.methods import idm
from rayd.methods.base import Method
from rayd.objectives import (
    Centralization,
    ClassAware,
    CovarianceMatching,
    MeanMatching,
    Term,
)

CITATION = """@inproceedings{deng2024iid,
  title     = {Exploiting Inter-sample and Inter-feature Relations in Dataset Distillation},
  author    = {Deng, Wenxiao and Li, Wenbin and Ding, Tianyu and Wang, Lei and Zhang, Hongguang and Huang, Kuihua and Huo, Jing
               and Gao, Yang},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024}
}"""


class _Related(Method):
    """Base of both methods."""

    citation = CITATION

    @classmethod
    def relations(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Class centralization and covariance matching, with the paper's weights for the number of
        images.
        """
        weight = 0.003 if recipe.ipc >= 50 else 0.05
        return Centralization(weight=weight), CovarianceMatching(weight=0.01)


class RelatedDistributionMatching(_Related):
    """DM with class centralization and covariance matching."""

    name = "iid-dm"

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Three terms: the means of DM, and both relations."""
        return MeanMatching(), *cls.relations(recipe)


class RelatedImprovedMatching(_Related):
    """IDM with class centralization and covariance matching."""

    name = "iid-idm"
    defaults = idm.DEFAULTS

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Four terms: the means and classes of IDM, and both relations."""
        return MeanMatching(), ClassAware(), *cls.relations(recipe)
