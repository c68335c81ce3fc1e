"""Measure recipes, cheapest first, and write their results with everything to reproduce them.

    python -m benchmarks.campaign runs/campaign '*-digits' --hours 2
    python -m benchmarks.campaign runs/campaign 'dm-cifar10-*' --hours 8 --write
    python -m benchmarks.campaign runs/campaign 'edc-*' --list

The time of every recipe that matches a pattern, has data on this machine and no result yet (with
`--again`, also of those with results) is estimated with `rayd plan`. Recipes that fit into the
given hours are run in the order of their estimate, to obtain as many results per hour as possible.
Each is distilled once per seed, which is that of the images and of the observers. The folder
contains runs, caches and measurements: the same command continues where the last one stopped, even
within a run.

With `--evaluate SETTINGS`, every finished set is evaluated again with these settings (`--evaluate
"labels=hard evaluation.protocol=dsa"`: the same students for all methods), which makes a second
entry of the recipe.

With `--write`, results go to `rayd/results/`, one entry per recipe: accuracies and scores from the
runs' evaluations, commit, command, seeds, hardware, date, seconds and peak memory.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from rayd import methods, recipes, results
from rayd.config import MeasuredResult, parse_overrides, validate
from rayd.errors import RaydError
from rayd.recipes.tables import families

WIDTH = 96
"""Columns of a file of results."""


class Campaign:
    """The runs of one folder.

    Args:
        folder: folder of runs, caches and measurements.
        seeds: number of distillations per recipe.
        settings: overrides for every recipe.
        students: settings with which every finished set is evaluated again; empty for none.
    """

    def __init__(
        self,
        folder: Path,
        seeds: int,
        settings: Sequence[str],
        students: Sequence[str] = (),
    ):
        self.folder = folder
        self.seeds = seeds
        self.settings = tuple(settings)
        self.students = tuple(students)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("RAYD_CACHE", str(folder / "cache"))

    def planned_seconds(self, name: str) -> float | str:
        """Estimated seconds of the first distillation, or the reason why it cannot be run."""
        path = self.folder / "planned.json"
        known: dict[str, float | str] = json.loads(path.read_text()) if path.exists() else {}
        key = " ".join((name, *self.settings))
        if key not in known:
            known[key] = self._plan(name)
            path.write_text(json.dumps(known, indent=1))
        return known[key]

    def _plan(self, name: str) -> float | str:
        from rayd.engine.plan import plan

        try:
            recipe = recipes.resolve(name, parse_overrides(self.settings))
            return float(plan(recipe).seconds)
        except RaydError as error:
            return str(error)

    def runs(self, name: str, students: Sequence[str] = ()) -> list[Mapping[str, Any]]:
        """The finished runs of a recipe in the order of their seeds, as evaluated by `students`."""
        paths = [self._figures(name, seed, students) for seed in range(self.seeds)]
        return [json.loads(path.read_text()) for path in paths if path.exists()]

    def complete(self, name: str, deadline: float) -> bool:
        """Run the missing distillations of a recipe.

        Args:
            name: a built-in recipe.
            deadline: time after which no run is started, in seconds since the epoch.

        Returns:
            Whether all seeds are finished.
        """
        for seed in range(self.seeds):
            if self._figures(name, seed).exists():
                continue
            if time.time() > deadline or not self._run(name, seed):
                return False
        return all(self._judged(name, seed) for seed in range(self.seeds))

    def command(self, name: str, seed: int | str) -> list[str]:
        """The command that distils a recipe with a seed, which is also that of its networks."""
        seeds = ["seed", "observers.seed"]
        if self._follows_experts(name):
            seeds.append("experts.seed")
        return ["rayd", "distill", name, *(f"{each}={seed}" for each in seeds), *self.settings]

    def _follows_experts(self, name: str) -> bool:
        recipe = recipes.resolve(name, parse_overrides(self.settings))
        return methods.get(recipe.method).needs_experts

    def _trained_experts(self, name: str, seed: int) -> bool:
        """Whether a finished run trained experts, which later runs then found in the store."""
        lines = (self._out(name, seed) / "metrics.jsonl").read_text().splitlines()
        return any(json.loads(line)["stage"] == "experts" for line in lines)

    def _run(self, name: str, seed: int) -> bool:
        out = self._out(name, seed)
        if (out / "config.yaml").exists():
            command = ["rayd", "distill", "--resume", str(out)]
        else:
            command = [*self.command(name, seed), "--out", str(out)]
        spent = _timed([*command, "--quiet"], out.with_suffix(".log"))
        if spent is None:
            return False
        evaluation = json.loads((out / "evaluation.json").read_text())
        figures = {"evaluation": evaluation, **spent, "resumed": "--resume" in command}
        self._figures(name, seed).write_text(json.dumps(figures))
        return True

    def judges_again(self, name: str) -> bool:
        """Whether `students` differ from the recipe's own."""
        if not self.students:
            return False
        own = recipes.resolve(name, parse_overrides(self.settings))
        other = recipes.resolve(name, parse_overrides([*self.settings, *self.students]))
        # without a learned step size, its use makes no difference
        ignored = {"protocol"} if own.synthetic.step_size else {"protocol", "learned_step_size"}
        settings = [recipe.evaluation.model_dump(exclude=ignored) for recipe in (own, other)]
        return settings[0] != settings[1] or own.labels != other.labels

    def _judged(self, name: str, seed: int) -> bool:
        """Evaluate the set of a finished run with `students` if necessary; False if that failed."""
        path = self._figures(name, seed, self.students)
        if path.exists() or not self.judges_again(name):
            return True
        out = self._out(name, seed)
        # only the set, so that the run's own evaluation is not changed
        command = ["rayd", "evaluate", str(out / "distilled"), *self.students]
        printed = path.with_suffix(".out")
        spent = _timed([*command, "--json", "--quiet"], out.with_suffix(".log"), printed)
        if spent is None:
            return False
        path.write_text(json.dumps({"evaluation": json.loads(printed.read_text()), **spent}))
        return True

    def _out(self, name: str, seed: int) -> Path:
        return self.folder / "-".join((name, *map(_plain, self.settings))) / str(seed)

    def _figures(self, name: str, seed: int, students: Sequence[str] = ()) -> Path:
        ending = "-".join(("", *map(_plain, students)))
        return self._out(name, seed).with_name(f"{seed}{ending}.json")

    def result(self, name: str, students: Sequence[str] = ()) -> dict[str, Any]:
        """The entry of a recipe in `rayd/results/`, from all its finished runs.

        Args:
            name: a built-in recipe.
            students: settings with which its sets were evaluated again; empty for the recipe's own.
        """
        runs = self.runs(name, students)
        evaluations = [run["evaluation"] for run in runs]
        entry = {
            **_accuracies(evaluations),
            **self._reproduction(name, runs, students),
            **self._cost(name, runs, students),
        }
        distilled = [_rows(evaluation)["distilled", None] for evaluation in evaluations]
        entry["note"] = " ".join(f"{value:.3f}" for value in distilled)
        entry = {key: _short(value) for key, value in entry.items() if value is not None}
        validate(MeasuredResult, entry, f"the result of '{name}'")
        return entry

    def _reproduction(
        self, name: str, runs: Sequence[Mapping[str, Any]], students: Sequence[str]
    ) -> dict[str, Any]:
        """Seeds, command, revision and machine of the entry of a recipe."""
        seeds = _upto(len(runs))
        drawn = "experts" if self._follows_experts(name) else "pool"
        count = len(runs[0]["evaluation"]["results"][0]["seeds"])
        steps = [f"{shlex.join(self.command(name, 'SEED'))} --out runs/SEED"]
        if students:
            steps.append(shlex.join(["rayd", "evaluate", "runs/SEED", *students]))
        loop = f"for s in {seeds}; do {'; '.join(steps)}; done"
        return {
            "seeds": f"distillation and {drawn} {seeds}, students {_upto(count)} each; "
            f"std over the distillations",
            "command": loop.replace("SEED", "$s"),
            "commit": runs[-1]["commit"],
            "date": runs[-1]["date"],
            "hardware": hardware(),
        }

    def _cost(
        self, name: str, runs: Sequence[Mapping[str, Any]], students: Sequence[str]
    ) -> dict[str, Any]:
        """Time and memory in the entry of a recipe."""
        cost: dict[str, Any] = {
            "seconds": round(sum(run["seconds"] for run in runs)),
            "cpu_seconds": round(sum(run["cpu_seconds"] for run in runs)),
            "peak_memory_mb": max(run["peak_memory_mb"] for run in runs),
        }
        # the measurement of the last process does not include interrupted ones
        resumed = [run.get("resumed", False) for run in runs]
        if any(resumed):
            cost["cpu_seconds"] = None
        if self._follows_experts(name) and not students:
            given = []
            for seed, run in enumerate(runs):
                if not resumed[seed] and not self._trained_experts(name, seed):
                    given.append(run["cpu_seconds"])
            cost["cpu_seconds_given_experts"] = _mean(given)
        return cost


