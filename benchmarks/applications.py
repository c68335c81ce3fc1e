r"""Run an application and add its accuracies to the results, with everything to reproduce them.

    python -m benchmarks.applications continual-cifar10 --title "Class-incremental learning of CIFAR-10" \
        -- apply continual dm-cifar10-ipc5-continual --memory random --out uses/continual-cifar10
    python -m benchmarks.applications slimming-digits --title "Slimming of a small VGG with digits" \\
        --before "rayd distill digits ipc=5 --out runs/digits" -- apply slimming runs/digits

The command is run by this interpreter; its accuracies are read from the JSON file in its `--out`
and written to `rayd/results/applications/NAME.yaml`. `python -m rayd.results` updates the page of
results.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.campaign import WIDTH, commit, hardware
from rayd.config import validate
from rayd.results.applications import FOLDER, ApplicationResult

DIGITS = 4
"""Number of decimals of accuracies."""


def accuracies(content: Mapping[str, Any]) -> dict[str, Any]:
    """Columns, rows and repetitions of a command's results.

    Args:
        content: content of `continual.json` or `slimming.json`.
    """
    if "curves" in content:
        curves = content["curves"]
        count = len(curves[0]["accuracies"][0])
        return {
            "repeats": f"{count} class orders and students",
            "columns": [f"{classes} classes" for classes in curves[0]["classes"]],
            "rows": {curve["method"]: _rounded(curve["accuracies"]) for curve in curves},
        }
    sets = content["sets"]
    return {
        "repeats": f"{len(sets[0]['tuned'][0])} networks",
        "columns": [f"{share:.0%} pruned" for share in sets[0]["shares"]],
        "rows": {
            f"{one['set']}, penalty {one['sparsity']:g}": _rounded(one["tuned"]) for one in sets
        },
    }


def _rounded(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[round(value, DIGITS) for value in row] for row in rows]


def result(
    content: Mapping[str, Any], title: str, commands: Sequence[str], cpu_seconds: float
) -> dict[str, Any]:
    """The entry of an application in the results.

    Args:
        content: content of the command's JSON file.
        title: description of the application and its data.
        commands: commands that reproduce it, in order.
        cpu_seconds: processor time of the last command.
    """
    entry = {
        "title": title,
        "command": "; ".join(commands),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "cpu_seconds": round(cpu_seconds),
        **accuracies(content),
    }
    validate(ApplicationResult, entry, f"the result '{title}'")
    return entry


def write(name: str, entry: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Write an entry to its file, in place of an older one."""
    path = folder / f"{name}.yaml"
    text = yaml.safe_dump(
        dict(entry), width=WIDTH, allow_unicode=True, sort_keys=False, default_flow_style=None
    )
    path.write_text(text, encoding="utf-8")
    return path


def main() -> None:
    """Run a command and write its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--title", required=True)
    parser.add_argument("--before", action="append", default=[], help="a command that came before")
    parser.add_argument("command", nargs="+", help="of rayd, with --out")
    options = parser.parse_args()
    command = options.command
    process = subprocess.Popen([sys.executable, "-m", "rayd", *command])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    out = Path(command[command.index("--out") + 1])
    content = json.loads((out / f"{command[1]}.json").read_text(encoding="utf-8"))
    commands = [*options.before, shlex.join(["rayd", *command])]
    entry = result(content, options.title, commands, usage.ru_utime + usage.ru_stime)
    print(write(options.name, entry))


if __name__ == "__main__":
    main()
