"""Report of an evaluation: content and presentation of `evaluation.json`.

Accuracies are fractions of the test images. The standard deviation is the sample one (divisor n -
1) over students, and absent for a single one. If the training set was cut to a long tail, or its
largest class has at least twice the images of its smallest, head classes are those with at least
the median number of images, and tail classes the others; where the numbers are unknown, the first
and second half of the classes, as for the exponential profile of `data.imbalance`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field
from rich.markup import escape
from rich.table import Table

from rayd import remote, shown
from rayd.artifacts import parse, read_json
from rayd.card_format import PixelRange
from rayd.config import Recipe
from rayd.data.splits import uneven
from rayd.data.summary import DataSummary
from rayd.distilled import Distilled
from rayd.errors import ArtifactError
from rayd.evaluation.matrix import Matrix, words_of
from rayd.evaluation.published import Published, departures
from rayd.evaluation.remarks import MARK, at_chance, remarks
from rayd.evaluation.scores import EXPLAINED, Scores, scores_of
from rayd.evaluation.student import MOST_CONFUSIONS, StudentResult
from rayd.evaluation.table import LEFT_ALIGNED, NOTHING, Row, TableLayout, wrapped
from rayd.evaluation.variants import DISTILLED, EQUAL_STORAGE, Variant
from rayd.recipes import names as recipe_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "evaluation.json"
"""File name of a report."""

WORDS = {"random": "random images", "whole": "the whole set"}
"""Baselines in sentences."""
SHOWN_DEPARTURES = 6
"""Number of settings that are named where a run differs from its recipe."""

ROUNDING = 1e-6
"""Largest difference between equal accuracies in a file that somebody rounded."""

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


Fraction = Annotated[float, Field(ge=0, le=1)]
"""Accuracy in files."""
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Files hold the fields of these classes and no others."""


