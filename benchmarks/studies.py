"""Run studies, spaces of `rayd tune` whose values are all tried, and write what they found.

    python -m benchmarks.studies runs/studies edc-flatness-digits ls-mtt-rank-digits
    python -m benchmarks.studies runs/studies 'csdm-*-digits' --hours 1

A study has a folder of its own; what is finished is only written, what was stopped goes on. Results
go to `rayd/results/studies/SPACE.yaml`; `python -m rayd.results` brings their page up to date.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import campaign
from benchmarks.applications import write
from benchmarks.campaign import hardware
from rayd.config import validate
from rayd.results.studies import FOLDER, StudyResult
from tuning.settings import Space
from tuning.space import ResolvedSpace, load
from tuning.space import names as spaces

DIGITS = 4
"""Decimals of accuracies that are kept."""


def result(
    space: Space,
    table: Sequence[Mapping[str, str]],
    command: str,
    students: int,
    *,
    commit: str,
    date: str,
) -> dict[str, Any]:
    """The entry of a study in the results.

    Args:
        space: the study.
        table: lines of its `study.csv`.
        command: that reproduces it.
        students: of each distillation.
        commit: revision that it was run at.
        date: when.

    Raises:
        ValueError: a row has not finished, or lacks distillations that others have.
    """
    distillations = max(int(line["distillations"]) for line in table)
    unfinished = [line["name"] for line in table if int(line["distillations"]) < distillations]
    unfinished += [line["name"] for line in table if not line["validation_accuracy"]]
    if unfinished:
        raise ValueError(f"Study '{space.name}' lacks {', '.join(unfinished)}.")
    fixed = ("name", "validation_accuracy", "std", "distillations")
    series = [key for key in table[0] if key not in fixed and not key.startswith("std of ")]
    rows = {}
    for line in table:
        row: dict[str, Any] = {"accuracy": round(float(line["validation_accuracy"]), DIGITS)}
        if line["std"]:
            row["std"] = round(float(line["std"]), DIGITS)
        paper = {key: float(line[key]) for key in series if line[key]}
        rows[line["name"]] = row | ({"paper": paper} if paper else {})
    several = f"{distillations} distillations with {students} students each"
    entry = {
        "title": space.summary,
        "command": command,
        "commit": commit,
        "date": date,
        "hardware": hardware(),
        "repeats": several if distillations > 1 else f"{students} students of one distillation",
        "rows": rows,
    }
    validate(StudyResult, entry, f"the result of '{space.name}'")
    return entry


def main() -> None:
    """Run what fits in the hours given, and write what is finished."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("patterns", nargs="+", help="of spaces")
    parser.add_argument("--hours", type=float, default=1.0, help="none is begun after them")
    options = parser.parse_args()
    deadline = time.time() + options.hours * 3600
    names = [
        name
        for name in spaces()
        if any(fnmatch.fnmatch(name, pattern) for pattern in options.patterns)
    ]
    for name in names:
        out = options.folder / name
        table = out / "study.csv"
        made = options.folder / f"{name}.json"
        # a study that failed has a table, too
        if not (table.exists() and made.exists()):
            if time.time() > deadline:
                break
            command = [sys.executable, "-m", "rayd", "tune", name, "--out", str(out), "--quiet"]
            command += ["--resume"] if (out / "sweep.yaml").exists() else []
            if subprocess.run(command).returncode:
                print(f"{name}: failed, see {out}", flush=True)
                continue
            date = datetime.now(UTC).date().isoformat()
            made.write_text(json.dumps({"commit": campaign.commit(), "date": date}))
        if not table.exists():
            print(f"{name}: its values are drawn, so that it has no table", flush=True)
            continue
        resolved = ResolvedSpace(load(name))
        with table.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        again = shlex.join(["rayd", "tune", name, "--out", f"sweeps/{name}"])
        origin = json.loads(made.read_text())
        try:
            entry = result(resolved.space, lines, again, resolved.students(), **origin)
        except ValueError as error:
            print(f"{name}: {error} See {out}.", flush=True)
            continue
        print(write(name, entry, FOLDER), flush=True)


if __name__ == "__main__":
    main()
