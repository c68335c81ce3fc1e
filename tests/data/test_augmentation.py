"""Augmentations against slow references, and the laws of their draws."""

from __future__ import annotations

from collections import Counter
from math import cos, floor, sin

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from rayd.config import DSA_STRATEGY
from rayd.data.augmentation import (
    DSA,
    Color,
    Crop,
    CutMix,
    Cutout,
    Flip,
    MixUp,
    Operation,
    ResizedCrop,
    Roll,
    Rotate,
    Scale,
    augmentation,
    cutmix,
    mixup,
    resized_crop,
)
from rayd.errors import ConfigError
from tests.draws import seeded

OPERATIONS = DSA_STRATEGY.split("_")
SQUARE = (4, 3, 8, 8)
OBLONG = (4, 3, 6, 9)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def pixel(image: Tensor, channel: int, y: int, x: int) -> float:
    """A pixel, 0 outside the image."""
    _, height, width = image.shape
    return image[channel, y, x].item() if 0 <= y < height and 0 <= x < width else 0.0


def bilinear(image: Tensor, channel: int, y: float, x: float) -> float:
    top = floor(y)
    left = floor(x)
    wy = y - top
    wx = x - left
    return (
        (1 - wy) * (1 - wx) * pixel(image, channel, top, left)
        + (1 - wy) * wx * pixel(image, channel, top, left + 1)
        + wy * (1 - wx) * pixel(image, channel, top + 1, left)
        + wy * wx * pixel(image, channel, top + 1, left + 1)
    )


def affine(image: Tensor, xx: float, xy: float, yx: float, yy: float) -> Tensor:
    """Sample at offsets (xx dx + xy dy, yx dx + yy dy) from the centre, where (dx, dy) are a
    pixel's own offsets.
    """
    channels, height, width = image.shape
    out = torch.empty_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                dy = i - (height - 1) / 2
                dx = j - (width - 1) / 2
                out[c, i, j] = bilinear(
                    image,
                    c,
                    yx * dx + yy * dy + (height - 1) / 2,
                    xx * dx + xy * dy + (width - 1) / 2,
                )
    return out


def slow_flip(image: Tensor, drawn: Flip, n: int) -> Tensor:
    return torch.stack(image.unbind(2)[::-1], dim=2) if drawn.mask[n] else image


def slow_scale(image: Tensor, drawn: Scale, n: int) -> Tensor:
    return affine(image, drawn.factors[n, 0].item(), 0, 0, drawn.factors[n, 1].item())


def slow_rotate(image: Tensor, drawn: Rotate, n: int) -> Tensor:
    angle = drawn.angles[n].item()
    return affine(image, cos(angle), -sin(angle), sin(angle), cos(angle))


def slow_crop(image: Tensor, drawn: Crop, n: int) -> Tensor:
    dy, dx = drawn.shifts[n].tolist()
    out = torch.empty_like(image)
    for c, i, j in torch.cartesian_prod(*(torch.arange(side) for side in image.shape)).tolist():
        out[c, i, j] = pixel(image, c, i + dy, j + dx)
    return out


