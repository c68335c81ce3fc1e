"""Startup time and imports of commands that compute nothing.

    python -m benchmarks.startup                                  # this checkout
    python -m benchmarks.startup --against ../main                # paired with another one: A B A B ...
    python -m benchmarks.startup --json > startup.json

Every command runs in its own process. The table shows processor seconds (user and system, median
over `--repeat` runs), which depend little on other work on the machine, and the number of imported
modules at the end of the command. For `rayd distill`, time is measured up to the first line on
standard error. A small run is executed first, for the commands that need one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent.parent
QUICK = (
    "synthesis.steps=5",
    "observers.pool=1",
    "evaluation.epochs=1",
    "evaluation.seeds=1",
    "evaluation.baselines=[random]",
)
"""Settings of a run of a few seconds."""
PROGRAM = """
import atexit, os, sys
atexit.register(lambda: open(os.environ["RAYD_MODULES"], "w").write(str(len(sys.modules))))
from rayd.cli import main
main(sys.argv[1:])
"""
"""The command line, and at its end the number of imported modules in a file."""
IMPORT = PROGRAM.replace("from rayd.cli import main\nmain(sys.argv[1:])", "import rayd")
FIRST_LINE = "distill digits (to its first line)"


@dataclass(frozen=True)
class Cost:
    """Cost of a command."""

    seconds: float
    """Processor seconds, user and system."""
    modules: int | None
    """Number of imported modules at its end; None if it was ended early."""


def commands(run: Path, nowhere: Path) -> dict[str, list[str]]:
    """The commands by their name in the table.

    Args:
        run: directory of a finished run.
        nowhere: a directory that does not exist.
    """
    return {
        "--help": ["--help"],
        "--version": ["--version"],
        "recipes": ["recipes"],
        "recipes digits": ["recipes", "digits"],
        "recipes dgits (refused)": ["recipes", "dgits"],
        "distill digits ipcc=5 (refused)": ["distill", "digits", "ipcc=5", "--out", str(nowhere)],
        "distill digits terms.maen.weight=1 (refused)": [
            "distill",
            "digits",
            "terms.maen.weight=1",
            "--out",
            str(nowhere),
        ],
        "distill digits ipc=9999 (refused)": [
            "distill",
            "digits",
            "ipc=9999",
            "--out",
            str(nowhere),
        ],
        "status DIR": ["status", str(run)],
        "cite digits": ["cite", "digits"],
        "data list": ["data", "list"],
        "show DIR": ["show", str(run)],
    }


def environment(checkout: Path, folder: Path) -> dict[str, str]:
    """The environment in which a checkout runs, with caches under `folder`."""
    own = {
        "PYTHONPATH": str(checkout),
        "RAYD_CACHE": str(folder / "cache"),
        "RAYD_MODULES": str(folder / "modules"),
    }
    return {**os.environ, **own}


def cost(program: str, arguments: list[str], checkout: Path, folder: Path) -> Cost:
    """Cost of one run of a program."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=environment(checkout, folder),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, _, usage = os.wait4(process.pid, 0)
    return Cost(usage.ru_utime + usage.ru_stime, int((folder / "modules").read_text()))


def cost_of_first_line(arguments: list[str], checkout: Path, folder: Path) -> Cost:
    """Cost of a command up to its first line of output, after which it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment(checkout, folder),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    process.stderr.readline()
    process.kill()
    _, _, usage = os.wait4(process.pid, 0)
    process.stderr.close()
    return Cost(usage.ru_utime + usage.ru_stime, None)


def middle(costs: list[Cost]) -> Cost:
    """The median of several runs."""
    return Cost(median(one.seconds for one in costs), costs[-1].modules)


def alternately(timed: Callable[[Path], Cost], checkouts: list[Path], repeat: int) -> list[Cost]:
    """The median cost of each checkout, in runs that alternate between checkouts."""
    costs: list[list[Cost]] = [[] for _ in checkouts]
    for _ in range(repeat):
        for checkout, of_checkout in zip(checkouts, costs, strict=True):
            of_checkout.append(timed(checkout))
    return [middle(of_checkout) for of_checkout in costs]


def measure(checkouts: list[Path], repeat: int, folder: Path) -> dict[str, list[Cost]]:
    """Costs by command, one for each checkout; runs of the checkouts alternate."""
    run = folder / "run"
    small = [
        sys.executable,
        "-m",
        "rayd",
        "distill",
        "digits",
        *QUICK,
        "--out",
        str(run),
        "--quiet",
    ]
    subprocess.run(
        small,
        env=environment(checkouts[0], folder),
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )

    table: dict[str, list[Cost]] = {}
    work = [
        ("import rayd", IMPORT, []),
        *((name, PROGRAM, given) for name, given in commands(run, folder / "no").items()),
    ]
    for name, program, arguments in work:
        timed = partial(cost, program, arguments, folder=folder)
        table[name] = alternately(timed, checkouts, repeat)
        seconds = ", ".join(f"{one.seconds:.2f} s" for one in table[name])
        print(f"{name}: {seconds}", file=sys.stderr)

    distill = ["distill", "digits", *QUICK, "--out", str(folder / "first")]
    timed = partial(cost_of_first_line, distill, folder=folder)
    table[FIRST_LINE] = alternately(timed, checkouts, repeat)
    return table


def text(table: dict[str, list[Cost]]) -> str:
    """Format the table: seconds and modules of each checkout, and the ratio of seconds if there are
    two.
    """
    lines = []
    for name, costs in table.items():
        cells = [
            f"{one.seconds:8.2f} s {one.modules if one.modules is not None else '-':>6}"
            for one in costs
        ]
        ratio = f"{costs[0].seconds / costs[1].seconds:8.2f}" if len(costs) == 2 else ""
        lines.append(f"{name:<46}{''.join(cells)}{ratio}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Processor seconds and modules of commands that compute nothing."
    )
    parser.add_argument(
        "--against", type=Path, help="another checkout of rayd, measured in turn with this one"
    )
    parser.add_argument("--repeat", type=int, default=5, help="runs of every command (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    checkouts = [HERE, *([given.against.resolve()] if given.against is not None else [])]
    with tempfile.TemporaryDirectory() as folder:
        table = measure(checkouts, given.repeat, Path(folder))
    if given.json:
        content = {name: list(map(asdict, costs)) for name, costs in table.items()}
        print(json.dumps(content, indent=2))
    else:
        print(text(table))


if __name__ == "__main__":
    main()