def _accuracies(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Accuracies and scores in the entry of a recipe, means over its distillations."""
    rows = [_rows(evaluation) for evaluation in evaluations]
    scores = [_scores(evaluation) for evaluation in evaluations]

    def accuracies(name: str, labels: str | None = None) -> list[float]:
        return [row[name, labels] for row in rows if (name, labels) in row]

    def values(score: str) -> list[float]:
        return [one[score] for one in scores if score in one]

    return {
        "accuracy": _mean(accuracies("distilled")),
        "std": _spread(accuracies("distilled")),
        "random": _mean(accuracies("random")),
        "whole": _mean(accuracies("whole")),
        "hard_labels": _mean(accuracies("distilled", "hard")),
        "hard_labels_std": _spread(accuracies("distilled", "hard")),
        "random_hard_labels": _mean(accuracies("random", "hard")),
        "whole_hard_labels": _mean(accuracies("whole", "hard")),
        "equal_storage": _mean(accuracies("equal-storage")),
        "ior": _mean(values("ior")),
        "ior_std": _spread(values("ior")),
        "hlr": _mean(values("hlr")),
        "hlr_std": _spread(values("hlr")),
        "lrs": _mean(values("lrs")),
    }


def _timed(command: Sequence[str], log: Path, printed: Path | None = None) -> dict[str, Any] | None:
    """Run a command of rayd.

    Args:
        command: the command, starting with `rayd`.
        log: file to which its output is appended.
        printed: file for its standard output, if not the log.

    Returns:
        Its time and memory, with date and commit; None, with a message, if it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with log.open("a") as sink, (printed or log).open("a" if printed is None else "w") as output:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=output, stderr=sink)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        print(f"{shlex.join(command)}: exit {process.returncode}, see {log}", flush=True)
        return None
    return {
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.time() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        # in kilobytes on Linux
        "peak_memory_mb": round(usage.ru_maxrss / 1024),
    }