def slow_cutout(image: Tensor, drawn: Cutout, n: int) -> Tensor:
    out = image.clone()
    (y, x) = drawn.centers[n].tolist()
    (height, width) = drawn.size
    for i in range(height):
        for j in range(width):
            row = min(max(y + i - height // 2, 0), image.shape[1] - 1)
            column = min(max(x + j - width // 2, 0), image.shape[2] - 1)
            out[:, row, column] = 0
    return out


def slow_color(image: Tensor, drawn: Color, n: int) -> Tensor:
    image = image + drawn.offsets[n].double()
    grey = sum(image.unbind(0)) / len(image)
    image = (image - grey) * drawn.saturations[n].double() + grey
    mean = image.sum() / image.numel()
    return (image - mean) * drawn.contrasts[n].double() + mean


REFERENCES = {
    "flip": (Flip, slow_flip),
    "scale": (Scale, slow_scale),
    "rotate": (Rotate, slow_rotate),
    "crop": (Crop, slow_crop),
    "cutout": (Cutout, slow_cutout),
    "color": (Color, slow_color),
}


@pytest.mark.parametrize("shape", [SQUARE, OBLONG])
@pytest.mark.parametrize("name", REFERENCES)
def test_operations_equal_their_slow_references(
    name: str, shape: tuple[int, int, int, int]
) -> None:
    operation, slow = REFERENCES[name]
    batch = images(*shape)
    drawn = operation.draw(seeded(1), *(shape[0], *shape[2:]))
    expected = torch.stack([slow(image, drawn, n) for n, image in enumerate(batch)])
    torch.testing.assert_close(drawn(batch), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(drawn(batch.float()), expected.float(), atol=1e-4, rtol=1e-4)
    assert not torch.equal(expected, batch)


@pytest.mark.parametrize("name", REFERENCES)
def test_one_draw_serves_every_image(name: str) -> None:
    operation, slow = REFERENCES[name]
    batch = images(*SQUARE)
    shared = operation.draw(seeded(4), 1, *SQUARE[2:])
    expected = torch.stack([slow(image, shared, 0) for image in batch])
    torch.testing.assert_close(shared(batch), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "neutral",
    [
        Flip(torch.tensor([False])),
        Crop(torch.tensor([[0, 0]])),
        Cutout(torch.tensor([[3, 3]]), (0, 0)),
        Scale(torch.ones(1, 2)),
        Rotate(torch.zeros(1)),
        Color(torch.zeros(1), torch.ones(1), torch.ones(1)),
        Roll((0, 0)),
        ResizedCrop(torch.tensor([[0, 0, 6, 9]]), (6, 9)),
    ],
    ids=lambda neutral: type(neutral).__name__,
)
def test_neutral_parameters_change_nothing(neutral: Operation) -> None:
    batch = images(*OBLONG)
    torch.testing.assert_close(neutral(batch), batch)


def test_one_mask_mirrors_every_image() -> None:
    batch = images(*SQUARE)
    assert torch.equal(Flip(torch.tensor([True]))(batch), batch.flip(3))
    assert torch.equal(Flip(torch.tensor([True, False, False, True]))(batch)[1:3], batch[1:3])


def test_a_scale_above_one_shrinks_the_content() -> None:
    batch = torch.ones(1, 1, 8, 8)
    assert Scale(torch.tensor([[1.2, 1.0]]))(batch)[0, 0, 4].tolist() == pytest.approx(
        [0.3, 1, 1, 1, 1, 1, 1, 0.3], abs=1e-5
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_of_operations(name: str) -> None:
    batch = images(2, 2, 4, 5).requires_grad_()
    drawn = REFERENCES[name][0].draw(seeded(2), 2, 4, 5)
    assert torch.autograd.gradcheck(drawn, batch)


def test_gradients_of_crops_and_mixtures() -> None:
    batch = images(2, 2, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(ResizedCrop.draw(seeded(0), 2, 5, 4, size=(3, 3)), batch)
    assert torch.autograd.gradcheck(lambda x: CutMix.draw(seeded(0), 2, 5, 4)(x)[0], batch)
    assert torch.autograd.gradcheck(lambda x: MixUp.draw(seeded(0), 2, 5, 4)(x)[0], batch)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    operations=st.lists(st.sampled_from(OPERATIONS), unique=True, min_size=1),
    mode=st.sampled_from(["single", "all"]),
    count=st.integers(1, 5),
)
def test_siamese_batches_of_any_size_are_augmented_alike(
    seed: int, operations: list[str], mode: str, count: int
) -> None:
    dsa = DSA("_".join(operations), mode)  # type: ignore[arg-type]
    batch = images(6, 3, 8, 8)
    generator = seeded(seed)
    other = seeded(seed)
    whole = dsa(batch, generator, siamese=True)
    part = dsa(batch[:count], other, siamese=True)
    torch.testing.assert_close(whole[:count], part)
    assert torch.equal(generator.get_state(), other.get_state())


def test_only_siamese_calls_share_parameters() -> None:
    batch = images(1, 3, 8, 8).expand(8, -1, -1, -1)
    for name in OPERATIONS:
        alike = DSA(name)(batch, seeded(0), siamese=True)
        torch.testing.assert_close(alike, alike[:1].expand_as(alike))
        assert not torch.equal(DSA(name)(batch, seeded(0)), alike)


def test_single_draws_one_operation_a_batch_uniformly() -> None:
    dsa = DSA(DSA_STRATEGY)
    generator = seeded(0)
    drawn = [dsa.draw(generator, 1, 8, 8) for _ in range(1200)]
    assert all(len(operations) == 1 for operations in drawn)
    kinds = Counter(type(operations[0]).__name__ for operations in drawn)
    assert len(kinds) == 6
    assert all(150 < times < 250 for times in kinds.values())


def test_operations_joined_by_plus_are_drawn_together() -> None:
    ncfm = augmentation("color+crop+cutout")
    for seed in range(20):
        drawn = ncfm.draw(seeded(seed), 1, 8, 8)
        assert [type(operation) for operation in drawn] == [Color, Crop, Cutout]
    student = augmentation("flip+color+crop_flip+color+scale_flip+color+rotate")
    generator = seeded(0)
    last = []
    for _ in range(1200):
        flip, color, geometric = student.draw(generator, 5, 8, 8)
        assert (type(flip), type(color)) == (Flip, Color)
        last.append(type(geometric))
    for kind in (Crop, Scale, Rotate):
        assert last.count(kind) == pytest.approx(400, abs=60)


def test_all_applies_every_operation_in_the_strategys_order() -> None:
    batch = images(*SQUARE)
    dsa = DSA("rotate_color_flip", mode="all")
    drawn = dsa.draw(seeded(3), len(batch), 8, 8)
    assert [type(operation) for operation in drawn] == [Rotate, Color, Flip]
    rotate, color, flip = drawn
    assert torch.equal(dsa(batch, seeded(3)), flip(color(rotate(batch))))


@pytest.mark.parametrize("strategy", [None, ""])
def test_no_strategy_is_the_identity(strategy: str | None) -> None:
    batch = images(*SQUARE)
    generator = seeded(0)
    before = generator.get_state()
    assert augmentation(strategy)(batch, generator) is batch
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        (
            "colour_crop",
            "Unknown operation 'colour' in augmentation 'colour_crop'; did you mean 'color'?",
        ),
        ("crop__flip", "Unknown operation ''"),
        ("flip_crop_flip", "must name each operation once. Got 'flip' twice instead."),
        ("flip_crop+flip+crop", "must name each operation once. Got 'crop' twice instead."),
        ("flip+crop_flip+crop", "Got 'flip+crop' twice instead."),
    ],
)
def test_bad_strategies_get_one_sentence(strategy: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        augmentation(strategy)
    assert sentence in str(error.value)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    batch = images(*SQUARE)
    draws = [
        lambda: DSA(DSA_STRATEGY, mode="all")(batch, seeded(5)),
        lambda: ResizedCrop.draw(seeded(5), 4, 8, 8)(batch),
        lambda: Roll.draw(seeded(5), 4, 8, 8, limit=3)(batch),
        lambda: CutMix.draw(seeded(5), 4, 8, 8)(batch)[0],
        lambda: MixUp.draw(seeded(5), 4, 8, 8)(batch)[0],
    ]
    with torch.random.fork_rng(devices=[]):
        for draw in draws:
            torch.manual_seed(0)
            before = torch.get_rng_state()
            first = draw()
            assert torch.equal(torch.get_rng_state(), before)
            torch.manual_seed(1)
            assert torch.equal(draw(), first)


def test_half_precision_images_are_sampled_at_exact_places() -> None:
    batch = images(2, 3, 32, 32)
    for operation in (Scale, Rotate, ResizedCrop):
        drawn = operation.draw(seeded(0), 2, 32, 32)
        half = drawn(batch.bfloat16())
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(
            half.double(), drawn(batch.bfloat16().double()), atol=0.02, rtol=0.01
        )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), height=st.integers(4, 40), width=st.integers(4, 40))
def test_draws_stay_within_their_bounds(seed: int, height: int, width: int) -> None:
    generator = seeded(seed)
    size = (generator, 16, height, width)
    crop = Crop.draw(*size)
    cutout = Cutout.draw(*size)
    scale = Scale.draw(*size)
    rotate = Rotate.draw(*size)
    color = Color.draw(*size)
    for axis, side in enumerate((height, width)):
        assert crop.shifts[:, axis].abs().max() <= int(side / 8 + 0.5)
        length = cutout.size[axis]
        assert length == int(side / 2 + 0.5)
        assert cutout.centers[:, axis].min() >= 0
        assert cutout.centers[:, axis].max() <= side - length % 2
    assert scale.factors.min() >= 1 / 1.2 - 1e-6
    assert scale.factors.max() <= 1.2 + 1e-6
    assert rotate.angles.abs().max() <= torch.pi / 12 + 1e-6
    assert color.offsets.abs().max() <= 0.5
    assert 0 <= color.saturations.min() <= color.saturations.max() <= 2
    assert 0.5 <= color.contrasts.min() <= color.contrasts.max() <= 1.5


def test_draws_fill_their_bounds_at_32_pixels() -> None:
    size = (seeded(0), 4000, 32, 32)
    assert Crop.draw(*size).shifts.unique().tolist() == list(range(-4, 5))
    cutout = Cutout.draw(*size)
    assert cutout.size == (16, 16)
    assert cutout.centers.unique().tolist() == list(range(33))
    assert Flip.draw(*size).mask.double().mean().item() == pytest.approx(0.5, abs=0.04)
    factors = Scale.draw(*size).factors
    angles = Rotate.draw(*size).angles
    assert factors.mean().item() == pytest.approx((1.2 + 1 / 1.2) / 2, abs=0.01)
    assert torch.corrcoef(factors.T)[0, 1].abs() < 0.06
    assert angles.rad2deg().std().item() == pytest.approx(30 / 12**0.5, rel=0.05)


def test_a_crop_can_be_drawn_by_whole_pixels() -> None:
    shifts = Crop.draw(seeded(0), 2000, 32, 20, pixels=3).shifts
    assert [axis.unique().tolist() for axis in shifts.unbind(1)] == [list(range(-3, 4))] * 2


def test_a_roll_moves_the_whole_batch_around_the_border() -> None:
    batch = images(*OBLONG)
    rolled = Roll((2, -1))(batch)
    for y, x in torch.cartesian_prod(torch.arange(6), torch.arange(9)).tolist():
        assert torch.equal(rolled[:, :, (y + 2) % 6, (x - 1) % 9], batch[:, :, y, x])
    assert torch.autograd.gradcheck(Roll((2, -1)), images(1, 1, 3, 4).requires_grad_())


def test_a_roll_fills_its_limit_uniformly_and_alike_for_any_batch() -> None:
    generator = seeded(0)
    drawn = [Roll.draw(generator, 1, 8, 8, limit=2).shift for _ in range(1000)]
    for axis in range(2):
        times = Counter(shift[axis] for shift in drawn)
        assert sorted(times) == [-2, -1, 0, 1, 2]
        assert all(150 < count < 250 for count in times.values())
    assert (
        Roll.draw(seeded(1), 5, 8, 8, limit=4).shift
        == Roll.draw(seeded(1), 50, 8, 8, limit=4).shift
    )


def test_resized_crops_equal_interpolation_of_each_box() -> None:
    batch = images(5, 2, 11, 7)
    for size in ((11, 7), (4, 9)):
        drawn = ResizedCrop.draw(seeded(1), 5, 11, 7, size=size)
        expected = [
            interpolate(
                image[None, :, top : top + height, left : left + width],
                size,
                mode="bilinear",
                align_corners=False,
            )
            for image, (top, left, height, width) in zip(batch, drawn.boxes.tolist(), strict=True)
        ]
        torch.testing.assert_close(drawn(batch), torch.cat(expected))
    shared = resized_crop(batch, torch.tensor([[2, 1, 5, 3]]), (6, 6))
    torch.testing.assert_close(
        shared, interpolate(batch[:, :, 2:7, 1:4], (6, 6), mode="bilinear", align_corners=False)
    )


@pytest.mark.parametrize(
    ("height", "width", "ratio"),
    [(32, 32, (3 / 4, 4 / 3)), (60, 16, (3 / 4, 4 / 3)), (16, 60, (1.0, 1.0))],
)
def test_boxes_follow_torchvisions_rule(
    height: int, width: int, ratio: tuple[float, float]
) -> None:
    boxes = ResizedCrop.draw(seeded(0), 1500, height, width, ratio=ratio).boxes.double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blank = torch.empty(1, height, width)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(blank, [0.08, 1.0], list(ratio)) for _ in range(1500)]
        ).double()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor([height, width])).all()
    deviation = (boxes.var(0) / 1500 + theirs.var(0) / 1500).sqrt()
    assert ((boxes.mean(0) - theirs.mean(0)).abs() <= 4 * deviation).all()
    torch.testing.assert_close(boxes.std(0), theirs.std(0), rtol=0.12, atol=0.3)


