"""Transforms are their parts in order, and come back from their state byte for byte; so do
mixes.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from rayd.config import TransformSettings
from rayd.data import Normalization, Standardization, Whitening
from rayd.data.augmentation import (
    CutMix,
    MixUp,
    Transform,
    draw_mix,
    draw_transform,
    mix_from_state,
)
from rayd.errors import ConfigError, DataError
from tests.data.files import some_images
from tests.draws import seeded

FITTED = [Standardization.fit(some_images(50, side=8)), Whitening.fit(some_images(50, side=8))]
ALL = TransformSettings(rand_augment=2, magnitude=9, crop=(0.08, 1.0), shift=2, flip=True, roll=3)
PARTS = {
    "rand_augment": TransformSettings(rand_augment=1),
    "crop": TransformSettings(crop=(0.3, 0.6)),
    "shift": TransformSettings(shift=2),
    "flip": TransformSettings(flip=True),
    "roll": TransformSettings(roll=2),
}


def inputs(normalization: Normalization = FITTED[0], count: int = 6) -> Tensor:
    return normalization(torch.from_numpy(some_images(count, side=8)))


def drawn_for(
    batch: Tensor, settings: TransformSettings, seed: int = 0, least: float | None = None
) -> Transform:
    count, _, height, width = batch.shape
    return draw_transform(settings, seeded(seed), count, height, width, least)


def test_nothing_is_drawn_or_done_with_all_parts_off() -> None:
    batch = inputs()
    generator = seeded(0)
    before = generator.get_state()
    transform = draw_transform(TransformSettings(), generator, 6, 8, 8, least=0.5)
    assert torch.equal(generator.get_state(), before)
    assert transform(batch) is batch
    assert transform.state() == {}


@pytest.mark.parametrize("name", PARTS)
def test_a_setting_turns_on_its_own_part(name: str) -> None:
    batch = inputs()
    transform = drawn_for(batch, PARTS[name])
    assert [
        field.name for field in fields(transform) if getattr(transform, field.name) is not None
    ] == [name]
    assert not torch.equal(transform(batch, FITTED[0]), batch)
    assert {key.split(".")[0] for key in transform.state()} == {name}


def test_settings_say_how_strong_the_parts_are() -> None:
    transform = draw_transform(
        ALL.model_copy(update={"magnitude": 17, "rand_augment": 3}), seeded(0), 400, 32, 32
    )
    assert transform.rand_augment is not None
    assert (transform.rand_augment.magnitude, transform.rand_augment.operations.shape) == (
        17,
        (400, 3),
    )
    assert transform.shift is not None
    assert transform.shift.shifts.unique().tolist() == list(range(-2, 3))
    rolls = [draw_transform(ALL, seeded(seed), 1, 32, 32).roll for seed in range(60)]
    assert {offset for roll in rolls if roll for offset in roll.shift} == set(range(-3, 4))


def test_parts_act_in_the_order_of_the_settings() -> None:
    batch = inputs()
    settings = TransformSettings(crop=(0.3, 0.6), shift=2, flip=True, roll=3)
    assert (
        tuple(TransformSettings.model_fields)[2:]
        == tuple(field.name for field in fields(Transform))[1:]
    )
    transform = drawn_for(batch, settings, seed=2)
    expected = batch
    for part in (transform.crop, transform.shift, transform.flip, transform.roll):
        assert part is not None
        expected = part(expected)
    assert torch.equal(transform(batch), expected)


@pytest.mark.parametrize("fitted", FITTED)
def test_rand_augment_acts_on_pixels(fitted: Normalization) -> None:
    batch = inputs(fitted)
    transform = drawn_for(batch, TransformSettings(rand_augment=2, flip=True))
    assert transform.rand_augment is not None
    assert transform.flip is not None
    pixels = transform.rand_augment(torch.from_numpy(some_images(6, side=8)) / 255)
    torch.testing.assert_close(
        transform(batch, fitted), transform.flip(fitted.forward_unit(pixels)), atol=2e-4, rtol=1e-3
    )


def test_rand_augment_first_clamps_to_the_range_of_pixels() -> None:
    batch = 40 * inputs()
    transform = drawn_for(batch, TransformSettings(rand_augment=1))
    pixels = FITTED[0].inverse(transform(batch, FITTED[0]))
    assert -1e-5 <= pixels.min() <= pixels.max() <= 1 + 1e-5


def test_rand_augment_needs_a_normalisation_and_no_gradient() -> None:
    batch = inputs()
    transform = drawn_for(batch, ALL)
    with pytest.raises(DataError, match="needs the normalisation"):
        transform(batch)
    with pytest.raises(ConfigError, match="has no gradient"):
        transform(batch.requires_grad_(), FITTED[0])


def test_the_other_parts_are_differentiable() -> None:
    batch = torch.randn(2, 1, 5, 4, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        drawn_for(batch, ALL.model_copy(update={"rand_augment": 0})), batch
    )


def test_a_view_drawn_for_one_image_is_shared_by_all() -> None:
    same = inputs(count=1).expand(5, -1, -1, -1).contiguous()
    settings = ALL.model_copy(update={"rand_augment": 0})
    for seed in range(10):
        seen = draw_transform(settings, seeded(seed), 1, 8, 8)(same)
        alone = draw_transform(settings, seeded(seed), 1, 8, 8)(same[:1])
        torch.testing.assert_close(seen, alone.expand_as(seen))
    own = draw_transform(settings, seeded(0), 5, 8, 8)(same)
    assert not torch.equal(own[0], own[1])


def test_a_curriculum_raises_the_least_crop() -> None:
    settings = TransformSettings(crop=(0.08, 0.9))
    for least, bounds in ((None, (0.08, 0.9)), (0.5, (0.5, 0.9)), (1.0, (0.9, 0.9))):
        crop = draw_transform(settings, seeded(0), 500, 100, 100, least).crop
        assert crop is not None
        shares = crop.boxes[:, 2:].double().prod(1) / 100**2
        fits = shares < 1  # the whole image where no box fits
        assert shares[fits].min() == pytest.approx(bounds[0], abs=0.02)
        assert shares[fits].max() == pytest.approx(bounds[1], abs=0.02)


def test_a_curriculum_starts_with_the_whole_image() -> None:
    batch = inputs()
    torch.testing.assert_close(
        drawn_for(batch, TransformSettings(crop=(0.08, 1.0)), least=1.0)(batch), batch
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    on=st.builds(
        TransformSettings,
        rand_augment=st.integers(0, 3),
        magnitude=st.integers(0, 30),
        crop=st.sampled_from([None, (0.08, 1.0), (0.5, 0.5)]),
        shift=st.integers(0, 5),
        flip=st.booleans(),
        roll=st.integers(0, 5),
    ),
    mix=st.sampled_from(["none", "cutmix", "mixup"]),
)
def test_a_stored_view_and_mix_are_replayed_byte_for_byte(
    seed: int, on: TransformSettings, mix: str
) -> None:
    batch = inputs()
    generator = seeded(seed)
    transform = draw_transform(on, generator, *(len(batch), *batch.shape[2:]))
    drawn = draw_mix(mix, generator, len(batch), *batch.shape[2:], concentration=0.8)  # type: ignore[arg-type]
    stored = load(save(transform.state() | (drawn.state() if drawn else {})))
    again, remixed = Transform.from_state(stored, tuple(batch.shape[2:])), mix_from_state(stored)  # type: ignore[arg-type]
    seen = transform(batch, FITTED[0])
    assert torch.equal(again(batch, FITTED[0]), seen)
    assert again.state().keys() == transform.state().keys()
    for name, value in transform.state().items():
        assert torch.equal(again.state()[name], value)
        assert again.state()[name].dtype == value.dtype
    if drawn is None:
        assert remixed is None
    else:
        assert type(remixed) is type(drawn)
        mixed, permutation, kept = drawn(seen)
        remade, partners, share = remixed(seen)  # type: ignore[misc]
        assert torch.equal(remade, mixed)
        assert torch.equal(partners, permutation)
        assert share == kept


def test_states_are_compact() -> None:
    batch = inputs(count=6)
    state = drawn_for(batch, ALL).state()
    assert (
        sum(value.nbytes for value in state.values()) == 6 * (2 * 2 + 4 * 2 + 2 * 2 + 1) + 1 + 2 * 2
    )
    assert {
        name: value.dtype for name, value in CutMix.draw(seeded(0), 6, 8, 8).state().items()
    } == {
        "mix.permutation": torch.int32,
        "mix.box": torch.int16,
    }
    assert MixUp.draw(seeded(0), 6, 8, 8).state()["mix.kept"].dtype == torch.float64


def test_boxes_and_shifts_of_large_images_survive() -> None:
    transform = draw_transform(
        TransformSettings(crop=(0.08, 1.0), shift=400), seeded(0), 50, 900, 1200
    )
    again = Transform.from_state(transform.state(), (900, 1200))
    assert transform.crop is not None
    assert again.crop is not None
    assert torch.equal(again.crop.boxes, transform.crop.boxes)
    assert again.crop.size == (900, 1200)
    assert transform.shift is not None
    assert again.shift is not None
    assert torch.equal(again.shift.shifts, transform.shift.shifts)


def test_mixes_are_drawn_by_name() -> None:
    generator = seeded(3)
    before = generator.get_state()
    assert draw_mix("none", generator, 4, 8, 8, 1.0) is None
    assert torch.equal(generator.get_state(), before)
    # so high a concentration brings all shares near 1/2
    boxes = [draw_mix("cutmix", generator, 4, 64, 64, 500.0) for _ in range(20)]
    assert all(isinstance(mix, CutMix) and max(mix.box[2:]) <= 49 for mix in boxes)
    blends = [draw_mix("mixup", generator, 4, 64, 64, 500.0) for _ in range(20)]
    assert all(isinstance(mix, MixUp) and abs(mix.kept - 0.5) < 0.1 for mix in blends)
