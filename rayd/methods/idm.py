"""IDM: distribution matching with partitioned images, networks in training, and a classification
term weighted by their accuracy.

Ganlong Zhao, Guanbin Li, Yipeng Qin and Yizhou Yu, "Improved Distribution Matching for Dataset
Condensation", CVPR 2023.

    minimise over S   E_theta [ sum_c || mean_{x in T_c} psi_theta(A(x)) - mean_{s in E(S)_c} psi_theta(A(s)) ||^2
                                + lambda p_theta sum_c mean_{s in E(S)_c} CE(phi_theta(A(s)), c) ]

    T_c    real images of class c, 256 of them in a step           psi_theta, phi_theta  features before the classifier, logits
    E(S)   each synthetic image expanded to four of full size      theta  a network of a queue trained alongside the synthesis
    A      one differentiable augmentation for both sides (DSA)    p_theta  its accuracy on real images, a fraction

Partition and expansion are in `rayd.synthetic.partitioned`, the queue in
`rayd.engine.gradients.model_pool`, the second term, called `class_aware`, in
`rayd.objectives.classification`.

**Paper and released code differ**, and the defaults of the code's arguments are not the method's
settings: recipes follow the repository's command file.

- p is in percent in the code, so its lambda of 0.5 (0.1 for CIFAR-10 IPC 50 and CIFAR-100 IPC 10
  and 50, 0.8 for Tiny-ImageNet IPC 50) is `terms.class_aware.weight: 50` (10, 80) here. There, p is
  a running mean that evaluations reset; here it is the accuracy on the last mini-batches of the
  network's training.
- The code takes one optimizer step for each class, with momentum 0.5: every class takes its own
  step of size 0.2 and continues by momentum during the steps of the others, which adds up to twice
  the step. One step of size 0.4 for all classes without momentum moves the images equally far, with
  all gradients taken at the same point.
- For one image per class of CIFAR the code draws 5,000 real images of a class and adds a network
  every 5 iterations; on Tiny-ImageNet it adds one every 30, as for more images per class.

Use it where DM saturates: it gains most for few images per class, at the cost of training networks
alongside.
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
    # the code's step of 0.2 with momentum 0.5 adds up to twice that; here, a single step for all
    # classes moves the images as far
    "synthesis": {"steps": 20000, "learning_rate": 0.4, "momentum": 0.0, "checkpoint_every": 500},
}
"""Settings of the released commands for 10 images per class."""


class ImprovedDistributionMatching(Method):
    """Class-wise feature means of expanded images in networks that are being trained, and the
    images' cross-entropy.
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
        """Two terms: the means of DM, and the cross-entropy."""
        return MeanMatching(), ClassAware()
