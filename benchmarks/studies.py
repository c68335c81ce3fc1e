"""Run studies, i.e. search spaces of `rayd tune` that are tried exhaustively, and write results.

    python -m benchmarks.studies runs/studies edc-flatness-digits ls-mtt-rank-digits
    python -m benchmarks.studies runs/studies 'csdm-*-digits' --hours 1

Each study has its own folder; finished studies are not rerun, interrupted ones are resumed. Results
go to `rayd/results/studies/SPACE.yaml`; `python -m rayd.results` updates their page.
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
"""Number of decimals of accuracies."""


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
        command: command that reproduces it.
        students: number of students of each distillation.
        commit: revision at which it was run.
        date: date of the run.

    Raises:
        ValueError: a row is unfinished, or has fewer distillations than others.
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
    """Run studies within the given hours, and write the results of finished ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("patterns", nargs="+", help="of spaces")
    parser.add_argument(
        "--hours", type=float, default=1.0, help="time after which no study is started"
    )
    options = parser.parse_args()
    deadline = time.time() + options.hours * 3600
    for name in spaces():
        if not any(fnmatch.fnmatch(name, pattern) for pattern in options.patterns):
            continue
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
            print(f"{name}: its values are random, so it has no table", flush=True)
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
