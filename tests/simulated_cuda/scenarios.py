"""Small recipes on digits: every method, with every stage that it has, in as few steps as show what
a step does.
"""

from __future__ import annotations

from typing import Any

from rayd.config import Recipe, merge
from rayd.recipes import assemble

NETWORK = {"name": "convnet", "depth": 2, "width": 4}
BATCH_NORM = {"name": "convnet", "depth": 2, "width": 4, "norm": "batch"}
PERCEPTRON = {"name": "mlp", "width": 8}
DSA = "color_crop_cutout_scale_rotate"
SQUEEZE = {"epochs": 1, "batch_size": 512, "transform": {"shift": 1, "flip": False}}

MATCHING: dict[str, Any] = {
    "observers": {"networks": NETWORK, "augmentation": DSA, "batch_size": 1024},
    "evaluation": {"networks": [NETWORK], "augmentation": DSA, "baselines": []},
}
SAMPLED = merge(MATCHING, {"real": "sampled", "observers": {"real_batch": 8}})
CLASSIFIERS = {
    "networks": NETWORK,
    "pool": 1,
    "augmentation": DSA,
    "squeeze": {"epochs": 1, "batch_size": 512},
}
QUEUE = {"push_every": 2, "capacity": 3, "train_steps": 2, "batch_size": 32}
DECOUPLED: dict[str, Any] = {
    "ipc": 2,
    "observers": {"networks": [BATCH_NORM, {**BATCH_NORM, "width": 6}], "batch_size": 1024},
    "squeeze": SQUEEZE,
    "evaluation": {
        "networks": [BATCH_NORM],
        "epochs": 2,
        "batch_size": 5,
        "baselines": ["random"],
        "comparisons": [],
    },
}
ONE_OBSERVER = merge(
    DECOUPLED, {"observers": {"networks": [BATCH_NORM]}, "evaluation": {"baselines": []}}
)
TRAJECTORIES: dict[str, Any] = {
    "experts": {
        "network": PERCEPTRON,
        "count": 2,
        "epochs": 3,
        "batch_size": 512,
        "augmentation": None,
    },
    "synthetic": {"step_size": 0.05},
    "synthesis": {"learning_rate": 0.05, "learning_rates": {"log_step_size": 0.02}},
    "objective": {
        "steps": 2,
        "epochs": 1,
        "start": {"most": 2},
        "augmentation": "crop_scale",
        "per_step": 2,
    },
    "evaluation": {"networks": [PERCEPTRON], "augmentation": "crop_scale", "baselines": []},
}

