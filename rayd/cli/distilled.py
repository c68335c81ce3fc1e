"""Commands that read a distilled set or a run: `show`, `report` and `export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rayd import remote
from rayd.cli.group import example, new_group
from rayd.cli.options import Cache, DataRoot, Debug, DirectoryName, Json, Overwrite
from rayd.cli.printing import check_picture, print_json, print_text, write_picture
from rayd.errors import OutputError

commands = new_group()


@commands.command(epilog=example("rayd show runs/digits --png digits.png"))
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
    from rayd.card import describe
    from rayd.distilled import DIRECTORY, contact_sheet, load
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
        check_picture(png, overwrite)
        if spectrum:
            from rayd.engine.spectra import from_distilled

            image = from_distilled(distilled, data_root, cache)
        else:
            image = contact_sheet(distilled)
        write_picture(png, image)
    if as_json:
        evaluation = {"evaluation": report.to_json()} if report is not None else {}
        print_json(distilled.card | evaluation)
    else:
        print_text(describe(distilled, report))


@commands.command(epilog=example("rayd report runs/digits --open"))
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
    print_text(str(path))
    if show_page:
        typer.launch(str(path))


@commands.command(epilog=example("rayd export runs/digits digits.parquet --format parquet"))
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
    print_text(str(destination))
