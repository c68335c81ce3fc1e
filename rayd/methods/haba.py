r"""HaBa: bases, and hallucinators that make several images of each, learned by trajectory matching.

Songhua Liu, Kai Wang, Xingyi Yang, Jingwen Ye and Xinchao Wang, "Dataset Distillation via
Factorization", NeurIPS 2022.

    minimise over B, H, alpha   E_t [ || theta_N - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2 ] + lambda L_H(A)

    B, H   bases and hallucinators: images x = h(b), k of each basis (`rayd.synthetic.hallucinated`)
    theta  a student that learns from them, as in MTT; alpha its step size (`rayd.objectives.trajectory`)
    L_H    how alike the images of one basis are in an adversary A that learns what they share
           (`rayd.objectives.hallucinations`)                lambda  0.1 (`terms.hallucinator_contrast.weight`)

A few hallucinators and bases make many pairs, and what all images have in common is stored once. The
adversarial terms keep hallucinators from making the same image of a basis. The factorization works with
any method (`synthetic.kind: hallucinated`); trajectory matching is the paper's choice.

**Released code**, which the defaults follow: five hallucinators of one 3 x 3 convolution, a scale and
a shift of each position and one transposed convolution; 15,000 steps of SGD of size 100 with momentum
0.95 for bases and hallucinators alike; the adversary is a ConvNet, of step size 0.001 and momentum 0.9.
Images of CIFAR are whitened. **Different here:**

- A step of a student takes as many images as there are bases (`objective.batch_size`), drawn of all
  pairs of basis and hallucinator; in the code each basis once, all by one hallucinator that is drawn.
- Students in the end see all images in an epoch, k times as many as there, where a hallucinator is
  drawn for each basis. So recipes have a fifth of the epochs, and batches that make as many steps.
- The adversary learns from all pairs of images of one basis among at most 500 images
  (`observers.model_pool.batch_size`), there from those of two hallucinators.
- What the hallucinators' term sees is augmented alike for all images of a class in a step, so that
  images of one basis differ by their hallucinators alone; there each has parameters of its own.
- Momentum of the step size alpha is that of the images, there 0.9, where alpha is kept above 0.001;
  here its logarithm is learned (`rayd.synthetic.learned_step_size`).
- The code standardises each batch of students' images as a whole; here they stay as they are.

Storage counts bases and hallucinators: 27,840 numbers of the latter at 32 x 32 pixels, a little less
than another image of each of ten classes, so that `ipc` bases a class are beside `ipc + 1` whole
images of other methods. The numbers that LS-MTT's paper quotes are in the recipes; whether they count
so is not said there.

Use it for few images per class whose look is shared.
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
"""One network that learns from what is learned, and is never replaced."""


class Factorization(TrajectoryMethod):
    """Trajectory matching of images that hallucinators make of bases."""

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
            # the adversary sees no real images: none need to be drawn
            "observers": {"augmentation": DSA_STRATEGY, "real_batch": 1, "model_pool": _ADVERSARY},
            "synthetic": {"kind": "hallucinated"},
            "synthesis": {"steps": 15_000, "learning_rate": 100.0, "momentum": 0.95},
        },
    )

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """One term beside the students: images of one basis should differ."""
        return (HallucinatorContrast(per_basis=recipe.synthetic.per_basis),)
