"""Transforms of feature maps, and moments of samples that never lay the vectors out, against slow
references.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rayd.statistics import (
    Attention,
    Channels,
    Covariance,
    Flat,
    LabelCorrelation,
    Moments,
    Normalized,
    Patches,
    Transform,
    Vectors,
    transforms,
)

CLASSES = 3
TRANSFORMS: list[Transform] = [Flat(), Channels(), Patches(1), Patches(2), Patches(4)]
SHAPES = [(2, 4, 4), (3, 4, 8), (2, 5, 3), (1, 1, 1), (2, 3, 9)]


def maps(shape: tuple[int, ...], count: int = 5, offset: float = 100.0) -> Tensor:
    return (
        torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        + offset
    )


def patch_vectors(features: Tensor, patch: int) -> Tensor:
    """One number after another: (N, s, d) of patches."""
    height, width = (patch * ((side + patch - 1) // patch) for side in features.shape[2:])
    stretched = functional.interpolate(
        features, (height, width), mode="bilinear", align_corners=False
    )
    samples, channels = features.shape[:2]
    out = []
    for n in range(samples):
        positions = [
            [
                stretched[n, c, y + i, x + j]
                for c in range(channels)
                for i in range(patch)
                for j in range(patch)
            ]
            for y in range(0, height, patch)
            for x in range(0, width, patch)
        ]
        out.append(torch.stack([torch.stack(position) for position in positions], dim=1))
    return torch.stack(out)


def test_flat_and_channels():
    features = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).reshape(2, 3, 2, 2)
    assert Flat().vectors(features).shape == (2, 1, 12)
    channels = Channels().vectors(features)
    assert channels.shape == (2, 4, 3)
    torch.testing.assert_close(channels[1, 2], features[1, :, 1, 0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches(shape, patch):
    features = maps(shape, 2)
    torch.testing.assert_close(Patches(patch).vectors(features), patch_vectors(features, patch))


def test_a_map_smaller_than_a_patch_is_one_patch():
    assert Patches(4).vectors(maps((3, 2, 3))).shape == (5, 3 * 16, 1)


@pytest.mark.parametrize("transform", [Flat(), Channels(), Patches(4)], ids=lambda one: one.key)
def test_features_without_positions_are_one_vector(transform):
    features = maps((7,))
    torch.testing.assert_close(transform.vectors(features), features.unsqueeze(1))
    assert transform.dimension((7,)) == 7
    assert transform.moments(features).size == 1


@pytest.mark.parametrize("side", [0, 2.5, "4", True])
def test_patches_need_a_size(side):
    with pytest.raises(ValueError, match="'side' of Patches must be an integer of at least 1"):
        Patches(side)


@pytest.mark.parametrize("transform", [Channels(), Patches(2), Attention(2.0), Vectors()])
def test_features_of_other_dimensions_are_refused(transform):
    """Maps without samples would be taken for samples of other maps."""
    shape = (3, 4, 4, 4, 4) if isinstance(transform, Vectors) else (3, 4, 4)
    for way in (transform.vectors, transform.moments):
        with pytest.raises(ValueError, match=rf"takes .*\(N, .* Got shape \({shape[0]}, "):
            way(torch.rand(shape))


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan"), float("inf")])
def test_powers_of_attention_are_numbers_above_0(power):
    with pytest.raises(ValueError, match="'power' of Attention must be finite and above 0"):
        Attention(power)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda one: one.key)
def test_moments_of_samples_are_those_of_their_vectors(shape, transform):
    features = maps(shape)
    laid_out = transform.vectors(features)
    mean, m2, size = transform.moments(features)
    assert size == laid_out.shape[1]
    assert mean.shape[1] == m2.shape[1] == transform.dimension(shape) == laid_out.shape[2]
    torch.testing.assert_close(mean, laid_out.mean(1), rtol=1e-14, atol=0)
    torch.testing.assert_close(
        m2, (laid_out - laid_out.mean(1, keepdim=True)).square().sum(1), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("transform", TRANSFORMS[1:], ids=lambda one: one.key)
def test_large_batches_are_worked_on_in_parts(monkeypatch, transform):
    features = maps((2, 4, 4), count=7)
    whole = transform.moments(features)
    for numbers in (1, 64, 100):
        monkeypatch.setitem(transforms._IN_CACHE, "cpu", numbers)
        parts = transform.moments(features)
        assert torch.equal(parts.mean, whole.mean)
        assert torch.equal(parts.m2, whole.m2)


def test_no_samples_have_no_moments():
    assert Patches(4).moments(maps((2, 4, 4))[:0]).mean.shape == (0, 1)


def test_moments_of_vectors_as_they_are():
    features = maps((6, 3))
    mean, m2, size = Vectors().moments(features)
    assert (size, Vectors().dimension((6, 3))) == (6, 3)
    torch.testing.assert_close(mean, features.mean(1))
    torch.testing.assert_close(m2 / size, features.var(1, unbiased=False))


@pytest.mark.parametrize(
    "transform", [*TRANSFORMS, Patches(3), Normalized(Channels())], ids=lambda one: one.key
)
def test_gradients_of_both_orders(transform):
    features = maps((2, 4, 4), 2, offset=0.5).requires_grad_()

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        samples = transform.moments(x)
        return samples.mean, samples.m2

    assert torch.autograd.gradcheck(moments, features)
    assert torch.autograd.gradgradcheck(moments, features)


def test_works_in_function_transforms():
    features = maps((2, 4, 4), 2, offset=0.0)

    def energy(x: Tensor) -> Tensor:
        return Patches(2).moments(x).m2.square().sum()

    expected = torch.autograd.grad(energy(features.requires_grad_()), features)[0]
    torch.testing.assert_close(torch.func.grad(energy)(features.detach()), expected)


@pytest.mark.parametrize("transform", [Channels(), Patches(2), Patches(3)], ids=lambda one: one.key)
def test_low_precision_is_summed_in_high(transform):
    features = maps((2, 32, 32), offset=1.0).bfloat16().requires_grad_()
    samples = transform.moments(features)
    exact = transform.moments(features.detach().double())
    assert samples.mean.dtype == samples.m2.dtype == torch.float32
    torch.testing.assert_close(samples.mean.double(), exact.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(samples.m2.double(), exact.m2, rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(samples.m2.sum(), features)[0].dtype == torch.bfloat16


def test_maps_with_the_channels_last_in_memory():
    features = maps((3, 4, 8))
    last = features.contiguous(memory_format=torch.channels_last)
    for transform in TRANSFORMS:
        for one, other in zip(transform.moments(features), transform.moments(last), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda one: one.key)
@pytest.mark.parametrize("kind", [Moments, Covariance, LabelCorrelation])
def test_statistics_of_a_transform_are_those_of_its_vectors(kind, shape, transform):
    features = maps(shape)
    labels = torch.tensor([0, 2, 0, 0, 2])
    empty = kind.empty(CLASSES, transform.dimension(shape))
    expected = empty.like(transform.vectors(features), labels).state()
    updated = empty.update(features[:2], labels[:2], transform).update(
        features[2:], labels[2:], transform
    )
    for statistic in (empty.like(features, labels, transform), updated):
        for name, tensor in statistic.state().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-9)


def test_patch_statistics_are_those_of_the_released_code():
    """G-VBSM: stretch, rearrange to (patch positions) x (batch channels height width), mean and
    biased variance.
    """
    features = maps((3, 6, 10), offset=0.0)
    stretched = functional.interpolate(features, (8, 12), mode="bilinear")
    table = stretched.reshape(5, 3, 2, 4, 3, 4).permute(2, 4, 0, 1, 3, 5).reshape(6, -1)
    moments = (
        Moments.empty(CLASSES, 6)
        .update(features, torch.tensor([0, 1, 1, 2, 0]), Patches(4))
        .pooled()
    )
    torch.testing.assert_close(moments.mean[0], table.mean(1))
    torch.testing.assert_close(moments.variance[0], table.var(1, unbiased=False))


def test_powers_of_attention_stay_in_range_in_half_precision():
    maps = torch.full((2, 3, 4, 4), 20.0)
    expected = Attention(4.0).moments(maps)
    found = Attention(4.0).moments(maps.half())
    assert torch.equal(found.mean, expected.mean)
    assert expected.mean[0, 0] == 3 * 20.0**4
