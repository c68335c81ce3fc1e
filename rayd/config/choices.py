"""Choices shared by settings of methods and the mathematics that they configure.

They are defined here, not next to their formulas in `rayd.objectives` and `rayd.statistics`, so
that recipes can be validated without importing torch.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

Kernel = Literal["gaussian", "laplace", "isotropic-laplace", "matern", "rational-quadratic"]
"""Name of a shift-invariant kernel; see `rayd.statistics.frequencies`."""
Scale = float | Literal["median"]
"""Length scale of a kernel in units of the features, or the median distance of real ones."""

Category = Literal["class", "instance", "batch"]
"""Variance that represents a class; see `rayd.objectives.moment_distance`."""

Split = Literal["uniform", "median", "rank", "continuous"]
"""Rule that divides classes into head and tail; see `rayd.objectives.head_and_tail`."""
OverClasses = Literal["mean", "sum"]
"""Reduction over classes; see `rayd.objectives.characteristic_function_distance`."""

Signal = Literal["class", "mean"]
"""Input of a filter: features by class, or their mean; see
`rayd.objectives.spectral_filter_distance`.
"""

Direction = Literal["current", "average"]
"""First argument p of KL(p || q): the distribution of the current images, or of their average."""

RELATIVE_RIDGE = 1e-6
"""Default ridge of a regression, relative to the mean eigenvalue of the kernel matrix; see
`rayd.objectives.ridge`.
"""


class LayerRole(StrEnum):
    """A role of layers in a network, which determines the activations that are recorded."""

    FEATURES = "features"
    """Input of the classifier (the `nn.Linear` that runs last), (N, d)."""
    LAST_MAP = "last_map"
    """The last map before global pooling or flattening, (N, d, h, w)."""
    BN_INPUTS = "bn_inputs"
    """Input of every `nn.BatchNorm2d`, in order of execution, each (N, d, h, w)."""
    CONV_INPUTS = "conv_inputs"
    """Input of every `nn.Conv2d`, in order of execution, each (N, d, h, w)."""
    CONV_PATH = "conv_path"
    """The same, but an input that several convolutions share counts once. In residual networks that
    leaves out the 1x1 projections of shortcuts, whose input is that of the first convolution of
    their block.
    """
    BLOCK_OUTPUTS = "block_outputs"
    """The map after each block, in order of execution, each (N, d, h, w). Blocks end where the
    network permanently switches to a smaller resolution, and at the end. The output of a block is
    the input of the strided convolution that follows (of several, the earliest: a residual block's
    input), or the pooled map if the network pools; that of the last block is the last map.

    In a ConvNet these are the outputs of its blocks of convolution, normalisation, activation and
    pooling; in a ResNet those of its stages.
    """
