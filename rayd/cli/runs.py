"""Commands of a run: `plan`, `distill` and `status`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayd import remote
from rayd.cli.group import example, new_group
from rayd.cli.options import (
    Address,
    Cache,
    DataRoot,
    Debug,
    Json,
    Overrides,
    Overwrite,
    Quiet,
    RecipeName,
    Workers,
    complete_recipe,
    given_settings,
)
from rayd.cli.printing import print_json, print_result, print_text, wide
from rayd.errors import ConfigError
from rayd.interrupts import WORK_IS_KEPT, InterruptedRunError

if TYPE_CHECKING:
    from rayd.config import Recipe

log = logging.getLogger(__name__)
WIDEST = 100
"""Maximum number of characters per line of a plan."""
commands = new_group()


@commands.command(epilog=example("rayd plan edc-cifar10-ipc10"))
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
            help="Repeat the speed benchmark of this machine, which otherwise runs once.",
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the stages of a run, what is cached, memory, disk, and time per stage; needs no data."""
    from rayd import recipes

    resolved = recipes.resolve(recipe, given_settings(overrides, workers, address))

    from rayd.engine.plan import plan as make_plan

    made = make_plan(resolved, data_root, cache, calibrate=calibrate)
    if as_json:
        print_json(made.to_json())
    else:
        print_text(made.text(min(wide().width, WIDEST)))


@commands.command(epilog=example("rayd distill digits ipc=5 --out runs/digits"))
def distill(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            autocompletion=complete_recipe,
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
        f"{resolved.name}: {resolved.method} on {resolved.data.title}, "
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
    page = _page(run.directory)
    print_result(run.report, as_json)
    if not as_json:
        images = remote.shown(run.directory / "distilled")
        print_text(f"\n{len(run.distilled)} distilled images: {images}")
        if page is not None:
            print_text(f"report: {page}")


def _page(directory: Path) -> str | None:
    """Write the page of a finished run; None if that fails, as it must not fail the run."""
    from rayd.page import write

    try:
        return remote.shown(write(directory))
    except Exception as error:
        log.warning("The page of the run could not be written: %s", error)
        return None


def _requested(
    name: str | None,
    overrides: list[str],
    to: Path | None,
    resume: bool,
    workers: int | None,
    address: str | None,
) -> tuple[Recipe, Path]:
    """Recipe and directory of a run: those named, or with --resume those of an existing run."""
    from rayd import recipes
    from rayd.engine.rundir import RunDirectory, default_directory

    if resume and name is not None and to is not None and "=" in name:
        # --resume --out DIR KEY=VALUE: the recipe is omitted
        overrides = [name, *overrides]
        name = None
    elif resume and name is not None and to is None and not _names_recipe(name):
        to = Path(name)
        name = None
    settings = given_settings(overrides, workers, address)
    if name is not None:
        resolved = recipes.resolve(name, settings)
        return resolved, to or default_directory(resolved)
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
    # a run's directory may have the name of a recipe
    return name in recipes.names() and (
        RunDirectory(Path("runs") / name).holds_run() or not RunDirectory(Path(name)).holds_run()
    )


def _continues(directory: Path, data_root: Path | None, cache: Path | None) -> str:
    """Message for an interrupted run."""
    from rayd.engine.rundir import RunDirectory, continuation

    if not RunDirectory(directory).holds_run():
        return "Interrupted before the run began."
    command = continuation(directory, data_root, cache)
    return f"{WORK_IS_KEPT} To continue: {command}"


@commands.command(epilog=example("rayd status runs/digits"))
def status(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a run is doing (stage, step, rate, time left, workers, disk), or how it ended."""
    from rayd.engine.status import status as read_status

    print_result(read_status(directory), as_json)
