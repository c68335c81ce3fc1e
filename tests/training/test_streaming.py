"""A training set of streamed images gives the batches, the weights and the fingerprint of the
decoded one.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rayd.config import DataSettings, SqueezeSettings
from rayd.data import ImageData, load
from rayd.training.judging import hits
from rayd.training.sets import StreamedImages, TrainingSet, taken
from rayd.training.squeeze import Squeezed, squeeze
from tests.data.files import encode, some_images, write_parquet

IMAGES = some_images(30, side=8)
LABELS = np.arange(30) % 3


@pytest.fixture
def both(tmp_path: Path) -> tuple[ImageData, ImageData]:
    """The same data, streamed and decoded."""
    write_parquet(
        tmp_path / "train-0.parquet", [encode(image) for image in IMAGES], LABELS.tolist()
    )
    write_parquet(
        tmp_path / "test-0.parquet",
        [encode(image) for image in 255 - IMAGES[:9]],
        LABELS[:9].tolist(),
    )
    return tuple(load(DataSettings(name=str(tmp_path), stream=stream)) for stream in (True, False))  # type: ignore[return-value]


def sets(both: tuple[ImageData, ImageData]) -> list[TrainingSet]:
    return [TrainingSet.from_images(data.train, data.normalization) for data in both]


def test_batches_are_the_same(both: tuple[ImageData, ImageData]) -> None:
    streamed, decoded = sets(both)
    assert isinstance(streamed.images, StreamedImages)
    assert (streamed.shape, len(streamed), streamed.images.dtype) == (
        decoded.shape,
        30,
        decoded.images.dtype,
    )
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    rows = [*torch.split(order, 7), slice(None), slice(3, 5)]
    for one in (streamed, decoded):
        for wanted, images in taken(one.images, rows, lambda rows: rows, torch.device("cpu")):
            assert torch.equal(images, torch.from_numpy(IMAGES)[wanted])
    assert streamed.resident(torch.device("cpu"))[0] is streamed.images


def test_parts_stay_encoded_and_subsets_do_not(both: tuple[ImageData, ImageData]) -> None:
    streamed, decoded = sets(both)
    rows = torch.tensor([5, 2, 29])
    part = streamed.part(rows)
    assert isinstance(part.images, StreamedImages)
    assert torch.equal(part.images[:], decoded.part(rows).images)
    assert torch.equal(part.labels, decoded.part(rows).labels)
    assert part.fingerprint == decoded.part(rows).fingerprint != streamed.fingerprint
    subset = TrainingSet.from_images(both[0].train, both[0].normalization, rows=[5, 2, 29])
    assert torch.equal(subset.images[:], decoded.images[rows])


def test_fingerprints_are_the_same_and_see_images_and_labels(
    both: tuple[ImageData, ImageData],
) -> None:
    streamed, decoded = sets(both)
    assert streamed.fingerprint == decoded.fingerprint
    assert streamed.image_fingerprint == decoded.image_fingerprint
    data = both[1]
    other = TrainingSet.from_images(data.train.subset(np.arange(29)), data.normalization)
    assert other.fingerprint != decoded.fingerprint
    assert other.image_fingerprint != decoded.image_fingerprint


def test_training_and_judging_are_the_same(both: tuple[ImageData, ImageData]) -> None:
    settings = SqueezeSettings(epochs=2, batch_size=7, learning_rate=0.05)
    results = []
    for one in sets(both):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
        *_, result = squeeze(network, one, settings, seed=0, device="cpu", classes=3)
        assert isinstance(result, Squeezed)
        (hit,) = hits(network, [result.state], one, torch.device("cpu"), "float32")
        results.append((result.state, result.train_accuracy, hit))
    streamed, decoded = results
    assert all(torch.equal(streamed[0][name], decoded[0][name]) for name in decoded[0])
    assert streamed[1] == decoded[1]
    assert torch.equal(streamed[2], decoded[2])
