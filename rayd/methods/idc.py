"""IDC: several images in one, and gradients of networks that learn from the real images.

Jang-Hyun Kim, Jinuk Kim, Seong Joon Oh, Sangdoo Yun, Hwanjun Song, Joonhyun Jeong, Jung-Woo Ha and
Hyun Oh Song, "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022.

    minimise over S   E_theta0 [ sum_{t < i} sum_c D( grad_theta CE(A(T_c); theta_t), grad_theta CE(A(E(S)_c); theta_t) ) ]
    theta_{t+1} = theta_t after a few steps of SGD on real images

    E(S)  each stored image cut into f x f squares, which are enlarged to full size: f^2 images for the storage of one
          (`synthetic.factor`, 2; `rayd.synthetic.partitioned`)
    D     sum of absolute differences of all entries (`terms.gradient.distance`)
    A     colour, crop and cutout, together, the same for both sides of a class
    i     100 steps with one network, then a fresh one (`observers.model_pool.push_every`)

The paper finds two faults of DC: images are few where storage could hold more of less resolution, and
gradients of networks that learn from the synthetic images vanish early, as those are learned soon.
So images are cut, and networks learn from real ones, of whose training the early part is used.

**Paper and released code** as remembered, not run beside ours: networks train on real images between
the steps for one short pass, here `model_pool.train_steps` steps of 64; the real batch is 64 a class;
images start from real ones that are made smaller and move by SGD of size 0.005 with momentum 0.5.
Students train with CutMix. IDC-I, without cutting, is `synthetic.kind: pixels`.

Use it where storage is counted and images have pixels to spare. It needs `real: sampled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rayd.config import DSA_STRATEGY, Precision, Recipe
from rayd.methods.base import Method
from rayd.objectives import GradientMatching, Term

AUGMENTATION = "color+crop+cutout"
"""What real and synthetic images go through, and those that networks learn from."""


class EfficientParameterization(Method):
    """Class-wise gradients of images that are cut from others, in networks that learn from real
    ones.
    """

    name = "idc"
    # gradients of gradients lose too much to bfloat16
    least_precision: ClassVar[Mapping[str, Precision]] = {"synthesis": "tf32"}
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
                "trained": "looking",
                "train_steps": 8,
                "batch_size": 64,
                "augmentation": AUGMENTATION,
            },
        },
        "synthetic": {"kind": "partitioned", "factor": 2},
        "synthesis": {
            "steps": 20000,
            "learning_rate": 0.005,
            "momentum": 0.5,
            "checkpoint_every": 500,
        },
        "evaluation": {"augmentation": DSA_STRATEGY, "mix": "cutmix"},
    }

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """One term: the absolute differences of gradients."""
        return (GradientMatching(distance="absolute"),)
