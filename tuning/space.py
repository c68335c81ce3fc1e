"""Search spaces: a recipe, and a domain for each searched setting; YAML, validated before any run.

    base: edc-digits                                  # one recipe, or several to choose from
    overrides: {synthesis: {steps: 250}}              # override the recipe
    search:
      terms.moments.alpha: {uniform: [0, 1]}
      evaluation.schedule.name: {choice: [cosine, ssrs, constant]}
      evaluation.schedule.stretch:
        {uniform: [1, 4], when: {evaluation.schedule.name: [cosine, ssrs]}}

A setting may have several domains with different conditions; the first whose condition holds is
used. Conditions refer to the recipe and to settings listed earlier, including `recipe` (the chosen
base) and `method`.

A space whose values are all tried is a study: grids, or rows, which are named groups of settings
that may build on a row above. `paper` contains a paper's results for them, as printed:

    base: iid-digits
    rows:
      neither: {terms: {centralization: {weight: 0}, covariance: {weight: 0}}}
      centralization: {base: neither, terms.centralization.weight: 0.0005}
    search: {seed: {grid: [0, 1, 2]}}  # distillations of each row, which are averaged
    paper:
      - table: IID, Table 6
        conditions: CIFAR-10, IPC 10
        values: {neither: 48.5 ± 0.2, centralization: 52.2 ± 0.3}
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from rayd import methods, recipes
from rayd.config import Recipe, lookup, merge, nested, read_yaml, validate
from rayd.errors import ConfigError, RaydError, proposal
from rayd.names import expanded
from tuning.domain import Domain, Point, among
from tuning.settings import RECIPE, ROW, Space
from tuning.space_check import SpaceCheck

FOLDER = Path(str(resources.files(__name__.rpartition(".")[0]))) / "spaces"


def names() -> list[str]:
    """Names of the built-in spaces."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Space:
    """Load a space by name or from a file, and override settings of its recipe.

    A file may begin with `extends: <space>`: it then overrides that space. Files that are named
    there or as `base` are looked up next to the file, then in the working directory.

    Raises:
        ConfigError: the space does not exist or is invalid.
    """
    path = _find(str(name_or_path))
    space = validate(Space, _tree(path), f"space '{path.stem}'")
    return space.model_copy(update={"overrides": merge(space.overrides, overrides or {})})


