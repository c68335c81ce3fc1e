"""Runs scenarios on the simulated device; a program of its own, as the shim must be there before
torch.

    python -m tests.simulated_cuda.program LIBRARY REPORT JOB...

LIBRARY is the shim, REPORT the JSON file to write, and a JOB is JSON: `{"scenario": NAME}`, or
`{"rules": true}` for what `rules.tried` gives. A scenario may be `small`, and have `overrides`,
settings laid over it; `strict: false`, so that violations are recorded in place of raised; and a
list `also` of what else is done with the result: `plan`, `spectra`, `evaluate`, `cpu`, the same
run on the CPU with a cache of its own, `shared`, see `_shared`, or `fresh`, see `_fresh`. The report is a list with an
entry for each job: the job, its CPU seconds, the traceback of an error or null, and what `_report`
says.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tests.simulated_cuda import shim

if TYPE_CHECKING:
    from rayd.config import Recipe
    from rayd.engine.run import Run


def main(library: str, report: str, *jobs: str) -> None:
    """Run all jobs."""
    shim.load(Path(library))
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        entries = [
            _entry(json.loads(job), Path(folder) / str(index)) for index, job in enumerate(jobs)
        ]
    Path(report).write_text(json.dumps(entries))


def _entry(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    began = time.process_time()
    try:
        if "rules" in job:
            from tests.simulated_cuda import rules

            entry = rules.tried()
        else:
            entry = _report(job, folder)
    except Exception:
        entry = {"error": traceback.format_exc()}
    return {"error": None, **job, **entry, "seconds": time.process_time() - began}


def _report(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A whole run of a scenario, and what else the job names.

    `steps` has the operations, synchronisations and copies of every step of the synthesis that is
    not logged; `lines` says which lines waited or copied in the last one of them; `passes` has the same counts of the last
    epoch of every kind of training, by its purpose; `held` is the number of bytes on the device
    when the evaluation begins; `rounded` the convolutions that were rounded to TF32, by line;
    `merged` the kinds of device where statistics of shards were merged.
    """
    from rayd import machine
    from rayd.engine.distill import distill
    from rayd.engine.evaluate import evaluate_distilled
    from rayd.engine.plan import plan
    from rayd.engine.progress import Progress
    from rayd.engine.spectra_of_run import from_distilled
    from tests.simulated_cuda import device
    from tests.simulated_cuda.counting import Counting
    from tests.simulated_cuda.scenarios import scenario

    recipe = scenario(job["scenario"], job.get("small", False), **job.get("overrides", {}))
    also = job.get("also", [])
    quiet = Progress(quiet=True)
    # how fast the simulation computes means nothing
    facts = patch.object(machine, "fact", lambda *_, **__: 1.0)
    with device.simulated(strict=job.get("strict", True)) as record, facts:
        with Counting(record) as counting:
            run = distill(recipe, folder / "run", cache=folder / "cache", progress=quiet)
        entry = {
            "steps": counting.steps,
            "lines": counting.lines,
            "passes": counting.passes,
            "held": counting.held,
            "merged": sorted(counting.merged),
        }
        if "plan" in also:
            entry["plan"] = plan(recipe, cache=folder / "other", progress=quiet).to_json()
        if "spectra" in also:
            entry["spectra"] = from_distilled(
                run.distilled, cache=folder / "cache", progress=quiet
            ).size
        if "evaluate" in also:
            report = evaluate_distilled(
                run.distilled, {"evaluation": {"seeds": 2}}, None, folder / "cache", quiet
            )
            entry["evaluated"] = [result.test_accuracy.mean for result in report.results]
    if "cpu" in also:
        on_cpu = recipe.model_copy(
            update={"resources": recipe.resources.model_copy(update={"device": "cpu"})}
        )
        other = distill(on_cpu, folder / "cpu", cache=folder / "cpu-cache", progress=quiet)
        entry["difference"] = float((run.distilled.images - other.distilled.images).abs().max())
    if "shared" in also:
        entry["shared"] = _shared(recipe, folder)
    if "fresh" in also:
        entry["fresh"] = _fresh(recipe, folder)
    accuracies = {result.set: result.test_accuracy.mean for result in run.report.results}
    return entry | {
        "violations": list(record.violations),
        "accuracies": accuracies,
        "seeded": record.seeded,
        "rounded": dict(record.rounded),
    }


