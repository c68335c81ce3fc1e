"""G-VBSM: various backbones, layers and statistics in place of one.

Shitong Shao, Zeyuan Yin, Muxin Zhou, Xindong Zhang and Zhiqiang Shen, "Generalized Large-Scale Data
Condensation via Various Backbone and Statistical Matching", CVPR 2024.

    minimise over X   CE(phi(A(X)), y) + r sum_h w_h ( || s_h - mean_h ||_2 + || s'_h - var_h ||_2 ) + densification(A(X))

    X     a block of synthetic images, from Gaussian noise; y their labels; A a random view (shift 4, flip, roll)
    phi   networks that were trained on the real data, a different one in each step
    h     hooks: inputs of normalisations by channel, inputs of convolutions by channel and by patch position
    s_h   mean of X at the hook, s'_h its variance, smoothed over steps: s <- 0.8 s + 0.2 stat, with the gradient of stat
    w_h   10 for the first hooked layer, the input of the first convolution (both views); 1 for the others
    r     0.01 (`terms.moments.weight`)

In each step a convolution is dropped with probability 0.4 (`terms.moments.drop`). Patches are 4
positions wide (16 on ImageNet); see `rayd.statistics.transforms`. Densification, weight 1, is in
`rayd.objectives.densification`. Adam (0.5, 0.9), 4,000 steps of size 0.05 (0.1 on ImageNet) along a
cosine to zero. Students learn the mean logits of the observers by mean squared error, plus 0.15
times the cross-entropy with the hard label (0.1 on ImageNet and Tiny-ImageNet).

**Paper and released code.** Smoothing starts from zero without bias correction, as in the code. The
code shares the smoothed statistics among all blocks of a network, in order of execution; here, each
block has its own, so that blocks are independent. The code's real statistics are averages over
augmented batches, whose variances lack the part between batches, and running statistics for
normalisations; here, all are measured once over the whole training split. For an observer without
batch normalisation, only convolutions are compared. In the code, teachers label the images of
CIFAR-10 before mixing, which is a mistake; here, after mixing. The code does not apply weight decay
to students' biases and normalisations; here, this is a setting of recipes
(`evaluation.weight_decay_of: weights`).

Use it if students of other architectures should learn well from the set; the cost of a step does
not depend on the number of observers. EDC builds on it and is consistently better.
"""

from __future__ import annotations

from rayd.config import Recipe
from rayd.methods.base import Method
from rayd.methods.decoupled import BACKBONES, SQUEEZE, family
from rayd.objectives import CrossEntropy, Densification, MomentMatching, Term


class GeneralizedMatching(Method):
    """Statistics of normalisations and convolutions, by channel and patch, through several
    architectures.
    """

    name = "gvbsm"
    citation = """@inproceedings{shao2024gvbsm,
  title     = {Generalized Large-Scale Data Condensation via Various Backbone and Statistical Matching},
  author    = {Shao, Shitong and Yin, Zeyuan and Zhou, Muxin and Zhang, Xindong and Shen, Zhiqiang},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024}
}"""
    needs_trained_observers = True
    defaults = family(
        {
            "observers": {"networks": [*BACKBONES]},
            "squeeze": SQUEEZE,
            "synthesis": {
                "steps": 4000,
                "learning_rate": 0.05,
                # images of a class are consecutive, so that a block has several of each class,
                # which densification spreads out
                "order": "class",
                "transform": {"shift": 4, "flip": True, "roll": 32},
            },
            "evaluation": {"epochs": 1000, "batch_size": 100, "loss": "mse", "hard_weight": 0.15},
        }
    )

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Three terms: the cross-entropy, the statistics of all images, and densification within
        each class.
        """
        return CrossEntropy(), MomentMatching(), Densification()
