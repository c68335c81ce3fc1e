"""Command line: a thin layer, every command calls the package.

Exit codes: 0 success, 1 a run that failed, 2 a usage or configuration error, 130 interrupted. A
user error is one sentence on standard error; `--debug` adds the traceback. With `--json`, standard
output is one JSON document and nothing else.
"""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import shlex
import sys
import textwrap
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from rayd import remote
from rayd.errors import ClusterLostError, ConfigError, OutputError, RaydError, ResourceError
from rayd.interrupts import NOTHING_DONE, InterruptedRunError, leave, one_interrupt
from rayd.version import __version__

if TYPE_CHECKING:
    from rayd.config import Recipe
    from rayd.recipes import Headline


_EXAMPLE = "Example: "
"""Prefix of the last line of a command's help."""


def _example(line: str) -> str:
    """Format the last line of a command's help."""
    return _EXAMPLE + line


class _Commands(TyperGroup):
    """Command group whose help lists an example of each command; reports interruptions."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List every command with its name, purpose and example."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        indent = max(len(name) for name, _ in commands)
        with formatter.section("Commands"):
            for name, command in commands:
                if command is None:
                    continue
                formatter.write_dl([(name.ljust(indent), command.get_short_help_str(limit=200))])
                if command.epilog:
                    indentation = " " * (formatter.current_indent + indent + 2)
                    formatter.write(f"{indentation}$ {command.epilog.removeprefix(_EXAMPLE)}\n")

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """See `invoke`; click itself would say 'Aborted!' and exit with code 1."""
        try:
            return super().make_context(*arguments, **options)
        except KeyboardInterrupt as error:
            raise InterruptedRunError(NOTHING_DONE) from error

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise InterruptedRunError("Interrupted; finished work is kept.") from error


app = typer.Typer(
    name="rayd",
    cls=_Commands,
    help=(
        "Distil a labelled image data set into a small synthetic one that trains networks almost "
        "as well. Every command takes --import FILE.py: own methods, terms and networks."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    cls=_Commands,
    help="Known data sets: where they are, and how to get them.",
    epilog=_example("rayd data list"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
apply_app = typer.Typer(
    cls=_Commands,
    help="Put distilled sets to use: continual learning, ranking of architectures.",
    epilog=_example("rayd apply continual digits --steps 5 --out uses/continual"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(apply_app, name="apply")

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A built-in recipe or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that override the recipe."),
]
DirectoryName = Annotated[
    Path, typer.Argument(metavar="DIR", help="A run directory, a distilled set or an export.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
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
    typer.Option("--address", help="Ray cluster to join; absent: a private one on this machine."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]

out = Console(soft_wrap=True, highlight=False)


PIPE_WIDTH = 240
"""Width of tables without a terminal and without `COLUMNS`."""


def _wide() -> Console:
    """Console for tables, as wide as the terminal or `COLUMNS`."""
    console = Console(highlight=False)
    given = os.environ.get("COLUMNS", "").isdigit()
    return console if console.is_terminal or given else Console(highlight=False, width=PIPE_WIDTH)


def _tree(overrides: list[str] | None, workers: int | None, address: str | None) -> dict[str, Any]:
    """Settings that a command line overrides."""
    from rayd.config import given_resources, merge, parse_overrides

    return merge(parse_overrides(overrides or []), given_resources(workers, address))


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


@app.command("recipes", epilog=_example("rayd recipes --method edc"))
def recipes_command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A recipe, a family of recipes, or a YAML file."),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="List the recipes of a method.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="List the recipes of a data set.")
    ] = None,
    measured: Annotated[
        bool, typer.Option("--measured", help="List the recipes with results of ours.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="List every recipe.")] = False,
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

        _print_json(schema())
        return
    families = recipes.families()
    family = families.get(name) if name is not None and name not in recipes.names() else None
    if name is not None and family is None:
        _print_recipe(recipes.resolve(name), as_json)
        return
    known = recipes.headlines(method, data, measured)
    if family is not None:
        known = [headline for headline in known if headline.name in family]
    if as_json:
        _print_json([headline.model_dump(mode="json") for headline in known])
    elif everything or measured or family is not None or method is not None or data is not None:
        _print_recipes(known)
    else:
        _print_families(known, families)


def _print_recipe(recipe: Recipe, as_json: bool) -> None:
    """Print a recipe as JSON, or its results as comments and below them its YAML."""
    if as_json:
        _print_json(recipe.model_dump(mode="json"))
        return
    from rayd.results.text import results_text

    sys.stdout.write(results_text(recipe, max(min(_wide().width, 120), 60)) + recipe.to_yaml())


def _print_recipes(known: Sequence[Headline]) -> None:
    """Print a table of recipes."""
    if not known:
        out.print("No recipe is like that: 'rayd recipes --all' lists all of them.")
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
    _print_rows(rows, shortened="what", dropped=("what", "data", "method", "ipc"))


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
    _print_rows(rows, shortened="what", dropped=("data", "what"))
    hint = (
        "'paper' and 'measured' count recipes with such numbers. 'rayd recipes FAMILY' and '--all' "
        "list recipes, '--method', '--data' and '--measured' some of them; 'rayd recipes NAME' "
        "prints one. A first run: 'rayd distill digits'."
    )
    out.print("\n" + textwrap.fill(hint, min(_wide().width, 100)), markup=False)


LEAST_SHORTENED = 20
"""Minimum width of a shortened column; below it, the column is omitted."""


def _print_rows(rows: Sequence[Mapping[str, str]], shortened: str, dropped: Sequence[str]) -> None:
    """Print rows with equal keys as a table without line breaks in cells.

    Args:
        rows: cells by column name.
        shortened: last column, cut with an ellipsis if the line is too narrow.
        dropped: columns that are omitted, one after another, until the others fit.
    """
    console = _wide()
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in rows[0]}
    kept = widths | {shortened: min(widths[shortened], LEAST_SHORTENED)}
    for column in dropped:
        if _line_width(kept) > console.width:
            del kept[column]
    if shortened in kept:
        kept[shortened] = min(
            widths[shortened], kept[shortened] + console.width - _line_width(kept)
        )

    heading = {column: column for column in kept}
    for row in (heading, *rows):
        cells = [_fitted(row[column], width) for column, width in kept.items()]
        console.print(
            "  ".join(cells).rstrip(),
            style="bold" if row is heading else "",
            markup=False,
            soft_wrap=True,
        )


def _fitted(text: str, width: int) -> str:
    """Pad a text to a width, or cut it with an ellipsis."""
    return text.ljust(width) if len(text) <= width else f"{text[: width - 1]}…"


def _line_width(columns: Mapping[str, int]) -> int:
    """Width of a table's line: its columns, and two characters between them."""
    return sum(columns.values()) + 2 * (len(columns) - 1)


