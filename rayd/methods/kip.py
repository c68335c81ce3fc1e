r"""KIP: images from which an infinitely wide network learns, by regression with its kernel.

Timothy Nguyen, Zhourong Chen and Jaehoon Lee, "Dataset Meta-Learning from Kernel Ridge-Regression",
ICLR 2021; Timothy Nguyen, Roman Novak, Lechao Xiao and Jaehoon Lee, "Dataset Distillation with
Infinitely Wide Convolutional Networks", NeurIPS 2021.

    minimise over X_s, Y_s   mean_i (1/2) || K_ts (K_ss + lambda I)^-1 Y_s - Y_t ||_i^2

    K     neural tangent kernel of a network of infinite width (`rayd.objectives.neural_kernels`)
    X_t   a mini-batch of real images, Y_t their targets: centred one-hot rows
    X_s   the synthetic images, Y_s their targets, kept or learned
    lambda   1e-6 trace(K_ss) / n (`terms.kernel_regression.relative_ridge`)

No network is initialised or trained: the kernel represents all of them. The best targets for given
images are a least-squares problem ("label solve"): `rayd.objectives.neural_kernels.solved_labels`.

**Papers, released code, and what differs here.**

- The code of the first paper, which the defaults follow: a fully connected network of one hidden
  layer, variances 2 of weights and 0.1^2 of biases; Adam with step size 0.04 on 5,000 real images
  per step, here `observers.real_batch` of each class; 1,000 steps suffice for convergence. Its loss
  is also a mean over the C outputs, which does not change the steps of Adam.
- The second paper's network has three convolutions with pooling, and one before them in its
  "ConvNet" (`terms.kernel_regression: {network: conv, depth: 3}` is the one without, "ConvNet3").
  Its kernel takes a million numbers for a pair of images of 32 x 32 pixels; the authors used
  hundreds of GPUs, which is not feasible here. For 8 x 8 pixels it is practical
  (`kip-conv-digits`). Recipes for larger images use the fully connected kernel; the papers' numbers
  shown next to them are those of the convolutional one. `krr` uses convolutional networks of finite
  width instead.
- The code whitens data after centring and scaling each image; here, data are whitened as in FRePo
  (`data.normalization: zca-scaled`).
- Learned targets (`synthetic.labels: classes`) are unconstrained in the code; here they are centred
  rows of a softmax, so that the set can train any network.
- Both papers evaluate images by the regression itself and by networks trained on them. Reports here
  contain networks only.

On digits (8 x 8 pixels, one image per class) the regression on the learned images classifies 92.8 %
of the test images correctly, on random ones 68.7 %, and on random ones with solved labels 81.9 %
(`kip-digits`, three distillations). ConvNets trained on the learned images reach 84.6 %, on random
ones 73.7 %.

The engine needs an observer in every step, so there is one: a network of one unit whose output is
not used.

Use it for very small sets of small images, and to find out how far a fixed kernel can go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rayd.config import Precision, Recipe
from rayd.methods.base import Method
from rayd.objectives import KernelRegression, Term


class KernelInducingPoints(Method):
    """Regression with the neural tangent kernel of an infinitely wide network."""

    name = "kip"
    citation = """@inproceedings{nguyen2021kip,
  title     = {Dataset Meta-Learning from Kernel Ridge-Regression},
  author    = {Nguyen, Timothy and Chen, Zhourong and Lee, Jaehoon},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2021}
}"""
    # images are compared in float64, and must not be rounded beforehand
    least_precision: ClassVar[Mapping[str, Precision]] = {"synthesis": "float32"}
    defaults: ClassVar[Mapping[str, Any]] = {
        "real": "sampled",
        "data": {"normalization": "zca-scaled"},
        "observers": {
            # every step needs an observer; its output is not used, so it should cost nothing
            "networks": {"name": "mlp", "width": 1},
            "augmentation": None,
            "real_batch": 500,
        },
        "synthesis": {
            "steps": 1000,
            "optimizer": "adam",
            "learning_rate": 0.04,
            "momentum": 0.9,
            "checkpoint_every": 100,
        },
    }

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """One term: the loss of the regression on the real images."""
        return (KernelRegression(),)
