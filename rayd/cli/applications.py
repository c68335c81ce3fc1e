"""Commands for applications of distilled sets: `apply ranking`, `continual` and `slimming`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rayd.cli.group import example, new_group
from rayd.cli.options import (
    Address,
    Cache,
    DataRoot,
    Debug,
    DirectoryName,
    Json,
    Overrides,
    Overwrite,
    Quiet,
    RecipeName,
    Seeds,
    Workers,
    given_settings,
)
from rayd.cli.printing import check_picture, print_json, print_text, write_picture
from rayd.names import expanded

commands = new_group(
    help="Put distilled sets to use: continual learning, ranking of architectures, slimming.",
    epilog=example("rayd apply continual digits --steps 5 --out uses/continual"),
)


@commands.command("ranking", epilog=example("rayd apply ranking runs/digits --seeds 2"))
def apply_ranking(
    directory: DirectoryName,
    overrides: Overrides = None,
    network: Annotated[
        list[str] | None,
        typer.Option("--network", help="Architecture to rank; by default ten small ones."),
    ] = None,
    seeds: Seeds = None,
    png: Annotated[Path | None, typer.Option("--png", help="Write the chart to this file.")] = None,
    workers: Workers = None,
    address: Address = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Compare rankings of architectures, on a set and on baselines, with that on the whole data."""
    from rayd.applications import ranking
    from rayd.config import merge
    from rayd.distilled import load
    from rayd.engine.evaluate import evaluate_distilled
    from rayd.engine.progress import Progress

    if png is not None:
        check_picture(png, overwrite)
    networks: list[Any] = list(network) if network else list(ranking.SMALL)
    baselines = ["random", "herding", "whole"]
    chosen: dict[str, Any] = {"networks": networks, "baselines": baselines, "comparisons": []}
    if seeds is not None:
        chosen["seeds"] = seeds
    tree = merge({"evaluation": chosen}, given_settings(overrides, workers, address))
    report = evaluate_distilled(load(directory), tree, data_root, cache, Progress(quiet))
    found = ranking.rankings(report)
    if png is not None:
        write_picture(png, ranking.chart(found, f"{report.recipe}: ranking of networks"))
    if as_json:
        print_json([one.to_json() for one in found])
    else:
        print_text(ranking.text(found))


@commands.command("continual", epilog=example("rayd apply continual digits --steps 5"))
def apply_continual(
    recipe: RecipeName,
    overrides: Overrides = None,
    to: Annotated[
        Path,
        typer.Option("--out", help="Directory for the distillations, the chart and the numbers."),
    ] = Path("uses/continual"),
    steps: Annotated[int, typer.Option("--steps", min=1, help="Groups of classes.")] = 5,
    orders: Annotated[int, typer.Option("--orders", min=1, help="Number of class orders.")] = 3,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            "--memory",
            help="distilled, random, herding, whole, a recipe or its file; may be repeated.",
        ),
    ] = None,
    workers: Workers = None,
    address: Address = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Learn groups of classes one after another, with a memory of a few images per class."""
    from rayd import recipes
    from rayd.applications import continual
    from rayd.artifacts import write_json
    from rayd.engine.progress import Progress

    to = expanded(to)
    resolved = recipes.resolve(recipe, given_settings(overrides, workers, address))
    curves = continual.learn(
        resolved,
        to,
        steps=steps,
        orders=orders,
        methods=memory or ["distilled", "random", "herding", "whole"],
        data_root=data_root,
        cache=cache,
        progress=Progress(quiet),
    )
    title = f"{resolved.data.title}, {resolved.ipc} images per class"
    write_picture(to / "continual.png", continual.chart(curves, title))
    write_json(to / "continual.json", {"curves": [curve.to_json() for curve in curves]})
    if as_json:
        print_json([curve.to_json() for curve in curves])
    else:
        print_text(continual.text(curves))


@commands.command("slimming", epilog=example("rayd apply slimming runs/digits --seeds 3"))
def apply_slimming(
    directory: DirectoryName,
    overrides: Overrides = None,
    to: Annotated[
        Path, typer.Option("--out", help="Directory for the chart and the numbers.")
    ] = Path("uses/slimming"),
    network: Annotated[
        str | None,
        typer.Option(
            "--network", help="Architecture; by default VGG-11, or a small VGG below 28 pixels."
        ),
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option("--share", help="Share of channels to prune; may be repeated."),
    ] = None,
    sparsity: Annotated[
        list[float] | None,
        typer.Option(
            "--sparsity",
            min=0,
            help="Distance by which the penalty would move scales, which start at 1; of several, "
            "the best on the validation split is used. By default 0, 0.35, 0.7, 1 and 1.5; "
            "without such a split 0.7.",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="distilled, random, herding or whole; may be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Networks per set.")] = 3,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prune channels of a network without the real data; report accuracy over the pruned share."""
    from rayd.applications import slimming
    from rayd.artifacts import write_json
    from rayd.engine.progress import Progress

    to = expanded(to)
    found = slimming.slim_run(
        directory,
        given_settings(overrides, None, None),
        sets=sets or slimming.SETS,
        shares=share or slimming.SHARES,
        sparsity=sparsity or None,
        seeds=seeds,
        network=network,
        data_root=data_root,
        cache=cache,
        progress=Progress(quiet),
    )
    write_picture(to / "slimming.png", slimming.chart(found, str(directory)))
    write_json(to / "slimming.json", {"sets": [one.to_json() for one in found]})
    if as_json:
        print_json([one.to_json() for one in found])
    else:
        print_text(slimming.text(found))
