"""The command line: thin, every command a call of the package.

Exit codes: 0 success, 1 a run that failed, 2 a usage or configuration error, 130 interrupted. A user's mistake is one
sentence on standard error; `--debug` adds the traceback. With `--json` standard output holds one JSON document and nothing
else.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from rayd import __version__, remote
from rayd.config import given_resources, merge, parse_overrides
from rayd.errors import OutputError, RaydError, ResourceError


class InterruptedRunError(RaydError):
    """The user pressed Ctrl-C."""

    exit_code = 130


class _Commands(TyperGroup):
    """Commands whose interruption is told in rayd's words."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise InterruptedRunError("Interrupted; what was finished is kept, and --resume continues a run.") from error


app = typer.Typer(
    name="rayd",
    cls=_Commands,
    help="Distil a labelled image data set into a small synthetic one that trains networks almost as well.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Known data sets: where they are, and how to get them.", no_args_is_help=True)
app.add_typer(data_app, name="data")

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A built-in recipe or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings laid over the recipe.")]
DirectoryName = Annotated[Path, typer.Argument(metavar="DIR", help="A run directory or a distilled set.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="Where named data are looked for first (then $RAYD_DATA, ~/.cache/rayd/data)."),
]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="Where finished work is shared between runs ($RAYD_CACHE, ~/.cache/rayd/store).")
]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Ray actors; 0 works in this process, without Ray.")]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster to join; absent: a private one on this machine.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]

out = Console(soft_wrap=True, highlight=False)


def _wide() -> Console:
    """Tables fold to a terminal's width and to nothing else's."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=240)


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


@app.command("recipes")
def recipes_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None, as_json: Json = False, debug: Debug = False
) -> None:
    """List the recipes with the paper's number and ours; or print one whole as YAML."""
    from rayd import recipes

    if name is not None:
        recipe = recipes.resolve(name)
        if as_json:
            _print_json(recipe.model_dump(mode="json"))
        else:
            sys.stdout.write(recipe.to_yaml())
        return
    known = [recipes.resolve(each) for each in recipes.names()]
    if as_json:
        _print_json(
            [
                recipe.model_dump(mode="json", include={"name", "method", "summary", "ipc", "paper", "measured"})
                for recipe in known
            ]
        )
        return
    table = Table(box=None, header_style="bold")
    for column in ("recipe", "method", "data", "ipc", "paper", "measured", "what"):
        table.add_column(column, overflow="fold")
    for recipe in known:
        ours = recipe.measured[-1].accuracy if recipe.measured else None
        paper = recipe.paper.accuracy if recipe.paper else None
        table.add_row(
            recipe.name, recipe.method, recipe.data.name, str(recipe.ipc), _number(paper), _number(ours), recipe.summary
        )
    _wide().print(table)


@data_app.command("list")
def data_list(as_json: Json = False, data_root: DataRoot = None, debug: Debug = False) -> None:
    """List known data sets and where they were found."""
    from rayd.data import known_sources

    known = known_sources(data_root)
    if as_json:
        _print_json(
            [
                {
                    "name": k.name,
                    "classes": k.classes,
                    "found": None if k.found is None else remote.shown(k.found),
                    "how": k.how,
                }
                for k in known
            ]
        )
        return
    table = Table(box=None, header_style="bold")
    for column in ("data", "classes", "found"):
        table.add_column(column, overflow="fold")
    for source in known:
        table.add_row(
            source.name, str(source.classes), remote.shown(source.found) if source.found is not None else f"no: {source.how}"
        )
    _wide().print(table)


@data_app.command("fetch")
def data_fetch(name: str, data_root: DataRoot = None, debug: Debug = False) -> None:
    """Download a data set into the data root."""
    from rayd.data.fetch import fetch

    out.print(str(fetch(name, data_root)), markup=False)


@app.command()
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    workers: Workers = None,
    address: Address = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what would run, what is cached, memory, disk, and time per stage."""
    from rayd import recipes
    from rayd.engine.plan import plan as make_plan

    resolved = recipes.resolve(recipe, merge(parse_overrides(overrides or []), given_resources(workers, address)))
    made = make_plan(resolved, data_root, cache)
    if as_json:
        _print_json(made.to_json())
    else:
        out.print(made.text(), markup=False)


@app.command()
def distill(
    recipe: RecipeName,
    overrides: Overrides = None,
    to: Annotated[Path | None, typer.Option("--out", help="The run's directory, or its URL: s3://bucket/run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that the directory holds.")] = False,
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
    from rayd import recipes
    from rayd.engine.distill import distill as run_distillation
    from rayd.engine.progress import Reporter

    resolved = recipes.resolve(recipe, merge(parse_overrides(overrides or []), given_resources(workers, address)))
    run = run_distillation(
        resolved,
        to or Path("runs") / resolved.name,
        data_root=data_root,
        cache=cache,
        resume=resume,
        overwrite=overwrite,
        reporter=Reporter(quiet),
    )
    if as_json:
        _print_json(run.report.to_json())
    else:
        out.print(run.report.text(), markup=False)
        if (paper := run.recipe.paper) is not None:
            out.print(f"paper: {paper.accuracy:.3f}{f' ± {paper.std:.3f}' if paper.std else ''} ({paper.source})", markup=False)
        out.print(f"\n{len(run.distilled)} distilled images: {remote.shown(run.directory / 'distilled')}", markup=False)


@app.command()
def status(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a run is doing: stage, step, rate, time left, workers, restarts, disk; or how it ended."""
    from rayd.engine.status import status as look

    found = look(directory)
    if as_json:
        _print_json(found.to_json())
    else:
        out.print(found.text(), markup=False)


