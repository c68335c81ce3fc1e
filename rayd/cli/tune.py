"""Command `tune`: a search for better settings of a recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from rayd.cli.group import CommandGroup, example, new_group
from rayd.cli.options import (
    Address,
    Cache,
    DataRoot,
    Debug,
    Json,
    Overrides,
    Quiet,
    complete_space,
)
from rayd.cli.printing import print_json, print_rows, print_text
from rayd.errors import ConfigError, ResourceError
from rayd.interrupts import WORK_IS_KEPT, InterruptedRunError
from rayd.names import inside
from rayd.plugins import import_options

if TYPE_CHECKING:
    from tuning.summaries import Summary

commands = new_group()


@commands.command(epilog=example("rayd tune csdm-digits --samples 20"))
def tune(
    context: typer.Context,
    space: Annotated[
        str | None,
        typer.Argument(
            metavar="SPACE",
            help="A built-in search space or a YAML file; without one, spaces are listed.",
            autocompletion=complete_space,
        ),
    ] = None,
    overrides: Overrides = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            help="Trials to draw; by default the space's number. --resume may increase it.",
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="The sweep's directory.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the sweep in the directory; failed trials are tried again."
        ),
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

    if space is None:
        _print_spaces(as_json)
        return
    found = load(space, parse_overrides(overrides or []))
    ResolvedSpace(found).check()  # the sweep checks it as well; this is before Ray is imported
    progress = Progress(quiet)
    # the imports take up to a minute on a busy machine
    progress.log(f"{found.name}: loading PyTorch and Ray Tune")
    try:
        import tuning.driver as tuning
    except ImportError as error:
        raise ResourceError(
            "Sweeps need Ray Tune and Optuna; install 'ray[tune]' and 'optuna'."
        ) from error

    # the name comes from a file, which may be untrusted
    out_ = to or Path("sweeps") / inside(found.name, "sweeps", ConfigError)
    try:
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
            progress=progress,
        )
    except KeyboardInterrupt as error:
        raise InterruptedRunError(_continues(context)) from error
    summary = tuning.summary(out_)
    if as_json:
        print_json(summary.to_json())
    else:
        _print_summary(summary, out_)


def _print_summary(summary: Summary, out: Path) -> None:
    """Print the results of a finished sweep, and where they are."""
    table = out / "study.md"
    if table.exists():  # the space was a study, whose result is a table
        print_text(table.read_text(encoding="utf-8"))
    print_text(summary.text())
    print_text(f"\n{out / 'best.yaml'} is a recipe for 'rayd distill'")
    print_text(f"report: {out / 'report.html'}")


def _continues(context: typer.Context) -> str:
    """Message for an interrupted sweep: the same command resumes from the finished trials."""
    root = context.find_root().command
    words = ["rayd", *cast(CommandGroup, root).given]
    if "--resume" not in words:
        words.append("--resume")
    for name in import_options():
        words += ["--import", name]
    return f"{WORK_IS_KEPT} To continue: {shlex.join(words)}"


def _print_spaces(as_json: bool) -> None:
    """Print the built-in spaces with what they search."""
    from tuning import load, names

    spaces = [load(name) for name in names()]
    if as_json:
        print_json([{"name": space.name, "summary": space.summary} for space in spaces])
        return
    rows = [{"space": space.name, "what it searches": space.summary} for space in spaces]
    print_rows(rows, shortened="what it searches", dropped=())
