"""FRePo and KRR: images from which a ridge regression on a network's features learns to predict the
real ones.

Yongchao Zhou, Ehsan Nezhadarya and Jimmy Ba, "Dataset Distillation using Neural Feature
Regression", NeurIPS 2022; after Timothy Nguyen, Roman Novak, Lechao Xiao and Jaehoon Lee, "Dataset
Distillation with Infinitely Wide Convolutional Networks" (KIP), NeurIPS 2021.

    minimise over S   E_theta [ mean_i (1/2) || K_ts (K_ss + lambda I)^-1 Y_s - Y_t ||_i^2 ]         K_ab = X_a X_b^T

    X_t, X_s  what the classifier of network theta reads of a real mini-batch (N, d) and of the
              synthetic images (n, d)
    Y_t, Y_s  centred one-hot rows of their labels; those of the synthetic images divided by
              sqrt(C / 10) for C classes                        lambda  1e-6 trace(K_ss) / n (`terms.regression.relative_ridge`)
    theta     FRePo: one of a pool of 10 networks, each trained on S: a step of Adam (3e-4) after every use, a fresh network in
              its place after 100 of them. KRR: a fresh random network in each step, a finite
              stand-in for KIP's kernel

The pool is a model pool (`observers.model_pool`) with a `lifetime`. The mathematics is in
`rayd.objectives.ridge`.

**Paper and released code, and what differs here.**

- The code's optimizer is LAMB with a step size of 3e-4 along a cosine to a tenth; here it is Adam
  with 1e-3, as in the authors' PyTorch version, along a cosine to zero.
- The code draws 1,024 images from the whole set; here `observers.real_batch` is a number per class,
  103 for each of ten classes.
- As in the code, networks of the pool are trained by the squared distance from the targets of the
  regression, at a constant step size, and the first ones are replaced after 10, 20, ... steps. The
  code's command uses networks with batch normalisation (`observers.networks: {name: convnet, norm:
  batch}`); here, they have instance normalisation.
- The code regresses on the images and their mirror images; here, only on the images.
- FRePo learns its labels, with a margin. The code's targets are unconstrained; here they are
  centred rows of a softmax, so that the set can train any network (`synthetic.labels: classes`, the
  default of `frepo`; `hard` keeps them fixed, as in KRR).
- The paper's network doubles its channels from block to block; the default here is the field's
  standard ConvNet.
- Data are whitened as in the code, which exempts MNIST: channels are standardised first and the
  ridge is relative to the mean eigenvalue (`data.normalization: zca-scaled`); after MTT's `zca`,
  less than half of their deviation is left. Reimplementations without whitening report chance
  accuracy.

Use them for few images per class, where solving for the classifier in closed form helps most. They
need `real: sampled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rayd.config import Precision, Recipe, merge
from rayd.methods.base import Method
from rayd.objectives import RidgeRegression, Term

_REGRESSION: Mapping[str, Any] = {
    "real": "sampled",
    "data": {"normalization": "zca-scaled"},
    # per class; for ten classes about the 1,024 images that the code draws in total
    "observers": {"augmentation": None, "real_batch": 103},
    "synthesis": {
        "steps": 500000,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "momentum": 0.9,
        "schedule": "cosine",
        "checkpoint_every": 1000,
        "log_every": 100,
    },
}
_POOL: Mapping[str, Any] = {
    "start": 10,
    "push_every": None,
    "lifetime": 100,
    "source": "synthetic",
    "trained": "used",
    "train_steps": 1,
    "batch_size": 500,
    "loss": "mse",
    "optimizer": "adam",
    "learning_rate": 3e-4,
    "weight_decay": 0.0,
}
"""A pool of ten networks, each trained on the synthetic images by one step after each use."""


class KernelRidgeRegression(Method):
    """Ridge regression on the features of fresh random networks."""

    name = "krr"
    citation = """@inproceedings{nguyen2021kip,
  title     = {Dataset Distillation with Infinitely Wide Convolutional Networks},
  author    = {Nguyen, Timothy and Novak, Roman and Xiao, Lechao and Lee, Jaehoon},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2021}
}"""
    # the kernel matrix is inverted
    least_precision: ClassVar[Mapping[str, Precision]] = {"synthesis": "tf32"}
    defaults = _REGRESSION

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """One term: the loss on real images of a classifier that is solved for on the synthetic
        ones.
        """
        return (RidgeRegression(),)


class FeatureRegression(KernelRidgeRegression):
    """Ridge regression on the features of a pool of networks that are trained on the synthetic
    images alongside.
    """

    name = "frepo"
    citation = """@inproceedings{zhou2022frepo,
  title     = {Dataset Distillation using Neural Feature Regression},
  author    = {Zhou, Yongchao and Nezhadarya, Ehsan and Ba, Jimmy},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2022}
}"""
    defaults = merge(
        _REGRESSION,
        {"observers": {"model_pool": _POOL}, "synthetic": {"labels": "classes"}},
    )
