r"""KIP: images that teach an infinitely wide network, by regression with its kernel.

Timothy Nguyen, Zhourong Chen and Jaehoon Lee, "Dataset Meta-Learning from Kernel Ridge-Regression",
ICLR 2021; Timothy Nguyen, Roman Novak, Lechao Xiao and Jaehoon Lee, "Dataset Distillation with
Infinitely Wide Convolutional Networks", NeurIPS 2021.

    minimise over X_s, Y_s   mean_i (1/2) || K_ts (K_ss + lambda I)^-1 Y_s - Y_t ||_i^2

    K     neural tangent kernel of a network of infinite width (`rayd.objectives.neural_kernels`)
    X_t   a mini-batch of real images, Y_t their targets: centred one-hot rows
    X_s   the synthetic images, Y_s their targets, kept or learned
    lambda   1e-6 trace(K_ss) / n (`terms.kernel_regression.relative_ridge`)

No network is drawn or trained: the kernel stands for all of them. The best targets for
given images are a least-squares problem ("label solve"): `rayd.objectives.neural_kernels.solved_labels`.

**Papers, released code, and what differs here.**

- The code of the first paper, which the defaults follow: a fully connected network of one hidden layer,
  variances 2 of weights and 0.1^2 of biases; Adam of size 0.04 on 5,000 real images a step, here
  `observers.real_batch` of each class; 1,000 steps converge. Its loss is a mean over the C outputs too,
  which does not change the steps of Adam.
- The second paper's network has three convolutions with pooling, and one before them in its
  "ConvNet" (`terms.kernel_regression: {network: conv, depth: 3}` is the one without, "ConvNet3").
  Its kernel takes a million numbers for a pair of images of 32 x 32 pixels: hundreds of GPUs there, out
  of the question here. For 8 x 8 pixels it is practical (`kip-conv-digits`). Recipes for larger images
  have the fully connected kernel; papers' numbers, which are of the convolutional one, are shown
  beside them. `krr` has convolutional networks of finite width in place of it.
- Data are whitened there after each image was centred and scaled; here as in FRePo
  (`data.normalization: zca-scaled`).
- Targets that are learned (`synthetic.labels: classes`) are free there, here centred rows of a softmax,
  so that the set trains any network.
- Both judge images by the regression itself, and by networks trained on them. Reports here are of
  networks.

On digits (8 x 8 pixels, one image per class) the regression classifies 92.8 % of the test images
correctly from the learned images, 68.7 % from random ones, and 81.9 % from random ones with solved labels (`kip-digits`, three
distillations); ConvNets that learn from the images 84.6 %, from random ones 73.7 %.

The engine needs an observer in every step, so there is one: a network of one unit whose output is
not used.

Use it for very small sets of small images, and to see how far a fixed kernel can go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rayd.config import Precision, Recipe
from rayd.methods.base import Method
from rayd.objectives import KernelRegression, Term


class KernelInducingPoints(Method):
    """Regression with the tangent kernel of an infinitely wide network."""

    name = "kip"
    citation = """@inproceedings{nguyen2021kip,
  title     = {Dataset Meta-Learning from Kernel Ridge-Regression},
  author    = {Nguyen, Timothy and Chen, Zhourong and Lee, Jaehoon},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2021}
}"""
    # images are compared in float64, and must not be rounded before
    least_precision: ClassVar[Mapping[str, Precision]] = {"synthesis": "float32"}
    defaults: ClassVar[Mapping[str, Any]] = {
        "real": "sampled",
        "data": {"normalization": "zca-scaled"},
        "observers": {
            # nobody reads its output: an observer is asked for in every step, so it should cost
            # nothing
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
        """One term: what the regression gets wrong of the real images."""
        return (KernelRegression(),)