def test_an_image_too_narrow_for_any_box_gives_the_largest_that_fits() -> None:
    drawn = ResizedCrop.draw(seeded(0), 3, 40, 4, area=(1.0, 1.0))
    assert drawn.boxes.tolist() == [[17, 0, 5, 4]] * 3
    drawn = ResizedCrop.draw(seeded(0), 3, 4, 40, area=(1.0, 1.0))
    assert drawn.boxes.tolist() == [[0, 17, 4, 5]] * 3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), height=st.integers(2, 12), width=st.integers(2, 12))
def test_cutmix_keeps_exactly_the_share_it_says(seed: int, height: int, width: int) -> None:
    batch = torch.arange(4.0)[:, None, None, None].expand(4, 3, height, width)
    drawn = CutMix.draw(seeded(seed), 4, height, width)
    mixed, permutation, kept = drawn(batch)
    assert sorted(permutation.tolist()) == [0, 1, 2, 3]
    for n, partner in enumerate(permutation.tolist()):
        assert set(mixed[n].unique().tolist()) <= {float(n), float(partner)}
        if partner != n:
            assert (mixed[n] == n).double().mean().item() == pytest.approx(kept)
    again, _, _ = cutmix(batch, permutation, drawn.box)
    assert torch.equal(again, mixed)


def test_mixtures_draw_from_their_beta() -> None:
    generator = seeded(0)
    kept = torch.tensor(
        [MixUp.draw(generator, 2, 4, 4, concentration=0.8).kept for _ in range(800)]
    )
    assert kept.mean().item() == pytest.approx(0.5, abs=0.05)
    assert kept.var().item() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.15)


def test_mixup_blends_with_the_partner() -> None:
    batch = images(2, 1, 2, 2)
    mixed, permutation, kept = mixup(batch, torch.tensor([1, 0]), 0.25)
    torch.testing.assert_close(mixed[0], 0.25 * batch[0] + 0.75 * batch[1])
    assert (permutation.tolist(), kept) == ([1, 0], 0.25)
