"""Table of trials, and its evaluation: best trial, Pareto front, importance of settings."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.distributions import CategoricalDistribution, FloatDistribution
from ray.tune import ResultGrid

from rayd.artifacts import read_json, write_bytes
from rayd.errors import ArtifactError
from tuning.domain import Domain, Point
from tuning.settings import MODES
from tuning.space import ResolvedSpace
from tuning.trial import FAILURE, PROGRESS

FEWEST = 10
"""Minimum number of finished trials for an estimate of importance."""
NUMBERS = ("validation_accuracy", "validation_std", "storage_bytes", "seconds")


@dataclass(frozen=True)
class Row:
    """A trial."""

    trial: str
    """Name of the trial."""
    status: str
    """`finished`; `stopped` at a rung; `failed`."""
    settings: Point
    """Settings by dotted key; the final ones if they changed during the synthesis."""
    own: bool
    """Whether these are the recipe's own settings."""
    fraction: float
    """Fraction of the synthesis at the last evaluation."""
    validation_accuracy: float | None
    """Mean validation accuracy of the students, a fraction."""
    validation_std: float | None
    """Standard deviation over the students."""
    storage_bytes: int | None
    """Storage cost of the set."""
    seconds: float | None
    """Seconds of synthesis and students."""
    reason: str
    """Reason of a failure."""
    run: str
    """Directory of the run, relative to that of the trials."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Earlier settings, with the fraction of the synthesis up to which they were used."""


def rows(resolved: ResolvedSpace, grid: ResultGrid, directory: Path) -> list[Row]:
    """Collect all trials: those with the recipes' own settings first, others by name.

    In a random search, names are in the order of the draws. (Ray Tune reverses its own order
    whenever a sweep is resumed.)
    """
    own = [resolved.own_point(name) for name in resolved.space.base]
    found = []
    for result in grid:
        folder = directory / Path(result.path).name
        known = _read(folder / PROGRESS)
        name = known.get("now", {}).get("run", "run")
        entry = known.get(name, {})
        last = entry.get("records", [])[-1:] or [{}]
        settings = entry.get("settings", dict((result.config or {}).get("settings", {})))
        done = last[0].get("fraction") == 1.0
        failed = result.error is not None and not done
        reason = ""
        if failed:
            reason = _read(folder / FAILURE).get("reason") or _last_line(result.error)
        status = "finished" if done else "stopped"
        found.append(
            Row(
                trial=folder.name,
                status="failed" if failed else status,
                settings=settings,
                own=settings in own,
                fraction=last[0].get("fraction", 0.0),
                **{number: last[0].get(number) for number in NUMBERS},
                reason=reason,
                run=f"{folder.name}/{name}",
                history=entry.get("history", []),
            )
        )
    return sorted(found, key=lambda row: (not row.own, row.trial))


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ArtifactError:
        return {}


def _last_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1] if lines else "unknown"


def finished(trials: Iterable[Row]) -> list[Row]:
    """Select the finished trials."""
    return [row for row in trials if row.status == "finished"]


def best(trials: Iterable[Row]) -> Row | None:
    """The finished trial with the highest validation accuracy; the first of equal ones."""
    return max(finished(trials), key=lambda row: row.validation_accuracy or 0.0, default=None)


def own_accuracy(trials: Iterable[Row]) -> float | None:
    """Best validation accuracy of finished trials with a recipe's own settings."""
    accuracies = [
        row.validation_accuracy
        for row in trials
        if row.own and row.fraction == 1 and row.validation_accuracy is not None
    ]
    return max(accuracies, default=None)


def pareto(trials: Iterable[Row], objectives: Sequence[str]) -> list[Row]:
    """Pareto-optimal finished trials, the most accurate first."""
    done = finished(trials)
    signs: dict[str, float] = {name: 1.0 if mode == "max" else -1.0 for name, mode in MODES.items()}
    worth = {}
    for row in done:
        worth[row.trial] = [signs[name] * float(getattr(row, name)) for name in objectives]
    front = []
    for row in done:
        if not any(_beats(worth[other.trial], worth[row.trial]) for other in done):
            front.append(row)
    return sorted(front, key=lambda row: -(row.validation_accuracy or 0.0))


def _beats(left: Sequence[float], right: Sequence[float]) -> bool:
    return left != right and all(a >= b for a, b in zip(left, right, strict=True))


def columns(resolved: ResolvedSpace, trials: Iterable[Row]) -> list[dict[str, Any]]:
    """Table of trials: one mapping per trial, with settings under their dotted keys."""
    lines = []
    for row in trials:
        line = {
            "trial": row.trial,
            "status": row.status,
            "own_settings": row.own,
            "fraction": row.fraction,
        }
        for number in NUMBERS:
            line[number] = getattr(row, number)
        for key in resolved.space.domains:
            line[key] = _cell(row.settings.get(key))
        lines.append(line | {"reason": row.reason, "run": row.run})
    return lines


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else json.dumps(value)


def write(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Write the table as CSV and, with the same name, as Parquet."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]) if table else [])
    writer.writeheader()
    writer.writerows(table)
    write_bytes(path.with_suffix(".csv"), text.getvalue().encode())
    names = list(table[0]) if table else []
    arrays = {}
    for name in names:
        arrays[name] = _array([row[name] for row in table])
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer)
    write_bytes(path.with_suffix(".parquet"), buffer.getvalue())


def _array(values: list[Any]) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else json.dumps(value) for value in values])


def importance(resolved: ResolvedSpace, trials: Iterable[Row]) -> dict[str, float]:
    """Importance of each setting for the validation accuracy, summing to 1, largest first.

    Computed by Optuna's fANOVA, with a random forest. Settings that some trials do not have, or
    that never vary, are left out; the result is empty for fewer than `FEWEST` finished trials, or
    for equal accuracies.
    """
    done = finished(trials)
    keys = []
    for key in resolved.space.domains:
        values = {json.dumps(row.settings.get(key)) for row in done}
        if len(values) > 1 and "null" not in values:
            keys.append(key)
    # equal accuracies have no variance to explain, which Optuna refuses
    accuracies = {row.validation_accuracy for row in done}
    if len(done) < FEWEST or not keys or len(accuracies) < 2:
        return {}
    columns = {}
    for key in keys:
        drawn = [row.settings[key] for row in done]
        columns[key] = _distribution(resolved.space.domains[key], drawn)
    study = optuna.create_study(direction="maximize")
    for index, row in enumerate(done):
        trial = optuna.trial.create_trial(
            params={key: values[index] for key, (_, values) in columns.items()},
            distributions={key: distribution for key, (distribution, _) in columns.items()},
            value=row.validation_accuracy,
        )
        study.add_trial(trial)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in shares.items()}


def _distribution(domains: Sequence[Domain], values: list[Any]) -> tuple[Any, list[Any]]:
    """Optuna's distribution of a setting, and the values of the trials in it.

    If a recipe's own value lies outside the domain, the domain is widened.
    """
    if all(domain.numeric for domain in domains):
        ends = [end for domain in domains for end in domain.values]
        log = domains[0].kind == "loguniform" and min(values) > 0
        return FloatDistribution(min(*ends, *values), max(*ends, *values), log=log), values
    names = [json.dumps(value) for value in values]
    return CategoricalDistribution(sorted(set(names))), names
