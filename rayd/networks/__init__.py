"""Networks by name, and extraction of their features by layer role."""

from rayd.config.choices import LayerRole
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
from rayd.networks.building import (
    build,
    normalize_by_batch,
    normalizes_by_batch,
    restore,
    take_over,
    uses_batch_statistics,
)
from rayd.networks.features import FeatureExtractor, Observation
from rayd.networks.registry import architecture, names

__all__ = [
    "FeatureExtractor",
    "LayerRole",
    "Observation",
    "architecture",
    "build",
    "names",
    "normalize_by_batch",
    "normalizes_by_batch",
    "restore",
    "take_over",
    "uses_batch_statistics",
]
