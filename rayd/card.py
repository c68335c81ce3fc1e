"""A distilled set's card in words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rayd.distilled import Distilled
from rayd.evaluation.report import Report
from rayd.evaluation.table import WIDTH

HEAD = "test accuracy  "
"""Head of a line; those of the other lines are as long."""


def describe(distilled: Distilled, report: Report | None = None) -> str:
    """What the set is, where it comes from, how well it trains networks and what it costs to keep,
    in a few lines.

    Args:
        distilled: the set.
        report: its evaluation, if there is one.
    """
    card = distilled.card
    shape = distilled.shape
    per_class = distilled.hard_labels.bincount(minlength=distilled.classes)
    each = (
        f"{int(per_class[0])} per class"
        if bool((per_class == per_class[0]).all())
        else f"{list(per_class.tolist())} per class"
    )
    storage = distilled.storage
    data = card.get("data", {})
    lines = [
        f"{len(distilled)} images of {shape.channels}x{shape.height}x{shape.width}, {distilled.classes} classes, {each}",
        f"classes        {', '.join(distilled.class_names[:20])}{', ...' if distilled.classes > 20 else ''}",
        f"recipe         {card.get('recipe', 'unknown')} (method {card.get('method', 'unknown')}, "
        f"seed {card.get('seed', 'unknown')}, {card.get('steps', 'unknown')} steps)",
        f"distilled from {data.get('name', 'unknown')} (fingerprint {str(data.get('fingerprint', 'unknown'))[:12]})",
        f"normalisation  {distilled.normalization.kind}: images are network input, `pixels()` undoes it",
        *_accuracies(report),
        *_observers(card.get("observers") or []),
        *_experts(card.get("experts")),
        *(
            [f"step size      {distilled.step_size:.4g}, learned with the images"]
            if distilled.step_size is not None
            else []
        ),
        f"storage        {storage.total_bytes:,} bytes: "
        + ", ".join(f"{k} {v:,}" for k, v in storage.bytes.items()),
        "made with      "
        + ", ".join(f"{name} {version}" for name, version in card.get("versions", {}).items()),
    ]
    if labels := card.get("labels"):
        lines.insert(-1, f"soft labels    for {labels['epochs']} epochs, in {labels['folder']}")
    indent = " " * len(HEAD)
    return "\n".join(
        textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False)
        for line in lines
    )


def _accuracies(report: Report | None) -> list[str]:
    """Test accuracies of the students, those of the baselines beside them."""
    if report is None:
        return [f"{HEAD}unknown: 'rayd evaluate' trains networks on the set"]
    first, *others = [*report.brief(), *report.remarks()] or ["unknown: the report is empty"]
    return [HEAD + first, *(" " * len(HEAD) + line for line in others)]


def _observers(known: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which trained networks had a say, and how good they are."""
    if not known:
        return []
    words = [f"{one['network']} {_accuracy(one)}" for one in known]
    return [f"observers      {', '.join(words)}"]


def _experts(known: Mapping[str, Any] | None) -> list[str]:
    """Whose training the images follow."""
    if not known:
        return []
    number = f"{known['count']} of {known['network']} over {known['epochs']} epochs"
    return [
        f"experts        {number} ({known['train_accuracy']:.3f} of the training images on average)"
    ]


def _accuracy(one: Mapping[str, Any]) -> str:
    validated = one.get("validation_accuracy")
    if validated is not None:
        return f"({validated:.3f} of the validation images)"
    return f"({one['train_accuracy']:.3f} of the training images)"
