"""Networks by name, and taps that read their features by role."""

from rayd.networks import alexnet, convnet, lenet, mlp, resnet, vgg  # noqa: F401  (importing a module registers its architectures)
from rayd.networks.building import build, uses_batch_statistics
from rayd.networks.registry import architecture, names
from rayd.networks.taps import Observation, Tap, Tapped

__all__ = ["Observation", "Tap", "Tapped", "architecture", "build", "names", "uses_batch_statistics"]
