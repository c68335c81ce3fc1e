"""Arguments and options that several commands take, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rayd import completion


def complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a recipe."""
    return completion.recipes(incomplete)


def complete_overrides(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete a setting, or its value."""
    before = context.params.get("overrides") or ()
    return completion.overrides(incomplete, before, context.params.get("recipe"))


def complete_data(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a data set."""
    return completion.data(incomplete)


def complete_space(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a search space."""
    return completion.spaces(incomplete)


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A built-in recipe or a YAML file.",
        autocompletion=complete_recipe,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that override the recipe.",
        autocompletion=complete_overrides,
    ),
]
DirectoryName = Annotated[
    Path, typer.Argument(metavar="DIR", help="A run directory, a distilled set or an export.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
# read by `program.main`, not by the commands, which only take it
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        help="Folder of named data, searched first (then $RAYD_DATA, ~/.cache/rayd/data).",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Where finished work is shared between runs ($RAYD_CACHE, ~/.cache/rayd/store).",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Ray actors; 0 works in this process, without Ray."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="Ray cluster to join; by default a private one on this machine."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Students per architecture.")]


def given_settings(
    overrides: list[str] | None, workers: int | None, address: str | None
) -> dict[str, Any]:
    """Settings of a recipe that a command line overrides, as a nested mapping."""
    from rayd.config import given_resources, merge, parse_overrides

    return merge(parse_overrides(overrides or []), given_resources(workers, address))
