"""Settings in which two recipes differ."""

from __future__ import annotations

import json
from typing import Any

from rayd.config import Recipe, flat

RESULTS = frozenset({"name", "summary", "paper", "measured", "resources"})
"""Fields that do not affect a run."""


def differences(base: Recipe, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Settings in which a recipe differs from another, by dotted key: the other's value and its
    own.

    Settings that the other leaves to the machine (`auto`) are omitted.

    >>> from rayd.recipes import resolve
    >>> differences(resolve("digits"), resolve("digits", {"ipc": 5}))["ipc"]
    (1, 5)
    """
    own = flat(recipe.model_dump(mode="json", exclude=set(RESULTS)))
    other = flat(base.model_dump(mode="json", exclude=set(RESULTS)))
    changes = {
        key: (other.get(key), own.get(key))
        for key in sorted(own.keys() | other.keys())
        if other.get(key) != own.get(key)
    }
    return {key: pair for key, pair in changes.items() if pair[0] != "auto"}


def shown(setting: Any) -> str:
    """Format a setting as on the command line, without unset entries; a dash if a recipe has none.

    >>> shown([0.5, True]), shown(None), shown("adam"), shown([{"name": "mlp", "width": None}])
    ('[0.5, true]', '—', 'adam', '[{"name": "mlp"}]')
    """
    if setting is None:
        return "—"
    return setting if isinstance(setting, str) else json.dumps(_set(setting))


def _set(setting: Any) -> Any:
    """A setting without entries that are not set."""
    if isinstance(setting, dict):
        return {key: _set(value) for key, value in setting.items() if value is not None}
    if isinstance(setting, list):
        return [_set(value) for value in setting]
    return setting
