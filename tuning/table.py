"""The table of trials, and what is learned from it: the best, those that no other beats, and which
settings matter.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from ray.tune import ResultGrid
from sklearn.ensemble import RandomForestRegressor

from rayd.artifacts import read_json, write_bytes
from rayd.errors import ArtifactError
from tuning.space import MODES, RECIPE, Point, ResolvedSpace
from tuning.trial import FAILURE, PROGRESS

TREES = 300
"""Of the forest that tells which settings matter."""
NUMBERS = ("validation_accuracy", "validation_std", "storage_bytes", "seconds")


@dataclass(frozen=True)
class Row:
    """A trial."""

    trial: str
    """Its name."""
    status: str
    """`finished`; `stopped` at a rung; `failed`."""
    settings: Point
    """Its settings by dotted key; in the end, where they changed on the way."""
    own: bool
    """Whether these are the recipe's own."""
    fraction: float
    """Share of the synthesis after which it was judged last."""
    validation_accuracy: float | None
    """Mean fraction of the validation images that its students know."""
    validation_std: float | None
    """Standard deviation over the students."""
    storage_bytes: int | None
    """What its set costs to keep."""
    seconds: float | None
    """Of synthesis and students."""
    reason: str
    """Why it failed."""
    run: str
    """Its run's directory, under that of the trials."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Settings that it had before, and up to which share of the synthesis."""


def rows(ground: ResolvedSpace, grid: ResultGrid, directory: Path) -> list[Row]:
    """All trials: the recipes' own settings first, others by name, which in a random search is the
    order of the draws.

    Ray Tune turns its own order round whenever a sweep goes on.
    """
    own = [ground.own_point(name) for name in ground.space.base]
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
        reason = _read(folder / FAILURE).get("reason") or _last_line(result.error) if failed else ""
        found.append(
            Row(
                trial=folder.name,
                status="failed" if failed else "finished" if done else "stopped",
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
    """Those that came to their end."""
    return [row for row in trials if row.status == "finished"]


def best(trials: Iterable[Row]) -> Row | None:
    """The finished trial with the greatest validation accuracy; of equal ones the first."""
    return max(finished(trials), key=lambda row: row.validation_accuracy or 0.0, default=None)


def pareto(trials: Iterable[Row], objectives: Sequence[str]) -> list[Row]:
    """Finished trials that no other one equals or beats in all objectives and beats in one, the
    most accurate first.
    """
    done = finished(trials)
    signs: dict[str, float] = {name: 1.0 if mode == "max" else -1.0 for name, mode in MODES.items()}
    worth = {}
    for row in done:
        worth[row.trial] = [signs[name] * float(getattr(row, name)) for name in objectives]
    front = [
        row
        for row in done
        if not any(_beats(worth[other.trial], worth[row.trial]) for other in done)
    ]
    return sorted(front, key=lambda row: -(row.validation_accuracy or 0.0))


def _beats(left: Sequence[float], right: Sequence[float]) -> bool:
    return left != right and all(a >= b for a, b in zip(left, right, strict=True))


def columns(ground: ResolvedSpace, trials: Iterable[Row]) -> list[dict[str, Any]]:
    """The table: a mapping a trial, settings under their dotted keys."""
    keys = list(ground.space.domains)
    return [
        {
            "trial": row.trial,
            "status": row.status,
            "own_settings": row.own,
            "fraction": row.fraction,
            **{number: getattr(row, number) for number in NUMBERS},
            **{key: _cell(row.settings.get(key)) for key in keys},
            "reason": row.reason,
            "run": row.run,
        }
        for row in trials
    ]


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else json.dumps(value)


def write(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """The table as CSV and, with the same name, as Parquet."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]) if table else [])
    writer.writeheader()
    writer.writerows(table)
    write_bytes(path.with_suffix(".csv"), text.getvalue().encode())
    names = list(table[0]) if table else []
    arrays = {name: _array([row[name] for row in table]) for name in names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer)
    write_bytes(path.with_suffix(".parquet"), buffer.getvalue())


def _array(values: list[Any]) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else json.dumps(value) for value in values])


def importance(ground: ResolvedSpace, trials: Iterable[Row]) -> dict[str, float]:
    """Share of each setting in what a random forest can tell of the validation accuracy; they sum
    to 1, the greatest first.

    Of few trials this is a hint and no more. Settings that are not there in a trial have a value of
    their own.
    """
    done = finished(trials)
    keys = [
        key
        for key in ground.space.domains
        if len({json.dumps(row.settings.get(key)) for row in done}) > 1
    ]
    if len(done) < 3 or not keys:
        return {}
    features = []
    owner = []
    for key in keys:
        made = _features(ground, key, [row.settings.get(key) for row in done])
        features.append(made)
        owner += [key] * made.shape[1]
    target = [float(row.validation_accuracy or 0.0) for row in done]
    forest = RandomForestRegressor(TREES, random_state=0).fit(np.concatenate(features, 1), target)
    shares = dict.fromkeys(keys, 0.0)
    for key, share in zip(owner, forest.feature_importances_, strict=True):
        shares[key] += float(share)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _features(ground: ResolvedSpace, key: str, values: list[Any]) -> npt.NDArray[np.float64]:
    """Numbers (logarithms where the domain has them) and whether they are there; or which of the
    choices each one is.
    """
    domains = ground.space.domains[key]
    if key != RECIPE and all(domain.numeric for domain in domains):
        scale = log if domains[0].kind == "loguniform" else float
        numbers = [
            scale(value) if isinstance(value, int | float) and value > 0 else 0.0
            for value in values
        ]
        return np.array([numbers, [value is None for value in values]], dtype=np.float64).T
    kinds = sorted({json.dumps(value) for value in values})
    return np.array(
        [[json.dumps(value) == kind for kind in kinds] for value in values], dtype=np.float64
    )
