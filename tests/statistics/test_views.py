"""Views of feature maps, and moments of samples that never lay the vectors out, against slow
references.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rayd.statistics import (
    Covariance,
    LabelCorrelation,
    Moments,
    View,
    dimension,
    sample_moments,
    vectors,
    views,
)

CLASSES = 3
VIEWS: list[tuple[View, int]] = [
    ("flat", 0),
    ("channels", 0),
    ("patches", 1),
    ("patches", 2),
    ("patches", 4),
]
SHAPES = [(2, 4, 4), (3, 4, 8), (2, 5, 3), (1, 1, 1), (2, 3, 9)]


def maps(shape: tuple[int, ...], count: int = 5, offset: float = 100.0) -> Tensor:
    return (
        torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        + offset
    )


def patch_vectors(features: Tensor, patch: int) -> Tensor:
    """One number after another: (N, s, d) of the patch view."""
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
    assert vectors(features, "flat").shape == (2, 1, 12)
    channels = vectors(features, "channels")
    assert channels.shape == (2, 4, 3)
    torch.testing.assert_close(channels[1, 2], features[1, :, 1, 0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches(shape, patch):
    features = maps(shape, 2)
    torch.testing.assert_close(vectors(features, "patches", patch), patch_vectors(features, patch))


def test_a_map_smaller_than_a_patch_is_one_patch():
    assert vectors(maps((3, 2, 3)), "patches", 4).shape == (5, 3 * 16, 1)


@pytest.mark.parametrize("view", ["flat", "channels", "patches"])
def test_features_without_positions_are_one_vector(view):
    features = maps((7,))
    torch.testing.assert_close(vectors(features, view, 4), features.unsqueeze(1))
    assert dimension((7,), view, 4) == 7
    assert sample_moments(features, view, 4).size == 1


def test_patches_need_a_size():
    with pytest.raises(ValueError, match="needs a 'patch' of at least 1 pixel"):
        vectors(maps((2, 4, 4)), "patches")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("view", "patch"), VIEWS)
def test_moments_of_samples_are_those_of_their_vectors(shape, view, patch):
    features = maps(shape)
    laid_out = vectors(features, view, patch)
    mean, m2, size = sample_moments(features, view, patch)
    assert size == laid_out.shape[1]
    assert mean.shape[1] == m2.shape[1] == dimension(shape, view, patch) == laid_out.shape[2]
    torch.testing.assert_close(mean, laid_out.mean(1), rtol=1e-14, atol=0)
    torch.testing.assert_close(
        m2, (laid_out - laid_out.mean(1, keepdim=True)).square().sum(1), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("view", "patch"), VIEWS[1:])
def test_large_batches_are_worked_on_in_parts(monkeypatch, view, patch):
    features = maps((2, 4, 4), count=7)
    whole = sample_moments(features, view, patch)
    for numbers in (1, 64, 100):
        monkeypatch.setitem(views._IN_CACHE, "cpu", numbers)
        parts = sample_moments(features, view, patch)
        assert torch.equal(parts.mean, whole.mean)
        assert torch.equal(parts.m2, whole.m2)


def test_no_samples_have_no_moments():
    assert sample_moments(maps((2, 4, 4))[:0], "patches", 4).mean.shape == (0, 1)


def test_moments_of_vectors_as_they_are():
    features = maps((6, 3))
    mean, m2, size = sample_moments(features, "vectors")
    assert (size, dimension((6, 3), "vectors")) == (6, 3)
    torch.testing.assert_close(mean, features.mean(1))
    torch.testing.assert_close(m2 / size, features.var(1, unbiased=False))


@pytest.mark.parametrize(("view", "patch"), [*VIEWS, ("patches", 3)])
def test_gradients_of_both_orders(view, patch):
    features = maps((2, 4, 4), 2, offset=0.5).requires_grad_()

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        samples = sample_moments(x, view, patch)
        return samples.mean, samples.m2

    assert torch.autograd.gradcheck(moments, features)
    assert torch.autograd.gradgradcheck(moments, features)


def test_works_in_function_transforms():
    features = maps((2, 4, 4), 2, offset=0.0)

    def energy(x: Tensor) -> Tensor:
        return sample_moments(x, "patches", 2).m2.square().sum()

    expected = torch.autograd.grad(energy(features.requires_grad_()), features)[0]
    torch.testing.assert_close(torch.func.grad(energy)(features.detach()), expected)


@pytest.mark.parametrize(("view", "patch"), [("channels", 0), ("patches", 2), ("patches", 3)])
def test_low_precision_is_summed_in_high(view, patch):
    features = maps((2, 32, 32), offset=1.0).bfloat16().requires_grad_()
    samples = sample_moments(features, view, patch)
    exact = sample_moments(features.detach().double(), view, patch)
    assert samples.mean.dtype == samples.m2.dtype == torch.float32
    torch.testing.assert_close(samples.mean.double(), exact.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(samples.m2.double(), exact.m2, rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(samples.m2.sum(), features)[0].dtype == torch.bfloat16


def test_maps_with_the_channels_last_in_memory():
    features = maps((3, 4, 8))
    last = features.contiguous(memory_format=torch.channels_last)
    for view, patch in VIEWS:
        for one, other in zip(
            sample_moments(features, view, patch), sample_moments(last, view, patch), strict=True
        ):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("view", "patch"), VIEWS)
@pytest.mark.parametrize("kind", [Moments, Covariance, LabelCorrelation])
def test_statistics_of_a_view_are_those_of_its_vectors(kind, shape, view, patch):
    features = maps(shape)
    labels = torch.tensor([0, 2, 0, 0, 2])
    empty = kind.empty(CLASSES, dimension(shape, view, patch))
    expected = empty.like(vectors(features, view, patch), labels).state()
    updated = empty.update(features[:2], labels[:2], view, patch).update(
        features[2:], labels[2:], view, patch
    )
    for statistic in (empty.like(features, labels, view, patch), updated):
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
        .update(features, torch.tensor([0, 1, 1, 2, 0]), "patches", 4)
        .pooled()
    )
    torch.testing.assert_close(moments.mean[0], table.mean(1))
    torch.testing.assert_close(moments.variance[0], table.var(1, unbiased=False))
