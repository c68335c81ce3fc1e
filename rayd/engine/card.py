"""The card of a distilled set: identity, provenance and storage cost."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from rayd import devices
from rayd.config import Recipe, ResourceSettings
from rayd.data import ImageData
from rayd.engine.arithmetic import Hardware
from rayd.methods import Method
from rayd.synthetic import Storage, SyntheticSet
from rayd.version import __version__


def card(
    method: Method,
    data: ImageData,
    learned: SyntheticSet,
    synthesis: str,
    observers: Sequence[Mapping[str, Any]],
    experts: Mapping[str, Any] | None,
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON-able content of a card.

    Args:
        method: as the recipe configured it.
        data: the real images.
        learned: the set.
        synthesis: hash of everything that the synthesis depends on.
        observers: properties of the trained observers.
        experts: properties of the experts; None for methods without them.
        origin: devices that computed the set and the results it builds on, see `origin`.
    """
    recipe = method.recipe
    return {
        "recipe": recipe.name,
        "method": recipe.method,
        "citation": method.citation,
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            **({"read": data.summary.to_json()} if data.summary is not None else {}),
        },
        "ipc": recipe.ipc,
        "synthesis": synthesis,
        "seed": recipe.seed,
        "steps": recipe.synthesis.steps,
        "observers": observers,
        **({"experts": experts} if experts is not None else {}),
        **origin,
        "storage": asdict(_with_whitening(learned.storage(), data)),
        "versions": {
            "rayd": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "config": config(recipe),
    }


def origin(
    hardware: Hardware, resources: ResourceSettings, parts: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The part of a card that describes where a set was computed.

    Args:
        hardware: the device that computed the set.
        resources: of the run.
        parts: kinds of device that computed the results of earlier stages, by the stage's name;
            they may differ from the set's if machines with and without GPUs share a cache.
    """
    return {
        "hardware": {
            "device": hardware.device,
            "name": hardware.name,
            "threads": devices.threads(resources),
            "layout": resources.layout,
        },
        "devices": {
            **{stage: list(kinds) for stage, kinds in parts.items() if kinds},
            "synthesize": [hardware.device],
        },
    }


def config(recipe: Recipe) -> dict[str, Any]:
    """The recipe in the form of a card's entry."""
    return recipe.model_dump(mode="json", exclude={"resources"})


def _with_whitening(storage: Storage, data: ImageData) -> Storage:
    """Storage of a set, including the whitening matrix that its use requires.

    Means and standard deviations of channels are not counted.
    """
    if data.normalization.kind == "standard":
        return storage
    state = data.normalization.state().values()
    numbers = sum(tensor.numel() for tensor in state)
    size = sum(tensor.nbytes for tensor in state)
    return Storage(storage.numbers | {"whitening": numbers}, storage.bytes | {"whitening": size})
