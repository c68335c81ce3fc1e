"""Command `recipes`: known recipes, and the settings of one."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rayd.cli.group import example, new_group
from rayd.cli.options import Debug, Json, complete_data, complete_recipe
from rayd.cli.printing import print_json, print_rows, print_text, wide
from rayd.errors import ConfigError

if TYPE_CHECKING:
    from rayd.config import Recipe
    from rayd.recipes import Headline

commands = new_group()


@commands.command("recipes", epilog=example("rayd recipes --method edc"))
def recipes_command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A recipe, a family of recipes, or a YAML file.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="List the recipes of a method.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="List the recipes of a data set.", autocompletion=complete_data
        ),
    ] = None,
    measured: Annotated[
        bool, typer.Option("--measured", help="List the recipes with results of ours.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="List every recipe.")] = False,
    other: Annotated[
        str | None,
        typer.Option(
            "--diff", metavar="RECIPE", help="Show the settings in which another recipe differs."
        ),
    ] = None,
    as_json: Json = False,
    as_schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipe files, for editors.")
    ] = False,
    debug: Debug = False,
) -> None:
    """List families of recipes, or recipes with published and measured results; or print one."""
    from rayd import recipes

    if as_schema:
        from rayd.recipes.schema import schema

        print_json(schema())
        return
    if other is not None:
        if name is None:
            raise ConfigError("--diff compares with a recipe: rayd recipes NAME --diff OTHER.")
        _print_differences(recipes.resolve(name), recipes.resolve(other), as_json)
        return
    families = recipes.families()
    family = None
    is_list = everything or measured or method is not None or data is not None
    if name is not None:
        # 'digits' is a recipe and a family: with an option for lists, the family is meant
        family = families.get(name) if is_list or name not in recipes.names() else None
        if family is None:
            _print_recipe(recipes.resolve(name), as_json)
            return
    known = recipes.headlines(method, data, measured)
    if family is not None:
        known = [headline for headline in known if headline.name in family]
    if as_json:
        print_json([headline.model_dump(mode="json") for headline in known])
    elif is_list or family is not None:
        _print_recipes(known)
    else:
        _print_families(known, families)


def _print_differences(first: Recipe, second: Recipe, as_json: bool) -> None:
    """Print the settings in which two recipes differ, with the values of both."""
    from rayd.recipes.difference import differences, shown

    found = differences(first, second)
    if as_json:
        print_json({key: list(pair) for key, pair in found.items()})
    elif not found:
        print_text(f"{first.name} and {second.name} have the same settings.")
    else:
        print_text(f"{first.name} -> {second.name}", bold=True)
        for key, pair in found.items():
            before, after = map(shown, pair)
            line = f"{key}  {before} -> {after}"
            if len(line) > wide().width:
                line = f"{key}\n  {before}\n  -> {after}"
            print_text(line)


def _print_recipe(recipe: Recipe, as_json: bool) -> None:
    """Print a recipe as JSON, or its results as comments and below them its YAML."""
    if as_json:
        print_json(recipe.model_dump(mode="json"))
        return
    from rayd.results.text import results_text

    sys.stdout.write(results_text(recipe, max(min(wide().width, 120), 60)) + recipe.to_yaml())


def _print_recipes(known: Sequence[Headline]) -> None:
    """Print a table of recipes."""
    if not known:
        print_text("No recipe matches: 'rayd recipes --all' lists all of them.")
        return
    rows = []
    for headline in known:
        row = {
            "recipe": headline.name,
            "method": headline.method,
            "data": headline.data,
            "ipc": str(headline.ipc),
            "paper": _number(headline.published.value if headline.published else None),
            "measured": _number(headline.measured[-1].accuracy if headline.measured else None),
            "what": headline.summary,
        }
        rows.append(row)
    print_rows(rows, shortened="what", dropped=("what", "data", "method", "ipc"))


def _print_families(known: Sequence[Headline], families: Mapping[str, Sequence[str]]) -> None:
    """Print a table of families of recipes, and how to see the recipes."""
    from rayd import recipes

    by_name = {headline.name: headline for headline in known}
    rows = []
    for family, names in families.items():
        members = [by_name[name] for name in names]
        budgets = sorted({member.ipc for member in members})
        row = {
            "family": family,
            "recipes": str(len(members)),
            "ipc": str(budgets[0]) if len(budgets) == 1 else f"{budgets[0]}-{budgets[-1]}",
            "paper": str(sum(member.published is not None for member in members)),
            "measured": str(sum(bool(member.measured) for member in members)),
            "data": " ".join(sorted({member.data for member in members})),
            "what": recipes.about(family),
        }
        rows.append(row)
    print_rows(rows, shortened="what", dropped=("data", "what"))
    hint = (
        "'paper' and 'measured' count recipes with such numbers. 'rayd recipes FAMILY' and '--all' "
        "list recipes, '--method', '--data' and '--measured' some of them; 'rayd recipes NAME' "
        "prints one. 'digits' is both: 'rayd recipes digits --all' lists the family. A first run: "
        "'rayd distill digits'."
    )
    print_text("\n" + textwrap.fill(hint, min(wide().width, 100)))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