@dataclass(frozen=True)
class Accuracy:
    """Test accuracies of several students, as fractions."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    mean: Fraction
    """Mean."""
    std: Annotated[float, Field(ge=0)] | None
    """Sample standard deviation (divisor n - 1); None for a single student."""
    runs: Annotated[tuple[Fraction, ...], Field(min_length=1)]
    """Accuracy of each student, in the order of the seeds."""

    @classmethod
    def of(cls, runs: Iterable[float]) -> Self:
        """Compute mean and deviation of at least one run."""
        runs = tuple(runs)
        return cls(fmean(runs), stdev(runs) if len(runs) > 1 else None, runs)

    def text(self) -> str:
        """Format as `0.883 ± 0.010`, or the mean only.

        >>> Accuracy.of([0.875, 0.885]).text(), Accuracy.of([0.5]).text()
        ('0.880 ± 0.007', '0.500')
        """
        return f"{self.mean:.3f}" if self.std is None else f"{self.mean:.3f} ± {self.std:.3f}"


@dataclass(frozen=True)
class SetResult:
    """Result of training one architecture on one set."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    set: str
    """`distilled`, or the name of a baseline."""
    network: str
    """Label of the architecture."""
    protocol: str
    """Description of the training protocol."""
    test_accuracy: Accuracy
    """Test accuracy over the students."""
    epoch: str
    """Tested epoch: `last` or `validation-best`."""
    per_class: tuple[Fraction | None, ...]
    """Mean test accuracy of each class, a fraction; None for a class without test images."""
    head_accuracy: Fraction | None
    """Mean of `per_class` over the head classes; None for a balanced training set."""
    tail_accuracy: Fraction | None
    """Mean of `per_class` over the tail classes; None for a balanced training set."""
    seeds: tuple[int, ...]
    """Seeds of the students."""
    seconds: float
    """Total wall-clock seconds of the students."""
    labels: Literal["hard", "soft", "learned"] | None = None
    """Labels that students learned from: `soft` ones are by teachers, `learned` ones come with the
    images. None in reports of older versions.
    """
    augmented: bool = True
    """Whether students saw what the protocol's augmentation makes of the images."""
    paper: Published | None = None
    """Published number of the same settings, for a distilled set."""
    devices: tuple[str, ...] = ()
    """Kinds of device that trained the students; empty in reports of older versions."""
    confusion: tuple[tuple[int, int, Fraction], ...] = ()
    """Mistakes, the most frequent first: class, class that it was taken for, and the share of the
    class's test images, a mean over students. Empty in reports of older versions.
    """

    @classmethod
    def of(
        cls,
        variant: str | Variant,
        students: Sequence[StudentResult],
        protocol: str,
        long_tailed: bool,
        class_counts: Sequence[int] | None = None,
        labels: Literal["hard", "soft", "learned"] | None = None,
    ) -> Self:
        """Summarise at least one student of the same architecture and selection.

        Args:
            variant: what they were trained on; a name stands for a set under the protocol as it is.
            students: students of one architecture and selection, in any order.
            protocol: description of the training protocol.
            long_tailed: whether the real training set is long-tailed.
            class_counts: number of real training images of each class; by default decreasing.
            labels: labels that they learned from.
        """
        variant = Variant.of(variant)
        students = sorted(students, key=lambda student: student.seed)
        runs_by_class = zip(*(student.per_class for student in students), strict=True)
        per_class = tuple(_mean(runs) for runs in runs_by_class)
        is_head = head_classes(len(per_class), class_counts)
        pairs = list(zip(per_class, is_head, strict=True))
        head = [value for value, in_head in pairs if in_head]
        tail = [value for value, in_head in pairs if not in_head]
        return cls(
            set=variant.set,
            network=students[0].network,
            protocol=protocol,
            test_accuracy=Accuracy.of(student.test_accuracy for student in students),
            epoch=students[0].selection,
            per_class=per_class,
            head_accuracy=_mean(head) if long_tailed else None,
            tail_accuracy=_mean(tail) if long_tailed else None,
            seeds=tuple(student.seed for student in students),
            seconds=sum(student.seconds for student in students),
            labels=labels,
            augmented=variant.augmented,
            devices=tuple(sorted({one.device for one in students if one.device is not None})),
            confusion=_mean_confusion(students),
        )

    @property
    def label_kind(self) -> str:
        """Labels that students learned from: `hard`, `soft` or `learned`."""
        return self.labels or self.protocol.partition("-label")[0]

    @property
    def taught(self) -> bool:
        """Whether teachers labelled the images."""
        return self.label_kind == "soft"

    @property
    def key(self) -> tuple[str, str, str, str, tuple[int, ...]]:
        """Key that is unique within a report."""
        return self.set, self.network, self.protocol, self.epoch, self.seeds


