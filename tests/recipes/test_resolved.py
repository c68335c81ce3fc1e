"""What every built-in recipe resolves to is frozen, whichever file says it and on what base.

`resolved.json` holds a digest of each. Where a recipe is meant to change:

    python -m tests.recipes.test_resolved    # writes the file anew; its diff names the recipes
"""

import hashlib
import json
from pathlib import Path

import pytest

from rayd import recipes

FROZEN = Path(__file__).with_name("resolved.json")


def digest(name: str) -> str:
    """The settings of a resolved recipe in 16 hexadecimal digits; results are no part of them."""
    settings = recipes.resolve(name).model_dump(mode="json", exclude={"paper", "measured"})
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def frozen() -> dict[str, str]:
    """The digests that are kept, by the name of the recipe."""
    return json.loads(FROZEN.read_text(encoding="utf-8"))


def test_every_recipe_is_frozen():
    assert recipes.names() == sorted(frozen())


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_resolves_to_what_is_frozen(name):
    if digest(name) != frozen().get(name):
        pytest.fail(
            f"Recipe '{name}' resolves to other settings than those frozen in {FROZEN.name}. To see "
            f"which: 'rayd recipes {name}' here and at the last commit that passes, and diff them. "
            "If the change is meant: python -m tests.recipes.test_resolved",
            pytrace=False,
        )


if __name__ == "__main__":
    digests = {name: digest(name) for name in recipes.names()}
    FROZEN.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
