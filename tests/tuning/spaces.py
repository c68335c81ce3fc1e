"""Small spaces, and settings that reduce a trial of a built-in space to a second."""

from __future__ import annotations

from typing import Any

from rayd.config import merge
from tuning.space import Space

STUDENT = {"networks": [{"name": "convnet", "depth": 1, "width": 4}], "epochs": 1, "baselines": []}
BATCH = [{"name": "convnet", "depth": 1, "width": 4, "norm": "batch"}]
QUICK: dict[str, Any] = {
    "synthesis": {"steps": 4},
    "evaluation": STUDENT,
    "resources": {"threads": 1},
}
LOOKING = merge(QUICK, {"observers": {"networks": STUDENT["networks"], "pool": 1}})
TEACHING = merge(
    QUICK,
    {
        "observers": {"networks": BATCH, "pool": 1, "per_step": 1},
        "squeeze": {"epochs": 1},
        "evaluation": {"networks": BATCH},
    },
)
GUIDED = merge(
    LOOKING,
    {
        "ipc": 2,
        "classifiers": {"networks": STUDENT["networks"], "pool": 1, "squeeze": {"epochs": 1}},
    },
)
FOLLOWING = {
    "experts": {"count": 1, "epochs": 6},
    "objective": {
        "steps": 2,
        "epochs": 1,
        "start": {"most": 1, "offset": 4, "window": 4},
        "batch_size": 5,
    },
}
TINY: dict[str, dict[str, Any]] = {
    "edc": TEACHING,
    "cfm": merge(TEACHING, {"ipc": 2, "synthesis": {"steps": 2}}),
    "csdm": merge(LOOKING, {"terms": {"characteristic_function": {"frequencies": 16}}}),
    "iid": GUIDED,
    "ls-mtt": merge(merge(QUICK, FOLLOWING), {"experts": {"network": {"name": "mlp", "width": 4}}}),
    "methods": merge(
        TEACHING,
        {
            "ipc": 2,
            "observers": {"trained": True, "interpolate": False},
            "synthesis": {"steps": 2},
            "classifiers": {"networks": STUDENT["networks"], "pool": 1, "squeeze": {"epochs": 1}},
            "experts": {"count": 1, "epochs": 60, "network": {"name": "mlp", "width": 4}},
        },
    ),
}
"""Settings that make a built-in space small, by the first part of its name."""


def small(**settings: Any) -> Space:
    """A space over DM on digits whose trials take a second."""
    base = {
        "name": "small",
        "base": "digits",
        "overrides": merge(LOOKING, {"synthesis": {"steps": 8}}),
        "search": {"synthesis.learning_rate": {"loguniform": [0.1, 10.0]}},
        "samples": 2,
        "seeds": 1,
        "final_seeds": 2,
    }
    overrides = merge(base["overrides"], settings.pop("overrides", {}))  # type: ignore[arg-type]
    return Space.model_validate({**base, **settings, "overrides": overrides})