@dataclass(frozen=True)
class Report:
    """All results of an evaluation, with baselines."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

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
    """What was read of the real data, see `rayd.data.summary`; None for older reports."""
    pixel_range: PixelRange | None = None
    """Where the values of the distilled images lie; None in reports of older versions."""
    scores: tuple[Scores, ...] = ()
    """What the accuracies are worth beside the baselines, for every architecture and tested
    epoch.
    """
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

        Accuracies are fractions in [0, 1].
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
        results = []
        for (_, variant, _), group in groups.items():
            protocol = _protocol_on(variant, recipe, distilled)
            kind = _labels_on(variant, recipe, distilled)
            result = SetResult.of(variant, group, protocol, long_tailed, class_counts, kind)
            if variant == Variant(DISTILLED) and result.epoch == recipe.evaluation.epoch[0]:
                result = replace(result, paper=Published.beside(recipe, result.network))
            results.append(result)
        return cls(
            recipe=recipe.name,
            method=recipe.method,
            data=recipe.data.name,
            ipc=recipe.ipc,
            storage_bytes=dict(distilled.storage.bytes),
            seconds=dict(seconds),
            results=_ordered(results),
            scores=scores_of(_ordered(results)),
            departures=departures(recipe),
            real_data=distilled.card.get("data", {}).get("read"),
            pixel_range=distilled.pixel_range,
        )

    def merge(self, newer: Report) -> Report:
        """Combine with a newer report of the same set, whose results take precedence."""
        by_key = {result.key: result for report in (self, newer) for result in report.results}
        results = _ordered(by_key.values())
        return replace(
            newer,
            seconds={**self.seconds, **newer.seconds},
            results=results,
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
            groups.setdefault(network, []).append(f"{words} {result.test_accuracy.text()}{mark}")
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
        if report.scores and not _agree(report.scores, scores):
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
        layout = TableLayout.of(self._rows())
        caption = "\n".join((*layout.below, *self._below()))
        table = Table(title=escape(self._title()), caption=escape(caption))
        for name in layout.columns:
            table.add_column(name, justify="left" if name in LEFT_ALIGNED else "right")
        for row in layout.rows:
            table.add_row(*row)
        return table

    def text(self) -> str:
        """Format as aligned lines of at most 80 characters, if network names are short enough."""
        layout = TableLayout.of(self._rows())
        paragraphs = (*layout.below, *self._below())
        matrix = ["", *self.matrix().lines()] if len(self._networks()) > 1 else []
        lines = [wrapped(self._title()), *layout.lines(), *map(wrapped, paragraphs), *matrix]
        return "\n".join(lines)

    def _networks(self) -> list[str]:
        """Labels of the architectures."""
        return list(dict.fromkeys(result.network for result in self.results))

    def _below(self) -> list[str]:
        """Everything under the table but the protocol."""
        return [*self._papers(), *self.score_lines(), *self._read(), *self.remarks()]

    def _papers(self) -> list[str]:
        """The paper's number beside results of its settings, or which settings are others."""
        found = {result.network: result.paper for result in self.results if result.paper}
        networks = self._networks()
        lines = []
        for network, paper in found.items():
            of = f" with {network}" if len(networks) > 1 else ""
            lines.append(f"paper{of}: {paper.text()}")
        if self.departures:
            shown = ", ".join(self.departures[:SHOWN_DEPARTURES])
            more = len(self.departures) - SHOWN_DEPARTURES
            rest = f" and {more} more" if more > 0 else ""
            lines.append(f"other than the recipe '{self.recipe}': {shown}{rest}")
        return lines

    def score_lines(self) -> list[str]:
        """A line of scores for every architecture and tested epoch, and what they mean."""
        lines = []
        shown = dict.fromkeys(
            name for scores in self.scores for name in scores.cells() if name in EXPLAINED
        )
        several = len(self.scores) > 1
        for scores in self.scores:
            words = [f"{name} {value}" for name, value in scores.cells().items()]
            of = f" of {scores.network}" if several else ""
            epoch = "" if scores.epoch == "last" else f" ({scores.epoch})"
            lines.append(f"scores{of}{epoch}: {', '.join(words)}")
        if shown:
            meaning = "; ".join(f"{name}: {EXPLAINED[name]}" for name in shown)
            lines.append(f"{meaning}; ± over students, paired by seed")
        if missing := self._missing():
            lines.append(missing)
        return lines

    def _missing(self) -> str | None:
        """What the scores lack, and the setting that adds it; None if nothing."""
        evaluated = {(result.set, result.network, result.epoch) for result in self.results}
        pairs = {(result.network, result.epoch) for result in self.results}
        lacking = []
        for name in ("random", "whole"):
            if any((name, *pair) not in evaluated for pair in pairs):
                lacking.append(name)
        if not lacking:
            return None
        scores = "IOR, HLR and LRS" if "random" in lacking else "HLR and LRS"
        both = " and ".join(WORDS[name] for name in lacking)
        return (
            f"no {scores}: {both} {'were' if 'random' in lacking else 'was'} not evaluated; "
            "set evaluation.baselines=[random,whole]"
        )

    def _read(self) -> list[str]:
        """Clause about the real images, if it is known."""
        if self.real_data is None:
            return []
        return [f"real data: {DataSummary.from_json(self.real_data).brief()}"]

    def _title(self) -> str:
        size = sum(self.storage_bytes.values())
        return f"{self.recipe}: {self.method} on {self.data}, {self.ipc} per class, {size:,} bytes"

    def _rows(self) -> list[Row]:
        """Cells by column; if random images were not evaluated, a row states that."""
        evaluated = {(result.set, result.network, result.epoch) for result in self.results}
        # if some accuracies have a mark, the others are padded, so that digits stay aligned
        blank = " " * (len(MARK) + 1) if any(map(at_chance, self.results)) else ""
        rows: list[Row] = []
        several_labels = len({result.label_kind for result in self.results}) > 1
        for result in self.results:
            protocol = result.protocol
            if several_labels:
                # a column of its own says so
                protocol = protocol.removeprefix(f"{result.label_kind}-label").lstrip(", ")
            mark = f" {MARK}" if at_chance(result) else blank
            rows.append(
                {
                    "network": result.network,
                    "set": result.set,
                    "labels": result.label_kind,
                    "test accuracy": result.test_accuracy.text() + mark,
                    "students": str(len(result.test_accuracy.runs)),
                    "head": _cell(result.head_accuracy),
                    "tail": _cell(result.tail_accuracy),
                    "epoch": result.epoch,
                    "seconds": f"{result.seconds:.1f}",
                    "protocol": protocol,
                }
            )
            random = ("random", result.network, result.epoch)
            if result.set == "distilled" and random not in evaluated:
                missing = {"network": result.network, "set": "random", "epoch": result.epoch}
                rows.append({**missing, "test accuracy": f"not evaluated{blank}"})
        return rows


