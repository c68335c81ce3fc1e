"""Results of a finished sweep: a summary, and the whole sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Self

from rayd import remote, shown
from rayd.artifacts import parse, read_json
from rayd.config import Recipe
from rayd.names import expanded
from rayd.recipes import resolve
from tuning import charts, table
from tuning.directory import SUMMARY, read_space
from tuning.settings import Space
from tuning.space import ResolvedSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from ray import tune


@dataclass(frozen=True)
class Summary:
    """Results of a sweep."""

    space: str
    """Name of the space."""
    trials: int
    """Number of started trials."""
    finished: int
    """Number of finished trials."""
    failed: int
    """Number of failed trials; the remaining ones were stopped at a rung."""
    best: str | None = None
    """The best trial."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the best trial."""
    validation_accuracy: float | None = None
    """Mean accuracy of the best trial's students on the validation split, over all networks."""
    own_validation_accuracy: float | None = None
    """Validation accuracy of the recipe's own settings, if tried."""
    test_accuracy: float | None = None
    """Test accuracy of the best settings, over the students of all networks, evaluated once."""
    test_std: float | None = None
    """Standard deviation of the test accuracy over these students."""
    importance: dict[str, float] = field(default_factory=dict)
    """Importance of each setting for the validation accuracy (fANOVA), summing to 1."""
    pareto: list[str] = field(default_factory=list)
    """Pareto-optimal trials, if there are several objectives."""
    confirmed: dict[str, list[float]] = field(default_factory=dict)
    """Validation accuracies of repeated distillations with the `best` and the recipe's `own`
    settings.
    """

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Format as text."""
        lines = [
            f"{self.space}: {self.finished} of {self.trials} trials finished, {self.failed} failed"
        ]
        if self.best is None:
            return lines[0]
        own = self.own_validation_accuracy
        against = ""
        if own is not None and self.validation_accuracy is not None:
            is_better = self.validation_accuracy > own
            against = f", the recipe's own settings {own:.3f}"
            against = against if is_better else ", no better than the recipe's own settings"
        lines.append(
            f"best on the validation split: {self.validation_accuracy:.3f} "
            f"(trial {self.best}){against}"
        )
        lines += [f"  {key}: {value}" for key, value in self.settings.items()]
        if self.importance:
            shares = ", ".join(f"{key} {share:.2f}" for key, share in self.importance.items())
            lines.append(f"importance: {shares}")
        for name, runs in self.confirmed.items():
            lines.append(
                f"distilled again, {name}: {_mean(runs)} on the validation split "
                f"({len(runs)} distillations)"
            )
        if self.test_accuracy is not None:
            spread = f" ± {self.test_std:.3f}" if self.test_std is not None else ""
            lines.append(f"test accuracy of the best: {self.test_accuracy:.3f}{spread}")
        if self.pareto:
            lines.append(
                f"{len(self.pareto)} trials that no other beats in all objectives: "
                f"{', '.join(self.pareto)}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Sweep:
    """A finished sweep."""

    directory: Path
    """Directory of its tables, charts and best recipe."""
    space: Space
    """The search space."""
    summary: Summary
    """Summary of the results."""
    trials: tuple[table.Row, ...]
    """All trials."""

    @classmethod
    def of(cls, out: str | Path, grid: tune.ResultGrid) -> Self:
        """Read the results that `sweep` wrote into a directory."""
        directory = remote.local(out).resolve()
        space = read_space(directory)
        trials = table.rows(ResolvedSpace(space), grid, directory / "trials")
        return cls(directory, space, summary(directory), tuple(trials))

    @property
    def recipe(self) -> Recipe:
        """The recipe with the best settings, which `best.yaml` in the directory holds."""
        return resolve(self.directory / "best.yaml")

    def plot(self) -> Figure:
        """Draw validation accuracies against each setting as a matplotlib `Figure`."""
        return charts.slices(self.space, self.trials, table.best(self.trials))

    def __repr__(self) -> str:
        return shown.short(
            "Sweep", self.directory, trials=self.summary.trials, best=self.summary.best
        )

    def _repr_html_(self) -> str:
        """The summary, in a notebook."""
        return shown.preformatted(self.summary.text())


def _mean(runs: Sequence[float]) -> str:
    return f"{fmean(runs):.3f}" + (f" ± {stdev(runs):.3f}" if len(runs) > 1 else "")


def summary(out: str | Path) -> Summary:
    """Read the results of a finished sweep.

    Raises:
        ArtifactError: they are missing or damaged.
    """
    path = expanded(out) / SUMMARY
    return parse(Summary, read_json(path), f"'{path}'")