@app.command()
def evaluate(
    directory: DirectoryName,
    overrides: Overrides = None,
    network: Annotated[
        list[str] | None, typer.Option("--network", help="Architecture of the students; may be repeated.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Students per architecture.")] = None,
    workers: Workers = None,
    address: Address = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train networks on a distilled set and on its baselines; add the results to its evaluation.json."""
    from rayd.distilled import load
    from rayd.engine.evaluate import evaluate_distilled, keep_report, kept_report
    from rayd.engine.progress import Reporter
    from rayd.engine.rundir import check_writable, locked

    settings = {key: value for key, value in {"networks": network, "seeds": seeds}.items() if value}
    tree = merge(merge(parse_overrides(overrides or []), {"evaluation": settings}), given_resources(workers, address))
    distilled = load(directory)
    kept_report(directory)  # a damaged one is told before the work, not after it
    check_writable(remote.local(directory), "directory of the set")
    report = evaluate_distilled(distilled, tree, data_root, cache, Reporter(quiet))
    with locked(remote.local(directory)):
        report = keep_report(report, directory)
    if as_json:
        _print_json(report.to_json())
    else:
        out.print(report.text(), markup=False)


@app.command()
def show(
    directory: DirectoryName,
    png: Annotated[
        Path | None, typer.Option("--png", help="Write the contact sheet, or with --spectrum the spectra, to this file.")
    ] = None,
    spectrum: Annotated[
        bool,
        typer.Option(
            "--spectrum", help="Draw spectra of real and synthetic features, into the set's spectrum.png unless --png."
        ),
    ] = False,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Tell what a distilled set is; write its contact sheet or its spectra."""
    from rayd.artifacts import write_bytes
    from rayd.card import describe
    from rayd.distilled import as_png, load, picture

    distilled = load(directory)
    if spectrum and png is None:
        png = (distilled.directory or directory) / "spectrum.png"
    if png is not None:
        png = remote.local(png)
        if remote.exists(png) and not overwrite:
            raise OutputError(f"'{png}' exists already; choose another file or add --overwrite.")
        if spectrum:
            from rayd.engine.spectra import of_distilled

            write_bytes(png, as_png(of_distilled(distilled, data_root, cache)))
        else:
            write_bytes(png, picture(distilled))
    if as_json:
        _print_json(distilled.card)
    else:
        out.print(describe(distilled), markup=False)


@app.command()
def export(
    directory: DirectoryName,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="File or folder to make.")],
    format: Annotated[str, typer.Option("--format", help="parquet, imagefolder or npz.")],
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write a distilled set as Parquet, an image folder or an npz file."""
    from rayd.distilled import load
    from rayd.export import export as write

    write(load(directory), format, destination, overwrite)
    out.print(str(destination), markup=False)


@app.command()
def tune(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="A built-in search space or a YAML file.")],
    overrides: Overrides = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", min=1, help="Trials to draw; absent: as the space says. More may be asked for with --resume."
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="The sweep's directory.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep that the directory holds.")] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Ray actors of each trial; 0: the trial's own.")
    ] = None,
    concurrent: Annotated[int | None, typer.Option("--concurrent", min=1, help="Trials at a time, at most.")] = None,
    address: Address = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search for better settings of a recipe; trials share what they have in common, and see no test images."""
    from rayd.engine.progress import Reporter

    try:
        import tuning
    except ImportError as error:
        raise ResourceError("Sweeps need Ray Tune and Optuna; install 'ray[tune]' and 'optuna'.") from error

    found = tuning.load(space)
    out_ = to or Path("sweeps") / found.name
    tuning.sweep(
        found,
        out=out_,
        samples=samples,
        resume=resume,
        overrides=parse_overrides(overrides or []),
        workers=workers,
        concurrent=concurrent,
        address=address,
        data_root=data_root,
        cache=cache,
        reporter=Reporter(quiet),
    )
    summary = tuning.summary(out_)
    if as_json:
        _print_json(summary.to_json())
    else:
        out.print(summary.text(), markup=False)
        out.print(f"\n{out_ / 'best.yaml'} is a recipe for 'rayd distill'", markup=False)


@app.command()
def doctor(
    data_root: DataRoot = None, cache: Cache = None, address: Address = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Check Ray, devices, the data root, class order and versions; say what is wrong and how to mend it."""
    from rayd.engine.doctor import examine

    findings = examine(data_root, cache, address)
    if as_json:
        _print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            out.print(finding.text(), markup=False)
    if any(finding.status == "wrong" for finding in findings):
        raise typer.Exit(1)


@app.command()
def cite(recipe: RecipeName, debug: Debug = False) -> None:
    """Print BibTeX of all that a recipe uses."""
    from rayd import methods, recipes
    from rayd.citations import citations

    resolved = recipes.resolve(recipe)
    sys.stdout.write("\n\n".join(citations(resolved, methods.get(resolved.method).citation)) + "\n")


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    threading.excepthook = _thread_failed


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread of its own; what the disk refuses there is refused, and told, in the run's log as well."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(given)
    except RaydError as error:
        if "--debug" in given:
            raise
        sys.stderr.write(f"rayd: {error}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if "--debug" in given:
            raise
        sys.stderr.write(f"rayd: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.\n")
        sys.exit(1)
