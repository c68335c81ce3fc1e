"""Results of students: the accuracies of one architecture on one set.

Accuracies are fractions of the test images. Standard deviations are sample ones (divisor n - 1)
over students, and absent for a single student. If the training set was cut to a long tail, or its
largest class has at least twice the images of its smallest, head classes are those with at least
the median number of images, and tail classes the others; where the numbers are unknown, the first
and second half of the classes, as for the exponential profile of `data.imbalance`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field

from rayd.evaluation.published import Published
from rayd.evaluation.student import MOST_CONFUSIONS, StudentResult
from rayd.evaluation.variants import EQUAL_STORAGE, Variant

Fraction = Annotated[float, Field(ge=0, le=1)]
"""Accuracy in files."""
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Files hold the fields of these classes and no others."""


@dataclass(frozen=True)
class Accuracy:
    """Test accuracies of several students, as fractions."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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


ON_VALIDATION = "judged on the validation split"
"""Last words of the protocol of results that are not of the test split."""
STEPS_OF = "steps of "
"""First words of the epochs in the protocol of images of equal storage, which are more than those
of the set: their students take as many steps as it takes in these epochs.
"""
AS_MANY_STEPS = "as many steps"
"""The same in reports of older versions, which do not say of how many epochs."""


@dataclass(frozen=True)
class SetResult:
    """Result of training one architecture on one set."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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
    """Whether students were trained with the protocol's augmentation."""
    paper: Published | None = None
    """Published number of the same settings, for a distilled set."""
    devices: tuple[str, ...] = ()
    """Kinds of device that trained the students; empty in reports of older versions."""
    bytes: int | None = None
    """Bytes of a distilled set, including those that its labels need, or, for `equal-storage`, of
    the distilled set that it equals; None for other sets, and in reports of older versions.
    """
    confusion: tuple[tuple[int, int, Fraction], ...] = ()
    """Mistakes, the most frequent first: true class, predicted class, and the share of the class's
    test images, averaged over students. Empty in reports of older versions.
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
        bytes: int | None = None,
    ) -> Self:
        """Summarise at least one student of the same architecture and selection.

        Args:
            variant: what they were trained on; a name stands for a set under the unmodified
                protocol.
            students: students of one architecture and selection, in any order.
            protocol: description of the training protocol.
            long_tailed: whether the real training set is long-tailed.
            class_counts: number of real training images of each class; by default decreasing.
            labels: labels that they learned from.
            bytes: see the field.
        """
        variant = Variant.of(variant)
        # students arrive in the order in which they finish, but scores pair them by seed
        students = sorted(students, key=lambda student: student.seed)
        runs_by_class = zip(*(student.per_class for student in students), strict=True)
        per_class = tuple(_mean(runs) for runs in runs_by_class)
        head, tail = _head_and_tail(per_class, class_counts) if long_tailed else (None, None)
        return cls(
            set=variant.set,
            network=students[0].network,
            protocol=protocol,
            test_accuracy=Accuracy.of(student.test_accuracy for student in students),
            epoch=students[0].selection,
            per_class=per_class,
            head_accuracy=head,
            tail_accuracy=tail,
            seeds=tuple(student.seed for student in students),
            seconds=sum(student.seconds for student in students),
            labels=labels,
            augmented=variant.augmented,
            devices=tuple(sorted({one.device for one in students if one.device is not None})),
            bytes=bytes,
            confusion=_mean_confusion(students),
        )

    @property
    def label_kind(self) -> str:
        """Labels that students learned from: `hard`, `soft` or `learned`."""
        return self.labels or self.protocol.partition("-label")[0]

    @property
    def is_on_validation(self) -> bool:
        """Whether `test_accuracy` etc. are of the validation split, as in a sweep's trials."""
        return self.protocol.endswith(ON_VALIDATION)

    @property
    def taught(self) -> bool:
        """Whether teachers labelled the images."""
        return self.label_kind == "soft"

    @property
    def training(self) -> tuple[tuple[str, ...], str]:
        """The protocol's parts without those that depend on labels, a learned step size or the
        machine, and the epochs.
        """
        return _training_words(self.protocol)

    def same_protocol(self, other: SetResult) -> bool:
        """Whether students differ only in the set and its labels, as far as reports show.

        Losses (which come with labels), learned step sizes, epochs of the whole set, and precisions
        (which depend on the machine) may differ. Images of equal storage only match sets of the
        same number of bytes whose students were trained for as many steps.
        """
        sizes = {self.bytes, other.bytes} - {None}
        if EQUAL_STORAGE in {self.set, other.set} and len(sizes) > 1:
            return False
        ours, own_epochs = self.training
        theirs, other_epochs = other.training
        if ours != theirs:
            return False
        if "whole" in {self.set, other.set} or AS_MANY_STEPS in {own_epochs, other_epochs}:
            return True
        return own_epochs.removeprefix(STEPS_OF) == other_epochs.removeprefix(STEPS_OF)

    @property
    def key(self) -> tuple[str, str, str, str, tuple[int, ...], int]:
        """Key of the result, unique within a report."""
        # whether bytes include teachers or stored labels depends on the labels of an evaluation
        size = (self.bytes or 0) if self.set == EQUAL_STORAGE else 0
        return self.set, self.network, self.protocol, self.epoch, self.seeds, size


def _training_words(protocol: str) -> tuple[tuple[str, ...], str]:
    """Parts of a description of a protocol, except those of labels; and that of epochs.

    >>> _training_words("soft-label, 300 epochs, flip, cutmix, kl T=20, optimizer adamw")
    (('flip', 'cutmix', 'optimizer adamw'), '300 epochs')
    """
    _, *words = protocol.split(", ")
    own = ("kl T=", "mse", "hard_weight ", "learning_rate ", "precision ")
    common = [word for word in words if not word.startswith(own)]
    return tuple(common[1:]), common[0] if common else ""


def head_classes(classes: int, counts: Sequence[int] | None = None) -> tuple[bool, ...]:
    """Whether each class is a head class: at least the median number of images, or first half.

    >>> head_classes(3, [7, 1, 5]), head_classes(3)
    ((True, False, True), (True, True, False))
    """
    sizes = range(classes, 0, -1) if counts is None else counts
    return tuple(size >= median(sizes) for size in sizes)


def _head_and_tail(
    per_class: Sequence[float | None], counts: Sequence[int] | None
) -> tuple[float | None, float | None]:
    """Means over the head classes and over the tail classes."""
    head: list[float | None] = []
    tail: list[float | None] = []
    for value, is_head in zip(per_class, head_classes(len(per_class), counts), strict=True):
        (head if is_head else tail).append(value)
    return _mean(head), _mean(tail)


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
