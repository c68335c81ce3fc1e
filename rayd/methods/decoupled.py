"""Defaults shared by the decoupled methods, which squeeze networks, recover images from them, and
relabel the images with them.

Yin, Xing and Shen, "Squeeze, Recover and Relabel" (NeurIPS 2023), and its successors CDA, G-VBSM,
RDED and EDC. Observers are trained on the real data and then fixed; the set is divided into blocks
that are optimised independently; students learn the observers' outputs on every batch. The accuracy
of this family depends on how observers label images, on which the papers agree: networks in eval
mode, with mean logits over them, applied to mixed batches, and a divergence that is not multiplied
by the squared temperature.

**Different from the released code** of SRe2L, CDA, G-VBSM, EDC and UniDD: in the synthesis every
image has its own random view; there, one crop and flip is drawn for all images of a step, as with
`synthesis.shared_view: true`.
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
        # both momenta are those of the released code of all methods of the family
        "second_momentum": 0.9,
        "schedule": "cosine",
        # blocks are independent, so different workers can optimise them
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
"""Observers of G-VBSM for small images, to which EDC adds three."""
SQUEEZE: Mapping[str, Any] = {
    "epochs": 50,
    "batch_size": 64,
    "learning_rate": 0.05,
    "weight_decay": 0.0,
    "schedule": {"name": "constant"},
}
"""Training of observers for small images in G-VBSM and EDC."""


def family(own: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the family, overridden by a method's own."""
    return merge(_COMMON, own)
