"""The score stage: random crops of real images, scored by how realistic an observer finds them.

RDED's sets are stitched from the best of them: as the initial images of a synthetic set
(`rayd.engine.stages.initial_set`), or as a baseline (`baseline_images`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from rayd.data import ImageSet
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.observer import DatasetInfo
from rayd.engine.open_pool import open_pool
from rayd.engine.pool import LocalPool, ObjectRef, TaskStream, WorkerPool
from rayd.engine.progress import Progress
from rayd.engine.stage import TensorStage
from rayd.engine.stage_cost import Part, StageCost
from rayd.engine.stages.squeeze import Squeeze
from rayd.engine.worker import Worker
from rayd.synthetic.rded import candidates, most_realistic, stitched

if TYPE_CHECKING:
    from rayd.engine.costs import Costs


class Score(TensorStage[int]):
    """Scores crops of the real images of each class; items are classes."""

    name = "score"
    folder = "score"
    unit = "classes"
    noun = "classes"
    task = "score"

    def __init__(
        self,
        job: Job,
        weights: Mapping[NetworkId, ObjectRef] | None = None,
        is_baseline: bool = False,
    ):
        """Score by the first observer, with its trained weights.

        Args:
            job: the run.
            weights: of the observers.
            is_baseline: whether students need the images, whatever the initial images of the
                synthetic set.
        """
        super().__init__(job)
        self.weights = weights or {}
        self._is_wanted = is_baseline or job.recipe.synthetic.init == "rded"
        self._observer = network_ids(job.recipe)[0]
        # cached, as a draw permutes all rows of a class, and both scoring and stitching need it
        self._rows = lru_cache(maxsize=None)(self._candidates)

    def items(self) -> Sequence[int]:
        """All classes if realistic crops are needed, else none."""
        return range(self.job.data.classes) if self._is_wanted else []

    def key(self, item: int) -> Mapping[str, Any]:
        """The observer, the class, the seed and the settings of the crops."""
        settings = self.job.recipe.synthetic
        names = ("patches", "candidates", "crops", "crop")
        return {
            "version": 1,
            "observer": Squeeze(self.job, ()).stored_key(self._observer),
            "seed": self.job.recipe.seed,
            "class": item,
            "settings": {name: getattr(settings, name) for name in names},
        }

    def cost(self, costs: Costs) -> StageCost | None:
        """Passes of crops through the observer."""
        classes = self.items()
        if not classes:
            return None
        settings = self.job.recipe.synthetic
        missing = self.missing()
        counts = self.job.data.train.counts
        images = sum(min(settings.candidates, int(counts[label])) for label in missing)
        parts = []
        if missing:
            part = Part(
                what=f"{settings.crops} crops of {images:,} images",
                settings="synthetic.candidates and synthetic.crops",
                count=costs.scoring() * images,
                parallel=self.job.parallel(len(missing)),
                decoded=self.job.decoded(images),
            )
            parts.append(part)
        return StageCost(
            name=self.name,
            work=f"{settings.crops} crops of up to {settings.candidates} images of "
            f"{len(missing)} classes",
            cached=f"{len(classes) - len(missing)} of {len(classes)} classes cached",
            parts=tuple(parts),
        )

    def tasks(self, pool: TaskStream, items: Iterator[int]) -> Iterator[tuple[Any, ...]]:
        """See `Worker.score`."""
        weights = self.weights[self._observer]
        for label in items:
            # once a worker is free for the class, so that few classes are in the object store at a
            # time
            images = pool.share(self.job.data.train.part(self._rows(label)).images)
            yield self._observer, weights, label, images

    def _candidates(self, label: int) -> npt.NDArray[np.int64]:
        """Rows of the training images from which crops are taken."""
        recipe = self.job.recipe
        return candidates(self.job.data.train, label, recipe.synthetic, recipe.seed)

    def stitched(self) -> torch.Tensor:
        """The most realistic crops, joined to images of full size, class after class."""
        recipe = self.job.recipe
        images = []
        for label, scores in self.results().items():
            best = most_realistic(scores, recipe.ipc, recipe.synthetic.patches)
            rows = self._rows(label)[best.numpy()]
            pixels = torch.from_numpy(self.job.data.train.images[rows])
            images.append(stitched(pixels, scores["box"][best], recipe.synthetic.patches))
        return torch.cat(images)


def baseline_images(job: Job, progress: Progress, pool: TaskStream | None = None) -> ImageSet:
    """Images of the baseline `rded`; scores that are not in the store are computed.

    Args:
        job: the run.
        progress: where progress is shown.
        pool: idle, and hosts `Worker`; None opens one.
    """
    squeeze = Squeeze(job, network_ids(job.recipe)[:1])
    observers = squeeze.ensure(progress)
    score = Score(job, is_baseline=True)
    if score.missing():
        with ExitStack() as stack:
            if pool is None:
                pool = stack.enter_context(_small_pool(job))
            shown = stack.enter_context(progress.stage(score.name, 0, score.unit))
            score.weights = {name: pool.share(one.state) for name, one in observers.items()}
            score.run(pool, shown, progress.wait_logger(score.name, score.noun))
    images = score.stitched().numpy()
    labels = np.repeat(np.arange(job.data.classes), job.recipe.ipc)
    return ImageSet(images, labels, job.data.train.class_names)


def _small_pool(job: Job) -> WorkerPool:
    """The pool for a few images: this process, as starting workers would take longer than the work.

    If workers have GPUs, it is the workers, as this process may have no GPU, or only one that Ray
    has assigned to another process.
    """
    recipe = job.recipe
    arguments = (recipe.resources, Worker, recipe, DatasetInfo.of(job.data))
    if recipe.resources.gpus_per_worker == 0:
        return LocalPool(*arguments)
    return open_pool(*arguments)
