"""Cost of faults: `python -m benchmarks.faults nodes|kills [--seed 0] [--kills 20] [--scale 1]`.

EDC on digits, on workers of one thread. `nodes`: a head and two nodes of one worker each; in the
middle of each stage another node joins, and the oldest is lost. `kills`: workers, the synthesizer
and the driver of a run are killed at random moments; each row shows after how many seconds the run
had caught up, and the total compares with an undisturbed run with as many workers. In both cases,
the set, its stored labels and the observers' weights must be those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from rayd.engine.distill import distill
from rayd.engine.progress import Progress
from tests.faults import four_observers, made
from tests.kills import STAGES, Kill, killed_at_random, long_enough, lost, undisturbed
from tests.nodes import finely_cut, moved_about

ONE_THREAD = {"threads": 1}


def nodes(folder: Path) -> None:
    """Run with nodes that join and are lost."""
    with pytest.MonkeyPatch.context() as patch:
        finely_cut(patch)
        distill(
            four_observers(), folder / "still", cache=folder / "one", progress=Progress(quiet=True)
        )
        elastic = four_observers(resources={"workers": 3, "elastic": True, **ONE_THREAD})
        began = time.monotonic()
        moves = moved_about(elastic, folder / "moved", folder / "other")
    print("stage        joined and had done   lost and had done   seconds")
    for move in moves:
        joined = f"{move.joined[:8]} {move.by_joined:12d}"
        lost_node = f"{move.lost[:8]:>12} {move.by_lost:6d}"
        print(f"{move.stage:<12} {joined} {lost_node} {move.seconds:9.1f}")
    print(f"{time.monotonic() - began:.0f} s in all")
    compare(made(folder / "still", folder / "one"), made(folder / "moved", folder / "other"))


def kills(folder: Path, seed: int, count: int, scale: float) -> None:
    """Run with processes that are killed."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(four_observers(**long_enough(scale)).to_yaml())
    still = undisturbed(recipe, folder / "still", folder / "one")
    struck, hits = killed_at_random(recipe, folder / "struck", folder / "other", seed, count, tell)
    print("  at s  stage        done  killed       further after s")
    for hit, seconds in zip(hits, lost(struck, hits), strict=True):
        stage, share = hit.place
        print(f"{hit.at:6.1f}  {STAGES[stage]:<11} {share:5.0%}  {hit.victim:<12} {seconds:7.1f}")
    victims = Counter(hit.victim for hit in hits)
    print(", ".join(f"{number} {victim}" for victim, number in victims.items()))
    more = struck.seconds - still.seconds
    print(
        f"{struck.seconds:.1f} s against {still.seconds:.1f} s undisturbed with as many workers: "
        f"{more:.1f} s lost, {more / count:.1f} s per kill"
    )
    compare(made(folder / "still", folder / "one"), made(folder / "struck", folder / "other"))


def tell(hit: Kill) -> None:
    """Show a kill when it happens."""
    print(f"{hit.at:.1f} s: {hit.victim} in {STAGES[hit.place[0]]}", file=sys.stderr, flush=True)


def compare(expected: dict[str, bytes], found: dict[str, bytes]) -> None:
    """Compare the results of two runs."""
    different = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if different:
        raise SystemExit(f"Different bytes: {', '.join(different[:5])}")
    print(f"same bytes: {len(expected)} files and tensors")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", choices=("nodes", "kills"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of epochs and steps of the run that is killed"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.faults == "nodes":
            nodes(Path(folder))
        else:
            print(f"seed {options.seed}")
            kills(Path(folder), options.seed, options.kills, options.scale)


if __name__ == "__main__":
    main()
