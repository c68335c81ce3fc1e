"""Report of an evaluation: the content of `evaluation.json`.

Results are defined in `rayd.evaluation.set_result`; `rayd.evaluation.report_text` formats reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import ConfigDict
from rich.table import Table

from rayd import remote, shown
from rayd.artifacts import parse, read_json
from rayd.card_format import PixelRange
from rayd.config import Recipe, lookup
from rayd.data.splits import uneven
from rayd.distilled import Distilled
from rayd.errors import ArtifactError
from rayd.evaluation.matrix import Matrix, words_of
from rayd.evaluation.published import Published, departures
from rayd.evaluation.remarks import MARK, at_chance, remarks
from rayd.evaluation.report_text import ReportText
from rayd.evaluation.scores import Scores, scores_of
from rayd.evaluation.set_result import AS_MANY_STEPS, STEPS_OF, STRICT, Accuracy, SetResult
from rayd.evaluation.student import StudentResult
from rayd.evaluation.variants import DISTILLED, EQUAL_STORAGE, Variant
from rayd.recipes import names as recipe_names
from rayd.synthetic.base import OF_TEACHERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FILE", "Accuracy", "Report", "SetResult"]

FILE = "evaluation.json"
"""File name of a report."""

ROUNDING = 1e-6
"""Largest difference that is attributed to manual rounding of accuracies in a file."""

ORDER = (
    DISTILLED,
    "random",
    "herding",
    "k-center",
    "forgetting",
    "el2n",
    "difficulty",
    "rded",
    EQUAL_STORAGE,
    "whole",
)
"""Order of sets in tables: random images follow the distilled ones."""


@dataclass(frozen=True)
class Report:
    """All results of an evaluation, with baselines."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    recipe: str
    """Name of the recipe."""
    method: str
    """Name of the method."""
    data: str
    """Name of the data."""
    ipc: int
    """Images per class of the distilled set and of the baselines of its size."""
    storage_bytes: Mapping[str, int]
    """Storage cost of the distilled set, by part."""
    seconds: Mapping[str, float]
    """Wall-clock seconds of the stages."""
    results: tuple[SetResult, ...]
    """One result per set, architecture and tested epoch: architectures in their original order,
    sets in that of `ORDER`.
    """
    real_data: Mapping[str, Any] | None = None
    """Description of the real data as read, see `rayd.data.summary`; None in older reports."""
    pixel_range: PixelRange | None = None
    """Range of the distilled images' values; None in reports of older versions."""
    scores: tuple[Scores, ...] = ()
    """Scores relative to the baselines, for every architecture and tested epoch."""
    departures: tuple[str, ...] = ()
    """Settings, by dotted key, in which runs or evaluations differ from the built-in recipe."""

    def __repr__(self) -> str:
        return shown.short("Report", self.recipe, results=len(self.results))

    def _repr_html_(self) -> str:
        """The table, in a notebook."""
        return shown.report_html(self)

    def plot(self) -> Figure:
        """Draw the test accuracies as a matplotlib `Figure`: a bar for each set and network."""
        return shown.report_figure(self)

    def to_pandas(self) -> Any:
        """A pandas `DataFrame` with a row for each set, architecture and tested epoch.

        Students under other labels, without augmentation or of another protocol have separate rows,
        which the columns `labels`, `augmented` and `protocol` distinguish. Accuracies are fractions
        in [0, 1].
        """
        import pandas

        return pandas.DataFrame(shown.report_rows(self))

    @classmethod
    def build(
        cls,
        recipe: Recipe,
        students: Iterable[tuple[str | Variant, StudentResult]],
        distilled: Distilled,
        seconds: Mapping[str, float],
        class_counts: Sequence[int] | None = None,
    ) -> Self:
        """Group students by set, architecture and tested epoch.

        Args:
            recipe: the evaluated run.
            students: (variant or set name, result) of every student.
            distilled: the distilled set, for its storage cost and the range of its values.
            seconds: wall-clock seconds by stage.
            class_counts: number of real training images of each class.
        """
        groups: dict[tuple[str, Variant, str], list[StudentResult]] = {}
        for name, student in students:
            key = (student.network, Variant.of(name), student.selection)
            groups.setdefault(key, []).append(student)
        long_tailed = recipe.data.imbalance > 1
        if class_counts is not None and uneven(class_counts):
            long_tailed = True
        named = departures(recipe)
        if "ended_at_step" in distilled.card:
            # a callback ended the synthesis, which the settings do not show
            named = (*named, "callbacks")
        results = []
        for (_, variant, _), group in groups.items():
            protocol = _protocol_on(variant, recipe, distilled)
            kind = _labels_on(variant, recipe, distilled)
            size = _bytes_on(variant, kind, distilled)
            result = SetResult.of(variant, group, protocol, long_tailed, class_counts, kind, size)
            # a paper's number is for the protocol's own labels and its first tested epoch
            is_first = result.epoch == recipe.evaluation.epoch[0]
            if variant == Variant(DISTILLED) and is_first and not named:
                result = replace(result, paper=Published.beside(recipe, result.network))
            results.append(result)
        return cls(
            recipe=recipe.name,
            method=recipe.method,
            data=recipe.data.title,
            ipc=recipe.ipc,
            storage_bytes=dict(distilled.storage.bytes),
            seconds=dict(seconds),
            results=_ordered(results),
            scores=scores_of(_ordered(results)),
            departures=named,
            real_data=lookup(distilled.card, "data.read"),
            pixel_range=distilled.pixel_range,
        )

    def merge(self, newer: Report) -> Report:
        """Combine with a newer report of the same set, whose results take precedence."""
        by_key = {result.key: result for report in (self, newer) for result in report.results}
        for result in newer.results:
            # reports of older versions do not record the bytes of `equal-storage`, nor its epochs
            if result.set != EQUAL_STORAGE:
                continue
            unnumbered = re.sub(rf"{STEPS_OF}\d+ epochs", AS_MANY_STEPS, result.protocol)
            for protocol in (result.protocol, unnumbered):
                for size in (result.bytes, None):
                    older = replace(result, protocol=protocol, bytes=size)
                    if older.key != result.key:
                        by_key.pop(older.key, None)
        results = _ordered(by_key.values())
        # one of them may count teachers or stored labels, and the other only images
        largest = max(self, newer, key=lambda report: sum(report.storage_bytes.values()))
        return replace(
            newer,
            storage_bytes=largest.storage_bytes,
            seconds={**self.seconds, **newer.seconds},
            results=results,
            # from the merged results, as a score may combine a baseline of one report with a set of
            # the other
            scores=scores_of(results),
            departures=tuple(dict.fromkeys((*self.departures, *newer.departures))),
        )

    def brief(self) -> list[str]:
        """One line per network and tested epoch: accuracies of its sets, distilled first."""
        groups: dict[str, list[str]] = {}
        for result in self.results:
            network = (
                result.network if result.epoch == "last" else f"{result.network} ({result.epoch})"
            )
            mark = f" {MARK}" if at_chance(result) else ""
            words = words_of(result, self.results)
            accuracy = result.test_accuracy.text()
            if result.is_on_validation:
                accuracy += " on the validation split"
            groups.setdefault(network, []).append(f"{words} {accuracy}{mark}")
        return [f"{network}: {', '.join(accuracies)}" for network, accuracies in groups.items()]

    def to_json(self) -> dict[str, Any]:
        """Content of `evaluation.json`."""
        return asdict(self)

    @classmethod
    def kept(cls, directory: Path) -> Self | None:
        """Read the report of a run directory or of a distilled set; None if there is none.

        Raises:
            ArtifactError: it is damaged.
        """
        path = remote.local(directory) / FILE
        if not remote.bring(path) and not path.exists():
            return None
        return cls.from_json(read_json(path), f"'{remote.shown(path)}'")

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str = f"'{FILE}'") -> Self:
        """Inverse of `to_json`.

        Args:
            content: of the file.
            where: its name, for error messages.

        Raises:
            ArtifactError: a field is missing, unknown or of another type, or numbers contradict one
                another.
        """
        report = parse(cls, content, where)
        for result in report.results:
            accuracy = result.test_accuracy
            if abs(accuracy.mean - fmean(accuracy.runs)) > ROUNDING:
                raise ArtifactError(
                    f"{where} contradicts itself: the mean accuracy of '{result.set}' is "
                    f"{accuracy.mean:.4f}, that of its students {fmean(accuracy.runs):.4f}."
                )
            if len(result.seeds) != len(accuracy.runs):
                raise ArtifactError(
                    f"{where} contradicts itself: '{result.set}' has {len(accuracy.runs)} students "
                    f"and {len(result.seeds)} seeds."
                )
        scores = scores_of(report.results)
        # older versions compared results of different protocols
        either = (scores, scores_of(report.results, mixed=True))
        if report.scores and not any(_agree(report.scores, one) for one in either):
            raise ArtifactError(
                f"{where} contradicts itself: its scores are not those of its accuracies; remove "
                "the entry 'scores' to have them computed again."
            )
        return replace(report, scores=scores)

    def matrix(self) -> Matrix:
        """Accuracies by architecture and training set."""
        return Matrix.of(self)

    def remarks(self) -> list[str]:
        """Remarks that the numbers do not show, see `rayd.evaluation.remarks`."""
        return remarks(self, recipe_names())

    def table(self) -> Table:
        """Format as a table for a terminal."""
        return ReportText(self).table()

    def text(self) -> str:
        """Format as aligned lines of at most 80 characters, if network names are short enough."""
        return ReportText(self).text()


