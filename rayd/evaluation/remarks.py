"""Remarks on a report beyond its numbers, for example on students that learned nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayd.evaluation.report import Report, SetResult

CHANCE_MARGIN = 1.1
"""Students below this multiple of a constant prediction's accuracy have learned nothing."""

MARK = "*"
"""Marks the accuracy of students at chance level."""


def at_chance(result: SetResult) -> bool:
    """Whether students are no better than a constant prediction.

    Compares the mean accuracy over the C classes with 1/C, which a constant prediction reaches on
    any test set, balanced or not.
    """
    known = [accuracy for accuracy in result.per_class if accuracy is not None]
    return bool(known) and sum(known) <= CHANCE_MARGIN


def remarks(report: Report, recipes: Iterable[str]) -> list[str]:
    """List the remarks on a report, one sentence each.

    Args:
        report: the results.
        recipes: names of the built-in recipes; one for the same method and data may be suggested.
    """
    return [
        *_chance(report.results),
        *_below_random(report, recipes),
        *_below_equal_storage(report),
        *_above_whole(report.results),
        *_out_of_range(report),
        *_several_devices(report.results),
    ]


def _several_devices(results: Sequence[SetResult]) -> Iterator[str]:
    kinds = sorted({device for result in results for device in result.devices})
    if len(kinds) > 1:
        yield (
            f"Students were trained on several kinds of device ({', '.join(kinds)}): their "
            "accuracies agree within the spread over seeds, not bit for bit. The 'devices' of each "
            "result in evaluation.json say which on which."
        )


def _chance(results: Sequence[SetResult]) -> Iterator[str]:
    networks = dict.fromkeys(result.network for result in results if at_chance(result))
    for network in networks:
        sets = dict.fromkeys(
            result.set for result in results if result.network == network and at_chance(result)
        )
        yield (
            f"{MARK} at chance: {network} did not learn ({', '.join(sets)}); try another "
            "evaluation.learning_rate, more evaluation.epochs, or a network made for images of "
            "this size."
        )


def _below_random(report: Report, recipes: Iterable[str]) -> Iterator[str]:
    remedy = f": {_remedy(report, recipes)}"
    for distilled, random in _pairs(report.results, "distilled", "random"):
        if at_chance(distilled) or not _is_below(distilled, random):
            continue
        yield (
            "The distilled images are below random ones of the same budget "
            f"({_compared(distilled, random)}{_circumstances(report, distilled)}){remedy}."
        )
        # one such remark is enough
        remedy = ""


def _below_equal_storage(report: Report) -> Iterator[str]:
    # an architecture's first result has the protocol's own labels, whose storage is counted
    seen: set[tuple[str, str]] = set()
    for result in report.results:
        place = (result.network, result.epoch)
        if result.set != "distilled" or place in seen or at_chance(result):
            continue
        seen.add(place)
        for other in report.results:
            same = (other.network, other.epoch) == place and result.same_protocol(other)
            if other.set == "equal-storage" and same and _is_below(result, other):
                yield (
                    "Random real images of as many bytes are above the distilled ones "
                    f"({_compared(result, other)}{_circumstances(report, result)})."
                )


def _compared(result: SetResult, other: SetResult) -> str:
    ours = result.test_accuracy.mean
    theirs = other.test_accuracy.mean
    return f"{ours:.3f} against {theirs:.3f} with {result.network}"


def _circumstances(report: Report, result: SetResult) -> str:
    """Labels and augmentation of a result, if other results have different ones."""
    parts = []
    if len({one.label_kind for one in report.results if one.set == "distilled"}) > 1:
        parts.append(f"{result.label_kind} labels")
    if not result.augmented:
        parts.append("no augmentation")
    return "".join(f", {part}" for part in parts)


def _above_whole(results: Sequence[SetResult]) -> Iterator[str]:
    for random, whole in _pairs(results, "random", "whole"):
        if whole.head_accuracy is not None and _is_below(whole, random):
            yield (
                f"Random images are above the whole set with {random.network}, because they are "
                "balanced, while the whole set has a long tail."
            )


def _out_of_range(report: Report) -> Iterator[str]:
    if report.pixel_range is not None and not report.pixel_range.fits:
        yield (
            f"Of the distilled images, {report.pixel_range.text()}: 8-bit images would clip them; "
            "export them to npz, Parquet or safetensors."
        )


def _pairs(
    results: Sequence[SetResult], first: str, second: str
) -> Iterator[tuple[SetResult, SetResult]]:
    """Yield pairs of results of two sets under the same protocol, disregarding learned labels.

    If several results of the second set fit, the first counts.

    A set with learned labels is paired with real images under their hard ones.
    """

    def place(result: SetResult) -> tuple[str, str, bool, bool]:
        return result.network, result.epoch, result.taught, result.augmented

    others = [result for result in results if result.set == second]
    for result in results:
        if result.set != first:
            continue
        for other in others:
            if place(other) == place(result) and result.same_protocol(other):
                yield result, other
                break


def _is_below(result: SetResult, other: SetResult) -> bool:
    """Whether a result is below another by more than both standard deviations over students."""
    spread = max(result.test_accuracy.std or 0.0, other.test_accuracy.std or 0.0)
    return result.test_accuracy.mean < other.test_accuracy.mean - spread


def _remedy(report: Report, recipes: Iterable[str]) -> str:
    """Suggest a recipe for this method and data, or else other settings."""
    fitting = re.compile(rf"{re.escape(report.method)}-{re.escape(report.data)}(-.*)?")
    names = sorted(name for name in recipes if name != report.recipe and fitting.fullmatch(name))
    same_budget = [name for name in names if name.endswith(f"-ipc{report.ipc}")]
    if names:
        name = (same_budget or names)[0]
        return f"try the recipe '{name}', whose settings are meant for this method and these data"
    return "try another synthesis.learning_rate, more synthesis.steps, or a search ('rayd tune')"