def _rows(evaluation: Mapping[str, Any]) -> dict[tuple[str, str | None], float]:
    """Accuracies of augmented students of the first network, by set and by labels.

    Labels are None if they are those of the protocol.
    """
    first = evaluation["results"][0]
    found: dict[tuple[str, str | None], float] = {}
    for row in evaluation["results"]:
        if row["network"] != first["network"] or row["epoch"] != first["epoch"]:
            continue
        if not row["augmented"]:
            continue
        mean = row["test_accuracy"]["mean"]
        own = row["labels"] == first["labels"] or row["set"] == "equal-storage"
        # with learned labels, real images have hard ones, which count as both
        if first["labels"] == "learned" and row["set"] != "distilled":
            own = True
            found.setdefault((row["set"], row["labels"]), mean)
        found.setdefault((row["set"], None if own else row["labels"]), mean)
    return found


def _scores(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Scores of the first network, by name."""
    network = evaluation["results"][0]["network"]
    found: dict[str, float] = {}
    for one in evaluation.get("scores", []):
        if one["network"] != network:
            continue
        for key in ("ior", "hlr", "lrs"):
            value = one.get(key)
            if value is not None:
                found.setdefault(key, value["mean"] if isinstance(value, dict) else value)
    return found


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 3) if math.isfinite(value) else None


def _upto(count: int) -> str:
    return " ".join(str(seed) for seed in range(count))


def _plain(setting: str) -> str:
    """Convert a setting to a part of a file name."""
    return re.sub(r"[^\w.=-]+", "_", setting)


def commit() -> str:
    """Abbreviated revision of this repository."""
    top = Path(__file__).parent
    command = ["git", "-C", str(top), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def hardware() -> str:
    """Description of the machine: a GPU by its name, or one thread of a processor."""
    import torch

    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = found.group(1) if found else model
    return f"one of {os.cpu_count()} cores of a machine with {model}, no GPU, other programs beside"


def entry_text(name: str, *entries: Mapping[str, Any]) -> str:
    """The entries of a recipe in a file of results."""
    text = yaml.safe_dump(
        list(entries), width=WIDTH, allow_unicode=True, sort_keys=False, default_flow_style=False
    )
    return f"{name}:\n" + textwrap.indent(text, "  ")


def write(name: str, entry: Mapping[str, Any], folder: Path = results.FOLDER) -> Path:
    """Write an entry into the results, replacing the one with the same settings.

    These are the settings of the distillation and, for sets that were evaluated again, of the
    students. Remarks of the old entry are kept, after the new accuracies.
    """
    before = list(results.entries().get(name, []))
    alike = [one for one in before if _settings(one["command"]) == _settings(entry["command"])]
    place = before.index(alike[0]) if alike else len(before)
    if alike and alike[0].get("note"):
        # without the accuracies of the previous entry
        kept = re.sub(r"^[\d. ]+(; )?", "", alike[0]["note"])
        if kept and kept not in entry["note"]:
            entry = {**entry, "note": f"{entry['note']}; {kept}"}
    before[place : place + 1] = [dict(entry)]
    family = next(family for family, names in families().items() if name in names)
    path = folder / f"{family}.yaml"
    for candidate in sorted(folder.glob("*.yaml")):
        if re.search(rf"^{re.escape(name)}:$", candidate.read_text(), re.MULTILINE):
            path = candidate
    header = f"# What this code reached with the recipes of recipes/{path.name}.\n"
    text = path.read_text() if path.exists() else header
    blocks = re.split(r"\n(?=\S)", text)
    names = [block.partition(":")[0] for block in blocks]
    at = names.index(name) if name in names else len(blocks)
    blocks[at : at + 1] = [entry_text(name, *before)]
    path.write_text("\n".join(block.rstrip("\n") + "\n" for block in blocks))
    results.entries.cache_clear()
    return path


def _settings(command: str) -> tuple[list[str], list[str]]:
    """The settings of `rayd distill` and of `rayd evaluate` in a command."""
    distill, _, evaluate = command.partition("rayd evaluate")
    return results.settings(distill), results.settings(evaluate)


def candidates(patterns: Sequence[str], again: bool) -> Iterator[str]:
    """Names of built-in recipes that match a pattern and have no result."""
    for headline in recipes.headlines():
        wanted = any(fnmatch.fnmatch(headline.name, pattern) for pattern in patterns)
        if wanted and (again or not results.of(headline.name)):
            yield headline.name


def main() -> None:
    """Run the recipes that fit into the given hours."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "patterns", nargs="+", help="patterns of recipes' names, or KEY=VALUE settings"
    )
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluate", default="", help="settings for another evaluation")
    parser.add_argument("--again", action="store_true", help="also recipes with a result")
    parser.add_argument("--list", action="store_true", help="only list what would be run")
    parser.add_argument("--write", action="store_true", help="into rayd/results/")
    options = parser.parse_intermixed_args()
    settings = [given for given in options.patterns if "=" in given]
    patterns = [given for given in options.patterns if "=" not in given]
    students = shlex.split(options.evaluate)
    campaign = Campaign(options.folder, options.seeds, settings, students)
    deadline = time.time() + options.hours * 3600

    queue: list[tuple[float, str]] = []
    for name in candidates(patterns, options.again):
        seconds = campaign.planned_seconds(name)
        if isinstance(seconds, str):
            print(f"{name}: cannot be run. {seconds}", flush=True)
        else:
            queue.append((seconds, name))
    for seconds, name in sorted(queue):
        missing = campaign.seeds - len(campaign.runs(name))
        left = deadline - time.time()
        print(f"{name}: {missing} runs, about {seconds:,.0f} s each", flush=True)
        if options.list:
            continue
        if missing and missing * seconds > left:
            print(f"{name}: left out, {left:,.0f} s are left", flush=True)
            continue
        if campaign.complete(name, deadline):
            judged = [campaign.result(name)]
            judged += [campaign.result(name, students)] if campaign.judges_again(name) else []
            print(entry_text(name, *judged), flush=True)
            for entry in judged if options.write else ():
                write(name, entry)


if __name__ == "__main__":
    main()
