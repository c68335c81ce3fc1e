"""What a reader should know of a report beside its numbers, such as students that learned
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayd.evaluation.report import Report, SetResult

CHANCE_MARGIN = 1.1
"""A student has learned nothing below this many times the accuracy of one that gives every image
the same class.
"""

MARK = "*"
"""Stands behind the accuracy of students at chance."""


def at_chance(result: SetResult) -> bool:
    """Whether students are no better than ones that give every image the same class.

    The mean accuracy over the C classes is compared with 1/C: what such a student reaches on any
    test set, whether or not its classes have the same number of images.
    """
    known = [accuracy for accuracy in result.per_class if accuracy is not None]
    return bool(known) and sum(known) <= CHANCE_MARGIN


def remarks(report: Report, recipes: Iterable[str]) -> list[str]:
    """One sentence for each thing that a reader should know.

    Args:
        report: the results.
        recipes: names of the built-in recipes; one for the same method and data is a remedy.
    """
    return [
        *_chance(report.results),
        *_below_random(report, recipes),
        *_above_whole(report.results),
    ]


def _chance(results: Sequence[SetResult]) -> Iterator[str]:
    networks = dict.fromkeys(result.network for result in results if at_chance(result))
    for network in networks:
        sets = dict.fromkeys(
            result.set for result in results if result.network == network and at_chance(result)
        )
        yield (
            f"{MARK} at chance: {network} did not learn ({', '.join(sets)}); try another "
            "evaluation.learning_rate, more evaluation.epochs, or a network made for images of this size."
        )


def _below_random(report: Report, recipes: Iterable[str]) -> Iterator[str]:
    for distilled, random in _pairs(report.results, "distilled", "random"):
        if at_chance(distilled) or not _is_below(distilled, random):
            continue
        ours, theirs = (result.test_accuracy.mean for result in (distilled, random))
        yield (
            "The distilled images are below random ones of the same budget "
            f"({ours:.3f} against {theirs:.3f} with {distilled.network}): {_remedy(report, recipes)}."
        )


def _above_whole(results: Sequence[SetResult]) -> Iterator[str]:
    for random, whole in _pairs(results, "random", "whole"):
        if whole.head_accuracy is not None and _is_below(whole, random):
            yield (
                f"Random images are above the whole set with {random.network}, because they are "
                "balanced: as many of each class, where the whole set has a long tail."
            )


def _pairs(
    results: Sequence[SetResult], first: str, second: str
) -> Iterator[tuple[SetResult, SetResult]]:
    """Results of two sets for the same network and tested epoch."""
    others = {(result.network, result.epoch): result for result in results if result.set == second}
    for result in results:
        if (
            result.set == first
            and (other := others.get((result.network, result.epoch))) is not None
        ):
            yield result, other


def _is_below(result: SetResult, other: SetResult) -> bool:
    """Whether a result is below another one by more than either varies from student to student."""
    spread = max(result.test_accuracy.std or 0.0, other.test_accuracy.std or 0.0)
    return result.test_accuracy.mean < other.test_accuracy.mean - spread


def _remedy(report: Report, recipes: Iterable[str]) -> str:
    """What to try: the recipe that is made for this method and these data, if there is one, or
    other settings.
    """
    fitting = re.compile(rf"{re.escape(report.method)}-{re.escape(report.data)}(-.*)?")
    names = sorted(name for name in recipes if name != report.recipe and fitting.fullmatch(name))
    same_budget = [name for name in names if name.endswith(f"-ipc{report.ipc}")]
    if names:
        name = (same_budget or names)[0]
        return f"try the recipe '{name}', whose settings are meant for this method and these data"
    return "try another synthesis.learning_rate, more synthesis.steps, or a search ('rayd tune')"