SETTINGS: dict[str, dict[str, Any]] = {
    "dm": merge(
        MATCHING,
        {
            "observers": {"pool": 2, "per_step": 2},
            "evaluation": {"baselines": ["random", "whole"], "comparisons": []},
        },
    ),
    "dm sampled": SAMPLED,
    "datadam": merge(MATCHING, {"observers": {"pool": 2, "per_step": 2}}),
    "iid-dm": merge(MATCHING, {"ipc": 2, "observers": {"pool": 2}, "classifiers": CLASSIFIERS}),
    "csdm": merge(
        MATCHING,
        {
            "observers": {"pool": 2},
            "terms": {"characteristic_function": {"frequencies": 16}},
            "data": {"imbalance": 20},
        },
    ),
    "csdm sampled": merge(SAMPLED, {"terms": {"characteristic_function": {"frequencies": 16}}}),
    "ncfm": merge(
        MATCHING,
        {
            "observers": {"pool": 2},
            "terms": {"characteristic_function": {"frequencies": 16, "sampling_network": True}},
            "squeeze": SQUEEZE,
        },
    ),
    "idm": merge(SAMPLED, {"observers": {"model_pool": QUEUE}}),
    "iid-idm": merge(SAMPLED, {"observers": {"model_pool": QUEUE}, "classifiers": CLASSIFIERS}),
    "dc": merge(
        MATCHING,
        {
            "ipc": 2,
            "observers": {
                "real_batch": 8,
                "augmentation": None,
                "model_pool": {"push_every": 3, "train_epochs": 1, "batch_size": 32},
            },
        },
    ),
    "dsa": merge(
        MATCHING,
        {"observers": {"real_batch": 8, "model_pool": {"push_every": 3, "train_epochs": 1}}},
    ),
    "dcc": merge(
        MATCHING,
        {"observers": {"real_batch": 8, "model_pool": {"push_every": 3, "train_epochs": 1}}},
    ),
    "idc": merge(SAMPLED, {"observers": {"model_pool": {"push_every": 3, "train_steps": 1}}}),
    "cafe": merge(
        MATCHING,
        {
            "observers": {
                "real_batch": 8,
                "augmentation": None,
                "model_pool": {"push_every": 3, "train_epochs": 1},
            },
        },
    ),
    "frepo": merge(
        MATCHING,
        {
            "ipc": 2,
            "observers": {
                "real_batch": 8,
                "augmentation": None,
                "model_pool": {"start": 2, "lifetime": 2, "learning_rate": 0.01},
            },
            "synthesis": {"learning_rate": 0.02},
        },
    ),
    "krr": merge(
        MATCHING,
        {
            "ipc": 2,
            "observers": {"real_batch": 8, "augmentation": None},
            "synthesis": {"learning_rate": 0.02},
        },
    ),
    "kip": merge(
        MATCHING,
        {
            "ipc": 2,
            "observers": {"real_batch": 8, "augmentation": None},
            "synthesis": {"learning_rate": 0.02},
        },
    ),
    "edc": merge(
        DECOUPLED,
        {
            "observers": {"per_step": 2},
            "synthetic": {"init": "rded", "candidates": 10, "crops": 2},
            "objective": {"drop": 0.3},
            "labels": {"kind": "stored"},
        },
    ),
    "gvbsm": ONE_OBSERVER,
    "dwa": ONE_OBSERVER,
    "sre2l": merge(ONE_OBSERVER, {"evaluation": {"epoch": ["last"]}}),
    "cda": ONE_OBSERVER,
    "rded": merge(
        DECOUPLED, {"synthetic": {"candidates": 10, "crops": 2}, "synthesis": {"steps": 0}}
    ),
    "cfm": ONE_OBSERVER,
    "unidd": ONE_OBSERVER,
    "mtt": TRAJECTORIES,
    "tesla": TRAJECTORIES,
    "datm": merge(TRAJECTORIES, {"objective": {"start": {"first": 1, "rise": 2}}}),
    "haba": merge(
        TRAJECTORIES,
        {
            "observers": {
                "networks": NETWORK,
                "augmentation": None,
                "model_pool": {"augmentation": None},
            },
            "synthesis": {"learning_rate": 0.1},
        },
    ),
    "ls-mtt": merge(
        TRAJECTORIES, {"synthetic": {"rank": 2}, "objective": {"start": {"offset": 1, "window": 1}}}
    ),
}
"""Settings by name: that of the method, and what distinguishes it from another recipe of the
method.
"""


def scenario(name: str, small: bool = False, **overrides: Any) -> Recipe:
    """The recipe of a name.

    Args:
        name: one of `SETTINGS`.
        small: three classes in place of ten, and networks of one block in place of two.
        overrides: settings laid over it.
    """
    base = {
        "name": f"simulated-{name.replace(' ', '-')}",
        "method": name.split()[0],
        "data": {"name": "digits"},
        "synthesis": {"steps": 5, "log_every": 5, "checkpoint_every": 5},
        "evaluation": {"seeds": 1, "epochs": 1, "whole_epochs": 1},
        "resources": {"threads": 1, "device": "cuda", "layout": "contiguous"},
    }
    tree = merge(base, SETTINGS[name])
    if small:
        tree = _shallow(merge(tree, {"data": {"classes": ["0", "1", "2"]}}))
    return assemble(merge(tree, overrides))


def _shallow(settings: Any) -> Any:
    """The same settings with networks of one block."""
    if isinstance(settings, dict):
        return {name: 1 if name == "depth" else _shallow(value) for name, value in settings.items()}
    return [_shallow(value) for value in settings] if isinstance(settings, list) else settings
