r"""HaBa: bases, and hallucinators that generate several images from each, learned by trajectory
matching.

Songhua Liu, Kai Wang, Xingyi Yang, Jingwen Ye and Xinchao Wang, "Dataset Distillation via
Factorization", NeurIPS 2022.

    minimise over B, H, alpha   E_t [ || theta_N - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2 ] + lambda L_H(A)

    B, H   bases and hallucinators: images x = h(b), k of each basis (`rayd.synthetic.hallucinated`)
    theta  a student that learns from them, as in MTT; alpha its step size (`rayd.objectives.trajectory`)
    L_H    how alike the images of one basis are in an adversary A that learns what they share
           (`rayd.objectives.hallucinations`)                lambda  0.1 (`terms.hallucinator_contrast.weight`)

A few hallucinators and bases form many pairs, and features that all images share are stored only
once. The adversarial terms prevent hallucinators from generating the same image from a basis. The
factorization works with any method (`synthetic.kind: hallucinated`); trajectory matching is the
paper's choice.

**Released code**, which the defaults follow: five hallucinators of one 3 x 3 convolution, a scale and
a shift of each position and one transposed convolution; 15,000 steps of SGD of size 100 with momentum
0.95 for bases and hallucinators alike; the adversary is a ConvNet, of step size 0.001 and momentum 0.9.
Images of CIFAR are whitened. **Different here:**

- A step of a student takes as many images as there are bases (`objective.batch_size`), drawn from
  all pairs of basis and hallucinator; in the code, each basis once, all with one randomly drawn
  hallucinator.
- In evaluation, an epoch of a student has all images, k times as many as in the code, which draws
  one hallucinator for each basis. Recipes therefore have a fifth of the epochs, and batch sizes
  that give as many steps.
- The adversary learns from all pairs of images of one basis among at most 500 images
  (`observers.model_pool.batch_size`); in the code, from those of two hallucinators.
- For the hallucinators' term, all images of a class share the augmentation of a step, so that
  images of one basis differ only by their hallucinators; in the code, each image has its own
  parameters.
- The momentum of the step size alpha is that of the images; in the code it is 0.9, and alpha is
  kept above 0.001. Here, the logarithm of alpha is learned (`rayd.synthetic.learned_step_size`).
- The code standardises each batch of students' images as a whole; here, batches are not
  standardised.

Storage counts bases and hallucinators. The latter have 27,840 numbers at 32 x 32 pixels, slightly
less than one more image for each of ten classes, so that `ipc` bases per class compare with `ipc +
1` whole images of other methods. The numbers that LS-MTT's paper quotes are in the recipes; the
paper does not state whether they count storage in this way.

Use it for few images per class, if images share their appearance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rayd.config import DSA_STRATEGY, Recipe, merge
from rayd.methods.mtt import DEFAULTS
from rayd.methods.trajectories import TrajectoryMethod
from rayd.objectives import HallucinatorContrast

if TYPE_CHECKING:
    from rayd.objectives import Term

_ADVERSARY: Mapping[str, Any] = {
    "start": 1,
    "capacity": 1,
    "push_every": None,
    "source": "synthetic",
    "trained": "used",
    "train_steps": 1,
    "batch_size": 500,
    "augmentation": DSA_STRATEGY,
    "loss": "contrast",
    "learning_rate": 0.001,
    "weight_decay": 0.0,
}
"""A pool of one network, trained on the synthetic images and never replaced."""


class Factorization(TrajectoryMethod):
    """Trajectory matching of images that hallucinators generate from bases."""

    name = "haba"
    citation = """@inproceedings{liu2022haba,
  title     = {Dataset Distillation via Factorization},
  author    = {Liu, Songhua and Wang, Kai and Yang, Xingyi and Ye, Jingwen and Wang, Xinchao},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2022}
}"""
    defaults = merge(
        DEFAULTS,
        {
            "real": "sampled",
            # the adversary uses no real images, so none need to be drawn
            "observers": {"augmentation": DSA_STRATEGY, "real_batch": 1, "model_pool": _ADVERSARY},
            "synthetic": {"kind": "hallucinated"},
            "synthesis": {"steps": 15_000, "learning_rate": 100.0, "momentum": 0.95},
        },
    )

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """One term besides trajectory matching: images of one basis should differ."""
        return (HallucinatorContrast(per_basis=recipe.synthetic.per_basis),)