def _shared(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What a run, a synthesis and an evaluation take from what the other kind of device made.

    `added` counts new entries of the store by stage for each of them, `cards` has the devices of
    their cards, `trained` the devices of their students.
    """
    from rayd.engine.distill import distill
    from rayd.engine.evaluate import evaluate_distilled
    from rayd.engine.progress import Progress
    from tests.simulated_cuda import device

    quiet = Progress(quiet=True)
    on_cpu = recipe.model_copy(
        update={"resources": recipe.resources.model_copy(update={"device": "cpu"})}
    )
    kinds = {"cuda": (recipe, device.simulated), "cpu": (on_cpu, nullcontext)}
    found: dict[str, Any] = {"added": {}, "cards": {}, "trained": {}}
    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        cache = folder / f"shared-{first}"
        recipe_there, there = kinds[first]
        with there():
            run = distill(recipe_there, folder / f"{first}-first", cache=cache, progress=quiet)
        own, here = kinds[second]
        # the arithmetic that 'precision: auto' chose there
        recipe_here = run.recipe.model_copy(update={"resources": own.resources})
        other = recipe_here.model_copy(
            update={
                "synthesis": recipe_here.synthesis.model_copy(
                    update={"steps": recipe_here.synthesis.steps + 1}
                )
            }
        )
        with here():
            before = _entries(cache)
            same = distill(recipe_here, folder / f"{second}-same", cache=cache, progress=quiet)
            found["added"][f"run on {second}"] = dict(_entries(cache) - before)
            before = _entries(cache)
            more = distill(other, folder / f"{second}-more", cache=cache, progress=quiet)
            found["added"][f"synthesis on {second}"] = dict(_entries(cache) - before)
            before = _entries(cache)
            overrides = {"evaluation": {"seeds": 2}}
            judged = evaluate_distilled(run.distilled, overrides, None, cache, quiet)
            found["added"][f"evaluation on {second}"] = dict(_entries(cache) - before)
        found["cards"][f"run on {second}"] = same.distilled.card["devices"]
        found["cards"][f"synthesis on {second}"] = more.distilled.card["devices"]
        found["trained"][f"run on {second}"] = [result.devices for result in same.report.results]
        found["trained"][f"evaluation on {second}"] = [result.devices for result in judged.results]
    return found


def _fresh(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What runs of one recipe with `precision: auto` on both kinds of device take from each other:
    see `_second`, by the kind that came first.
    """
    return {
        first: _second(recipe, first, second, folder / f"fresh-{first}")
        for first, second in (("cuda", "cpu"), ("cpu", "cuda"))
    }


def _second(recipe: Recipe, first: str, second: str, folder: Path) -> dict[str, Any]:
    """Run a recipe on a kind of device, then on a second one with the same cache.

    `made` has the precisions and devices of the first run's card. Of what follows, the entries that
    it added to the store by stage, and its card: the `same` recipe, one with a `longer` synthesis,
    the `evaluation` of the first set, and a `resumed` run that the first kind of device began.
    """
    from rayd.engine.distill import distill
    from rayd.engine.evaluate import evaluate_distilled
    from rayd.engine.progress import Progress
    from rayd.engine.synthesizer import Synthesizer
    from tests.faults import InterruptionError
    from tests.simulated_cuda import device

    quiet = Progress(quiet=True)
    cache = folder / "cache"
    inside = {"cuda": device.simulated, "cpu": nullcontext}
    interrupted = patch.object(Synthesizer, "advance", side_effect=InterruptionError)
    found: dict[str, Any] = {}

    def run(kind: str, name: str, steps: int = 0, resume: bool = False) -> Run:
        resources = recipe.resources.model_copy(update={"device": kind})
        synthesis = recipe.synthesis.model_copy(update={"steps": recipe.synthesis.steps + steps})
        chosen = recipe.model_copy(update={"resources": resources, "synthesis": synthesis})
        return distill(chosen, folder / name, cache=cache, resume=resume, progress=quiet)

    def note(name: str, work: Callable[[], Any]) -> Any:
        before = _entries(cache)
        result = work()
        found[name] = {"added": dict(_entries(cache) - before)}
        if hasattr(result, "distilled"):
            found[name]["card"] = _precisions(result.distilled.card)
        return result

    with inside[first]():
        made = note("made", lambda: run(first, "made"))
        with suppress(InterruptionError), interrupted:
            run(first, "resumed", steps=2)
    with inside[second]():
        note("same", lambda: run(second, "same"))
        note("longer", lambda: run(second, "longer", steps=1))
        note("evaluation", lambda: evaluate_distilled(made.distilled, {}, None, cache, quiet))
        note("resumed", lambda: run(second, "resumed", steps=2, resume=True))
    return found


def _precisions(card: dict[str, Any]) -> dict[str, Any]:
    """The precision of each section of a card's recipe, and the devices of the stages."""
    names = ("squeeze", "experts", "observers", "synthesis", "evaluation")
    return {
        "precision": {name: card["config"][name]["precision"] for name in names},
        "devices": card["devices"],
    }


def _entries(cache: Path) -> Counter[str]:
    """Finished entries of a store, by stage."""
    files = [path for path in cache.rglob("*") if path.suffix in (".json", ".safetensors")]
    return Counter(path.relative_to(cache).parts[0] for path in files)


if __name__ == "__main__":
    main(*sys.argv[1:])
