"""Two processes, each with a part of every batch, train the network that one trains."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from hypothesis import given
from hypothesis import strategies as st

from rayd.artifacts import read_tensors, write_tensors
from rayd.config import NetworkSettings, SqueezeSettings
from rayd.data import ImageSet, ImageShape, Standardization
from rayd.networks import build
from rayd.training import training_run
from rayd.training.batches import DrawnBatch, Draws
from rayd.training.losses import Target, cross_entropy
from rayd.training.parallelism import SINGLE_PROCESS, BatchPart, DataParallel, Parallelism, share
from rayd.training.progress import EpochProgress
from rayd.training.sets import TrainingSet
from rayd.training.squeeze import Squeezed, squeeze

SHAPE = ImageShape(3, 8, 8)
CLASSES = 4
COUNT = 31
EVERYTHING = {
    "transform": {"rand_augment": 2, "crop": (0.3, 1.0), "shift": 2, "flip": True, "roll": 2},
    "augmentation": "color_crop_cutout_flip_scale_rotate",
}
PROTOCOLS = {
    # batches of 10, 10, 10 and 1: the last one cannot be cut
    "plain": {"batch_size": 10, "transform": {}},
    "every view, cutmix": {"batch_size": 9, "mix": "cutmix", **EVERYTHING},
    "mixup, average, alrs": {
        "batch_size": 12,
        "mix": "mixup",
        "average": 0.9,
        "schedule": {"name": "alrs"},
        "optimizer": "adamw",
    },
    "a single batch, restart": {"batch_size": 64, "schedule": {"name": "restart"}},
    "bfloat16": {"batch_size": 10, "precision": "bfloat16"},
}


def real() -> TrainingSet:
    draw = np.random.default_rng(0)
    labels = np.arange(COUNT) % CLASSES
    images = draw.integers(0, 200, (COUNT, *SHAPE), dtype=np.uint8) + (
        10 * labels[:, None, None, None]
    ).astype(np.uint8)
    images = ImageSet(images, labels.astype(np.int64), tuple("abcd"))
    return TrainingSet.from_images(images, Standardization.fit(images.images), name="real")


def settings_of(name: str) -> SqueezeSettings:
    return SqueezeSettings.model_validate({"epochs": 4, "learning_rate": 0.01, **PROTOCOLS[name]})


def train(
    name: str, parallelism: Parallelism = SINGLE_PROCESS, checkpoint: Path | None = None
) -> Iterator[EpochProgress | Squeezed]:
    # a bias before a norm gets rounding for a gradient, which AdamW makes whole steps of
    network = build(
        NetworkSettings(name="convnet", depth=2, width=8, norm="none"), SHAPE, CLASSES, seed=3
    )
    return squeeze(
        network,
        real(),
        settings_of(name),
        seed=5,
        device="cpu",
        classes=CLASSES,
        checkpoint=checkpoint,
        parallelism=parallelism,
    )


class Counting(DataParallel):
    parts = 0

    def part(self, batch: DrawnBatch, count: int) -> BatchPart:
        self.parts += 1
        return super().part(batch, count)


def worker(rank: int, directory: Path) -> None:
    """What each of the two processes does: every protocol, then one of them with interruptions."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2
    )
    parallelism = DataParallel(torch.device("cpu"))
    for name in PROTOCOLS:
        keep(directory, rank, name, train(name, parallelism))
    training_run.CHECKPOINT_SECONDS = 0
    for case in ("seen by all", "seen by the first"):
        checkpoint = directory / (case if rank == 0 or case == "seen by all" else "elsewhere")
        interrupted = train("every view, cutmix", parallelism, checkpoint)
        assert [next(interrupted).epoch for _ in range(3)] == [1, 2, 3]
        dist.barrier()
        parallelism = Counting(torch.device("cpu"))
        keep(directory, rank, case, train("every view, cutmix", parallelism, checkpoint))
        assert parallelism.parts == (4 if case == "seen by all" else 16)
        assert rank or not checkpoint.exists()
    dist.destroy_process_group()


def keep(
    directory: Path, rank: int, name: str, training: Iterator[EpochProgress | Squeezed]
) -> None:
    *progress, last = training
    assert isinstance(last, Squeezed) == (rank == 0)
    if isinstance(last, Squeezed):
        note = {"losses": [p.loss for p in progress], "accuracy": last.train_accuracy}
        write_tensors(directory / f"{name}.safetensors", last.state, note)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("crew")
    processes.spawn(worker, (directory,), nprocs=2)
    return directory


@pytest.mark.parametrize(("case", "name"), [
    *zip(PROTOCOLS, PROTOCOLS, strict=True),
    ("seen by all", "every view, cutmix"),
    ("seen by the first", "every view, cutmix"),
])  # fmt: skip
def test_two_processes_train_the_network_of_one(trained, case, name):
    *progress, alone = train(name)
    state, note = read_tensors(trained / f"{case}.safetensors")
    # bfloat16 rounds sums of gradients to 8 bits
    tolerance = 2e-3 if name == "bfloat16" else 1e-5
    assert state.keys() == alone.state.keys()
    for key, value in alone.state.items():
        torch.testing.assert_close(
            state[key], value, atol=tolerance, rtol=0, msg=lambda m, key=key: f"{key}: {m}"
        )
    assert note["losses"] == pytest.approx([p.loss for p in progress], rel=10 * tolerance)


@given(st.integers(1, 200), st.integers(1, 9))
def test_every_image_weighs_the_same(images, size):
    weights = np.zeros(images)
    for taken, weight in (share(images, rank, size) for rank in range(size)):
        assert len(taken) >= min(2, images)
        assert len(taken) <= max(3, -(-images // size))
        weights[taken] += weight / len(taken) / size
    np.testing.assert_allclose(weights, 1 / images)


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
@pytest.mark.parametrize("size", [10, 64])
def test_a_part_sees_its_images_as_the_whole_batch_does(mix, size):
    training = real()
    draws = Draws(
        SqueezeSettings.model_validate({"batch_size": size, "mix": mix, **EVERYTHING}),
        COUNT,
        SHAPE,
        0,
    )
    logits = torch.randn(COUNT, CLASSES)
    for epoch in range(4):
        for batch in draws.epoch(epoch):
            images, target = seen(batch, training)
            places = torch.randperm(batch.size(COUNT))[: batch.size(COUNT) // 2 + 1]
            some, own = seen(batch.part(places), training)
            torch.testing.assert_close(some, images[places], rtol=1e-5, atol=1e-6)
            assert torch.equal(own.own, target.own[places])
            if target.partners is not None:
                assert own.partners is not None
                assert torch.equal(own.labels[own.partners], target.labels[target.partners[places]])
                torch.testing.assert_close(
                    cross_entropy(logits[places], own),
                    cross_entropy(logits[places], Target(target.labels[places], kept=1.0))
                    * target.kept
                    + cross_entropy(logits[places], Target(target.labels[target.partners[places]]))
                    * (1 - target.kept),
                )


def seen(batch: DrawnBatch, training: TrainingSet) -> tuple[torch.Tensor, Target]:
    images = batch.view(training.inputs(training.images[batch.rows]), training.normalization)
    mixed, partners, kept = batch.mixed(images)
    return mixed, Target(training.labels[batch.rows], partners, kept)
