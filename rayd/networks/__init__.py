"""Networks by name, and taps that read their features by role."""

from rayd.networks import (  # noqa: F401  (importing a module registers its architectures)
    alexnet,
    convnet,
    lenet,
    mlp,
    mobilenet,
    resnet,
    shufflenet,
    vgg,
    wide_resnet,
)
from rayd.networks.building import build, restore, take_over, uses_batch_statistics
from rayd.networks.registry import architecture, names
from rayd.networks.taps import Observation, Tap, Tapped

__all__ = [
    "Observation",
    "Tap",
    "Tapped",
    "architecture",
    "build",
    "names",
    "restore",
    "take_over",
    "uses_batch_statistics",
]
