"""Normalisations are the affine maps that their formulas say, and undo themselves."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rayd.data import (
    Normalization,
    Standardization,
    Whitening,
    fit_normalization,
    normalization,
    restore,
)
from rayd.data.normalization import ScaledWhitening
from rayd.errors import ConfigError, DataError
from tests.data.files import some_images

FITTED = [
    Standardization.fit(some_images(50)),
    Whitening.fit(some_images(50)),
    ScaledWhitening.fit(some_images(50)),
]
shapes = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


def smooth_images(count: int) -> np.ndarray:
    """Images whose neighbouring pixels are correlated, as natural ones are."""
    noise = np.random.default_rng(3).normal(size=(count, 2, 4, 4)).cumsum(2).cumsum(3)
    return np.clip(128 + 20 * noise, 0, 255).astype(np.uint8)


def reference_transform(images: np.ndarray, epsilon: float) -> np.ndarray:
    """The whitening matrix by its formula, in float64."""
    flat = images.reshape(len(images), -1) / 255
    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    return vectors @ np.diag((values + epsilon) ** -0.5) @ vectors.T


@given(hnp.arrays(np.uint8, shapes))
def test_standardization_is_fitted_on_all_pixels_of_a_channel(images: np.ndarray) -> None:
    fitted = Standardization.fit(images)
    pixels = images.transpose(1, 0, 2, 3).reshape(images.shape[1], -1) / 255
    std = pixels.std(1)
    np.testing.assert_allclose(fitted.mean, pixels.mean(1), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(fitted.std, np.where(np.ptp(pixels, 1) == 0, 1, std), rtol=1e-9)


def test_standardized_training_pixels_have_mean_0_and_standard_deviation_1() -> None:
    images = some_images(50)
    output = FITTED[0](torch.from_numpy(images))
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        output.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0
    )


def test_a_channel_without_variance_gets_standard_deviation_1() -> None:
    images = some_images(5)
    images[:, 1] = 7
    fitted = Standardization.fit(images)
    assert fitted.std[1] == 1
    assert (fitted(torch.from_numpy(images))[:, 1].abs() < 1e-6).all()


def test_a_fit_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = some_images(700, side=3)
    whole = Standardization.fit(images).fingerprint, Whitening.fit(images[:200]).fingerprint
    chunks = normalization._chunks
    monkeypatch.setattr(normalization, "_chunks", lambda images, values: chunks(images, 100))
    assert (
        Standardization.fit(images).fingerprint,
        Whitening.fit(images[:200]).fingerprint,
    ) == whole


def test_whitening_matrix_is_that_of_the_formula() -> None:
    images = smooth_images(300)
    fitted = Whitening.fit(images, epsilon=0.1)
    np.testing.assert_allclose(
        fitted.transform, reference_transform(images, 0.1), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(fitted.mean, images.mean(0) / 255, rtol=0, atol=1e-6)


def test_whitened_training_images_have_the_covariance_that_epsilon_leaves() -> None:
    images = smooth_images(300)
    for epsilon in (0.1, 1e-6):
        whitened = Whitening.fit(images, epsilon)(torch.from_numpy(images)).flatten(1).double()
        values, vectors = np.linalg.eigh(np.cov(images.reshape(300, -1) / 255, rowvar=False))
        expected = vectors @ np.diag(values / (values + epsilon)) @ vectors.T
        np.testing.assert_allclose(np.cov(whitened, rowvar=False), expected, rtol=0, atol=2e-3)


def test_scaled_whitening_standardises_channels_and_has_a_relative_ridge() -> None:
    images = smooth_images(300)
    images[:, 1] = images[:, 1] // 3  # channels of different spread
    pixels = images.astype(np.float64) / 255
    std = pixels.std((0, 2, 3), keepdims=True)
    flat = (pixels / std).reshape(300, -1)
    flat = flat - flat.mean(0)
    covariance = flat.T @ flat / 299
    values, vectors = np.linalg.eigh(covariance)
    ridge = 0.1 * np.trace(covariance) / len(covariance)
    expected = flat @ vectors @ np.diag((values + ridge) ** -0.5) @ vectors.T
    whitened = ScaledWhitening.fit(images)(torch.from_numpy(images)).flatten(1)
    np.testing.assert_allclose(whitened, expected, rtol=0, atol=1e-4)


@settings(deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.just(3), st.just(4), st.just(4))))
def test_inverse_gives_the_pixels_back(images: np.ndarray) -> None:
    for fitted in FITTED:
        back = fitted.inverse(fitted(torch.from_numpy(images)))
        torch.testing.assert_close(back, torch.from_numpy(images) / 255, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fitted", FITTED, ids=lambda fitted: fitted.kind)
def test_inverse_does_not_clamp_and_can_be_differentiated(fitted: Normalization) -> None:
    inputs = torch.full((1, 3, 4, 4), 50.0, requires_grad=True)
    pixels = fitted.inverse(inputs)
    assert pixels.max() > 1
    pixels.sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.abs().sum() > 0


@pytest.mark.parametrize("fitted", FITTED)
def test_images_in_unit_range_are_normalized_as_pixels_are(fitted: Normalization) -> None:
    pixels = torch.from_numpy(some_images(4))
    inputs = fitted.forward_unit(pixels / 255)
    torch.testing.assert_close(inputs, fitted(pixels), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        fitted.forward_unit(fitted.inverse(inputs)), inputs, atol=1e-4, rtol=1e-4
    )
    unit = (pixels / 255).requires_grad_()
    fitted.forward_unit(unit).square().sum().backward()
    assert unit.grad is not None
    assert unit.grad.abs().max() > 0


@pytest.mark.parametrize("fitted", FITTED, ids=lambda fitted: fitted.kind)
def test_bytes_are_no_images_in_unit_range(fitted: Normalization) -> None:
    with pytest.raises(DataError, match=r"takes floating-point images.*Got uint8"):
        fitted.forward_unit(torch.from_numpy(some_images(4)))


@pytest.mark.parametrize("fitted", FITTED, ids=lambda fitted: fitted.kind)
def test_stored_and_pickled_copies_are_the_same(fitted: Normalization) -> None:
    images = torch.from_numpy(some_images(3, seed=5))
    output = fitted(images)
    for copy in (restore(fitted.kind, fitted.state()), pickle.loads(pickle.dumps(fitted))):
        assert torch.equal(copy(images), output)
        assert copy.fingerprint == fitted.fingerprint


def test_a_pickle_does_not_carry_device_constants() -> None:
    fitted = Standardization.fit(some_images(3))
    fresh = len(pickle.dumps(fitted))
    fitted(torch.from_numpy(some_images(1)))
    assert len(pickle.dumps(fitted)) == fresh


def test_fingerprints_tell_normalizations_apart() -> None:
    made = [
        *FITTED,
        Standardization.fit(some_images(50, seed=1)),
        Whitening.fit(some_images(50), epsilon=0.2),
    ]
    assert len({one.fingerprint for one in made}) == 5


@pytest.mark.parametrize("fitted", FITTED, ids=lambda fitted: fitted.kind)
def test_only_uint8_images_of_the_fitted_shape_are_normalized(fitted: Normalization) -> None:
    with pytest.raises(DataError, match=r"must be uint8 \(N, 3, .*Got torch.float32"):
        fitted(torch.zeros(1, 3, 4, 4))
    with pytest.raises(DataError, match=r"Got torch.uint8 \(1, 1, 4, 4\)"):
        fitted(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


def test_standardization_serves_other_sizes_but_whitening_does_not() -> None:
    larger = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert FITTED[0](larger).shape == (1, 3, 8, 8)
    with pytest.raises(DataError, match=r"\(N, 3, 4, 4\)"):
        FITTED[1](larger)


def test_images_too_large_to_whiten_are_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match=r"at most 12,288 values.*Got 3 x 224 x 224 = 150,528"):
        fit_normalization("zca", np.broadcast_to(np.uint8(0), (10, 3, 224, 224)))


def test_unfit_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'standard'"):
        fit_normalization("standart", some_images(2))
    with pytest.raises(DataError, match="at least 1 image"):
        fit_normalization("standard", some_images(0))
    with pytest.raises(DataError, match="at least 2 image"):
        fit_normalization("zca", some_images(1))
    with pytest.raises(DataError, match=r"'zca' lacks 'transform'. Got mean"):
        restore("zca", {"mean": torch.zeros(3, 4, 4)})
