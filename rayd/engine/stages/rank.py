"""The rank stage: networks whose training scores the real images, for selections by score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rayd.config.ranking import RANKED
from rayd.engine import memory
from rayd.engine.observer import DatasetInfo
from rayd.engine.open_pool import open_pool
from rayd.engine.pool import TaskStream
from rayd.engine.progress import Progress
from rayd.engine.stage import TensorStage
from rayd.engine.stage_cost import Part, StageCost

if TYPE_CHECKING:
    from rayd.engine.costs import Costs


class Rank(TensorStage[int]):
    """Trains networks that score the real images; items are their numbers."""

    name = "rank"
    folder = "ranks"
    unit = "epochs"
    noun = "networks"
    task = "rank"

    def items(self) -> Sequence[int]:
        """The networks if the recipe selects by their scores, else none."""
        recipe = self.job.recipe
        chosen = {recipe.synthetic.init, *recipe.evaluation.baselines}
        return range(recipe.ranking.count) if chosen & set(RANKED) else []

    def key(self, item: int) -> Mapping[str, Any]:
        """Settings, data and number of a network, but not the number of networks."""
        return {
            "version": 1,
            "data": self.job.data.fingerprint,
            "ranking": self.job.recipe.ranking.model_dump(mode="json", exclude={"count"}),
            "index": item,
            "device": self.job.device,
        }

    def units(self, item: int) -> int:
        """Epochs."""
        return self.job.recipe.ranking.epochs

    def tasks(self, pool: TaskStream, items: Iterator[int]) -> Iterator[tuple[Any, ...]]:
        """See `Worker.rank`."""
        training = pool.share(self.job.data.train)
        for item in items:
            yield item, training

    def ensure(self, progress: Progress) -> dict[str, Tensor]:
        """The scores; a pool is opened if networks are missing."""
        if self.missing():
            from rayd.engine.worker import Worker

            recipe = self.job.recipe
            info = DatasetInfo.of(self.job.data)
            with (
                memory.explained(self.name, recipe),
                open_pool(recipe.resources, Worker, recipe, info) as pool,
                progress.stage(self.name, 0, self.unit) as shown,
            ):
                self.run(pool, shown, progress.wait_logger(self.name, self.noun))
        return self.scores()

    def scores(self) -> dict[str, Tensor]:
        """Means over the networks, by name of the score; empty if the recipe needs none."""
        parts = list(self.results().values())
        if not parts:
            return {}
        means = {}
        for name in parts[0]:
            means[name] = torch.stack([part[name] for part in parts]).mean(0)
        return means

    def cost(self, costs: Costs) -> StageCost | None:
        """Epochs of training; the errors take one more forward pass."""
        networks = self.items()
        if not networks:
            return None
        recipe = self.job.recipe
        settings = recipe.ranking
        images = len(self.job.data.train)
        missing = len(self.missing())
        parts = []
        if missing:
            # the cost of an epoch depends on network and batches, as for students
            protocol = recipe.squeeze.model_copy(update={"batch_size": settings.batch_size})
            count = costs.training(settings.network, protocol, images) * settings.epochs
            part = Part(
                what=f"{missing} x {settings.network.label}, {settings.epochs} epochs",
                settings="ranking.count and ranking.epochs",
                count=count * missing,
                parallel=self.job.parallel(missing),
                decoded=self.job.decoded((settings.epochs + 1) * images) * missing,
            )
            parts.append(part)
        return StageCost(
            name=self.name,
            work=f"{missing} of {len(networks)} networks ({settings.network.label}) learn "
            f"{settings.epochs} epochs of {images:,} images",
            cached=f"{len(networks) - missing} cached",
            parts=tuple(parts),
        )
