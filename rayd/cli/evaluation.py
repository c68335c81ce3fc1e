"""Commands that evaluate distilled sets: `evaluate` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayd import remote
from rayd.cli.group import example, new_group
from rayd.cli.options import (
    Address,
    Cache,
    DataRoot,
    Debug,
    DirectoryName,
    Json,
    Overrides,
    Quiet,
    Seeds,
    Workers,
    given_settings,
)
from rayd.cli.printing import open_page, print_result, print_text

commands = new_group()


@commands.command(epilog=example("rayd evaluate runs/digits --network mlp --seeds 5"))
def evaluate(
    directory: DirectoryName,
    overrides: Overrides = None,
    network: Annotated[
        list[str] | None,
        typer.Option("--network", help="Architecture of the students; may be repeated."),
    ] = None,
    seeds: Seeds = None,
    workers: Workers = None,
    address: Address = None,
    data_root: DataRoot = None,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train networks on a distilled set and its baselines; add results to its evaluation.json.

    With several architectures, a chart is written next to it. Results of an export are only
    printed.
    """
    from rayd.config import merge
    from rayd.distilled import load
    from rayd.engine.evaluate import evaluate_distilled, keep_chart, keep_report
    from rayd.engine.progress import Progress
    from rayd.engine.rundir import check_writable
    from rayd.evaluation.report import Report
    from rayd.locks import locked

    settings = {key: value for key, value in {"networks": network, "seeds": seeds}.items() if value}
    tree = merge(given_settings(overrides, workers, address), {"evaluation": settings})
    distilled = load(directory)
    is_export = distilled.directory is None
    if not is_export:
        Report.kept(directory)  # a damaged report should fail before the work, not after it
        check_writable(remote.local(directory), "directory of the set")
    progress = Progress(quiet)
    report = evaluate_distilled(distilled, tree, data_root, cache, progress)
    if not is_export:

        def on_wait() -> None:
            progress.log(
                f"waiting for the run that writes to '{directory}'; the results are added when it "
                "ends"
            )

        with locked(remote.local(directory), on_wait):
            report = keep_report(report, directory)
            keep_chart(report, directory)
    print_result(report, as_json)


@commands.command(epilog=example("rayd compare runs/digits runs/digits2 --to compare.html"))
def compare(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Run directories with evaluations.")
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", help="Also write an HTML page, which begins with the settings that differ."
        ),
    ] = None,
    show_page: Annotated[
        bool,
        typer.Option(
            "--open", help="Open the page in the web browser; compare.html unless --to is given."
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare runs: means over distillations, deviations over these and over students, scores."""
    from rayd.evaluation.compare import compare as compared

    found = compared(directories)
    if to is not None or show_page:
        from rayd.page import comparison

        to = comparison.write(directories, to or Path(comparison.FILE))
    print_result(found, as_json)
    if to is None:
        return
    if not as_json:
        print_text(f"\n{to}")
    if show_page:
        open_page(to)
