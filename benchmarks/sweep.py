"""Savings of a sweep: `python -m benchmarks.sweep [--space edc-digits] [--trials 20] [KEY=VALUE
...]`.

The same trials run one after another in one process with one thread: with a shared store, as in a
sweep, and each with an empty store, as if it were run alone. Observers, statistics and equal
synthetic sets are computed once in the first case and every time in the second. Accuracies must be
the same; nothing else is asserted, as timed tests are unreliable on a shared machine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rayd.config import parse_overrides
from rayd.engine.distill import distill
from rayd.engine.progress import Progress
from tuning import load
from tuning.driver import prepare
from tuning.search import points

QUIET = Progress(quiet=True)


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="edc-digits")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    space = load(given.space, parse_overrides(given.overrides)).model_copy(
        update={"samples": given.trials}
    )
    seconds = {"shared": 0.0, "cold": 0.0}
    accuracies = {}
    with TemporaryDirectory() as folder:
        plan = prepare(space, Path(folder), workers=0, progress=QUIET)
        for number, point in enumerate(points(plan.resolved, space.samples)):
            # alternately, so that the load of the machine affects both equally
            for kind, store in (("shared", "shared"), ("cold", f"cold-{number}")):
                recipe = plan.recipe(point, "trial")
                out = Path(folder) / f"{kind}-{number}"
                began = time.perf_counter()
                run = distill(
                    recipe, out, cache=Path(folder) / store, progress=QUIET, judged_on="validation"
                )
                seconds[kind] += time.perf_counter() - began
                accuracies[kind] = run.report.results[0].test_accuracy.runs
            if accuracies["shared"] != accuracies["cold"]:
                raise SystemExit(
                    f"Trial {number} came to {accuracies['shared']} and, alone, to {accuracies['cold']}."
                )
            print(
                f"{number + 1} trials: shared {seconds['shared']:.1f} s, cold {seconds['cold']:.1f} s",
                flush=True,
            )
    ratio = seconds["cold"] / seconds["shared"]
    print(
        f"{given.trials} trials of {given.space} over shared work take 1 / {ratio:.2f} of the time of as many cold runs"
    )


if __name__ == "__main__":
    main()
