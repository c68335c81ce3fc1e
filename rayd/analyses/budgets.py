"""Accuracy over the budget: several runs with different numbers of images per class.

Nothing is trained; the accuracies are taken from the runs' reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from PIL import Image

from rayd.analyses.base import PALETTE, Analysis, Subject
from rayd.errors import ArtifactError
from rayd.evaluation.matrix import words_of
from rayd.evaluation.report import Report

Curves = dict[str, dict[int, list[float]]]
"""Accuracies of students by set and by images per class."""


def curves(subjects: Sequence[Subject], network: str | None = None) -> tuple[str, Curves]:
    """Collect accuracies of several runs; runs of equal budget are pooled.

    Args:
        subjects: runs with reports.
        network: label of the architecture; by default the first of the first report.

    Returns:
        The architecture, and the accuracies.

    Raises:
        ArtifactError: a run has no report or is of another method or data, or there is only one
            budget.
    """
    found: Curves = {}
    networks: list[str] = []
    first: Report | None = None
    for subject in subjects:
        if subject.report is None:
            raise ArtifactError(
                f"'{subject.directory}' holds no evaluation.json; 'rayd evaluate "
                f"{subject.directory}' writes one."
            )
        first = first or subject.report
        if (subject.report.method, subject.report.data) != (first.method, first.data):
            raise ArtifactError(
                f"Accuracy over the budget needs runs of one method on the same data. Got "
                f"{first.method} on {first.data}, and {subject.report.method} on "
                f"{subject.report.data} in '{subject.directory}'."
            )
        results = subject.report.results
        networks += [one.network for one in results]
        network = network or results[0].network
        # later evaluations may have added other protocols: the first counts
        of_run: dict[str, tuple[float, ...]] = {}
        for one in results:
            if one.network == network and one.epoch == results[0].epoch:
                of_run.setdefault(words_of(one, results), one.test_accuracy.runs)
        for name, runs in of_run.items():
            found.setdefault(name, {}).setdefault(subject.report.ipc, []).extend(runs)
    if network is not None and not found:
        known = dict.fromkeys(networks)
        raise ArtifactError(
            f"The reports of the runs hold no accuracies of {network}, but of {', '.join(known)}; "
            "'rayd evaluate' with --network adds them."
        )
    budgets = sorted({ipc for by_budget in found.values() for ipc in by_budget})
    if len(budgets) < 2:
        raise ArtifactError(
            "Accuracy over the budget needs runs of at least two numbers of images per class. Got "
            f"{budgets or 'none'}; name more runs with --with."
        )
    return network or "", found


def analyse(subject: Subject) -> Analysis:
    """Draw the accuracies of a run and of the others over images per class.

    Raises:
        ArtifactError: as of `curves`, or the runs have other classes or another long tail.
    """
    runs = [subject, *subject.others]
    for key in ("classes", "imbalance"):
        for run in subject.others:
            ours, theirs = (getattr(one.recipe.data, key) for one in (subject, run))
            if ours != theirs:
                raise ArtifactError(
                    f"Accuracy over the budget needs runs on the same images. Got data.{key}={ours}, "
                    f"and {theirs} in '{run.directory}'."
                )
    label = subject.network.label if subject.options.network is not None else None
    network, found = curves(runs, label)
    budgets = sorted({ipc for by_budget in found.values() for ipc in by_budget})
    width = max(len(name) for name in found)
    lines = ["  ".join(["set".ljust(width), *(f"{f'{ipc} IPC':>7}" for ipc in budgets)])]
    for name, by_budget in found.items():
        cells = [f"{fmean(by_budget[i]):>7.3f}" if i in by_budget else " " * 7 for i in budgets]
        lines.append("  ".join([name.ljust(width), *cells]).rstrip())
    return Analysis(
        name="ipc",
        title=f"Accuracy over images per class: {subject.recipe.data.title}, {network}",
        explanation=(
            f"Test accuracy of {network} in the reports of {len(runs)} runs: mean over students, "
            "bars from the lowest to the highest."
        ),
        picture=chart(found, f"{subject.recipe.method} on {subject.recipe.data.title}"),
        lines=tuple(lines),
        numbers={"accuracies": _plain(found)},
    )


def _plain(found: Mapping[str, Mapping[int, Any]]) -> dict[str, dict[str, Any]]:
    """Convert budgets to text, as keys of JSON are."""
    plain = {}
    for name, by_budget in found.items():
        plain[name] = {str(ipc): values for ipc, values in by_budget.items()}
    return plain


def chart(found: Mapping[str, Mapping[int, Sequence[float]]], title: str = "") -> Image.Image:
    """Draw accuracies over images per class, a line for each set; the whole set's is horizontal."""
    from rayd.drawing import as_image, new_figure, styled

    budgets = sorted({ipc for by_budget in found.values() for ipc in by_budget})
    with styled():
        figure = new_figure(620, 400)
        axes = figure.subplots()
        for colour, (name, by_budget) in zip(PALETTE, found.items(), strict=False):
            if name.startswith("whole"):
                # the whole set is the same at every budget
                values = [value for runs in by_budget.values() for value in runs]
                axes.axhline(fmean(values), linestyle="--", color=colour, label=name)
                continue
            places = sorted(by_budget)
            means = [fmean(by_budget[ipc]) for ipc in places]
            below = [mean - min(by_budget[i]) for i, mean in zip(places, means, strict=True)]
            above = [max(by_budget[i]) - mean for i, mean in zip(places, means, strict=True)]
            axes.errorbar(
                places, means, (below, above), marker="o", capsize=2, color=colour, label=name
            )
        axes.set_xscale("log")
        axes.set_xticks(budgets, [str(ipc) for ipc in budgets])
        axes.minorticks_off()
        axes.set_xlabel("images per class")
        axes.set_ylabel("test accuracy")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        axes.set_title(title)
        return as_image(figure)
