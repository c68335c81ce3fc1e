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

The paper finds two faults of DC: images are few where storage could hold more of less resolution, and
gradients of networks that learn from the synthetic images vanish early, as those are learned soon.
So images are cut, and networks learn from real ones, of whose training the early part is used.

**Released code**, whose settings for CIFAR-10 these are: 64 real images of a class; the classifier and
parameters of one dimension do not count; networks learn from 2,000 real images between the steps, 32
batches of 64 (500 images, 8 batches, on other data than CIFAR-10), in colour and cropped. On larger
images and greyscale ones the distance is absolute. Images move by SGD with momentum 0.5, of size
0.005 ipc / 10 for pixels in [0, 1]: for normalised ones, of deviation 1/4, that is 16 times as large,
the default. Students learn for 1,000 epochs in batches of 64, with cutmix, mirrored and coloured, and
cropped, scaled or rotated. **Different here:**

- One optimizer step for all classes, there one for each: as each goes on by momentum for the steps of
  the others, images move as far.
- Networks see no cutmix when they learn. At most 128 images of a class are compared there, drawn
  anew in each step; here all. Pixels stay in range after every step, there once a network.
- Cutmix mixes every batch of students, there half of them.

IDC-I, without cutting, is `synthetic.kind: pixels`.

Use it where storage is counted and images have pixels to spare. It needs `real: sampled`.
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
"""Step size of normalised images for one image a class."""


class EfficientParameterization(Method):
    """Class-wise gradients of images that are cut from others, in networks that learn from real
    ones.
    """

    name = "idc"
    # gradients of gradients lose too much to bfloat16
    least_precision: ClassVar[Mapping[str, Precision]] = {"synthesis": "tf32"}
    version = 1  # absolute differences of all layers before
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
        """The step size of images is that of one image a class times their number."""
        return merge(cls.defaults, {"synthesis": {"learning_rate": STEP * ipc}})

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """One term: the squared differences of gradients of convolutions."""
        return (GradientMatching(distance="squared", layers="convolutions"),)
