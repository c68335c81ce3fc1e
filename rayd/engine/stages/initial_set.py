"""The synthetic set before the first step: real images, noise, a selection, or crops of RDED.

Not a stage: every run computes it, from results of earlier stages. `rayd.synthetic.initial` creates
most sets; two kinds need networks: RDED's crops (the score stage), and labels that experts predict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rayd import synthetic
from rayd.engine.job import Job
from rayd.engine.pool import WorkerPool
from rayd.engine.stages.score import Score
from rayd.synthetic import SyntheticSet
from rayd.synthetic.initialization import candidates


def initial_set(
    job: Job,
    pool: WorkerPool,
    score: Score,
    experts: Sequence[Path] = (),
    scores: Mapping[str, torch.Tensor] | None = None,
) -> SyntheticSet:
    """The synthetic set before the first step.

    Args:
        job: the run.
        pool: hosts `Worker`; used if experts predict labels.
        score: the score stage, which has computed scores of crops if the recipe needs them.
        experts: files of the experts that predict labels.
        scores: scores of the real images, if initial ones are selected by them.
    """
    recipe = job.recipe
    if recipe.synthetic.labels == "experts":
        rows = candidates(recipe, job.data, scores)
        images = pool.share(job.data.train.part(rows).images[:])
        logits = list(pool.map("predict", [(expert, images) for expert in experts]))
        return synthetic.initial(recipe, job.data, logits=torch.stack(logits), scores=scores)
    if recipe.synthetic.init == "rded":
        return synthetic.initial(recipe, job.data, score.stitched())
    return synthetic.initial(recipe, job.data, scores=scores)
