"""IDC: several images in one, and gradients of networks that learn from the real images.

Jang-Hyun Kim, Jinuk Kim, Seong Joon Oh, Sangdoo Yun, Hwanjun Song, Joonhyun Jeong, Jung-Woo Ha and
Hyun Oh Song, "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022.

    minimise over S   E_theta0 [ sum_{t < i} sum_c D( grad_theta CE(A(T_c); theta_t), grad_theta CE(A(E(S)_c); theta_t) ) ]
    theta_{t+1} = theta_t after a few steps of SGD on real images

    E(S)  each stored image cut into f x f squares, which are enlarged to full size: f^2 images for the storage of one
          (`synthetic.factor`, 2; `rayd.synthetic.partitioned`)
    D     sum of squared differences of all entries of the convolutions (`terms.gradient.distance`, `.layers`)
    A     colour, crop and cutout, together, the same for both sides of a class
    i     100 steps with one network, then a fresh one (`observers.model_pool.push_every`), 2,000 networks

The paper identifies two weaknesses of DC: there are few images although the storage could hold more
at a lower resolution, and the gradients of networks that learn from the synthetic images vanish
early, as these few images are learned quickly. So images are cut, and networks learn from real
ones, in the early part of their training.

**Released code**, whose settings for CIFAR-10 are the defaults: 64 real images per class; the
classifier and parameters of one dimension are excluded; between the steps, networks learn from
2,000 real images in 32 batches of 64 (500 images in 8 batches on other data than CIFAR-10), with
colour and crop augmentation. On larger images and greyscale ones the distance is absolute. Images
are optimised by SGD with momentum 0.5 and step size 0.005 ipc / 10 for pixels in [0, 1]; for
normalised ones, with a deviation of 1/4, this is 16 times as large, which is the default. Students
are trained for 1,000 epochs in batches of 64, with cutmix, flips, colour, and crops, scales or
rotations. **Different here:**

- There is one optimizer step for all classes, in the code one for each class. As momentum carries
  each class on during the steps of the others, images move equally far.
- Networks are trained without cutmix. The code compares at most 128 images of a class, redrawn in
  each step; here, all are compared. Pixels are kept in range after every step, in the code once per
  network.
- Cutmix is applied to every batch of students, in the code to half of them.

IDC-I, without cutting, is `synthetic.kind: pixels`.

Use it if storage is what counts and images have more pixels than they need. It needs `real:
sampled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rayd.config import Precision, Recipe, merge
from rayd.methods.base import Method
from rayd.objectives import GradientMatching, Term

AUGMENTATION = "color+crop+cutout"
"""Augmentation of real and synthetic images."""
STEP = 0.005 / 10 * 16
"""Step size of normalised images for one image per class."""


class EfficientParameterization(Method):
    """Class-wise gradients of images that are cut from others, in networks that learn from real
    images.
    """

    name = "idc"
    # second-order gradients lose too much precision in bfloat16
    least_precision: ClassVar[Mapping[str, Precision]] = {"synthesis": "tf32"}
    version = 1  # version 0 compared absolute differences of all layers
    citation = """@inproceedings{kim2022idc,
  title     = {Dataset Condensation via Efficient Synthetic-Data Parameterization},
  author    = {Kim, Jang-Hyun and Kim, Jinuk and Oh, Seong Joon and Yun, Sangdoo and Song, Hwanjun and Jeong, Joonhyun and
               Ha, Jung-Woo and Song, Hyun Oh},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2022}
}"""
    defaults: ClassVar[Mapping[str, Any]] = {
        "real": "sampled",
        "observers": {
            "augmentation": AUGMENTATION,
            "real_batch": 64,
            "model_pool": {
                "start": 1,
                "capacity": 1,
                "push_every": 100,
                "trained": "used",
                "train_steps": 32,
                "batch_size": 64,
                "augmentation": "color+crop",
            },
        },
        "synthetic": {"kind": "partitioned", "factor": 2},
        "synthesis": {"steps": 200_000, "momentum": 0.5, "clip": True, "checkpoint_every": 500},
        "evaluation": {
            "epochs": 1000,
            "batch_size": 64,
            "schedule": {"name": "multistep", "milestones": [2 / 3, 5 / 6], "factor": 0.2},
            "augmentation": "flip+color+crop_flip+color+scale_flip+color+rotate",
            "mix": "cutmix",
        },
    }

    @classmethod
    def defaults_at(cls, ipc: int) -> Mapping[str, Any]:
        """The step size of the images is proportional to their number per class."""
        return merge(cls.defaults, {"synthesis": {"learning_rate": STEP * ipc}})

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """One term: the squared differences of gradients of convolutions."""
        return (GradientMatching(distance="squared", layers="convolutions"),)
