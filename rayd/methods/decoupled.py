"""What the decoupled methods share: they squeeze networks, recover images from them, and let them
relabel the images.

Yin, Xing and Shen, "Squeeze, Recover and Relabel" (NeurIPS 2023), and what came of it: CDA, G-VBSM,
RDED, EDC. Observers are trained on the real data and then fixed; the set is cut into blocks that
are optimised apart; students learn what the observers say of every batch. Accuracy of this family
depends on how observers label, which the papers agree on: networks in eval mode, mean logits over
them, after the batch was mixed, and a divergence that is not multiplied by the squared temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rayd.config import Settings, merge
from rayd.config.choices import Category

if TYPE_CHECKING:
    from rayd.objectives import MomentMatching

_COMMON: Mapping[str, Any] = {
    "observers": {"networks": ["resnet18"], "trained": True, "pool": 1, "augmentation": None},
    "synthetic": {"init": "noise"},
    "synthesis": {
        "optimizer": "adam",
        "momentum": 0.5,
        "second_momentum": 0.9,
        "schedule": "cosine",
        "block": 100,
        "clip": True,
    },
    "labels": {"kind": "online"},
    "evaluation": {
        "networks": ["resnet18"],
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "schedule": {"name": "cosine"},
        "augmentation": None,
        "transform": {"crop": [0.08, 1.0], "flip": True},
        "mix": "cutmix",
        "loss": "kl",
        "temperature": 20.0,
    },
}


BACKBONES: tuple[Any, ...] = (
    "resnet18",
    {"name": "convnet", "width": 128},
    "mobilenet_v2",
    "wrn16_2",
    "shufflenet_v2",
)
"""Observers of G-VBSM on small images, to which EDC adds three."""
SQUEEZE: Mapping[str, Any] = {
    "epochs": 50,
    "batch_size": 64,
    "learning_rate": 0.05,
    "weight_decay": 0.0,
    "schedule": {"name": "constant"},
}
"""How G-VBSM and EDC train observers on small images."""


def family(own: Mapping[str, Any]) -> dict[str, Any]:
    """A method's own settings laid over those that the family shares."""
    return merge(_COMMON, own)


class MatchingSettings(Settings):
    """Settings of the matching of various statistics, as G-VBSM does it."""

    momentum: float = Field(default=0.8, ge=0, lt=1)
    """Of the smoothing of the synthetic statistics over steps; 0 for none."""
    drop: float = Field(default=0.4, ge=0, le=1)
    """Probability with which a convolution is left out of a step; normalisations never are."""
    patch: int = Field(default=4, ge=1)
    """Side of a patch, in positions of a convolution's input; 16 for large images."""
    first_layer_weight: float = Field(default=10.0, ge=0)
    """Factor of the input of the first convolution."""

    def matching(self, alpha: float = 1.0, category: Category = "class") -> MomentMatching:
        """The term: normalisations and convolutions by channel, convolutions by patch; a network
        may lack normalisations.
        """
        from rayd.networks import LayerRole
        from rayd.objectives import MomentMatching, StatisticSpec
        from rayd.statistics import Channels, Moments, Patches

        normalizations = StatisticSpec(LayerRole.BN_INPUTS, Channels(), Moments)
        convolutions = StatisticSpec(LayerRole.CONV_INPUTS, Channels(), Moments)
        patches = StatisticSpec(LayerRole.CONV_INPUTS, Patches(self.patch), Moments)
        return MomentMatching(
            (normalizations, convolutions, patches),
            alpha=alpha,
            category=category,
            momentum=self.momentum,
            first_layer_weight={LayerRole.CONV_INPUTS: self.first_layer_weight},
            drop={LayerRole.CONV_INPUTS: self.drop},
            optional={LayerRole.BN_INPUTS},
        )
