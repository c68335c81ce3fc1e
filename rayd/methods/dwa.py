"""DWA: SRe2L from real images, with network weights adjusted for each block so that blocks differ.

Jiawei Du, Xin Zhang, Juncheng Hu, Wenxin Huang and Joey Tianyi Zhou, "Diversity-Driven Synthesis:
Enhancing Dataset Distillation through Directed Weight Adjustment", NeurIPS 2024.

    minimise over X_b   CE(phi_b(A(X_b)), y) + r sum_l w_l ( || mean_l(A(X_b)) - mean_l ||_2 + v || var_l(A(X_b)) - var_l ||_2 )
    phi_b   phi after K steps uphill at the first images of the block: theta <- theta + (rho / K) g / || g ||
    g       grad_theta CE(phi(X_b), y)
    X_b     a block of synthetic images, from real ones; y their labels
    phi     a trained network, as in `rayd.methods.sre2l`, which has the other symbols
    K, rho  12 and 0.015 (`observers.ascent_steps`, `observers.ascent_length`); 15 steps on ImageNet
    v       11 (`terms.moments.variance_weight`), 2 on ImageNet

Blocks recovered through the same network turn out similar. Gradient ascent of the weights on the
loss of a block's initial images makes every block match a slightly different network.

**Paper and released code.** The number of steps, their length and the weight of variances are those
of the code. Its real statistics are the running ones of training; here, they are measured through
the trained network before its adjustment (see `rayd.methods.sre2l`). The ascent runs in evaluation
mode, in the code on the view of the first step, here on the initial images without augmentation.
ImageNet and Tiny-ImageNet use 2,000 steps, half of SRe2L's; weights, step sizes and students of the
code's scripts are in the recipes. Other settings are SRe2L's.

Use it in place of SRe2L for several images per class, which make several blocks.
"""

from __future__ import annotations

from rayd.config import Recipe, merge
from rayd.methods.sre2l import SqueezeRecoverRelabel
from rayd.objectives import CrossEntropy, NormalizationMatching, Term


class DirectedWeightAdjustment(SqueezeRecoverRelabel):
    """SRe2L from real images, with weights adjusted for each block and more weight on variances."""

    name = "dwa"
    # since version 1, resumed runs adjust the weights by the loss of the initial images
    version = 1
    citation = """@inproceedings{du2024dwa,
  title     = {Diversity-Driven Synthesis: Enhancing Dataset Distillation through Directed Weight Adjustment},
  author    = {Du, Jiawei and Zhang, Xin and Hu, Juncheng and Huang, Wenxin and Zhou, Joey Tianyi},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2024}
}"""
    defaults = merge(
        SqueezeRecoverRelabel.defaults,
        {"observers": {"ascent_steps": 12}, "synthetic": {"init": "real"}},
    )

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Two terms: the cross-entropy, and inputs of normalisations, mainly their variances."""
        return CrossEntropy(), NormalizationMatching(variance_weight=11.0)
