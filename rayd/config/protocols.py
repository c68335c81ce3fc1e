"""Published evaluation protocols by name: `evaluation.protocol=dsa`.

A protocol stands for the settings below. Settings given along with its name take precedence over
them, and they take precedence over the rest of the recipe. Architectures, seeds and baselines are
not part of a protocol.

- `dc`, `dsa`: Zhao and Bilen (2021): hard labels; 300 epochs without augmentation, or 1,000 with
  DSA; one decay to a tenth with a new optimizer. The step size is 0.01.
- `mtt`: Cazenavette et al. (2022): `dsa` with the step size that was learned with the images.
- `fkd`: SRe2L (Yin et al. 2023): labels of random crops stored for 300 epochs of batches of 1,024.
- `rded`: Sun et al. (2024): a teacher labels every batch; the batch grows with the budget.
- `edc`: Shao et al. (2024), for 32x32 images: squared distance of logits, averaged weights.
- `ncfm`: Wang et al. (2025): hard labels, 2,000 epochs of AdamW, halved at each fifth.
- `dd-ranking`: Li et al. (2025): `dsa` with five students, each set at the step size of five that
  is best on the validation split. The released code chooses it, and the epoch, on the test split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rayd.config.base import merge

Protocol = Literal["dc", "dsa", "mtt", "fkd", "edc", "rded", "ncfm", "dd-ranking"]

DIGITS = ("digits", "mnist", "svhn")
"""Data whose images must not be mirrored."""

_NO_VIEW = {"rand_augment": 0, "crop": None, "shift": 0, "flip": False, "roll": 0}
_PLAIN = {
    "momentum": 0.9,
    "weight_decay_of": "all",
    "average": None,
    "mix": "none",
    "hard_weight": 0.0,
    "clean_forward": False,
    "augmentation": None,
    "transform": _NO_VIEW,
    "learned_step_size": False,
    "learning_rates": [],
    "epoch": ["last"],
}
"""Settings that a protocol does not mention."""

_DC = {
    **_PLAIN,
    "epochs": 300,
    "batch_size": 256,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "weight_decay": 5e-4,
    "schedule": {"name": "restart", "milestones": [0.5], "factor": 0.1},
    "loss": "cross-entropy",
}
_DSA = {**_DC, "epochs": 1000, "augmentation": "color_crop_cutout_flip_scale_rotate"}
_TAUGHT = {
    **_PLAIN,
    "epochs": 300,
    "optimizer": "adamw",
    "learning_rate": 0.001,
    "weight_decay": 0.01,
    "mix": "cutmix",
    "mix_concentration": 1.0,
    "loss": "kl",
    "temperature": 20.0,
}

_EVALUATION: dict[str, dict[str, Any]] = {
    "dc": _DC,
    "dsa": _DSA,
    "mtt": {**_DSA, "learned_step_size": True},
    "fkd": {
        **_TAUGHT,
        "batch_size": 1024,
        "schedule": {"name": "cosine", "stretch": 1.0},
        "transform": {**_NO_VIEW, "crop": [0.08, 1.0], "flip": True},
    },
    "edc": {
        **_TAUGHT,
        "epochs": 1000,
        "batch_size": 25,
        "weight_decay_of": "weights",
        "schedule": {"name": "multistep", "milestones": [0.8, 0.9, 0.95], "factor": 0.5},
        "transform": {**_NO_VIEW, "rand_augment": 2, "crop": [0.08, 1.0], "flip": True},
        "average": 0.99,
        "loss": "mse",
        "hard_weight": 0.025,
    },
    "rded": {
        **_TAUGHT,
        "weight_decay_of": "weights",
        "schedule": {"name": "cosine", "stretch": 2.0},
        "transform": {**_NO_VIEW, "flip": True},
        "clean_forward": True,
    },
    "ncfm": {
        **_PLAIN,
        "epochs": 2000,
        "batch_size": 128,
        "optimizer": "adamw",
        "learning_rate": 0.001,
        "weight_decay": 0.01,
        "schedule": {"name": "multistep", "milestones": [0.2, 0.4, 0.6, 0.8], "factor": 0.5},
        "augmentation": "flip+color+crop_flip+color+scale_flip+color+rotate",
        "mix": "cutmix",
        "mix_concentration": 1.0,
        "loss": "cross-entropy",
    },
    "dd-ranking": {**_DSA, "seeds": 5, "learning_rates": [0.001, 0.005, 0.01, 0.05, 0.1]},
}
_LABELS = {"fkd": "stored", "rded": "online", "edc": "online"}


def with_protocol(layer: Mapping[str, Any], below: Mapping[str, Any]) -> Mapping[str, Any]:
    """Merge a layer of settings over those of the protocol that it names.

    Args:
        layer: settings of a file or of a command line, which may name a protocol.
        below: settings that the layer is merged over, which may contain the data and the budget.
    """
    evaluation = layer.get("evaluation")
    name = evaluation.get("protocol") if isinstance(evaluation, Mapping) else None
    if not isinstance(name, str) or name not in _EVALUATION:
        # an unknown name is refused where settings are validated
        return layer
    tree = merge(below, layer)
    settings = dict(_EVALUATION[name])
    if name == "rded":
        settings["batch_size"] = _rded_batch(tree)
        patches = tree.get("synthetic", {}).get("patches") or 1
        settings["transform"] = settings["transform"] | {
            "crop": None if patches == 1 else [1 / patches, 1.0]
        }
    if _data_name(tree) in DIGITS:
        settings = _without_mirroring(settings)
    return merge({"evaluation": settings, "labels": {"kind": _LABELS.get(name, "hard")}}, layer)


def _rded_batch(tree: Mapping[str, Any]) -> int:
    """Batch size of RDED: 10, 50 or 100 for 1, 10 or 50 images per class."""
    ipc = tree.get("ipc", 1)
    if ipc < 10:
        return 10
    return 50 if ipc < 50 else 100


def _data_name(tree: Mapping[str, Any]) -> str:
    data = tree.get("data")
    return str(data.get("name", "")) if isinstance(data, Mapping) else str(data)


def _without_mirroring(settings: dict[str, Any]) -> dict[str, Any]:
    augmentation = settings["augmentation"]
    if augmentation is not None:
        groups = []
        for group in augmentation.split("_"):
            kept = [operation for operation in group.split("+") if operation != "flip"]
            groups += ["+".join(kept)] if kept else []
        augmentation = "_".join(groups)
    transform = settings["transform"] | {"flip": False}
    return {**settings, "augmentation": augmentation, "transform": transform}
