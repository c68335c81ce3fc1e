"""Defaults that the decoupled methods share: they squeeze networks, recover images from them, and
let them relabel the images.

Yin, Xing and Shen, "Squeeze, Recover and Relabel" (NeurIPS 2023), and what came of it: CDA, G-VBSM,
RDED, EDC. Observers are trained on the real data and then fixed; the set is cut into blocks that
are optimised apart; students learn the observers' outputs on every batch. Accuracy of this family
depends on how observers label, which the papers agree on: networks in eval mode, mean logits over
them, after the batch was mixed, and a divergence that is not multiplied by the squared temperature.

**Different from the released code** of SRe2L, CDA, G-VBSM, EDC and UniDD: in the synthesis every
image has a random view of its own; there one crop and flip is drawn for all images of a step, as
with `synthesis.shared_view: true`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayd.config import merge

_COMMON: Mapping[str, Any] = {
    "observers": {"networks": ["resnet18"], "trained": True, "pool": 1, "augmentation": None},
    "synthetic": {"init": "noise"},
    "synthesis": {
        "optimizer": "adam",
        "momentum": 0.5,
        # both momenta are those of all released code of the family
        "second_momentum": 0.9,
        "schedule": "cosine",
        # blocks are optimised apart, so they may go to different workers
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
"""Training of observers on small images in G-VBSM and EDC."""


def family(own: Mapping[str, Any]) -> dict[str, Any]:
    """A method's own settings laid over those that the family shares."""
    return merge(_COMMON, own)
