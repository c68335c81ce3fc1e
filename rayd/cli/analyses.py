"""Command `analyse`: analyses of a distilled set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayd.analyses import ANALYSES
from rayd.cli.group import example, new_group
from rayd.cli.options import (
    Cache,
    DataRoot,
    Debug,
    DirectoryName,
    Json,
    Overwrite,
    Quiet,
)
from rayd.cli.printing import print_json, print_result, print_text

commands = new_group()


@commands.command("analyse", epilog=example("rayd analyse runs/digits embedding"))
def analyse(
    directory: DirectoryName,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="WHAT",
            help=f"{', '.join(ANALYSES)}; without one, all are listed with descriptions.",
            autocompletion=lambda: list(ANALYSES.items()),
        ),
    ] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Another run to compare with, for ipc and images; repeatable."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for picture, page and numbers; by default DIR/analyses."
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            "--network", help="Architecture; by default the first of the recipe's students."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of all draws.")] = 0,
    images: Annotated[
        int | None,
        typer.Option("--images", min=0, help="Maximum number of real images; 0 for all."),
    ] = None,
    steps: Annotated[
        int,
        typer.Option("--steps", min=1, help="Training steps of networks trained for the analysis."),
    ] = 300,
    how: Annotated[
        str | None,
        typer.Option(
            "--how",
            help="Variant: tsne, umap, pca; filter, features; a baseline for classes.",
        ),
    ] = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Analyse a set: features, curvature, gradients, spectra, classes, as a picture and a page."""
    if what is None:
        if as_json:
            print_json(dict(ANALYSES))
            return
        width = max(map(len, ANALYSES))
        print_text("\n".join(f"{name:<{width}}  {text}" for name, text in ANALYSES.items()))
        return
    from rayd.analyses import check_free, run
    from rayd.analyses.base import FOLDER
    from rayd.engine.progress import Progress

    folder = directory / FOLDER if to is None else to
    check_free(folder, what, overwrite)
    found = run(
        directory,
        what,
        others=others or (),
        network=network,
        seed=seed,
        images=images,
        steps=steps,
        how=how,
        data_root=data_root,
        cache=cache,
        progress=Progress(quiet),
    )
    picture, page, _ = found.write(folder, overwrite)
    print_result(found, as_json)
    if not as_json:
        print_text(f"{picture}\n{page}")
