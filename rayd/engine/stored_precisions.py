"""Reuse of other hardware's results by runs whose `precision` is `auto`.

The fastest precision differs between devices, so a recipe with automatic precision resolves
differently on a GPU than on a CPU, with other keys in the store. Before anything is recomputed in
another precision, the store is searched for results of the recipe as other hardware would have
resolved it (`rayd.engine.arithmetic`): a whole synthetic set first, else its observers, experts and
statistics, each as a whole, and students. All of these precisions suffice for the method, so the
results are equally good; the card of a set lists them with the devices.

A precision is adopted only if nothing is left to compute in it, as it may be slow here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayd.config import Recipe
from rayd.distilled import Distilled
from rayd.engine.arithmetic import SECTIONS, Choice, with_precision_of
from rayd.engine.job import Job
from rayd.engine.stages.experts import Experts
from rayd.engine.stages.measure import Measure
from rayd.engine.stages.squeeze import Squeeze
from rayd.engine.stages.student_tasks import TrainingSets, tasks
from rayd.engine.stages.students import Students
from rayd.engine.stages.synthesis import Synthesis
from rayd.evaluation.variants import DISTILLED, variants

BEFORE_SYNTHESIS = ("squeeze", "classifiers.squeeze", "experts", "observers", "classifiers")
"""Sections of a recipe whose stages come before the synthesis, in an order in which no stage
depends on a later one.
"""
SIMPLE_SETS = (DISTILLED, "random", "whole")
"""Training sets of students that are known without computing anything."""


def with_stored_precisions(job: Job, choice: Choice) -> tuple[Job, tuple[str, ...]]:
    """A job that uses results of other hardware, and sentences that list these.

    Args:
        job: of the recipe as this machine resolves it.
        choice: resolution of the recipe, also for other hardware.
    """
    if not choice.others:
        return job, ()
    candidates = [job.recipe, *choice.others]
    made = _with_stored_set(job, candidates) or _with_stored_parts(job, candidates)
    made = _with_stored_students(made, candidates)
    if made.recipe == job.recipe:
        return job, ()
    taken = with_precision_of(job.recipe, made.recipe, SECTIONS)
    changed = [
        f"{section} {_precision(taken, section)} in place of {_precision(job.recipe, section)}"
        for section in SECTIONS
        if _precision(taken, section) != _precision(job.recipe, section)
    ]
    return made, (f"arithmetic: {', '.join(changed)}, as results in the store are",)


def _precision(recipe: Recipe, section: str) -> str | None:
    settings: Any = recipe
    for name in section.split("."):
        settings = getattr(settings, name, None)
    precision: str | None = getattr(settings, "precision", None)
    return precision


def _with_stored_set(job: Job, candidates: Sequence[Recipe]) -> Job | None:
    """The job resolved so that its synthetic set is in the store; students are resolved later."""
    # the precision of students is resolved separately, as they are trained after the set is found
    sections = [section for section in SECTIONS if section != "evaluation"]
    for recipe in candidates:
        other = job.with_recipe(with_precision_of(job.recipe, recipe, sections))
        if Synthesis(other).is_stored():
            return other
    return None


def _with_stored_parts(job: Job, candidates: Sequence[Recipe]) -> Job:
    """The job resolved so that networks and statistics are in the store, section by section."""
    for section in BEFORE_SYNTHESIS:
        for recipe in candidates:
            other = job.with_recipe(with_precision_of(job.recipe, recipe, [section]))
            if _is_stored(other, section):
                job = other
                break
    return job


def _is_stored(job: Job, section: str) -> bool:
    """Whether a section has results, and all of them are in the store."""
    if section == "experts":
        experts = Experts(job)
        return bool(experts.items()) and all(
            job.store.has(experts.folder, experts.key(one), "safetensors")
            for one in experts.items()
        )
    if section in ("observers", "classifiers"):
        measure = Measure(job)
        networks = [one for one in measure.items() if one.group == section]
        return bool(networks) and not set(networks) & set(measure.unmeasured())
    group = "classifiers" if section == "classifiers.squeeze" else "observers"
    squeeze = Squeeze(job)
    trained = [one for one in squeeze.items() if one.group == group]
    return bool(trained) and all(
        job.store.has(squeeze.folder, squeeze.key(one), "safetensors") for one in trained
    )


def _with_stored_students(job: Job, candidates: Sequence[Recipe]) -> Job:
    """The job resolved so that its students are in the store, except those of sets that are still
    to be computed.
    """
    synthesis = Synthesis(job)
    found = synthesis.find(synthesis.hash) if synthesis.is_stored() else None
    if found is None:
        return job
    data = job.data
    distilled = Distilled.of(
        found.learned, job.recipe.synthetic, data.class_names, data.normalization, {}
    )
    sets = TrainingSets(data, distilled, job.recipe.ipc)
    hashes = Squeeze(job, ()).teacher_hashes()
    compared = [
        one
        for one in variants(job.recipe, distilled.labels.is_floating_point())
        if one.set in SIMPLE_SETS
    ]
    for recipe in candidates:
        other = job.with_recipe(with_precision_of(job.recipe, recipe, ["evaluation"]))
        students = Students(other, sets, tasks(other.recipe, compared, sets, hashes))
        if all(
            other.store.has(students.folder, students.key(task), "json")
            for task in students.items()
        ):
            return other
    return job
