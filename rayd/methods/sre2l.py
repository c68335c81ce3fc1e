"""SRe2L: squeeze the data into a network, recover images from its normalisations, relabel them with
it.

Zeyuan Yin, Eric Xing and Zhiqiang Shen, "Squeeze, Recover and Relabel: Dataset Condensation at
ImageNet Scale From A New Perspective", NeurIPS 2023.

    minimise over X   CE(phi(A(X)), y) + r sum_l w_l ( || mean_l(A(X)) - mean_l ||_2 + || var_l(A(X)) - var_l ||_2 )

    X     a block of synthetic images (N, channels, height, width), from Gaussian noise; y their labels
    phi   a network that was trained on the real data, in eval mode
    A     a random view: resized crop (0.08 to 1 of the area), flip, roll; on CIFAR a roll alone
    mean_l, var_l   of the input of batch normalisation l, over images and positions, (channels,); without argument: real images
    w_l   10 for the first normalisation, 1 for the others         r   0.01 (`terms.moments.weight`; 1 on Tiny-ImageNet)

Adam (0.5, 0.9), step size 0.25 along a cosine to zero, 1,000 steps on CIFAR and 4,000 elsewhere, in
blocks of 100 images that cycle through the classes: one image of each of a hundred, ten of each of
ten (`synthesis.block: classes` has one of each, whatever their number); pixels are kept in range
after every step. Students then learn from the network's softened labels (T = 20).

**Paper and released code differ.** The paper's image priors (total variation, l2) have weight 0 in
the scripts and are omitted here. Real statistics in the code are the running ones of training,
exponentially averaged over batches that were augmented and with unbiased variance; here they are
measured once over the training split without augmentation, in eval mode, with biased variance like
that of X. The code stores the final images as JPEG, reduced to 8 bits; here they are not. It
reports the best of all test evaluations; here the last is the default. On CIFAR-100 it labels
online with mixup(0.8) and T = 30, and weight decay applies to all parameters; in training on stored
labels (ImageNet, Tiny-ImageNet) it excludes biases and normalisations, `evaluation.weight_decay_of:
weights` in those recipes.

Use it if the data set is too large for methods that use real images in every step; it needs a
network with batch normalisation. For few classes or images, RDED and EDC are better.
"""

from __future__ import annotations

from rayd.config import Recipe
from rayd.methods.base import Method
from rayd.methods.decoupled import family
from rayd.objectives import CrossEntropy, NormalizationMatching, Term


class SqueezeRecoverRelabel(Method):
    """Cross-entropy and the statistics of normalisations, over all images."""

    name = "sre2l"
    citation = """@inproceedings{yin2023sre2l,
  title     = {Squeeze, Recover and Relabel: Dataset Condensation at {ImageNet} Scale From A New Perspective},
  author    = {Yin, Zeyuan and Xing, Eric and Shen, Zhiqiang},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2023}
}"""
    needs_trained_observers = True
    defaults = family(
        {
            "synthesis": {"steps": 1000, "learning_rate": 0.25, "transform": {"roll": 4}},
            "evaluation": {"epochs": 300, "batch_size": 128},
        }
    )

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Two terms: the cross-entropy, and the inputs of normalisations."""
        return CrossEntropy(), NormalizationMatching()
