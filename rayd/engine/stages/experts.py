"""The experts stage: networks trained on the real data, saved after every epoch.

An expert is a file of the store (`rayd.training.trajectories`). It is written by a worker, and read
by the workers that match trajectories: across machines the store must be a shared folder or a URL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayd import networks, remote, seeding
from rayd.config import Recipe
from rayd.data import ImageShape
from rayd.engine.pool import TaskStream
from rayd.engine.stage import TaskStage
from rayd.engine.stage_cost import Part, StageCost
from rayd.errors import ArtifactError, RunError
from rayd.networks.flat import FlatNetwork
from rayd.training.squeeze import JUDGED
from rayd.training.trajectories import Trajectory

if TYPE_CHECKING:
    from rayd.engine.costs import Costs

UNFINISHED = "unfinished-experts"
"""Folder of the store with checkpoints of experts in training."""


class Experts(TaskStage[int, Trajectory]):
    """Trains experts; items are their numbers, from 0."""

    name = "experts"
    folder = "experts"
    unit = "epochs"
    noun = "experts"
    task = "expert"

    def items(self) -> Sequence[int]:
        """Numbers of the experts; empty if the method needs none."""
        return range(self.job.recipe.experts.count) if self.job.method.needs_experts else []

    def key(self, item: int) -> Mapping[str, Any]:
        """Settings, data and number of an expert, but not the number of experts."""
        return {
            "version": 2,
            "data": self.job.data.fingerprint,
            "experts": self.job.recipe.experts.model_dump(mode="json", exclude={"count"}),
            "index": item,
            "device": self.job.device,
        }

    def tasks(self, pool: TaskStream, items: Iterator[int]) -> Iterator[tuple[Any, ...]]:
        """See `Worker.expert`."""
        training = pool.share(self.job.data.train)
        for item in items:
            checkpoint = self.job.store.path(UNFINISHED, self.key(item), "safetensors")
            # the worker writes the file, as trajectories are too large to pass through the driver
            file = self.job.store.path(self.folder, self.key(item), "safetensors")
            yield item, training, file, checkpoint

    def units(self, item: int) -> int:
        """Epochs."""
        return self.job.recipe.experts.epochs

    def save(self, item: int, result: Any) -> Trajectory:
        """Check the file, which the worker has written.

        Raises:
            RunError: the file cannot be read on this machine.
        """
        self.job.store.replace(self.folder, self.key(item), "safetensors")
        found = self.find(item)
        if found is None:
            raise RunError(
                f"The expert '{self.file(item)}' was trained but cannot be read here; across "
                "machines, the cache must be a folder that all of them share, or a URL."
            )
        return found

    def find(self, item: int) -> Trajectory | None:
        """The expert's file, if it can be read."""
        path = self.file(item)
        with suppress(ArtifactError):
            return Trajectory(path) if remote.bring(path) else None
        self.job.store.replace(self.folder, self.key(item), "safetensors")
        return None

    def cost(self, costs: Costs) -> StageCost | None:
        """Epochs of training, and tests on training images."""
        experts = self.items()
        if not experts:
            return None
        settings = self.job.recipe.experts
        images = len(self.job.data.train)
        missing = len(self.missing())
        parts = []
        if missing:
            count = costs.training(settings.network, settings, images) * settings.epochs
            judged = costs.testing(settings.network, settings.precision, min(JUDGED, images))
            part = Part(
                what=f"{missing} experts, {settings.epochs} epochs",
                settings="experts.count and experts.epochs",
                count=(count + judged) * missing,
                parallel=self.job.parallel(missing),
                decoded=self.job.decoded(settings.epochs * images) * missing,
            )
            parts.append(part)
        return StageCost(
            name=self.name,
            work=f"{missing} of {len(experts)} experts ({settings.network.label}) learn "
            f"{settings.epochs} epochs of {images:,} images",
            cached=f"{len(experts) - missing} cached",
            parts=tuple(parts),
        )

    def bytes_of_training(self, costs: Costs) -> float:
        """Memory that the training of an expert takes on its device, in bytes."""
        settings = self.job.recipe.experts
        return costs.training_bytes(settings.network, settings, len(self.job.data.train))

    def file(self, item: int) -> Path:
        """Path of an expert's file, written by any kind of device, or not written yet."""
        return self.job.store.found(self.folder, self.key(item), "safetensors")

    def files(self) -> tuple[Path, ...]:
        """Paths of all experts' files, written or not."""
        return tuple(self.file(item) for item in self.items())

    def accuracies(self) -> list[float]:
        """Training accuracy of each expert, fractions."""
        return [float(expert.facts["train_accuracy"]) for expert in self.results().values()]

    def summary(self) -> str:
        """Sentence on the number of experts and their mean accuracy."""
        known = self.accuracies()
        return f"{len(known)} know {sum(known) / len(known):.3f} of the training images on average"

    def facts_for_card(self) -> dict[str, Any] | None:
        """The part that is written into the card of a distilled set; None if experts are missing."""
        if not self.items() or self.missing():
            return None
        known = self.accuracies()
        settings = self.job.recipe.experts
        return {
            "network": settings.network.label,
            "count": len(known),
            "epochs": settings.epochs,
            "train_accuracy": sum(known) / len(known),
            "devices": self.devices(),
        }

    def bytes_each(self) -> int:
        """Bytes of an expert's file."""
        settings = self.job.recipe.experts
        size = 2 if settings.stored == "bfloat16" else 4
        data = self.job.data
        numbers = parameter_count(self.job.recipe, data.shape, data.classes)
        return numbers * (settings.epochs + 1) * size


def initial_seed(recipe: Recipe, index: int) -> int:
    """Seed of the initial weights of an expert."""
    return seeding.derive(recipe.experts.seed, "expert network", index)


def parameter_count(recipe: Recipe, shape: ImageShape, classes: int) -> int:
    """Parameters of an expert.

    Raises:
        ConfigError: its network has buffers or dropout, or does not fit the images.
    """
    return FlatNetwork(networks.build(recipe.experts.network, shape, classes, seed=0)).size
