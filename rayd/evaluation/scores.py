r"""Scores of a distilled set relative to its baselines, computed from fractions.

With the mean test accuracies A of students trained on the set (syn), on random real images of the
same budget (rdm), drawn anew for each student, and on the whole training set (real):

- improvement over random, :math:`\mathrm{IOR} = A(\text{syn}) - A(\text{rdm})`, both under the
  labels of the protocol (soft ones where it has teachers);
- hard label recovery, :math:`\mathrm{HLR} = A(\text{real}) - A(\text{syn})`, both under hard
  labels; smaller is better;
- label-robust score, with :math:`\alpha = w\,\mathrm{IOR} - (1 - w)\,\mathrm{HLR}`,

  .. math:: \mathrm{LRS} = \frac{e^\alpha - e^{-1}}{e - e^{-1}} \in [0, 1]

  A set that is no better than random images, and under hard labels as good as the whole set
  (:math:`\alpha = 0`), has 0.269;
- augmentation-robust score, the same of :math:`\beta = \gamma\,\mathrm{IOR} +
  (1 - \gamma)\,\mathrm{IOR}_{\text{without augmentation}}` in place of :math:`\alpha`.

Zekai Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation" (2025). Paper and
released code differ: the code puts percent into the exponential, so that its scores leave [0, 1];
counts the hard-label score twice; averages the scores of runs, where here the score is that of the
mean differences; and reports the best epoch on the test set. On fractions its formulas give the
same scores as those below.

Differences are paired: the student of a seed on one set with that of the same seed on the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import ConfigDict, Field

from rayd.evaluation.variants import DISTILLED, EQUAL_STORAGE

if TYPE_CHECKING:
    from rayd.evaluation.report import SetResult

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_Gap = Annotated[float, Field(ge=-1, le=1)]
_Unit = Annotated[float, Field(ge=0, le=1)]

EQUAL_WEIGHT = 0.5
"""The weights w and gamma of the reported scores, as in the paper."""

EXPLAINED = {
    "IOR": "distilled above random",
    "HLR": "whole above distilled, hard labels",
    "LRS": f"label-robust score, 0 to 1 (w {EQUAL_WEIGHT:g})",
    "ARS": f"augmentation-robust score, 0 to 1 (gamma {EQUAL_WEIGHT:g})",
}
"""Meaning of each score in a few words."""


def normalized(alpha: float) -> float:
    """Map a weighted difference of accuracies from [-1, 1] to [0, 1], steeper for better sets.

    >>> [round(normalized(alpha), 3) for alpha in (-1, 0, 1)]
    [0.0, 0.269, 1.0]
    """
    return (math.exp(alpha) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def label_robust_score(ior: float, hlr: float, weight: float = EQUAL_WEIGHT) -> float:
    """Label-robust score LRS from two differences of fractions.

    >>> round(label_robust_score(ior=0.2, hlr=0.1), 4)
    0.2908
    """
    return normalized(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(
    augmented: float, plain: float, weight: float = EQUAL_WEIGHT
) -> float:
    """Augmentation-robust score ARS from the IOR with and without augmentation.

    >>> round(augmentation_robust_score(0.2, -0.2), 3)
    0.269
    """
    return normalized(weight * augmented + (1 - weight) * plain)


@dataclass(frozen=True)
class Difference:
    """Paired differences of the test accuracies of two sets, as fractions."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    mean: _Gap
    """Mean."""
    std: Annotated[float, Field(ge=0)] | None
    """Sample standard deviation (divisor n - 1) over pairs of students; None for a single pair."""
    runs: Annotated[tuple[_Gap, ...], Field(min_length=1)]
    """Difference of each pair, in the order of the seeds."""

    @classmethod
    def of(cls, first: SetResult, second: SetResult) -> Self | None:
        """Subtract the second from the first, seed by seed; None without common seeds."""
        others = dict(zip(second.seeds, second.test_accuracy.runs, strict=True))
        runs = tuple(
            run - others[seed]
            for seed, run in zip(first.seeds, first.test_accuracy.runs, strict=True)
            if seed in others
        )
        if not runs:
            return None
        return cls(fmean(runs), stdev(runs) if len(runs) > 1 else None, runs)

    def text(self) -> str:
        """Format as `+0.170 ± 0.040`, or the mean only.

        >>> Difference(0.17, None, (0.17,)).text()
        '+0.170'
        """
        return f"{self.mean:+.3f}" + ("" if self.std is None else f" ± {self.std:.3f}")


