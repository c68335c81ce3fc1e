"""RDED's patches: the best crop of an image stands for it, the best images are stitched, and the
crop that is kept is the one that was scored.
"""

import numpy as np
import pytest
import torch

from rayd.config import SyntheticSettings
from rayd.data import ImageSet
from rayd.data.normalization import Standardization
from rayd.errors import DataError
from rayd.synthetic import rded

NORMALIZATION = Standardization(
    torch.full((3,), 0.5, dtype=torch.float64), torch.full((3,), 0.25, dtype=torch.float64)
)


def brightness(inputs: torch.Tensor) -> torch.Tensor:
    """Logits of an observer that thinks that class 1 is bright."""
    mean = inputs.mean((1, 2, 3))
    return torch.stack([-mean, mean], 1)


def halves(count: int = 4, side: int = 16) -> torch.Tensor:
    """Images that are black on the left and ever brighter on the right."""
    pixels = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    for index in range(count):
        pixels[index, :, :, side // 2 :] = 50 + 40 * index
    return pixels


def test_the_best_crop_of_each_image_is_the_one_with_the_least_loss():
    settings = SyntheticSettings(init="rded", patches=2, crops=20, crop=(0.1, 0.3))
    scores = rded.score(brightness, halves().numpy(), 1, settings, 0, NORMALIZATION)
    one = SyntheticSettings(init="rded", patches=2, crops=1, crop=(0.1, 0.3))
    assert (
        scores["loss"] < rded.score(brightness, halves().numpy(), 1, one, 0, NORMALIZATION)["loss"]
    ).all()
    left = scores["box"][:, 1]
    width = scores["box"][:, 3]
    assert (left + width / 2 > 8).all(), "the bright half is on the right"
    dark = rded.score(brightness, halves().numpy(), 0, settings, 0, NORMALIZATION)["box"]
    assert (dark[:, 1] + dark[:, 3] / 2 < 8).all()


def test_scores_are_those_of_framed_crops_one_by_one():
    settings = SyntheticSettings(init="rded", patches=2, crops=3)
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    scores = rded.score(brightness, pixels.numpy(), 1, settings, 7, NORMALIZATION)
    for image, box, loss in zip(pixels, scores["box"].tolist(), scores["loss"], strict=True):
        top, left, height, width = box
        crop = NORMALIZATION(image[None])[..., top : top + height, left : left + width]
        small = torch.nn.functional.interpolate(crop, (4, 4), mode="bilinear")
        framed = torch.zeros(1, 3, 8, 8)
        framed[..., 2:6, 2:6] = small
        expected = torch.nn.functional.cross_entropy(brightness(framed), torch.tensor([1]))
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [16, 15])
def test_image_j_of_n_is_stitched_of_the_patches_of_rank_j_and_every_nth_after_it(side):
    pixels = torch.zeros(9, 1, side, side, dtype=torch.uint8)
    pixels += torch.arange(9, dtype=torch.uint8)[:, None, None, None] * 20
    scores = {
        "loss": torch.arange(9).flip(0).float(),
        "box": torch.tensor([[0, 0, side, side]]).expand(9, 4),
    }
    best = rded.most_realistic(scores, 2, 2)
    (first, second) = rded.stitched(pixels[best], scores["box"][best], 2)
    middle = -(-side // 2)
    assert first.shape == (1, side, side)
    assert [
        int(first[0, 0, 0]),
        int(first[0, 0, middle]),
        int(first[0, middle, 0]),
        int(first[0, -1, -1]),
    ] == [
        160,
        120,
        80,
        40,
    ]
    assert int(second[0, 0, 0]) == 140


def test_few_candidates_are_in_memory_at_a_time(monkeypatch):
    monkeypatch.setattr(rded, "CHUNK", 4)
    pixels = torch.randint(0, 256, (22, 3, 8, 8), dtype=torch.uint8)
    asked = []

    def batches(images, rows):
        for some in rows:
            asked.append(len(images[some]))
            yield some, images[some]

    settings = SyntheticSettings(init="rded", patches=2, crops=3)
    monkeypatch.setattr(rded, "batches", batches)
    few = rded.score(brightness, pixels.numpy(), 1, settings, 7, NORMALIZATION)
    assert asked == [4, 4, 4, 4, 4, 2]
    assert len(few["loss"]) == 22


def real(counts: list[int]) -> ImageSet:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    return ImageSet(np.zeros((len(labels), 1, 8, 8), np.uint8), labels, tuple("abc"[: len(counts)]))


def test_candidates_are_of_the_class_and_differ():
    rows = rded.candidates(real([5, 40]), 1, SyntheticSettings(candidates=30), 0)
    assert len(set(rows.tolist())) == 30
    assert rows.min() >= 5
    assert len(rded.candidates(real([5, 40]), 0, SyntheticSettings(candidates=30), 0)) == 5


def test_too_few_images_of_a_class_are_refused():
    settings = SyntheticSettings(init="rded", patches=2)
    rded.check_candidates(real([8, 9]), settings, 2)
    with pytest.raises(DataError, match=r"8 candidates of every class\. Got 7 of 'b'"):
        rded.check_candidates(real([8, 7]), settings, 2)
    with pytest.raises(DataError, match="Got 4 of"):
        rded.check_candidates(
            real([8, 8]), SyntheticSettings(init="rded", patches=2, candidates=4), 2
        )
