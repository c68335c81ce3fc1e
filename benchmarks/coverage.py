"""Coverage of published results by the recipes, and numbers that differ from the papers.

    python -m benchmarks.coverage papers.yaml                   # or a CSV file, as tests/recipes/papers.csv

The file has a row for each published result: table, method, data, ipc, eval_network, value, std and
metric (in YAML also `paper`). Rows are compared with `rayd recipes --json`. The exit code is 1 if a
result of a method of rayd is missing, or if a recipe has a result that is not in the file.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PAPERS = {"000": "UniDD", "001": "EDC", "002": "CSDM", "003": "LS-MTT", "004": "IID"}
"""Papers by their number in the YAML file, with their names in `rayd.results.papers`."""
OWN = {
    "UniDD": {"cfm", "unidd"},
    "EDC": {"edc"},
    "CSDM": {"csdm"},
    "LS-MTT": {"ls-mtt"},
    "IID": {"iid-dm", "iid-idm"},
}
"""Methods that a paper introduces; all others in it are baselines."""
METHODS = {
    # of IID on DM or on IDM, which is not said
    "iid": "iid-dm",
    "edc-minus-rded": "edc",
}
"""Methods of rows under their name in rayd."""
METRICS = {
    "test accuracy %": "accuracy",
    "difference of test accuracy, points": "points above RDED",
    "gain over mtt, points": "points above MTT",
    "gain over dm, points": "points above DM, at most",
    "margin over sre2l, points": "points above SRe2L",
    "margin over gvbsm, points": "points above G-VBSM",
    "margin over rded, points": "points above RDED",
    "computation relative to gvbsm": "computation relative to G-VBSM",
    "improvement over the best other method, % (points or relative is not said)": (
        "improvement over the best other method, %"
    ),
    "lower end of the best alpha_head": "lower end of the best head_amplitude_weight",
    "upper end of the best alpha_head": "upper end of the best head_amplitude_weight",
}
"""Metrics whose name in recipes differs."""
NO_CELL = {"random", "whole", "herding", "k-center", "forgetting"}
"""Baselines without a method: selections of real images, and all of them."""
STAND_FOR = {"edc-config-a": "gvbsm"}
"""Recipes whose numbers are published under another method: EDC's ablation starts with G-VBSM."""


@dataclass(frozen=True)
class Row:
    """A printed result."""

    table: str
    """Paper and table."""
    method: str
    """Method, by its name in rayd if it has one."""
    data: str | None
    """Data; None for several."""
    ipc: int | None
    """Images per class; None if not stated."""
    network: str | None
    """Tested network; None if not stated."""
    metric: str
    """Metric, by its name in recipes."""
    value: float
    """Value, a fraction if it is an accuracy."""
    std: float | None
    """Standard deviation."""

    @property
    def paper(self) -> str:
        """Name of the paper."""
        return self.table.partition(",")[0]

    @property
    def own(self) -> bool:
        """Whether the method is the paper's."""
        return self.method in OWN.get(self.paper, ())

    @property
    def number(self) -> tuple[Any, ...]:
        """Part of the result that a recipe must state, besides its own data and budget."""
        return self.table, self.method, self.network, self.metric, self.value, self.std

    @property
    def cell(self) -> tuple[Any, ...]:
        """Cell of a table of the paper, independent of the metric."""
        return self.paper, self.method, self.data, self.ipc, self.network


@dataclass
class Coverage:
    """Rows that recipes contain, and results of recipes that are in no row."""

    rows: Sequence[Row]
    held: set[int] = field(default_factory=set)
    """Indices of the rows that a recipe contains."""
    strange: list[str] = field(default_factory=list)
    """Results of recipes without a row."""

    def missing(self, known: Iterable[str]) -> list[Row]:
        """Rows of methods of rayd that no recipe contains."""
        known = set(known)
        return [
            row
            for index, row in enumerate(self.rows)
            if index not in self.held and row.method in known
        ]


