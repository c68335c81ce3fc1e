"""Time of the quick start, `rayd distill digits` with an empty cache, at an earlier commit and now.

    python -m benchmarks.quick_start COMMIT [--rounds 2] [--command "distill digits"]

The two commits alternate within one run, each in its own checkout and with the Python that runs
this file, so that other load on the machine affects both equally. Compare processor seconds (user
and system, of all threads); wall-clock seconds are printed as well. The results of both must be
equal; otherwise the script prints the differences and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Timed:
    """One run of the command."""

    processor: float
    """User and system seconds of all threads."""
    wall: float
    """Seconds that passed."""
    accuracies: dict[str, list[float]]
    """Test accuracies of the students, by their set and network."""


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check out a commit in its own folder."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "checkout"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", folder, commit], cwd=ROOT, check=True
        )
        try:
            yield folder
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=ROOT, check=True)


def run(folder: Path, command: str) -> Timed:
    """Run a command with the rayd of a folder and an empty cache."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        environment = os.environ | {"RAYD_CACHE": f"{place}/cache", "PYTHONPATH": str(folder)}
        arguments = [sys.executable, "-m", "rayd", *shlex.split(command), "--out", str(out)]
        began = time.monotonic()
        process = subprocess.Popen(
            arguments, cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        messages = process.stderr.read()
        # `wait4` gives the usage of this process alone
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(messages.decode())
        results = json.loads((out / "evaluation.json").read_text())["results"]
        accuracies = {
            f"{one['set']} {one['network']}": one["test_accuracy"]["runs"] for one in results
        }
        return Timed(
            processor=usage.ru_utime + usage.ru_stime,
            wall=time.monotonic() - began,
            accuracies=accuracies,
        )


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each")
    parser.add_argument("--command", default="distill digits", help="what is timed")
    chosen = parser.parse_args()

    before: list[Timed] = []
    now: list[Timed] = []
    with checkout(chosen.commit) as folder:
        for number in range(chosen.rounds):
            before.append(run(folder, chosen.command))
            now.append(run(ROOT, chosen.command))
            processor = f"{before[-1].processor:.1f} -> {now[-1].processor:.1f}"
            wall = f"{before[-1].wall:.1f} -> {now[-1].wall:.1f}"
            print(
                f"round {number + 1}: processor seconds {processor}, wall-clock {wall}", flush=True
            )
    for name in ("processor", "wall"):
        ratio = median(
            getattr(n, name) / getattr(b, name) for b, n in zip(before, now, strict=True)
        )
        print(f"{name}: {ratio:.2f} of the time at {chosen.commit}")
    if any(one.accuracies != before[0].accuracies for one in before + now):
        print("accuracies differ:", *(one.accuracies for one in before + now), sep="\n")
        raise SystemExit(1)
    print("accuracies are equal")


if __name__ == "__main__":
    main()