@data_app.command("list", epilog=_example("rayd data list --data-root ~/data"))
def data_list(as_json: Json = False, data_root: DataRoot = None, debug: Debug = False) -> None:
    """List known data sets and where they were found."""
    from rayd.data.sources import known_sources

    known = known_sources(data_root)
    if as_json:
        listed = []
        for source in known:
            found = None if source.found is None else remote.shown(source.found)
            listed.append(
                {"name": source.name, "classes": source.classes, "found": found, "how": source.how}
            )
        _print_json(listed)
        return
    table = Table(box=None, header_style="bold")
    for column in ("data", "classes", "found"):
        table.add_column(column, overflow="fold")
    for source in known:
        table.add_row(
            source.name,
            str(source.classes),
            remote.shown(source.found) if source.found is not None else f"no: {source.how}",
        )
    _wide().print(table)


@data_app.command("fetch", epilog=_example("rayd data fetch cifar10"))
def data_fetch(name: str, data_root: DataRoot = None, debug: Debug = False) -> None:
    """Download a data set into the data root."""
    from rayd.data.fetch import fetch

    out.print(str(fetch(name, data_root)), markup=False)


@data_app.command("check", epilog=_example("rayd data check ~/flowers image_size=64"))
def data_check(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A folder, an .npz file, a URL or a known name.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of 'data', e.g. image_size=64."),
    ] = None,
    as_json: Json = False,
    data_root: DataRoot = None,
    debug: Debug = False,
) -> None:
    """Go through every image of a data set and list all problems; exits with 1 if there are any.

    PATH is what other commands take as data=PATH (short for data.name=PATH): a folder
    <class>/*.png or <split>/<class>/*.png, with images in any format; a folder of Parquet files
    train-*.parquet, test-*.parquet; or an .npz file with x_train, y_train, x_test, y_test, or
    images and labels (class_names is optional).

    Settings, which other commands take as data.KEY=VALUE: image_size=64 where sizes differ, and
    fit=crop|squash|pad for images that are not square; mode=grey|rgb; background=white for
    transparent pixels; white_level=65535 for more than 8 bits per channel; train=NAME,
    validation=NAME, test=NAME where it is not certain which part is which split, and train=. if
    folders are classes; classes=[a,b]; validation_fraction=0.1; split_seed=42; copies=keep to test
    on copies of training images.

    Without a test split the validation split is tested on, and without either 20 % of each class,
    carved from the training images.
    """
    from rayd.config import DataSettings, parse_overrides
    from rayd.config.reading import validate
    from rayd.data.check import check

    given = [override.removeprefix("data.") for override in overrides or []]
    settings = validate(DataSettings, {"name": path, **parse_overrides(given)}, prefix="data.")
    found = check(settings, data_root)
    if as_json:
        _print_json(found.to_json())
    else:
        out.print(found.text(), markup=False)
    if not found.good:
        raise typer.Exit(1)


