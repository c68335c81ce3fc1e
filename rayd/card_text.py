"""Text description of a distilled set from its card."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rayd.data.summary import DataSummary
from rayd.distilled import Distilled
from rayd.evaluation.report import Report
from rayd.evaluation.table import WIDTH

HEAD = "test accuracy  "
"""Heading of the first line of results; all headings have this length."""


def describe(distilled: Distilled, report: Report | None = None) -> str:
    """Describe a set in a few lines: its origin, accuracies of its students, and its storage cost.

    Args:
        distilled: the set.
        report: its evaluation, if there is one.
    """
    card = distilled.card
    shape = distilled.shape
    per_class = distilled.hard_labels.bincount(minlength=distilled.classes)
    balanced = bool((per_class == per_class[0]).all())
    each = f"{int(per_class[0])}" if balanced else f"{list(per_class.tolist())}"
    names = ", ".join(distilled.class_names[:20])
    if distilled.classes > 20:
        names += ", ..."
    storage = distilled.storage
    stored = ", ".join(f"{part} {size:,}" for part, size in storage.bytes.items())
    versions = card.get("versions", {})
    made_with = ", ".join(f"{name} {version}" for name, version in versions.items())
    data = card.get("data") or {}
    fingerprint = str(data.get("fingerprint", "unknown"))[:12]
    lines = [
        f"{len(distilled)} images of {shape.channels}x{shape.height}x{shape.width}, "
        f"{distilled.classes} classes, {each} per class",
        f"classes        {names}",
        f"recipe         {card.get('recipe', 'unknown')} (method {card.get('method', 'unknown')}, "
        f"seed {card.get('seed', 'unknown')}, {card.get('steps', 'unknown')} steps)",
        f"distilled from {data.get('name', 'unknown')} (fingerprint {fingerprint})",
        *_read(data.get("read")),
        f"normalisation  {distilled.normalization.kind}: images are network input, "
        "`pixels()` undoes it",
        f"needs          {'; '.join(distilled.needs)}",
        f"pixel values   {distilled.pixel_range.text()}",
        *_accuracies(report),
        *_observers(card.get("observers") or []),
        *_experts(card.get("experts")),
    ]
    if distilled.step_size is not None:
        lines.append(f"step size      {distilled.step_size:.4g}, learned with the images")
    lines.append(f"storage        {storage.total_bytes:,} bytes: {stored}")
    if labels := card.get("labels"):
        lines.append(f"soft labels    for {labels['epochs']} epochs, in {labels['folder']}")
    lines.append(f"made with      {made_with}{_made_on(card)}")
    indent = " " * len(HEAD)
    return "\n".join(
        textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False)
        for line in lines
    )


STAGES = {"squeeze": "observers", "experts": "experts", "measure": "statistics", "rank": "scores"}
"""Results of earlier stages, by the stages' names in a card's "devices"."""


def _made_on(card: Mapping[str, Any]) -> str:
    """The device that computed a set, and parts that another kind of device computed."""
    hardware = card.get("hardware") or {}
    device = hardware.get("device")
    if device is None:
        return ""
    parts = [
        f"{STAGES[stage]} on {' and '.join(kinds)}"
        for stage, kinds in card.get("devices", {}).items()
        if stage in STAGES and kinds != [device]
    ]
    return f", on {device}" + (f" ({', '.join(parts)})" if parts else "")


def _read(known: object) -> list[str]:
    """Lines on the real data as read."""
    if known is None:
        return []
    summary = DataSummary.from_json(known)
    first, *others = summary.lines(WIDTH - len(HEAD))
    indent = " " * len(HEAD)
    return [f"{'real data':<{len(HEAD)}}{first}", *(indent + line for line in others)]


def _accuracies(report: Report | None) -> list[str]:
    """Lines of the test accuracies of students, with the baselines."""
    if report is None:
        return [f"{HEAD}unknown: 'rayd evaluate' trains networks on the set"]
    first, *others = [*report.brief(), *report.remarks()] or ["unknown: the report is empty"]
    return [HEAD + first, *(" " * len(HEAD) + line for line in others)]


def _observers(known: Sequence[Mapping[str, Any]]) -> list[str]:
    """Line of the trained networks that were used, with their accuracies."""
    if not known:
        return []
    words = [f"{observer['network']} {_accuracy(observer)}" for observer in known]
    return [f"observers      {', '.join(words)}"]


def _experts(known: Mapping[str, Any] | None) -> list[str]:
    """Line of the experts whose trajectories were matched."""
    if not known:
        return []
    number = f"{known['count']} of {known['network']} over {known['epochs']} epochs"
    return [
        f"experts        {number} ({known['train_accuracy']:.3f} of the training images on average)"
    ]


def _accuracy(observer: Mapping[str, Any]) -> str:
    validated = observer.get("validation_accuracy")
    if validated is not None:
        return f"({validated:.3f} of the validation images)"
    return f"({observer['train_accuracy']:.3f} of the training images)"
