"""DataDAM: attention matching through randomly initialised networks.

Ahmad Sajedi, Samir Khaki, Ehsan Amjadian, Lucy Z. Liu, Yuri A. Lawryshyn and Konstantinos N.
Plataniotis, "DataDAM: Efficient Dataset Distillation with Attention Matching", ICCV 2023.

    minimise over S   E_theta [ L_SAM + lambda L_MMD ]

    L_SAM   sum over the blocks but the last, and over classes, of || mean a(T_c) - mean a(S_c) ||^2
    a(x)    attention map of a block, sum over channels of |f|^p at each position, as a vector of length 1
    L_MMD   sum over classes of || mean f(T_c) - mean f(S_c) ||^2, f what the classifier reads: DM's objective
    theta   a ConvNet, drawn from the initialisation; both sides see one augmentation (DSA)
    lambda  0.01, `terms.mean.weight`; p is `terms.attention.power`

Paper and released code differ. The paper raises absolute values to the power p = 4 (the default
here); the code sums them without a power, `terms.attention.power=1`. The code computes attention
from the activations before a block's pooling, here from the block's output. It multiplies the loss
by 100, which amounts to a step size 100 times as large, and always builds ConvNets with batch
normalisation; here, `observers.networks` sets the normalisation. The code trains students for 1,800
epochs in batches of 64 by default, the recipes for 1,000 in batches of 256; whitening, an option of
the code, is `data.normalization: zca`.

`real: measured`, the default, takes the expectation over theta from a pool of fixed networks through
which all real images are measured once, as for DM (`rayd.methods.dm`); `real: sampled` is the
published form, with a fresh network and real mini-batches in each step.
"""

from __future__ import annotations

from rayd.config import Recipe
from rayd.methods.base import Method
from rayd.objectives import AttentionMatching, MeanMatching, Term


class AttentionDistillation(Method):
    """Attention maps of the blocks, and means of the last features."""

    name = "datadam"
    citation = """@inproceedings{sajedi2023datadam,
  title     = {{DataDAM}: Efficient Dataset Distillation with Attention Matching},
  author    = {Sajedi, Ahmad and Khaki, Samir and Amjadian, Ehsan and Liu, Lucy Z. and Lawryshyn, Yuri A. and
               Plataniotis, Konstantinos N.},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2023}
}"""

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Attention by class, and DM's term with a small weight."""
        return AttentionMatching(), MeanMatching(weight=0.01)
