"""IDM: distribution matching with partitioned images, growing networks, and a classification term
for those that know the classes.

Ganlong Zhao, Guanbin Li, Yipeng Qin and Yizhou Yu, "Improved Distribution Matching for Dataset
Condensation", CVPR 2023.

    minimise over S   E_theta [ sum_c || mean_{x in T_c} psi_theta(A(x)) - mean_{s in E(S)_c} psi_theta(A(s)) ||^2
                                + lambda p_theta sum_c mean_{s in E(S)_c} CE(phi_theta(A(s)), c) ]

    T_c    real images of class c, 256 of them in a step           psi_theta, phi_theta  features before the classifier, logits
    E(S)   each synthetic image expanded to four of full size      theta  a network of a queue that grows beside the synthesis
    A      one differentiable augmentation for both sides (DSA)    p_theta  its accuracy on real images, a fraction

Partition and expansion is in `rayd.synthetic.partitioned`, the queue in `rayd.engine.gradients.model_pool`,
the second term, called `class_aware`, in `rayd.objectives.classification`.

**Paper and released code differ**, and the code's own argument defaults are not the method: the
repository's command file is what recipes follow.

- p is in percent in the code, so its lambda of 0.5 (0.1 for CIFAR-10 IPC 50 and CIFAR-100 IPC 10
  and 50, 0.8 for Tiny-ImageNet IPC 50) is `terms.class_aware.weight: 50` (10, 80) here. There, p is
  a running mean that evaluations reset; here it is that of the last mini-batches that the network
  was trained on.
- The code moves the optimizer once for each class, with momentum 0.5: every class takes its own
  step of size 0.2 and goes on for the steps of the others, by momentum, which sums to twice the
  step. One step for all classes without momentum and of size 0.4 moves the images as far, with
  gradients that are all taken at the same place.
- For one image per class of CIFAR the code draws 5,000 real images of a class and adds a network
  every 5 iterations; on Tiny-ImageNet it adds one every 30, as for more images.

Use it where DM saturates: it gains most at few images per class, for the price of training networks
meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayd.config import Recipe
from rayd.methods.base import Method
from rayd.objectives import ClassAware, MeanMatching, Term

DEFAULTS: Mapping[str, Any] = {
    "real": "sampled",
    "observers": {"model_pool": {}},
    "synthetic": {"kind": "partitioned", "factor": 2},
    # the code's 0.2 with momentum 0.5 goes on by momentum to twice the step: here one step goes as
    # far, as there is one for all classes
    "synthesis": {"steps": 20000, "learning_rate": 0.4, "momentum": 0.0, "checkpoint_every": 500},
}
"""As the released commands have it for 10 images per class."""


class ImprovedDistributionMatching(Method):
    """Class-wise feature means of expanded images in networks in training, and their
    cross-entropy.
    """

    name = "idm"
    citation = """@inproceedings{zhao2023idm,
  title     = {Improved Distribution Matching for Dataset Condensation},
  author    = {Zhao, Ganlong and Li, Guanbin and Qin, Yipeng and Yu, Yizhou},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2023}
}"""
    defaults = DEFAULTS

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Two terms: the means of DM, and the classes."""
        return MeanMatching(), ClassAware()