def _ordered(results: Iterable[SetResult]) -> tuple[SetResult, ...]:
    results = tuple(results)
    networks = list(dict.fromkeys(result.network for result in results))
    order = {name: index for index, name in enumerate(ORDER)}
    is_soft = any(result.taught for result in results)
    is_learned = any(result.label_kind == "learned" for result in results)

    def key(result: SetResult) -> tuple[Any, ...]:
        rank = order.get(result.set, len(ORDER))
        network = networks.index(result.network)
        # the protocol's own labels first; images of equal storage always have hard ones
        own = result.taught or not is_soft
        if result.set == DISTILLED and not is_soft:
            own = result.label_kind == "learned" or not is_learned
        return network, result.epoch, not result.augmented, not own, rank, result.set

    return tuple(sorted(results, key=key))


def _agree(given: Sequence[Scores], computed: Sequence[Scores]) -> bool:
    """Whether scores are equal up to rounding."""
    if len(given) != len(computed):
        return False
    for one, other in zip(given, computed, strict=True):
        first = _flat(asdict(one))
        second = _flat(asdict(other))
        if first.keys() != second.keys():
            return False
        for key, value in first.items():
            same = value == second[key]
            if isinstance(value, float) and isinstance(second[key], float):
                same = abs(value - second[key]) <= 2 * ROUNDING
            if not same:
                return False
    return True


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings and sequences by dotted key."""
    if isinstance(tree, Mapping):
        pairs = list(tree.items())
    elif isinstance(tree, list | tuple):
        pairs = list(enumerate(tree))
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in pairs:
        flat |= _flat(value, f"{prefix}.{key}")
    return flat


def _labels_on(
    variant: Variant, recipe: Recipe, distilled: Distilled
) -> Literal["hard", "soft", "learned"]:
    """Kind of labels that students of a variant are trained with."""
    if variant.hard_labels or variant.set == EQUAL_STORAGE:
        return "hard"
    if recipe.labels.kind != "hard":
        return "soft"
    is_learned = variant.set == DISTILLED and distilled.labels.is_floating_point()
    return "learned" if is_learned else "hard"


def _bytes_on(variant: Variant, labels: str, distilled: Distilled) -> int | None:
    """Bytes of a variant's set, see `SetResult.bytes`."""
    if variant.set not in (DISTILLED, EQUAL_STORAGE):
        return None
    storage = distilled.storage
    if variant.set == DISTILLED and labels != "soft":
        storage = storage.without(OF_TEACHERS)
    return storage.total_bytes


def _protocol_on(variant: Variant, recipe: Recipe, distilled: Distilled) -> str:
    """Describe the protocol; a distilled set may have learned labels and a learned step size."""
    settings = variant.applied(recipe.evaluation)
    kind = _labels_on(variant, recipe, distilled)
    labels = recipe.labels if kind == "soft" else None
    if variant.set == EQUAL_STORAGE:
        return settings.protocol_on(variant.set, labels).replace(
            f"{settings.epochs} epochs", f"{STEPS_OF}{settings.epochs} epochs"
        )
    if variant.set == DISTILLED and settings.learned_step_size and distilled.step_size is not None:
        settings = settings.model_copy(
            update={"learning_rate": float(f"{distilled.step_size:.3g}")}
        )
    return settings.protocol_on(variant.set, labels, kind == "learned")
