"""Results of a sweep: tables, charts, and the best recipe, confirmed and tested."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rayd.artifacts import write_bytes, write_json
from rayd.config import Recipe
from rayd.distilled import load as load_distilled
from rayd.drawing import as_image
from rayd.engine.distill import distill
from rayd.engine.evaluate import evaluate_distilled, keep_report
from rayd.engine.progress import Progress
from rayd.errors import RunError
from rayd.evaluation.report import Accuracy, Report
from rayd.evaluation.variants import DISTILLED
from rayd.pictures import as_png
from tuning import charts, page, study, table
from tuning.directory import RESULTS, SUMMARY
from tuning.live import words
from tuning.space import ResolvedSpace
from tuning.summaries import Summary
from tuning.trial import SweepPlan, own_resources

log = logging.getLogger(__name__)


def write_results(plan: SweepPlan, out: Path, trials: list[table.Row], progress: Progress) -> None:
    """Write the results of a sweep into its directory; confirm and test the best settings.

    Tables come first, as they need no further computation: `results` of all trials, `pareto` of the
    optimal ones, the tables of a study, and TensorBoard's. Then follow charts, `best.yaml` with its
    confirmations and test (which distil again), `summary.json`, and the page.

    Raises:
        RunError: no trial finished; everything else is written.
    """
    space = plan.resolved.space
    front = table.pareto(trials, space.objectives) if len(space.objectives) > 1 else []
    _write_tables(out, plan.resolved, trials, front)
    best = table.best(trials)
    shares = table.importance(plan.resolved, trials)
    _draw(out, plan.resolved, trials, best, shares)
    summary = Summary(
        space=space.name,
        trials=len(trials),
        finished=len(table.finished(trials)),
        failed=sum(row.status == "failed" for row in trials),
        own_validation_accuracy=table.own_accuracy(trials),
        importance=shares,
        pareto=[row.trial for row in front],
    )
    if best is not None:
        summary = _with_tested_best(summary, plan, best, out, progress)
    write_json(out / SUMMARY, summary.to_json())
    _write_page(out)
    if best is None:
        reasons = "; ".join(dict.fromkeys(row.reason for row in trials if row.reason))
        reasons = reasons or "none ended."
        raise RunError(f"No trial of the sweep finished: {reasons} See {out / RESULTS}.")


def _write_tables(
    out: Path, resolved: ResolvedSpace, trials: list[table.Row], front: Sequence[table.Row]
) -> None:
    """Write the tables of all trials, of the Pareto front, of a study, and for TensorBoard."""
    written = table.columns(resolved, trials)
    table.write(out / RESULTS, written)
    if resolved.space.is_study:
        study.write(out, resolved, trials)
    if front:
        optimal = {row.trial for row in front}
        table.write(out / "pareto", [row for row in written if row["trial"] in optimal])
    _hyperparameters(out / "tensorboard", written, list(resolved.space.domains))


def _with_tested_best(
    summary: Summary, plan: SweepPlan, best: table.Row, out: Path, progress: Progress
) -> Summary:
    """Write the best recipe, confirm and test it, and add its accuracies to the summary."""
    recipe = best_recipe(plan, best)
    write_bytes(out / "best.yaml", (_title(plan, best) + recipe.to_yaml()).encode())
    confirmed = _confirm(plan, best, out / "confirm", progress)
    report = _test(plan, best, recipe, out / "best", progress)
    summary = replace(
        summary,
        best=best.trial,
        settings=best.settings,
        validation_accuracy=best.validation_accuracy,
        confirmed=confirmed,
    )
    return _with_test(summary, report)


def _with_test(summary: Summary, report: Report) -> Summary:
    """Add the test accuracy over the students of all networks, as for validation accuracies."""
    students: list[float] = []
    for accuracy in _distilled_accuracies(report):
        students += accuracy.runs
    if not students:
        return summary
    std = stdev(students) if len(students) > 1 else None
    return replace(summary, test_accuracy=fmean(students), test_std=std)


def _distilled_accuracies(report: Report) -> list[Accuracy]:
    """Accuracies of the distilled set by all networks, at the first tested epoch and under the
    protocol's own labels and augmentation, as for trials.
    """
    by_network: dict[str, Accuracy] = {}
    for row in report.results:
        if row.set == DISTILLED:
            by_network.setdefault(row.network, row.test_accuracy)
    return list(by_network.values())


def _draw(
    out: Path,
    resolved: ResolvedSpace,
    trials: Sequence[table.Row],
    best: table.Row | None,
    shares: Mapping[str, float],
) -> None:
    """Write the charts; any failure is only a warning, as results matter more."""
    try:
        chart = charts.importance(shares, len(table.finished(trials)))
        write_bytes(out / "importance.png", as_png(chart))
        slices = charts.slices(resolved.space, trials, best)
        write_bytes(out / "slices.png", as_png(as_image(slices)))
        if resolved.space.is_study:
            write_bytes(out / "study.png", as_png(study.chart(resolved, trials)))
    except Exception as error:
        log.warning("The charts of the sweep could not be drawn: %s", error)


def _write_page(out: Path) -> None:
    """Write the page of the sweep; any failure is only a warning, as for charts."""
    try:
        page.write(out)
    except Exception as error:
        log.warning("The page of the sweep could not be written: %s", error)


def best_recipe(plan: SweepPlan, best: table.Row) -> Recipe:
    """Recipe with the best settings, but with its own data, students and resources."""
    name = plan.resolved.base(best.settings)
    return plan.resolved.recipe(best.settings).model_copy(
        update={"name": f"{plan.resolved.own[name].name}-tuned"}
    )


def _title(plan: SweepPlan, best: table.Row) -> str:
    lines = [
        f"# The best of a sweep over '{plan.resolved.space.name}': "
        f"validation accuracy {best.validation_accuracy:.4f}."
    ]
    for entry in best.history:
        lines.append(f"# Up to {entry['fraction']:g} of the synthesis: {words(entry['settings'])}")
    if best.history:
        lines.append(
            "# A run of this recipe has the last settings throughout; "
            "best/ holds the set of the trial itself."
        )
    return "\n".join(lines) + "\n"


def _test(
    plan: SweepPlan, best: table.Row, recipe: Recipe, out: Path, progress: Progress
) -> Report:
    """Evaluate the best settings on the test split, which is not used otherwise.

    The recipe is distilled from all training images. If settings changed during the synthesis, the
    trial's own set is tested.
    """
    seeds = plan.resolved.students(final=True)
    progress.log(f"testing the best settings with {seeds} students")
    if best.history:
        distilled = load_distilled(plan.directory / best.run)
        distilled.save(out / "distilled")
        more = {"evaluation": {"seeds": seeds, "baselines": []}}
        report = evaluate_distilled(distilled, more, plan.data_root, plan.cache, progress)
        return keep_report(report, out)
    evaluation = recipe.evaluation.model_copy(update={"seeds": seeds})
    changed = {"evaluation": evaluation, "resources": _resources(plan, recipe)}
    last = recipe.model_copy(update=changed)
    done = distill(
        last, out, data_root=plan.data_root, cache=plan.cache, resume=True, progress=progress
    )
    return done.report


def _confirm(
    plan: SweepPlan, best: table.Row, out: Path, progress: Progress
) -> dict[str, list[float]]:
    """Distil the best and the recipe's own settings again, with other seeds.

    Returns:
        Validation accuracies of the distillations, means over the networks, by `best` and `own`;
        empty where the space asks for no confirmation.
    """
    resolved = plan.resolved
    accuracies = dict[str, list[float]]()
    if not resolved.space.confirm:
        return accuracies
    own = resolved.own_point(resolved.base(best.settings))
    points = {"best": best.settings, "own": own}
    if plan.recipe(own, "own") == plan.recipe(best.settings, "own"):
        del points["own"]
    for name, point in points.items():
        whose = "the best settings" if name == "best" else "the recipe's own settings"
        for number in range(1, resolved.space.confirm + 1):
            progress.log(f"distilling {whose} again ({number} of {resolved.space.confirm})")
            recipe = plan.recipe(point, f"{name}-{number}")
            changed = {"seed": recipe.seed + number, "resources": _resources(plan, recipe)}
            again = recipe.model_copy(update=changed)
            done = distill(
                again,
                out / f"{name}-{number}",
                data_root=plan.data_root,
                cache=plan.cache,
                resume=True,
                progress=progress,
                judged_on="validation",
            )
            # evaluated on the validation split, so that these are not test accuracies
            by_network = [accuracy.mean for accuracy in _distilled_accuracies(done.report)]
            accuracies.setdefault(name, []).append(fmean(by_network))
    # equal settings are distilled once
    accuracies.setdefault("own", accuracies["best"])
    write_json(out / "confirm.json", accuracies)
    return accuracies


def _resources(plan: SweepPlan, recipe: Recipe) -> Any:
    """Resources of a trial, so that results are comparable with those of trials."""
    return own_resources(recipe, plan.workers)


def _hyperparameters(out: Path, written: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Write settings and results of all trials for TensorBoard's HParams."""
    from torch.utils.tensorboard import SummaryWriter

    for row in written:
        if row["validation_accuracy"] is None or (out / row["trial"]).exists():
            continue
        values = {}
        for key in keys:
            value = row[key]
            values[key] = value if isinstance(value, int | float | str | bool) else str(value)
        results = {}
        for name in ("validation_accuracy", "storage_bytes", "seconds"):
            results[name] = float(row[name] or 0.0)
        with SummaryWriter(str(out)) as writer:
            writer.add_hparams(values, results, run_name=row["trial"])