def head_classes(classes: int, counts: Sequence[int] | None = None) -> tuple[bool, ...]:
    """Whether each class is a head class: at least the median number of images, or first half.

    >>> head_classes(3, [7, 1, 5]), head_classes(3)
    ((True, False, True), (True, True, False))
    """
    sizes = range(classes, 0, -1) if counts is None else counts
    return tuple(size >= median(sizes) for size in sizes)


def _ordered(results: Iterable[SetResult]) -> tuple[SetResult, ...]:
    results = tuple(results)
    networks = list(dict.fromkeys(result.network for result in results))
    order = {name: index for index, name in enumerate(ORDER)}
    is_soft = any(result.taught for result in results)
    is_learned = any(result.label_kind == "learned" for result in results)

    def key(result: SetResult) -> tuple[Any, ...]:
        rank = order.get(result.set, len(ORDER))
        network = networks.index(result.network)
        # the protocol's own labels first; images of equal storage have hard ones anyway
        own = result.taught or not is_soft
        if result.set == DISTILLED and not is_soft:
            own = result.label_kind == "learned" or not is_learned
        return network, result.epoch, not result.augmented, not own, rank, result.set

    return tuple(sorted(results, key=key))


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _mean_confusion(students: Sequence[StudentResult]) -> tuple[tuple[int, int, float], ...]:
    """Mean shares of the mistakes of several students, rounded to six digits."""
    total: dict[tuple[int, int], float] = {}
    for student in students:
        for label, taken_for, share in student.confusion:
            total[label, taken_for] = total.get((label, taken_for), 0.0) + share
    found = [(*pair, float(f"{share / len(students):.6g}")) for pair, share in total.items()]
    found.sort(key=lambda mistake: (-mistake[2], mistake[:2]))
    return tuple(found[:MOST_CONFUSIONS])


def _cell(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _agree(given: Sequence[Scores], computed: Sequence[Scores]) -> bool:
    """Whether scores are equal but for rounding."""
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
    """Kind of the labels that students of a variant learn from."""
    if variant.hard_labels or variant.set == EQUAL_STORAGE:
        return "hard"
    if recipe.labels.kind != "hard":
        return "soft"
    is_learned = variant.set == DISTILLED and distilled.labels.is_floating_point()
    return "learned" if is_learned else "hard"


def _protocol_on(variant: Variant, recipe: Recipe, distilled: Distilled) -> str:
    """Describe the protocol; a distilled set may have learned labels and a learned step size."""
    settings = variant.applied(recipe.evaluation)
    kind = _labels_on(variant, recipe, distilled)
    labels = recipe.labels if kind == "soft" else None
    if variant.set == EQUAL_STORAGE:
        return settings.protocol_on(variant.set, labels).replace(
            f"{settings.epochs} epochs", "as many steps"
        )
    if variant.set == DISTILLED and settings.learned_step_size and distilled.step_size is not None:
        settings = settings.model_copy(
            update={"learning_rate": float(f"{distilled.step_size:.3g}")}
        )
    return settings.protocol_on(variant.set, labels, kind == "learned")
