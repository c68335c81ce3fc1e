"""The report of an evaluation: what `evaluation.json` holds and what is shown of it.

Accuracies are fractions of the test images. The standard deviation is the sample one (divisor n -
1) over students, and absent for a single one. On a training set that was cut to a long tail, or
whose largest class has at least twice the images of its smallest, head classes are those with at
least the median number of images and tail classes the others; with the exponential profile of
`data.imbalance` that is the former half of the classes and the latter, and so it is said where the
numbers are not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Self

from rich.markup import escape
from rich.table import Table

from rayd import remote
from rayd.artifacts import read_json
from rayd.config import Recipe
from rayd.data.splits import uneven
from rayd.distilled import Distilled
from rayd.errors import ArtifactError
from rayd.evaluation.remarks import MARK, at_chance, remarks
from rayd.evaluation.student import StudentResult
from rayd.evaluation.table import LEFT_ALIGNED, NOTHING, Layout, Row, wrapped
from rayd.recipes import names as recipe_names

FILE = "evaluation.json"
"""The file that a report is kept in."""

ORDER = ("distilled", "random", "herding", "k-center", "whole")
"""Sets in the order of tables, so that random images always stand beside the distilled ones."""


@dataclass(frozen=True)
class Accuracy:
    """Test accuracies of several students of one kind, as fractions."""

    mean: float
    """Their mean."""
    std: float | None
    """Their sample standard deviation (divisor n - 1); None for a single student."""
    runs: tuple[float, ...]
    """Each of them, in the order of the seeds."""

    @classmethod
    def of(cls, runs: Iterable[float]) -> Self:
        """Mean and deviation of at least one run."""
        runs = tuple(runs)
        return cls(fmean(runs), stdev(runs) if len(runs) > 1 else None, runs)

    def text(self) -> str:
        """`0.883 ± 0.010`, or the mean alone.

        >>> Accuracy.of([0.875, 0.885]).text(), Accuracy.of([0.5]).text()
        ('0.880 ± 0.007', '0.500')
        """
        return f"{self.mean:.3f}" if self.std is None else f"{self.mean:.3f} ± {self.std:.3f}"


@dataclass(frozen=True)
class SetResult:
    """How well one set trains one architecture."""

    set: str
    """`distilled`, or the name of a baseline."""
    network: str
    """Label of the architecture."""
    protocol: str
    """How students were trained."""
    test_accuracy: Accuracy
    """Over the students."""
    epoch: str
    """Which epoch was tested: `last` or `validation-best`."""
    per_class: tuple[float | None, ...]
    """Mean test accuracy of each class, a fraction; None for a class without test images."""
    head_accuracy: float | None
    """Mean of `per_class` over the head classes; None for a balanced training set."""
    tail_accuracy: float | None
    """Mean of `per_class` over the tail classes; None for a balanced training set."""
    seeds: tuple[int, ...]
    """Seeds of the students."""
    seconds: float
    """Wall-clock seconds that the students took, summed."""

    @classmethod
    def of(
        cls,
        set_name: str,
        students: Sequence[StudentResult],
        protocol: str,
        long_tailed: bool,
        class_counts: Sequence[int] | None = None,
    ) -> Self:
        """The result of at least one student of the same architecture and selection, ordered by
        seed.

        Args:
            set_name: `distilled`, or the name of a baseline.
            students: of one architecture and selection.
            protocol: how they were trained, in words.
            long_tailed: whether the real training set is.
            class_counts: real training images of each class; absent: fewer from class to class.
        """
        students = sorted(students, key=lambda student: student.seed)
        per_class = tuple(
            _mean(runs) for runs in zip(*(student.per_class for student in students), strict=True)
        )
        head = head_classes(len(per_class), class_counts)
        sides = [
            [one for one, is_head in zip(per_class, head, strict=True) if is_head is side]
            for side in (True, False)
        ]
        return cls(
            set=set_name,
            network=students[0].network,
            protocol=protocol,
            test_accuracy=Accuracy.of(student.test_accuracy for student in students),
            epoch=students[0].selection,
            per_class=per_class,
            head_accuracy=_mean(sides[0]) if long_tailed else None,
            tail_accuracy=_mean(sides[1]) if long_tailed else None,
            seeds=tuple(student.seed for student in students),
            seconds=sum(student.seconds for student in students),
        )

    @property
    def key(self) -> tuple[str, str, str, str, tuple[int, ...]]:
        """What tells it from the other results of a report."""
        return self.set, self.network, self.protocol, self.epoch, self.seeds


@dataclass(frozen=True)
class Report:
    """All results of an evaluation, with what they are held against."""

    recipe: str
    """Name of the recipe."""
    method: str
    """Name of the method."""
    data: str
    """Name of the data."""
    ipc: int
    """Images per class of the distilled set and of the baselines of its size."""
    storage_bytes: Mapping[str, int]
    """What the distilled set costs to keep, by part."""
    seconds: Mapping[str, float]
    """Wall-clock seconds of the stages."""
    results: tuple[SetResult, ...]
    """One for each set, architecture and tested epoch: architectures as they came, sets in the
    order of `ORDER`.
    """

    @classmethod
    def build(
        cls,
        recipe: Recipe,
        students: Iterable[tuple[str, StudentResult]],
        distilled: Distilled,
        seconds: Mapping[str, float],
        class_counts: Sequence[int] | None = None,
    ) -> Self:
        """Group the students, given with the names of their sets, by set, architecture and tested
        epoch.

        Args:
            recipe: what was run.
            students: (set name, result) of every student.
            distilled: the set, for what it costs to keep.
            seconds: wall-clock seconds by stage.
            class_counts: real training images of each class.
        """
        groups: dict[tuple[str, str, str], list[StudentResult]] = {}
        for name, student in students:
            groups.setdefault((student.network, name, student.selection), []).append(student)
        on = {name: _protocol_on(name, recipe, distilled) for _, name, _ in groups}
        of = (
            recipe.data.imbalance > 1 or (class_counts is not None and uneven(class_counts)),
            class_counts,
        )
        results = (
            SetResult.of(name, group, on[name], *of) for (_, name, _), group in groups.items()
        )
        return cls(
            recipe=recipe.name,
            method=recipe.method,
            data=recipe.data.name,
            ipc=recipe.ipc,
            storage_bytes=dict(distilled.storage.bytes),
            seconds=dict(seconds),
            results=_ordered(results),
        )

    def merge(self, newer: Report) -> Report:
        """This report with the results of a newer one of the same set, which win where both have
        one.
        """
        results = {result.key: result for report in (self, newer) for result in report.results}
        return replace(
            newer, seconds={**self.seconds, **newer.seconds}, results=_ordered(results.values())
        )

    def brief(self) -> list[str]:
        """A line for each network and tested epoch: the accuracies of its sets, the distilled one
        first.
        """
        groups: dict[str, list[str]] = {}
        for result in self.results:
            network = (
                result.network if result.epoch == "last" else f"{result.network} ({result.epoch})"
            )
            mark = f" {MARK}" if at_chance(result) else ""
            groups.setdefault(network, []).append(
                f"{result.set} {result.test_accuracy.text()}{mark}"
            )
        return [f"{network}: {', '.join(accuracies)}" for network, accuracies in groups.items()]

    def to_json(self) -> dict[str, Any]:
        """The content of `evaluation.json`."""
        return asdict(self)

    @classmethod
    def kept(cls, directory: Path) -> Self | None:
        """The report that a run directory, or the directory of a distilled set, holds; None if
        there is none.

        Raises:
            ArtifactError: it is damaged.
        """
        path = remote.local(directory) / FILE
        return cls.from_json(read_json(path)) if remote.bring(path) else None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            ArtifactError: a field is missing or unknown.
        """
        try:
            return cls(
                **{**content, "results": tuple(_result(result) for result in content["results"])}
            )
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"A report must have the fields that 'evaluation.json' documents: {error}."
            ) from error

    def remarks(self) -> list[str]:
        """What a reader should know beside the numbers, a sentence each; see
        `rayd.evaluation.remarks`.
        """
        return remarks(self, recipe_names())

    def table(self) -> Table:
        """For a terminal."""
        layout = Layout.of(self._rows())
        table = Table(
            title=escape(self._title()), caption=escape("\n".join((*layout.below, *self.remarks())))
        )
        for name in layout.columns:
            table.add_column(name, justify="left" if name in LEFT_ALIGNED else "right")
        for row in layout.rows:
            table.add_row(*row)
        return table

    def text(self) -> str:
        """The same as plain aligned lines, at most 80 characters wide where the names of networks
        allow it.
        """
        layout = Layout.of(self._rows())
        paragraphs = (*layout.below, *self.remarks())
        return "\n".join([wrapped(self._title()), *layout.lines(), *map(wrapped, paragraphs)])

    def _title(self) -> str:
        return f"{self.recipe}: {self.method} on {self.data}, {self.ipc} per class, {sum(self.storage_bytes.values()):,} bytes"

    def _rows(self) -> list[Row]:
        """Cells by column; where random images were not evaluated beside the distilled ones, a row
        says so.
        """
        evaluated = {(result.set, result.network, result.epoch) for result in self.results}
        # where some accuracies have a mark, the others keep its place, so that digits stand below
        # each other
        blank = " " * (len(MARK) + 1) if any(map(at_chance, self.results)) else ""
        rows: list[Row] = []
        for result in self.results:
            rows.append(
                {
                    "network": result.network,
                    "set": result.set,
                    "test accuracy": result.test_accuracy.text()
                    + (f" {MARK}" if at_chance(result) else blank),
                    "students": str(len(result.test_accuracy.runs)),
                    "head": _cell(result.head_accuracy),
                    "tail": _cell(result.tail_accuracy),
                    "epoch": result.epoch,
                    "seconds": f"{result.seconds:.1f}",
                    "protocol": result.protocol,
                }
            )
            if (
                result.set == "distilled"
                and ("random", result.network, result.epoch) not in evaluated
            ):
                absent = {"network": result.network, "set": "random", "epoch": result.epoch}
                rows.append({**absent, "test accuracy": f"not evaluated{blank}"})
        return rows


