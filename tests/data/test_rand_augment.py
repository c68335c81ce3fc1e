"""RandAugment does to every image of a batch what torchvision does to it alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import RandAugment as TorchvisionRandAugment

from rayd.data.augmentation import RandAugment
from rayd.data.augmentation.rand_augment import BINS, OPERATIONS, strength
from rayd.errors import ConfigError
from tests.draws import seeded

THEIRS = TorchvisionRandAugment()
SIGNED = [name for name, (_, signed) in THEIRS._AUGMENTATION_SPACE.items() if signed]
ON_BYTES = ("Posterize", "Solarize", "Equalize")


def images(count: int, channels: int, height: int = 24, width: int = 31) -> Tensor:
    """Whole 8-bit values in [0, 1], smooth enough to have a look of their own in every
    operation.
    """
    noise = (
        torch.rand(count, channels, height, width, generator=seeded(channels)).cumsum(2).cumsum(3)
    )
    return (noise / noise.amax((2, 3), keepdim=True) * 230 + 10).round() / 255


def alone(image: Tensor, name: str, negative: bool, magnitude: int) -> Tensor:
    """One operation on one image (C, H, W) in [0, 1], by torchvision."""
    draw, signed = THEIRS._AUGMENTATION_SPACE[name]
    strengths = draw(BINS, *image.shape[1:])
    size = 0.0 if strengths is None else float(strengths[magnitude])
    pixels = (image * 255).round().byte() if name in ON_BYTES else image
    size = -size if signed and negative else size
    done = THEIRS._apply_image_or_video_transform(
        pixels, name, size, InterpolationMode.NEAREST, {Tensor: None}
    )
    return done / 255 if name in ON_BYTES else done


def test_operations_are_those_of_torchvision() -> None:
    assert list(THEIRS._AUGMENTATION_SPACE) == list(OPERATIONS)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (331, 662)])
def test_strengths_are_those_of_torchvision(height: int, width: int) -> None:
    for name, (draw, _) in THEIRS._AUGMENTATION_SPACE.items():
        strengths = draw(BINS, height, width)
        for magnitude in range(BINS):
            theirs = 0.0 if strengths is None else float(strengths[magnitude])
            assert strength(name, magnitude, height, width) == theirs, (name, magnitude)


def test_solarize_inverts_pixels_from_the_threshold_on_at_all_magnitudes() -> None:
    """At 16, 18 and 24 the threshold is a whole pixel value that rounding would lift."""
    pixels = torch.arange(256)
    operation = torch.tensor([[OPERATIONS.index("Solarize")]])
    for magnitude in range(BINS):
        batch = (pixels / 255).view(1, 1, 16, 16)
        solarized = RandAugment(operation, torch.tensor([[False]]), magnitude)(batch)
        # in whole numbers: the threshold is 255 (30 - m) / 30
        inverted = 30 * pixels >= 255 * (30 - magnitude)
        expected = torch.where(inverted, 255 - pixels, pixels)
        assert torch.equal((solarized.flatten() * 255).round().long(), expected), magnitude


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_does_what_torchvision_does_to_each_image(name: str, channels: int) -> None:
    batch = images(4, channels)
    signs = torch.tensor([[False], [True], [False], [True]])
    operations = torch.full((4, 1), OPERATIONS.index(name))
    for magnitude in (0, 9, 10, 30):
        augmented = RandAugment(operations, signs, magnitude)(batch)
        expected = [
            alone(image, name, bool(sign), magnitude)
            for image, sign in zip(batch, signs, strict=True)
        ]
        torch.testing.assert_close(augmented, torch.stack(expected), atol=1e-6, rtol=0)
    unchanged = name == "Identity" or (name == "Color" and channels == 1)
    assert torch.equal(augmented, batch) == unchanged
    plus, minus = RandAugment(operations[:2], signs[:2], 20)(batch[:1].expand(2, -1, -1, -1))
    assert torch.equal(plus, minus) == (unchanged or name not in SIGNED)


def test_layers_act_in_order_and_images_do_not_mix() -> None:
    batch = images(60, 3)
    drawn = RandAugment.draw(seeded(3), 60, 24, 31, layers=3, magnitude=14)
    before = batch.clone()
    augmented = drawn(batch)
    assert torch.equal(batch, before)
    for n, image in enumerate(batch):
        for index, negative in zip(
            drawn.operations[n].tolist(), drawn.signs[n].tolist(), strict=True
        ):
            image = alone(image, OPERATIONS[index], negative, 14)
        torch.testing.assert_close(augmented[n], image, atol=1e-6, rtol=0)


def test_one_draw_serves_every_image() -> None:
    batch = images(3, 3)
    shared = RandAugment.draw(seeded(2), 1, 24, 31, layers=2, magnitude=9)
    torch.testing.assert_close(
        shared(batch), torch.cat([shared(image[None]) for image in batch]), atol=1e-6, rtol=0
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    channels=st.sampled_from([1, 3]),
    layers=st.integers(0, 3),
    magnitude=st.integers(0, 30),
)
def test_images_stay_images(seed: int, channels: int, layers: int, magnitude: int) -> None:
    batch = images(6, channels, 5, 4)
    augmented = RandAugment.draw(seeded(seed), 6, 5, 4, layers, magnitude)(batch)
    assert augmented.shape == batch.shape
    assert augmented.dtype == batch.dtype
    assert augmented.min() >= 0
    assert augmented.max() <= 1


def test_operations_and_signs_are_drawn_uniformly_and_independently() -> None:
    drawn = RandAugment.draw(seeded(0), 7000, 8, 8, layers=2, magnitude=9)
    assert drawn.operations.shape == drawn.signs.shape == (7000, 2)
    for layer in range(2):
        times = Counter(drawn.operations[:, layer].tolist())
        assert sorted(times) == list(range(len(OPERATIONS)))
        assert all(400 < count < 600 for count in times.values())
    assert drawn.signs.double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (
        drawn.operations[:, 0] == drawn.operations[:, 1]
    ).double().mean().item() == pytest.approx(1 / 14, abs=0.015)
    assert (drawn.signs[:, 0] == drawn.signs[:, 1]).double().mean().item() == pytest.approx(
        0.5, abs=0.03
    )


def test_a_draw_depends_on_its_generator_alone() -> None:
    batch = images(8, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = RandAugment.draw(seeded(5), 8, 24, 31)(batch)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        assert torch.equal(RandAugment.draw(seeded(5), 8, 24, 31)(batch), first)
    assert not torch.equal(RandAugment.draw(seeded(6), 8, 24, 31)(batch), first)


def test_images_that_need_a_gradient_are_refused() -> None:
    batch = images(2, 3).requires_grad_()
    drawn = RandAugment.draw(seeded(0), 2, 24, 31)
    with pytest.raises(ConfigError, match="RandAugment has no gradient"):
        drawn(batch)
    with torch.no_grad():
        assert not drawn(batch).requires_grad
