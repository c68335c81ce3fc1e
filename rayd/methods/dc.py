"""DC and DSA: gradient matching, in a network that is trained on the synthetic images alongside.

Bo Zhao, Konda Reddy Mopuri and Hakan Bilen, "Dataset Condensation with Gradient Matching", ICLR
2021; Bo Zhao and Hakan Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML
2021.

    minimise over S   E_theta0 [ sum_{t < o} sum_c D( grad_theta CE(A(T_c); theta_t), grad_theta CE(A(S_c); theta_t) ) ]
    theta_{t+1} = theta_t after i epochs of SGD on S

    T_c   256 real images of class c          theta_0  a ConvNet from its initialisation, a fresh one K times
    S_c   synthetic images of class c         o, i     outer and inner loops, by images per class
    D     cosine distance by output (`rayd.objectives.gradients`)
    A     nothing (DC), or one differentiable augmentation for both sides (DSA)

The loops (o, i) are (1, 1) for one image per class, (10, 50) for 10, (20, 25) for 20, (30, 20) for
30, (40, 15) for 40 and (50, 10) for 50; for other numbers, those of the next smaller one.

One step of the synthesis is one outer loop: a step of the images (SGD of size 0.1, momentum 0.5)
for all classes, then the network's training (SGD of size 0.01, batches of 256). So K = 1,000 fresh
networks are 1,000 o steps. In the settings, this is a queue of one network
(`observers.model_pool`): `push_every` is o, `train_epochs` is i. After the last of its o steps a
network is not trained any further, as it is not used again.

**Paper and released code.** The loops, and the first images (noise for DC, real ones for DSA), are
those of the released code. It trains the network on augmented images in DSA, with a separate draw
for each image, and without momentum (0.5 in its first version); both are the same here. It first
sets the statistics of batch normalisations from 16 real images of each class; here, such networks
use the statistics of their own training, so instance normalisation, the default of both, is
recommended. Students are trained for 300 epochs without augmentation in DC (the code augments
MNIST), for 1,000 with augmentation in DSA.

Use them as classic baselines; distribution matching is far cheaper. They need `real: sampled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rayd.config import DSA_STRATEGY, Precision, Recipe, merge
from rayd.methods.base import Method
from rayd.objectives import GradientMatching, Term

LOOPS: Mapping[int, tuple[int, int]] = {
    1: (1, 1),
    10: (10, 50),
    20: (20, 25),
    30: (30, 20),
    40: (40, 15),
    50: (50, 10),
}
"""Outer and inner loops by images per class."""
NETWORKS = 1000
"""Number of fresh networks in a synthesis, K."""

_QUEUE: Mapping[str, Any] = {
    "start": 1,
    "capacity": 1,
    "source": "synthetic",
    "trained": "used",
    "momentum": 0.0,
    "weight_decay": 0.0,
}
"""A pool of one network, trained on the synthetic images between two steps."""
_DEFAULTS: Mapping[str, Any] = {
    "real": "sampled",
    "observers": {"augmentation": None, "model_pool": _QUEUE},
    "synthetic": {"init": "noise"},
    "synthesis": {"learning_rate": 0.1, "momentum": 0.5, "checkpoint_every": 500},
    "evaluation": {"augmentation": None, "epochs": 300},
}


def loops(ipc: int) -> tuple[int, int]:
    """Outer and inner loops.

    >>> loops(1), loops(10), loops(15)
    ((1, 1), (10, 50), (10, 50))
    """
    return LOOPS[max(known for known in LOOPS if known <= max(ipc, 1))]


class DatasetCondensation(Method):
    """Class-wise gradients of the cross-entropy, in a network that is trained on the synthetic
    images alongside.
    """

    name = "dc"
    # second-order gradients lose too much precision in bfloat16
    least_precision: ClassVar[Mapping[str, Precision]] = {"synthesis": "tf32"}
    citation = """@inproceedings{zhao2021dc,
  title     = {Dataset Condensation with Gradient Matching},
  author    = {Zhao, Bo and Mopuri, Konda Reddy and Bilen, Hakan},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2021}
}"""
    defaults = _DEFAULTS

    @classmethod
    def defaults_at(cls, ipc: int) -> Mapping[str, Any]:
        """The loops for the number of images per class."""
        outer, inner = loops(ipc)
        paced = {
            "synthesis": {"steps": NETWORKS * outer},
            "observers": {"model_pool": {"push_every": outer, "train_epochs": inner}},
        }
        return merge(cls.defaults, paced)

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """One term: the distance of gradients."""
        return (GradientMatching(),)


class SiameseDatasetCondensation(DatasetCondensation):
    """DC with one augmentation for both sides, starting from real images."""

    name = "dsa"
    citation = """@inproceedings{zhao2021dsa,
  title     = {Dataset Condensation with Differentiable Siamese Augmentation},
  author    = {Zhao, Bo and Bilen, Hakan},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2021}
}"""
    defaults = merge(
        _DEFAULTS,
        {
            "observers": {
                "augmentation": DSA_STRATEGY,
                "model_pool": {"augmentation": DSA_STRATEGY},
            },
            "synthetic": {"init": "real"},
            "evaluation": {"augmentation": DSA_STRATEGY, "epochs": 1000},
        },
    )