def head_classes(classes: int, counts: Sequence[int] | None = None) -> tuple[bool, ...]:
    """Whether each class is a head class: one with at least the median number of images, or one of
    the former half.

    >>> head_classes(3, [7, 1, 5]), head_classes(3)
    ((True, False, True), (True, True, False))
    """
    sizes = range(classes, 0, -1) if counts is None else counts
    return tuple(size >= median(sizes) for size in sizes)


def _result(content: Mapping[str, Any]) -> SetResult:
    accuracy = content["test_accuracy"]
    listed = {name: tuple(content[name]) for name in ("per_class", "seeds")}
    return SetResult(
        **{
            **content,
            **listed,
            "test_accuracy": Accuracy(**{**accuracy, "runs": tuple(accuracy["runs"])}),
        }
    )


def _ordered(results: Iterable[SetResult]) -> tuple[SetResult, ...]:
    results = tuple(results)
    networks = list(dict.fromkeys(result.network for result in results))
    place = {name: index for index, name in enumerate(ORDER)}
    return tuple(
        sorted(
            results,
            key=lambda r: (networks.index(r.network), r.epoch, place.get(r.set, len(ORDER)), r.set),
        )
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is there; None of nothing."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _cell(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _protocol_on(set_name: str, recipe: Recipe, distilled: Distilled) -> str:
    """The protocol in words; the distilled set may have labels and a step size of its own."""
    settings = recipe.evaluation
    if set_name != "distilled":
        return settings.protocol_on(set_name, recipe.labels)
    if settings.learned_step_size and distilled.step_size is not None:
        settings = settings.model_copy(
            update={"learning_rate": float(f"{distilled.step_size:.3g}")}
        )
    return settings.protocol_on(set_name, recipe.labels, distilled.labels.is_floating_point())