@dataclass(frozen=True)
class Scores:
    """Scores of a distilled set with one architecture; None where a set was not evaluated."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    network: str
    """Label of the architecture."""
    epoch: str
    """Tested epoch: `last` or `validation-best`."""
    ior: Difference | None = None
    """Distilled minus random images, under the protocol's own labels."""
    hard_ior: Difference | None = None
    """The same under hard labels, if the protocol's own are soft."""
    hlr: Difference | None = None
    """Whole set minus distilled one, both under hard labels."""
    over_equal_storage: Difference | None = None
    """Distilled minus random real images of the same number of bytes."""
    plain_ior: Difference | None = None
    """Distilled minus random images, without augmentation."""
    lrs: _Unit | None = None
    """Label-robust score with w = `EQUAL_WEIGHT`."""
    ars: _Unit | None = None
    """Augmentation-robust score with gamma = `EQUAL_WEIGHT`."""

    def label_robust(self, weight: float) -> float | None:
        """LRS with another weight of the IOR; None if a set was not evaluated."""
        if self.ior is None or self.hlr is None:
            return None
        return label_robust_score(self.ior.mean, self.hlr.mean, weight)

    def augmentation_robust(self, weight: float) -> float | None:
        """ARS with another weight of the augmented IOR; None if a set was not evaluated."""
        if self.ior is None or self.plain_ior is None:
            return None
        return augmentation_robust_score(self.ior.mean, self.plain_ior.mean, weight)

    def cells(self) -> dict[str, str]:
        """The available scores, formatted, by name."""
        gaps = {
            "IOR": self.ior,
            "IOR with hard labels": self.hard_ior,
            "HLR": self.hlr,
            "above equal storage": self.over_equal_storage,
        }
        cells = {name: gap.text() for name, gap in gaps.items() if gap is not None}
        numbers = {"LRS": self.lrs, "ARS": self.ars}
        return cells | {
            name: f"{value:.3f}" for name, value in numbers.items() if value is not None
        }


def scores_of(results: Iterable[SetResult], mixed: bool = False) -> tuple[Scores, ...]:
    """Compute the scores of every architecture and tested epoch that has any.

    Args:
        results: of a report. Later evaluations may have added other protocols: only results of the
            same protocol are compared, the first for which both sets have one.
        mixed: compare the first results whatever their protocols, as older versions did.
    """
    groups: dict[tuple[str, str], list[SetResult]] = {}
    for result in results:
        groups.setdefault((result.network, result.epoch), []).append(result)
    scores = [
        _scores_of_network(network, epoch, _ResultsByLabels(group, mixed))
        for (network, epoch), group in groups.items()
    ]
    return tuple(one for one in scores if one != Scores(one.network, one.epoch))


class _ResultsByLabels:
    """Results of one architecture and epoch, by set, labels and augmentation."""

    def __init__(self, results: Sequence[SetResult], mixed: bool):
        self._results = results
        self._mixed = mixed
        self.is_soft = any(result.taught for result in results)

    def all(
        self, name: str, *, hard: bool = False, own: bool = False, augmented: bool = True
    ) -> list[SetResult]:
        """The results on a set.

        Args:
            name: of the set.
            hard: whether labels must be hard.
            own: whether labels must be the protocol's own.
            augmented: whether students were trained on augmented images.
        """
        found = []
        for result in self._results:
            if result.set != name or result.augmented != augmented:
                continue
            if hard and result.label_kind != "hard":
                continue
            if own and result.taught != self.is_soft:
                continue
            found.append(result)
        return found

    def beside(self, result: SetResult | None, others: Sequence[SetResult]) -> SetResult | None:
        """The first of the other results with this one's protocol; None if there is none."""
        if result is None:
            return None
        fitting = (one for one in others if self._mixed or result.same_protocol(one))
        return next(fitting, None)

    def first(
        self, candidates: Sequence[SetResult], *preferred: Sequence[SetResult]
    ) -> SetResult | None:
        """The first candidate whose protocol also occurs among the most preferred results, or else
        among the next, and so on; if there is none, the first candidate.
        """
        for others in preferred:
            for one in candidates:
                if self.beside(one, others) is not None:
                    return one
        return next(iter(candidates), None)


def _scores_of_network(network: str, epoch: str, results: _ResultsByLabels) -> Scores:
    """The scores of one architecture and epoch."""
    random = results.all("random", own=True)
    whole = results.all("whole", hard=True)
    own = results.first(results.all(DISTILLED, own=True), random, whole)
    hard = own
    if own is None or own.label_kind != "hard":
        # students under hard labels may follow a protocol of their own
        candidates = results.all(DISTILLED, hard=True)
        same = results.beside(own, candidates)
        hard = results.first(candidates if same is None else [same, *candidates], whole)
    # if the protocol has hard labels, it would equal the first
    hard_random = results.beside(hard, results.all("random", hard=True))
    plain = results.all(DISTILLED, own=True, augmented=False)
    plain_random = results.all("random", own=True, augmented=False)
    plain_own = results.first(plain, plain_random)
    gaps = Scores(
        network=network,
        epoch=epoch,
        ior=_gap(own, results.beside(own, random)),
        hard_ior=None if hard is own else _gap(hard, hard_random),
        hlr=_gap(results.beside(hard, whole), hard),
        over_equal_storage=_gap(own, results.beside(own, results.all(EQUAL_STORAGE))),
        plain_ior=_gap(plain_own, results.beside(plain_own, plain_random)),
    )
    return replace(
        gaps,
        lrs=gaps.label_robust(EQUAL_WEIGHT),
        ars=gaps.augmentation_robust(EQUAL_WEIGHT),
    )


def _gap(first: SetResult | None, second: SetResult | None) -> Difference | None:
    """The first minus the second; None if one was not evaluated."""
    if first is None or second is None:
        return None
    return Difference.of(first, second)
