"""Accuracy over the steps of the synthesis: students of snapshots of the set.

The callback `snapshots` saves the set in the run's directory during the synthesis:

    rayd distill digits "callbacks=[{name: snapshots, every: 5}]" --out runs/digits
    rayd analyse runs/digits steps

Students are tested on the test split; to choose the number of steps, use the validation split
(`early-stopping`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rayd.analyses.base import PALETTE, Analysis, Subject
from rayd.callbacks import SNAPSHOTS
from rayd.distilled import Distilled, load
from rayd.engine.evaluate import evaluate_distilled
from rayd.errors import ArtifactError
from rayd.evaluation.report import SetResult
from rayd.evaluation.variants import DISTILLED

MOST = 12
"""Maximum number of sets to evaluate; of more, an evenly spaced selection."""


def snapshots(directory: Path) -> list[tuple[int, Path]]:
    """Steps and directories of a run's snapshots, in order.

    Raises:
        ArtifactError: there are none.
    """
    found = []
    for path in (directory / SNAPSHOTS).glob("step-*"):
        number = re.fullmatch(r"step-(\d+)", path.name)
        if number is not None:
            found.append((int(number[1]), path))
    if not found:
        raise ArtifactError(
            f"'{directory}' kept no sets of earlier steps; distil again with "
            '"callbacks=[{name: snapshots}]".'
        )
    return sorted(found)


def analyse(subject: Subject) -> Analysis:
    """Evaluate a run's snapshots, and draw their accuracies with those of its baselines."""
    kept = snapshots(subject.directory)
    last = int(subject.distilled.card.get("steps") or 0)
    if kept[-1][0] < last:
        kept.append((last, subject.directory))
    chosen = kept
    if len(kept) > MOST:
        places = {round(index * (len(kept) - 1) / (MOST - 1)) for index in range(MOST)}
        chosen = [kept[place] for place in sorted(places)]
    results: dict[int, SetResult] = {}
    for step, path in chosen:
        results[step] = evaluated(subject, load(path))
        mean = results[step].test_accuracy.mean
        subject.progress.log(f"steps: {step}: {mean:.3f}")
    network = next(iter(results.values())).network
    lines = [f"{'step':>6}  test accuracy of {network}"]
    lines += [f"{step:>6}  {one.test_accuracy.text()}" for step, one in results.items()]
    references = _references(subject, network)
    lines += [f"{name:>6}  {value:.3f}" for name, value in references.items()]
    students = len(next(iter(results.values())).seeds)
    return Analysis(
        name="steps",
        title=f"Accuracy over steps: {subject.title}",
        explanation=(
            f"Test accuracy of {network} under the recipe's protocol, trained on the set as it "
            f"was after each number of steps; bars: standard deviation over {students} students."
        ),
        picture=chart(results, references, subject.title),
        lines=tuple(lines),
        numbers={
            "accuracies": {str(step): list(r.test_accuracy.runs) for step, r in results.items()},
            "references": references,
        },
    )


def evaluated(subject: Subject, distilled: Distilled) -> SetResult:
    """Train and test students of the analysed network on a set under its recipe's protocol."""
    network = subject.network.model_dump(mode="json", exclude_unset=True)
    overrides: dict[str, Any] = {
        "evaluation": {"networks": [network], "baselines": [], "comparisons": []}
    }
    if subject.recipe.labels.kind == "stored":
        # stored labels are those of the finished set; online ones with the same seed give the same
        # students
        overrides["labels"] = {"kind": "online", "seed": subject.recipe.labels.stored_seed}
    report = evaluate_distilled(
        distilled, overrides, subject.data_root, subject.cache, subject.progress
    )
    return next(result for result in report.results if result.set == DISTILLED)


def chart(
    results: Mapping[int, SetResult], references: Mapping[str, float], title: str = ""
) -> Image.Image:
    """Draw accuracies over steps, with a horizontal line for each reference."""
    from rayd.drawing import as_image, new_figure, styled

    steps: Sequence[int] = list(results)
    means = [one.test_accuracy.mean for one in results.values()]
    stds = [one.test_accuracy.std or 0.0 for one in results.values()]
    with styled():
        figure = new_figure(620, 380)
        axes = figure.subplots()
        axes.errorbar(steps, means, stds, marker="o", capsize=2, color=PALETTE[0], label=DISTILLED)
        for colour, (name, value) in zip(PALETTE[1:], references.items(), strict=False):
            axes.axhline(value, color=colour, linestyle="--", label=name)
        axes.set_xlabel("steps of the synthesis")
        axes.set_ylabel("test accuracy")
        axes.legend(frameon=False)
        axes.set_title(title)
        return as_image(figure)


def _references(subject: Subject, network: str) -> dict[str, float]:
    """Accuracies of baselines in the run's report, under the protocol's own labels."""
    found: dict[str, float] = {}
    results = () if subject.report is None else subject.report.results
    own = [one for one in results if one.set == DISTILLED and one.network == network][:1]
    for one in results:
        if one.set not in ("random", "whole") or one.network != network or not one.augmented:
            continue
        if one.set == "random" and own and one.label_kind != own[0].label_kind:
            continue
        found.setdefault(one.set, one.test_accuracy.mean)
    return found