def rows_of(path: Path) -> list[Row]:
    """The rows of a file."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return [_row(row) for row in csv.DictReader(file)]
    return [_row(row) for row in yaml.safe_load(path.read_text(encoding="utf-8"))]


def _row(given: Mapping[str, Any]) -> Row:
    method = str(given["method"])
    metric = str(given["metric"])
    value = float(given["value"])
    std = float(given["std"]) if given["std"] not in (None, "") else None
    data = str(given["data"] or "")
    metric = METRICS.get(metric, metric)
    if metric == "accuracy":
        value = round(value / 100, 6)
        std = None if std is None else round(std / 100, 6)
    return Row(
        table=f"{PAPERS[given['paper']]}, {given['table']}" if "paper" in given else given["table"],
        method="edc" if method.startswith("edc-config") else METHODS.get(method, method),
        data=None if "," in data or not data else data,
        ipc=int(given["ipc"]) if given["ipc"] else None,
        network=str(given["eval_network"]) if given["eval_network"] else None,
        metric=metric,
        value=value,
        std=std,
    )


def data_of(recipe: Mapping[str, Any]) -> str:
    """Name of a recipe's data in tables: with the long tail, and ImageNet's subset by name."""
    if "-imagenet-10-" in recipe["name"]:
        return "imagenet-10"
    return f"{recipe['data']}-lt" if "-lt" in recipe["name"] else str(recipe["data"])


def compare(rows: Sequence[Row], recipes: Iterable[Mapping[str, Any]]) -> Coverage:
    """Compare rows with recipes.

    Args:
        rows: printed results.
        recipes: entries of `rayd recipes --json`.
    """
    found = Coverage(rows)
    by_number = defaultdict(list)
    for index, row in enumerate(rows):
        by_number[row.number].append(index)

    for recipe in recipes:
        method = STAND_FOR.get(recipe["name"], recipe["method"])
        # two equal numbers in a table need two results
        used: set[int] = set()
        for result in recipe["paper"]:
            number = (
                result["table"],
                method,
                result["network"],
                result["metric"],
                result["value"],
                result["std"],
            )
            fitting = [
                index
                for index in by_number[number]
                if index not in used
                and rows[index].data in (None, data_of(recipe))
                and rows[index].ipc in (None, recipe["ipc"])
            ]
            # rows that another recipe already contains come last
            best = min(fitting, key=lambda index: index in found.held, default=None)
            if best is None:
                network = result["network"] or "a network"
                text = f"{recipe['name']}: {result['value']:g} of {network} in {result['table']}"
                found.strange.append(text)
            else:
                used.add(best)
        found.held |= used
    return found


def report(found: Coverage, known: set[str]) -> str:
    """The comparison as text.

    Args:
        found: the comparison.
        known: methods of rayd.
    """
    lines = [
        f"{len(found.rows)} printed results; cells are data, IPC and network of an accuracy",
        "",
    ]
    for own, title in ((True, "methods of the papers"), (False, "baselines that rayd has")):
        counted: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, row in enumerate(found.rows):
            if row.method in known and row.own == own and row.paper in OWN:
                counted[row.paper, row.method].append(index)
        lines.append(f"{title:<26} {'cells':>9}  {'results':>9}")
        for (paper, method), indices in sorted(counted.items()):
            cells = defaultdict(set)
            for index in indices:
                if found.rows[index].metric == "accuracy":
                    cells[found.rows[index].cell].add(index in found.held)
            whole = sum(held == {True} for held in cells.values())
            held = sum(index in found.held for index in indices)
            name = f"{method} ({paper})"
            of_cells = f"{whole}/{len(cells)}"
            of_results = f"{held}/{len(indices)}"
            lines.append(f"  {name:<24} {of_cells:>9}  {of_results:>9}")
        in_all = sum(len(indices) for indices in counted.values())
        held = sum(len(found.held.intersection(indices)) for indices in counted.values())
        lines += [f"  {'all':<24} {'':>9}  {f'{held}/{in_all}':>9}", ""]

    lacking = Counter(row.method for row in found.rows if row.method not in known | NO_CELL)
    named = ", ".join(f"{method} {count}" for method, count in sorted(lacking.items()))
    lines.append(f"methods that rayd has not: {named or 'none'}")
    compared = Counter(row.method for row in found.rows if row.method in NO_CELL - known)
    named = ", ".join(f"{method} {count}" for method, count in sorted(compared.items()))
    lines.append(f"real images, of which recipes hold none: {named or 'none'}")

    five = tuple(f"{paper}," for paper in OWN)
    strange = [text for text in found.strange if text.partition(" in ")[2].startswith(five)]
    lines.append(f"results of recipes from other papers: {len(found.strange) - len(strange)}")
    lines.append(f"missing: {len(found.missing(known)) or 'none'}")
    lines += [
        f"  {row.method} {row.data} ipc {row.ipc}: {row.number}" for row in found.missing(known)
    ]
    lines.append(f"numbers that differ: {len(strange) or 'none'}")
    lines += [f"  {text}" for text in strange]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=Path, help="printed results, YAML or CSV")
    given = parser.parse_args(arguments)
    listed = subprocess.run(
        [sys.executable, "-m", "rayd", "recipes", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    recipes = json.loads(listed.stdout)
    rows = rows_of(given.rows)
    found = compare(rows, recipes)
    known = {recipe["method"] for recipe in recipes}
    print(report(found, known))
    five = tuple(f"{paper}," for paper in OWN)
    differs = any(text.partition(" in ")[2].startswith(five) for text in found.strange)
    return 1 if found.missing(known) or differs else 0


if __name__ == "__main__":
    sys.exit(main())
