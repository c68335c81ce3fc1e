"""Evaluation of an unfinished set by its students."""

from __future__ import annotations

from dataclasses import replace

from rayd.distilled import Distilled
from rayd.engine import memory
from rayd.engine.evaluate import judge
from rayd.engine.job import Job
from rayd.engine.network_ids import teachers
from rayd.engine.pool import WorkerPool
from rayd.engine.progress import Progress
from rayd.engine.stages.squeeze import Squeeze
from rayd.engine.stages.students import LabelSource
from rayd.evaluation.report import Report


def judge_now(distilled: Distilled, job: Job, pool: WorkerPool | None = None) -> Report:
    """Train the recipe's students on an unfinished set.

    Labels are computed online instead of being stored, from the same seed and with the same result.

    Args:
        distilled: the set.
        job: its run.
        pool: workers of the synthesis; if None, workers are started for the students.
    """
    labels = job.recipe.labels
    if labels.kind == "stored":
        labels = labels.model_copy(update={"kind": "online", "seed": labels.stored_seed})
    # the workers of the synthesis are idle, and there is one for each student
    evaluation = job.recipe.evaluation.model_copy(update={"workers": 1})
    changed = {"labels": labels, "evaluation": evaluation}
    job = job.with_recipe(job.recipe.model_copy(update=changed))
    squeeze = Squeeze(job, teachers(job.recipe))
    source = LabelSource(squeeze.results(), None, squeeze.teacher_hashes())
    with memory.explained("evaluate", job.recipe):
        results = judge(job, distilled, Progress(quiet=True), labels=source, pool=pool)
    counts = job.data.train.counts.tolist()
    return Report.build(job.recipe, results, distilled, {}, counts)


def validation_accuracy(distilled: Distilled, job: Job) -> float:
    """Mean validation accuracy of the recipe's students, trained in this process."""
    recipe = job.recipe
    # the workers are busy with the synthesis
    resources = recipe.resources.model_copy(update={"workers": 0, "address": None})
    plain = {"baselines": (), "comparisons": ()}
    evaluation = recipe.evaluation.model_copy(update=plain)
    changed = recipe.model_copy(update={"resources": resources, "evaluation": evaluation})
    on_validation = replace(job, recipe=changed, data=job.data.judged_on_validation())
    report = judge_now(distilled, on_validation)
    means = [result.test_accuracy.mean for result in report.results]
    return sum(means) / len(means)
