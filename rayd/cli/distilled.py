"""Commands for distilled sets and runs: `show`, `report`, `export` and `push`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayd import remote
from rayd.cli.group import example, new_group
from rayd.cli.options import (
    Cache,
    DataRoot,
    Debug,
    DirectoryName,
    Json,
    Overwrite,
    given_settings,
)
from rayd.cli.printing import check_picture, open_page, print_json, print_text, write_picture
from rayd.errors import ConfigError, OutputError
from rayd.names import expanded

if TYPE_CHECKING:
    from PIL.Image import Image

    from rayd.evaluation.report import Report
    from rayd.terminal import Protocol

commands = new_group()


@commands.command(epilog=example("rayd show runs/digits --png digits.png --before"))
def show(
    directory: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="A run directory, a distilled set or an export; with --schedule a recipe.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Settings that override the recipe of --schedule."
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png",
            help=(
                "Write the contact sheet, or with --spectrum the spectra, with --schedule the "
                "curves, to this file: .png, .jpg or .webp."
            ),
        ),
    ] = None,
    before: Annotated[
        bool, typer.Option("--before", help="Show the initial images beside the distilled ones.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            "--epochs",
            min=1,
            help="Add the images at this many evenly spaced steps of the synthesis.",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Class to show; may be repeated. By default the first 20."),
    ] = None,
    scale: Annotated[
        int, typer.Option("--scale", min=1, max=16, help="Factor by which the picture is enlarged.")
    ] = 1,
    schedule: Annotated[
        bool,
        typer.Option("--schedule", help="Show step sizes, filters and curricula of a recipe."),
    ] = False,
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
    """Describe a distilled set; draw its contact sheet, its spectra, or a recipe's schedules.

    Terminals that can display images (kitty, Ghostty, WezTerm, iTerm2) also show the contact sheet.
    RAYD_PICTURES=sixel selects sixels, RAYD_PICTURES=none disables pictures.
    """
    if schedule:
        _show_schedule(directory, overrides, png, overwrite, as_json)
        return
    if overrides:
        raise ConfigError(
            f"'rayd show' takes settings with --schedule alone. Got '{overrides[0]}' instead."
        )
    from rayd.card_text import describe
    from rayd.distilled import load
    from rayd.sheets import sheet

    distilled = load(directory)
    report = _kept_report(distilled.directory)
    png = _file_of_picture(png, spectrum, distilled.directory)
    if png is not None:
        check_picture(png, overwrite)
    image = None
    protocol = "none" if as_json else _protocol()
    if spectrum:
        from rayd.engine.spectra_of_run import from_distilled

        image = from_distilled(distilled, data_root, cache)
    elif png is not None or protocol != "none" or before or steps is not None or classes:
        image = sheet(distilled, classes=classes or (), scale=scale, before=before, steps=steps)
    if png is not None:
        write_picture(png, image)
    if as_json:
        evaluation = {"evaluation": report.to_json()} if report is not None else {}
        print_json(distilled.card | evaluation)
        return
    print_text(describe(distilled, report))
    _draw(image, protocol)
    if png is None and protocol == "none" and image is not None:
        sys.stderr.write("rayd: This terminal shows no pictures; --png FILE writes the picture.\n")


def _file_of_picture(png: Path | None, spectrum: bool, folder: Path | None) -> Path | None:
    """The file for a picture; None for no file.

    Args:
        png: given on the command line.
        spectrum: whether the picture shows spectra, which are always written to a file.
        folder: of the set; None for an export.
    """
    if png is not None:
        return remote.local(png)
    if not spectrum:
        return None
    if folder is None:
        raise OutputError("The spectra of an export need a file: name it with --png.")
    return remote.local(folder / "spectrum.png")


def _kept_report(folder: Path | None) -> Report | None:
    """The report of a set in a directory, and of the run that made it."""
    from rayd.evaluation.run_report import report_of_set

    return None if folder is None else report_of_set(folder)


def _show_schedule(
    recipe: str, overrides: list[str] | None, png: Path | None, overwrite: bool, as_json: bool
) -> None:
    """Show what a recipe schedules."""
    from rayd import recipes, schedule_preview

    resolved = recipes.resolve(recipe, given_settings(overrides, None, None))
    if png is not None:
        png = remote.local(png)
        check_picture(png, overwrite)
    protocol = "none" if as_json else _protocol()
    image = None
    if png is not None or protocol != "none":
        from rayd.drawing import as_image

        image = as_image(schedule_preview.figure(resolved))
    if png is not None:
        write_picture(png, image)
    if as_json:
        print_json([asdict(curve) for curve in schedule_preview.curves(resolved)])
        return
    print_text(schedule_preview.text(resolved))
    _draw(image, protocol)


def _protocol() -> Protocol:
    """The picture protocol of the terminal."""
    from rayd.terminal import protocol

    return protocol(sys.stdout)


def _draw(image: Image | None, protocol: Protocol) -> None:
    """Draw a picture into the terminal, if it can show one."""
    if image is not None and protocol != "none":
        from rayd.terminal import encoded

        sys.stdout.write(encoded(image, protocol))


@commands.command(epilog=example("rayd report runs/digits --open"))
def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The directory of a run or of a sweep.")
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="File to write; by default report.html in the directory."),
    ] = None,
    show_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the web browser.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write the report of a run or a sweep: one HTML page, which works offline.

    For a run, finished or not: accuracies, images over the steps, curves, classes, time, settings.
    For a sweep: trials, importance of settings, the Pareto front.
    """
    from rayd.page import write

    path = write(directory, to)
    print_text(str(path))
    if show_page:
        open_page(path)