@app.command(epilog=_example("rayd plan edc-cifar10-ipc10"))
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    workers: Workers = None,
    address: Address = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure this machine's speed again, which is otherwise done once.",
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what would run, what is cached, memory, disk, and time per stage; needs no data."""
    from rayd import recipes

    resolved = recipes.resolve(recipe, _tree(overrides, workers, address))

    from rayd.engine.plan import plan as make_plan

    made = make_plan(resolved, data_root, cache, calibrate=calibrate)
    if as_json:
        _print_json(made.to_json())
    else:
        out.print(made.text(), markup=False)


@app.command(epilog=_example("rayd distill digits ipc=5 --out runs/digits"))
def distill(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A built-in recipe or a YAML file; with --resume, a run's directory.",
        ),
    ] = None,
    overrides: Overrides = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="The run's directory, or its URL: s3://bucket/run.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue a run: --resume DIR, which needs neither recipe nor settings.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    workers: Workers = None,
    address: Address = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Distil a data set, train networks on the result, and compare with the baselines."""
    from rayd.engine.progress import Progress

    resolved, directory = _requested(recipe, overrides or [], to, resume, workers, address)
    progress = Progress(quiet)
    # printed first, as the imports below take seconds
    progress.log(
        f"{resolved.name}: {resolved.method} on {resolved.data.name}, "
        f"into {remote.shown(directory)}"
    )

    from rayd.engine.distill import distill as run_distillation

    try:
        run = run_distillation(
            resolved,
            directory,
            data_root=data_root,
            cache=cache,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    except KeyboardInterrupt as error:
        raise InterruptedRunError(_continues(directory, data_root, cache)) from error
    if as_json:
        _print_json(run.report.to_json())
    else:
        out.print(run.report.text(), markup=False)
        out.print(
            f"\n{len(run.distilled)} distilled images: {remote.shown(run.directory / 'distilled')}",
            markup=False,
        )


def _requested(
    name: str | None,
    overrides: list[str],
    to: Path | None,
    resume: bool,
    workers: int | None,
    address: str | None,
) -> tuple[Recipe, Path]:
    """Recipe and directory of a run, as named, or with --resume those of an existing run."""
    from rayd import recipes
    from rayd.engine.rundir import RunDirectory

    if resume and name is not None and to is not None and "=" in name:
        # --resume --out DIR KEY=VALUE: the recipe is left out
        overrides = [name, *overrides]
        name = None
    elif resume and name is not None and to is None and not _names_recipe(name):
        to = Path(name)
        name = None
    settings = _tree(overrides, workers, address)
    if name is not None:
        resolved = recipes.resolve(name, settings)
        return resolved, to or Path("runs") / resolved.name
    if resume and to is not None:
        return RunDirectory(to).recipe(settings), to
    missing = (
        "the run to continue: rayd distill --resume DIR" if resume else "one of 'rayd recipes'"
    )
    raise ConfigError(f"Missing argument 'RECIPE': name {missing}.")


def _names_recipe(name: str) -> bool:
    """Whether the argument of --resume is a recipe, whose run is continued, or a directory."""
    from rayd import recipes
    from rayd.engine.rundir import RunDirectory

    if name.endswith((".yaml", ".yml")):
        return True
    # a run's directory may be named like a recipe
    return name in recipes.names() and (
        RunDirectory(Path("runs") / name).holds_run() or not RunDirectory(Path(name)).holds_run()
    )


def _continues(directory: Path, data_root: Path | None, cache: Path | None) -> str:
    """Message for an interrupted run."""
    from rayd.engine.rundir import RunDirectory, continuation

    if not RunDirectory(directory).holds_run():
        return "Interrupted before the run began."
    command = continuation(directory, data_root, cache)
    return f"Interrupted; finished work is kept. To continue: {command}"


@app.command(epilog=_example("rayd status runs/digits"))
def status(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a run is doing (stage, step, rate, time left, workers, disk), or how it ended."""
    from rayd.engine.status import status as read_status

    found = read_status(directory)
    if as_json:
        _print_json(found.to_json())
    else:
        out.print(found.text(), markup=False)


@app.command(epilog=_example("rayd evaluate runs/digits --network mlp --seeds 5"))
def evaluate(
    directory: DirectoryName,
    overrides: Overrides = None,
    network: Annotated[
        list[str] | None,
        typer.Option("--network", help="Architecture of the students; may be repeated."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Students per architecture.")
    ] = None,
    workers: Workers = None,
    address: Address = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train networks on a distilled set and its baselines; add results to its evaluation.json.

    With several architectures, a chart of them is written beside it. Results of an export are
    printed only.
    """
    from rayd.config import merge
    from rayd.distilled import load
    from rayd.engine.evaluate import evaluate_distilled, keep_chart, keep_report
    from rayd.engine.progress import Progress
    from rayd.engine.rundir import check_writable
    from rayd.evaluation.report import Report
    from rayd.locks import locked

    settings = {key: value for key, value in {"networks": network, "seeds": seeds}.items() if value}
    tree = merge(_tree(overrides, workers, address), {"evaluation": settings})
    distilled = load(directory)
    is_export = distilled.directory is None
    if not is_export:
        Report.kept(directory)  # fails on a damaged report before the work, not after it
        check_writable(remote.local(directory), "directory of the set")
    report = evaluate_distilled(distilled, tree, data_root, cache, Progress(quiet))
    if not is_export:
        with locked(remote.local(directory)):
            report = keep_report(report, directory)
            keep_chart(report, directory)
    if as_json:
        _print_json(report.to_json())
    else:
        out.print(report.text(), markup=False)


@app.command(epilog=_example("rayd compare runs/digits-0 runs/digits-1 runs/digits-2"))
def compare(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Run directories with evaluations.")
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare runs: means over distillations, deviations over these and over students, scores."""
    from rayd.evaluation.compare import compare as compared

    found = compared(directories)
    if as_json:
        _print_json(found.to_json())
    else:
        out.print(found.text(), markup=False)


@apply_app.command("ranking", epilog=_example("rayd apply ranking runs/digits --seeds 2"))
def apply_ranking(
    directory: DirectoryName,
    overrides: Overrides = None,
    network: Annotated[
        list[str] | None,
        typer.Option("--network", help="Architecture to rank; absent: ten small ones."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Students per architecture.")
    ] = None,
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
    """Tell whether a set ranks architectures as the whole data do, and as baselines do."""
    from rayd.applications import ranking
    from rayd.config import merge
    from rayd.distilled import load
    from rayd.engine.evaluate import evaluate_distilled
    from rayd.engine.progress import Progress

    networks: list[Any] = list(network) if network else list(ranking.SMALL)
    baselines = ["random", "herding", "whole"]
    chosen: dict[str, Any] = {"networks": networks, "baselines": baselines, "comparisons": []}
    if seeds is not None:
        chosen["seeds"] = seeds
    tree = merge({"evaluation": chosen}, _tree(overrides, workers, address))
    report = evaluate_distilled(load(directory), tree, data_root, cache, Progress(quiet))
    found = ranking.rankings(report)
    if png is not None:
        _write_picture(
            png, ranking.chart(found, f"{report.recipe}: ranking of networks"), overwrite
        )
    if as_json:
        _print_json([one.to_json() for one in found])
    else:
        out.print(ranking.text(found), markup=False)


@apply_app.command("continual", epilog=_example("rayd apply continual digits --steps 5"))
def apply_continual(
    recipe: RecipeName,
    overrides: Overrides = None,
    to: Annotated[
        Path, typer.Option("--out", help="Directory of the distillations, the chart and numbers.")
    ] = Path("uses/continual"),
    steps: Annotated[int, typer.Option("--steps", min=1, help="Groups of classes.")] = 5,
    orders: Annotated[int, typer.Option("--orders", min=1, help="Orders of the classes.")] = 3,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            "--memory", help="distilled, random, herding, whole, or a recipe; may be repeated."
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
    """Learn groups of classes one after another, with a memory of a few images for each class."""
    from rayd import recipes
    from rayd.applications import continual
    from rayd.artifacts import write_json
    from rayd.engine.progress import Progress

    resolved = recipes.resolve(recipe, _tree(overrides, workers, address))
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
    title = f"{resolved.data.name}, {resolved.ipc} images per class"
    _write_picture(to / "continual.png", continual.chart(curves, title), overwrite=True)
    write_json(to / "continual.json", {"curves": [curve.to_json() for curve in curves]})
    if as_json:
        _print_json([curve.to_json() for curve in curves])
    else:
        out.print(continual.text(curves), markup=False)


def _write_picture(path: Path, image: Any, overwrite: bool) -> None:
    """Write a picture in the format that its name says."""
    from rayd.artifacts import write_bytes
    from rayd.distilled import as_file, picture_format

    format = picture_format(path)
    if remote.exists(path) and not overwrite:
        raise OutputError(f"'{path}' exists already; choose another file or add --overwrite.")
    write_bytes(path, as_file(image, format))


@app.command(epilog=_example("rayd show runs/digits --png digits.png"))
def show(
    directory: DirectoryName,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png",
            help=(
                "Write the contact sheet, or with --spectrum the spectra, to this file: "
                ".png, .jpg or .webp."
            ),
        ),
    ] = None,
    spectrum: Annotated[
        bool,
        typer.Option(
            "--spectrum",
            help=(
                "Draw spectra of real and synthetic features, "
                "into the set's spectrum.png unless --png."
            ),
        ),
    ] = False,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Describe a distilled set; write its contact sheet or its spectra."""
    from rayd.artifacts import write_bytes
    from rayd.card import describe
    from rayd.distilled import DIRECTORY, as_file, contact_sheet, load, picture_format
    from rayd.evaluation.report import Report

    distilled = load(directory)
    folder = distilled.directory
    report = None if folder is None else Report.kept(folder)
    if folder is not None and folder.name == DIRECTORY:
        of_run = Report.kept(folder.parent)
        if of_run is not None:
            report = of_run if report is None else of_run.merge(report)
    if spectrum and png is None:
        if folder is None:
            raise OutputError("The spectra of an export need a file: name it with --png.")
        png = folder / "spectrum.png"
    if png is not None:
        png = remote.local(png)
        format = picture_format(png)
        if remote.exists(png) and not overwrite:
            raise OutputError(f"'{png}' exists already; choose another file or add --overwrite.")
        if spectrum:
            from rayd.engine.spectra import from_distilled

            image = from_distilled(distilled, data_root, cache)
        else:
            image = contact_sheet(distilled)
        write_bytes(png, as_file(image, format))
    if as_json:
        evaluation = {"evaluation": report.to_json()} if report is not None else {}
        _print_json(distilled.card | evaluation)
    else:
        out.print(describe(distilled, report), markup=False)


@app.command(epilog=_example("rayd report runs/digits --open"))
def report(
    directory: DirectoryName,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="File to write; by default report.html in the run's directory."),
    ] = None,
    show_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the web browser.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a run as one HTML page: accuracies, images, curves, time, settings; works offline."""
    from rayd.page import write

    path = write(directory, to)
    out.print(str(path), markup=False)
    if show_page:
        typer.launch(str(path))


@app.command(epilog=_example("rayd export runs/digits digits.parquet --format parquet"))
def export(
    directory: DirectoryName,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="File or folder to create.")],
    format: Annotated[
        str, typer.Option("--format", help="safetensors, npz, parquet or imagefolder.")
    ],
    overwrite: Overwrite = False,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Write what the format can hold of the set.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a distilled set as safetensors, npz, Parquet or an image folder."""
    from rayd.distilled import load
    from rayd.export import export as write

    for sentence in write(load(directory), format, destination, overwrite, lossy):
        sys.stderr.write(f"rayd: {sentence}\n")
    out.print(str(destination), markup=False)


@app.command(epilog=_example("rayd tune dm-digits --samples 20"))
def tune(
    space: Annotated[
        str, typer.Argument(metavar="SPACE", help="A built-in search space or a YAML file.")
    ],
    overrides: Overrides = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            help="Trials to draw; absent: the space's number. --resume may increase it.",
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="The sweep's directory.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the sweep in the directory.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Ray actors of each trial; 0: the trial's own."),
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option("--concurrent", min=1, help="Trials at a time, at most.")
    ] = None,
    address: Address = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search for better settings of a recipe; trials share common work and use no test images."""
    from rayd.config import parse_overrides
    from rayd.engine.progress import Progress
    from tuning import ResolvedSpace, load

    found = load(space, parse_overrides(overrides or []))
    ResolvedSpace(found).check()  # also checked by the sweep; here before Ray is imported
    try:
        import tuning.driver as tuning
    except ImportError as error:
        raise ResourceError(
            "Sweeps need Ray Tune and Optuna; install 'ray[tune]' and 'optuna'."
        ) from error

    out_ = to or Path("sweeps") / found.name
    tuning.sweep(
        found,
        out=out_,
        samples=samples,
        resume=resume,
        workers=workers,
        concurrent=concurrent,
        address=address,
        data_root=data_root,
        cache=cache,
        progress=Progress(quiet),
    )
    summary = tuning.summary(out_)
    if as_json:
        _print_json(summary.to_json())
    else:
        table = out_ / "study.md"
        if table.exists():  # the space was a study, whose table is its result
            out.print(table.read_text(encoding="utf-8"), markup=False)
        out.print(summary.text(), markup=False)
        out.print(f"\n{out_ / 'best.yaml'} is a recipe for 'rayd distill'", markup=False)


@app.command(epilog=_example("rayd doctor"))
def doctor(
    data_root: DataRoot = None,
    cache: Cache = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check Ray, devices, the data root, class order and versions; report problems and remedies."""
    from rayd.engine.doctor import examine

    findings = examine(data_root, cache, address)
    if as_json:
        _print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            out.print(finding.text(), markup=False)
    if any(finding.status == "wrong" for finding in findings):
        raise typer.Exit(1)


@app.command(epilog=_example("rayd cite edc-cifar10-ipc10"))
def cite(recipe: RecipeName, debug: Debug = False) -> None:
    """Print BibTeX entries of everything that a recipe uses."""
    from rayd import methods, recipes
    from rayd.citations import citations

    resolved = recipes.resolve(recipe)
    sys.stdout.write("\n\n".join(citations(resolved, methods.get(resolved.method).citation)) + "\n")


def _version(requested: bool) -> None:
    if requested:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    threading.excepthook = _thread_failed


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Ignore OSErrors of TensorBoard's writer thread, as the run's log reports them as well."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


PLAIN = {"±": "+-", "…": "...", "×": "x", "–": "-", "’": "'", "━": "-"}
"""Characters of ours that a terminal may lack, and what is printed instead."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace what a terminal's encoding lacks: by similar characters, or as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    escaped = (PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking)
    return "".join(escaped), error.end


def _print_anything() -> None:
    """Make standard output and error take any text, names that are not UTF-8 among it."""
    codecs.register_error("rayd", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="rayd")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    given = sys.argv[1:] if arguments is None else arguments
    _print_anything()
    with one_interrupt():
        _main_in_order(given)


def _without_imports(given: list[str]) -> list[str]:
    """Import the files of `--import`, which any command may have, and leave them out."""
    from rayd import parts

    kept: list[str] = []
    words = iter(given)
    for word in words:
        if word == "--import":
            file = next(words, None)
            if file is None:
                raise ConfigError("Option --import needs a file: --import my_method.py.")
            parts.load_file(file)
        elif word.startswith("--import="):
            parts.load_file(word.removeprefix("--import="))
        else:
            kept.append(word)
    return kept


def _main_in_order(given: list[str]) -> None:
    try:
        app(_without_imports(given))
    except RaydError as error:
        if "--debug" in given:
            raise
        if isinstance(error, ClusterLostError):
            # at its end Ray would wait for the head for a minute, and print a page
            leave(str(error), error.exit_code)
        sys.stderr.write(f"rayd: {error}\n")
        if error.setting is not None:
            sys.stderr.write(f"  rayd {shlex.join([*given, error.setting])}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("rayd: Interrupted; finished work is kept.\n")
        sys.exit(InterruptedRunError.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if "--debug" in given:
            raise
        sys.stderr.write(
            f"rayd: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.\n"
        )
        sys.exit(1)
