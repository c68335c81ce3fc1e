"""Command `doctor`: problems of this machine or cluster, and their remedies."""

from __future__ import annotations

import typer

from rayd.cli.group import example, new_group
from rayd.cli.options import Address, Cache, DataRoot, Debug, Json
from rayd.cli.printing import print_json, print_text

commands = new_group()


@commands.command(epilog=example("rayd doctor"))
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
        print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            print_text(finding.text())
    if any(finding.status == "wrong" for finding in findings):
        raise typer.Exit(1)