@commands.command(epilog=example("rayd export runs/digits digits.parquet --format parquet"))
def export(
    directory: DirectoryName,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="File or folder to create.")],
    format: Annotated[
        str, typer.Option("--format", help="safetensors, npz, parquet, hub or imagefolder.")
    ],
    overwrite: Overwrite = False,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Write what the format can hold of the set.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a distilled set as safetensors, npz, Parquet, repository of the Hub or image folder."""
    from rayd.distilled import load
    from rayd.export import export as write

    for sentence in write(load(directory), format, destination, overwrite, lossy):
        sys.stderr.write(f"rayd: {sentence}\n")
    print_text(str(destination))


@commands.command(epilog=example("rayd push runs/digits me/digits-ipc1 --to hub/digits"))
def push(
    directory: DirectoryName,
    repository: Annotated[
        str | None,
        typer.Argument(
            metavar="REPO",
            help="Repository to upload to, user/name; without one, nothing is uploaded.",
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder to write first; by default hub/<name>.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a newly created repository public.")
    ] = False,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="Address of the Hub ($HF_ENDPOINT, huggingface.co)."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the folder, and commit to an existing repository."
        ),
    ] = False,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Write what the format can hold of the set.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a set as a data set repository of the Hugging Face Hub; with REPO, upload it.

    A folder that already holds the set is uploaded as it is, so that its card can be edited.
    """
    from rayd import hub
    from rayd.distilled import load
    from rayd.export import export as write
    from rayd.export import is_repository_of

    hub.check(repository)
    distilled = load(directory)
    name = (repository or str(distilled.card.get("recipe") or "distilled")).rpartition("/")[2]
    folder = expanded(to or Path("hub") / name)
    if repository is not None and not overwrite and is_repository_of(folder, distilled):
        sys.stderr.write(f"rayd: '{folder}' already holds this set and is uploaded as it is.\n")
    else:
        for sentence in write(distilled, "hub", folder, overwrite, lossy):
            sys.stderr.write(f"rayd: {sentence}\n")
    address = None
    if repository is not None:
        address = hub.push(
            folder, repository, public=public, overwrite=overwrite, endpoint=endpoint
        )
    if as_json:
        print_json({"folder": str(folder), "repository": address})
    else:
        print_text(address or str(folder))