def _tree(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Settings of a file, over those of the space that it extends.

    Args:
        path: the file.
        above: the chain of files that extend it.
    """
    here = path.resolve()
    if here in above:
        circle = [one.name for one in (*above[above.index(here) :], here)]
        raise ConfigError(f"Spaces extend each other in a circle: {' extends '.join(circle)}.")
    tree = {"name": path.stem, **read_yaml(path, "search space")}
    bases = tree.get("base")
    if isinstance(bases, str):
        tree["base"] = _next_to(path, bases)
    elif isinstance(bases, list):
        tree["base"] = [_next_to(path, base) for base in bases]
    under = tree.pop("extends", None)
    if under is None:
        return tree
    below = _tree(_find(str(_next_to(path, under))), (*above, here))
    searches = (below.get("search", {}), tree.get("search", {}))
    # anything but a mapping is refused with the rest of the space
    if all(isinstance(search, Mapping) for search in searches):
        tree["search"] = {**searches[0], **searches[1]}
    return {**below, **tree}


def _next_to(path: Path, reference: object) -> object:
    """Resolve a name in a file: a file of that name next to it, else the name itself."""
    if not isinstance(reference, str) or not recipes.is_file(reference):
        return reference
    beside = path.parent / expanded(reference)
    return str(beside) if beside.is_file() else reference


def _find(text: str) -> Path:
    if text.endswith((".yaml", ".yml")) or "/" in text:
        return expanded(text)
    path = FOLDER / f"{text}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"Unknown space '{text}'{proposal(text, names())} 'rayd tune' lists all of them; a file "
            "must end in .yaml."
        )
    return path


class ResolvedSpace:
    """A space with its recipes."""

    def __init__(self, space: Space):
        """Read the recipes.

        Raises:
            ConfigError: a recipe does not exist or is invalid.
        """
        self.space = space
        files = {name: recipes.read(name) for name in space.base}
        self.trees = {name: merge(tree, space.overrides) for name, tree in files.items()}
        self.own = {name: self._overridden(name, tree) for name, tree in files.items()}
        """Recipes with their own settings, under the space's overrides."""
        self.dumps = {name: recipe.model_dump(mode="json") for name, recipe in self.own.items()}

    def _overridden(self, name: str, tree: Mapping[str, Any]) -> Recipe:
        over = self.space.overrides
        where = f"recipe '{name}'"
        if len(self.space.base) > 1:
            # merged without strict checks, as overrides may apply to only some of the recipes
            return recipes.assemble(merge(tree, over), {}, where)
        return recipes.assemble(tree, over or None, where)

    def recipe(self, point: Mapping[str, Any]) -> Recipe:
        """Assemble the recipe with the settings of a point.

        Raises:
            ConfigError: they are invalid.
        """
        row = self._row(point)
        drawn = {key: value for key, value in point.items() if key not in (RECIPE, ROW)}
        chosen = {key: value for key, value in row.items() if key != RECIPE}
        where = f"row '{point[ROW]}' of " if row else ""
        recipe = recipes.assemble(
            self.trees[self.base(point)],
            merge(chosen, nested(drawn)),
            f"{where}space '{self.space.name}'",
        )
        return recipe.model_copy(update={"paper": (), "measured": ()})

    def _row(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the row of a point; empty if it has none."""
        return self.space.row(point[ROW]) if ROW in point else {}

    def base(self, point: Mapping[str, Any]) -> str:
        """Name of the recipe of a point."""
        return str({**point, **self._row(point)}.get(RECIPE, self.space.base[0]))

    def students(self, *, final: bool = False) -> int:
        """Number of students of a trial, or of the final test.

        `evaluation.seeds` among the overrides, for example on the command line, sets both.
        """
        if lookup(self.space.overrides, "evaluation.seeds") is not None:
            return self.own[self.space.base[0]].evaluation.seeds
        return self.space.final_seeds if final else self.space.seeds

    def own_point(self, name: str) -> Point:
        """Point of a recipe's own settings, without those that it does not set."""
        point: Point = {RECIPE: name} if len(self.space.base) > 1 else {}
        for key in self.space.search:
            value = self._own_value(name, key) if self.domain(key, point) is not None else None
            if value is not None:
                point[key] = value
        return point

    def _own_value(self, name: str, key: str) -> Any:
        kind, _, rest = key.partition(".")
        term_name, _, field = rest.partition(".")
        value = lookup(self.dumps[name], key)
        if value is None and kind == "terms":
            method = methods.build(self.own[name])
            for one in method.terms:
                if one.name == term_name:
                    return lookup(one.model_dump(mode="json"), field)
        return value

    def domain(self, key: str, point: Mapping[str, Any]) -> Domain | None:
        """Active domain of a setting, given earlier values; None if no condition holds."""
        for domain in self.space.domains[key]:
            conditions = domain.when.items()
            if all(among(self.known_value(point, other), values) for other, values in conditions):
                return domain
        return None

    def known_value(self, point: Mapping[str, Any], key: str) -> Any:
        """Value of a setting, whether drawn or not."""
        name = point.get(RECIPE, self.space.base[0])
        if key == RECIPE:
            return name
        drawn = {other: value for other, value in point.items() if other != RECIPE}
        return lookup(merge(self.dumps[name], nested(drawn)), key)

    def check(self) -> list[tuple[str, Recipe]]:
        """Validate every representative value of each domain on the recipe.

        Returns:
            The validated recipes, each with the name of its base.

        Raises:
            ConfigError: a value is invalid; the message names the setting and the nearest known
                one.
        """
        return SpaceCheck(self).recipes()


def fitting(resolved: ResolvedSpace, point: Mapping[str, Any]) -> bool:
    """Whether a recipe with all settings of a point is valid."""
    try:
        resolved.recipe(point)
    except RaydError:
        return False
    return True
