r"""Normalisation: affine maps from pixels to network input, and their inverses.

All kinds are fitted on the training split. With x the image (C, H, W), scaled to [0, 1]:

- `Standardization`: :math:`(x - \mu_c) / \sigma_c` for each channel c; :math:`\mu_c` and
  :math:`\sigma_c` (C,) are the mean and the population standard deviation over all images and
  positions.
- `Whitening` (ZCA): :math:`(x - \mu) T` with :math:`T = U (\Lambda + \epsilon I)^{-1/2} U^\top` (D,
  D), where x is flattened to D = C·H·W numbers, :math:`\mu` (D,) is the mean image and :math:`U
  \Lambda U^\top` the eigendecomposition of the covariance :math:`\sum_n (x_n-\mu)^\top (x_n-\mu) /
  (N-1)`. As in MTT (Cazenavette et al., CVPR 2022), which uses kornia's `ZCAWhitening`,
  :math:`\epsilon` = 0.1 is added to the eigenvalues, and channels are not standardised first.
- `ScaledWhitening` (ZCA of standardised channels): :math:`((x - \mu) / \sigma_c) T`, where T is
  fitted on :math:`x / \sigma_c` with :math:`\epsilon` = 0.1 times the mean eigenvalue of the
  covariance, as in FRePo (Zhou et al., NeurIPS 2022).

Sums over the training split are exact integer sums, so the result of a fit does not depend on
chunks or threads.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayd.data.arrays import ImageArray, Pixels
from rayd.data.streaming import StreamedPixels, batches
from rayd.errors import ConfigError, DataError, unknown

NormalizationKind = Literal["standard", "zca", "zca-scaled"]

MTT_EPSILON = 0.1
"""Value that MTT adds to the eigenvalues of the covariance."""
FREPO_RIDGE = 0.1
"""Multiple of the mean eigenvalue that FRePo adds to the eigenvalues of the covariance."""

LARGEST_WHITENING = 3 * 64 * 64
"""Maximum number of values per image (C·H·W) for whitening. At this size, the covariance takes
1.2 GB, and its decomposition minutes.
"""


def streamed_whitening(kind: str) -> ConfigError:
    """Create the error for whitening of streamed images."""
    return ConfigError(
        f"Setting 'data.normalization: {kind}' needs all pixels in memory, so these data cannot "
        "be streamed; use 'standard', or reduce 'data.image_size' or the number of classes and set "
        "'data.stream: false'."
    )


class Normalization(ABC):
    """Affine map from uint8 pixels to float32 network input, with its inverse.

    Instances can be pickled and sent to workers. Constants are cached per device.
    """

    kind: ClassVar[NormalizationKind]
    _constants: dict[torch.device, tuple[Tensor, ...]]

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, C, H, W) to network input float32 (N, C, H, W), on their device.

        Raises:
            DataError: `images` are not uint8, or do not match the fitted shape.
        """

    @abstractmethod
    def forward_unit(self, images: Tensor) -> Tensor:
        """Map floating-point images (N, C, H, W) in [0, 1] to network input; differentiable.

        Raises:
            DataError: `images` are integers, presumably pixels in [0, 255].
        """

    @abstractmethod
    def inverse(self, inputs: Tensor) -> Tensor:
        """Map network input (N, C, H, W) to images in [0, 1] units, unclamped; differentiable."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """State for `restore`, as CPU tensors that safetensors can store."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Restore a normalisation from its `state()`."""

    @property
    def fingerprint(self) -> str:
        """Hex BLAKE2b of kind and state."""
        digest = hashlib.blake2b(self.kind.encode(), digest_size=16)
        for name, value in sorted(self.state().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().data)
        return digest.hexdigest()

    def _on(
        self, device: torch.device, make: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        if device not in self._constants:
            self._constants[device] = tuple(constant.float().to(device) for constant in make())
        return self._constants[device]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_constants": {}}


def _check_unit(images: Tensor) -> None:
    """Reject integer images where images in [0, 1] are expected."""
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise DataError(
            f"'forward_unit' takes floating-point images in [0, 1]. Got {kind} instead: call the "
            "normalisation itself for uint8 pixels."
        )


def _check_images(images: Tensor, shape: tuple[int | None, ...]) -> None:
    fits = images.ndim == 4
    if fits:
        pairs = zip(shape, images.shape[1:], strict=True)
        fits = all(expected in (None, size) for expected, size in pairs)
    if images.dtype != torch.uint8 or not fits:
        sizes = (
            letter if size is None else str(size) for letter, size in zip("CHW", shape, strict=True)
        )
        raise DataError(
            f"Images to normalise must be uint8 (N, {', '.join(sizes)}). "
            f"Got {images.dtype} {tuple(images.shape)} instead."
        )


@dataclass(frozen=True, eq=False)
class Standardization(Normalization):
    """Per-channel mean 0 and standard deviation 1 over the training split."""

    mean: Tensor
    """float64 (C,), in [0, 1] units."""
    std: Tensor
    """float64 (C,), in [0, 1] units; 1 for a constant channel."""
    _constants: dict[torch.device, tuple[Tensor, ...]] = field(
        default_factory=dict, init=False, repr=False
    )

    kind: ClassVar[NormalizationKind] = "standard"

    @classmethod
    def fit(cls, images: ImageArray) -> Self:
        """Compute mean and standard deviation of uint8 images (N, C, H, W) from exact sums.

        Raises:
            DataError: there are no images.
        """
        _check_not_empty(images)
        histogram = np.zeros((images.shape[1], 256), np.int64)
        for chunk in _chunks(images, 2**24):
            histogram += channel_histogram(chunk)
        return cls.of_histogram(histogram)

    @classmethod
    def of_histogram(cls, histogram: npt.NDArray[np.int64]) -> Self:
        """Compute mean and standard deviation from a histogram per channel, int64 (C, 256)."""
        # Python integers, as count * squares may exceed 2**63
        values = np.arange(256)
        count = int(histogram[0].sum())
        totals = [int(total) for total in histogram @ values]
        squares = [int(square) for square in histogram @ values**2]
        spreads = [count * square - total**2 for total, square in zip(totals, squares, strict=True)]
        mean = [total / (255 * count) for total in totals]
        std = [math.sqrt(spread) / (255 * count) or 1.0 for spread in spreads]
        return cls(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))

    def __call__(self, images: Tensor) -> Tensor:
        """(x / 255 - mean) / std; see `Normalization.__call__`."""
        _check_images(images, (len(self.mean), None, None))
        scale, shift, _, _ = self._on(images.device, self._affine)
        return images.to(torch.float32).mul_(scale).add_(shift)

    def forward_unit(self, images: Tensor) -> Tensor:
        """(x - mean) / std, with x in [0, 1]."""
        _check_unit(images)
        _, _, std, mean = self._on(images.device, self._affine)
        return (images - mean) / std

    def inverse(self, inputs: Tensor) -> Tensor:
        """Inputs * std + mean."""
        _, _, std, mean = self._on(inputs.device, self._affine)
        return inputs * std + mean

    def _affine(self) -> tuple[Tensor, ...]:
        constants = 1 / (255 * self.std), -self.mean / self.std, self.std, self.mean
        return tuple(constant[:, None, None] for constant in constants)

    def state(self) -> dict[str, Tensor]:
        """`mean` and `std`, float64 (C,)."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Restore a standardisation from its `state()`."""
        return cls(state["mean"].double().cpu(), state["std"].double().cpu())


@dataclass(frozen=True, eq=False)
class Whitening(Normalization):
    """ZCA whitening: decorrelates the values of an image while changing the image least."""

    mean: Tensor
    """float32 (C, H, W), in [0, 1] units."""
    transform: Tensor
    """float32 (D, D), symmetric: T = U (Λ + ε I)^(-1/2) Uᵀ."""
    _constants: dict[torch.device, tuple[Tensor, ...]] = field(
        default_factory=dict, init=False, repr=False
    )

    kind: ClassVar[NormalizationKind] = "zca"

    @classmethod
    def fit(cls, images: ImageArray, epsilon: float = MTT_EPSILON) -> Self:
        """Compute mean image and whitening matrix of uint8 images (N, C, H, W).

        Raises:
            ConfigError: an image has more than `LARGEST_WHITENING` values, or the images are
                streamed.
            DataError: there are fewer than two images.
        """
        mean, covariance = cls._moments(images)
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        scaled = vectors * (eigenvalues.clamp_min_(0) + epsilon).pow_(-0.25)
        return cls(mean, (scaled @ scaled.T).float())

    @classmethod
    def _moments(cls, images: ImageArray) -> tuple[Tensor, Tensor]:
        """Mean image, float32 (C, H, W), and covariance of the values, float64 (D, D)."""
        if isinstance(images, StreamedPixels):
            raise streamed_whitening(cls.kind)
        count = len(images)
        values = math.prod(images.shape[1:])
        if values > LARGEST_WHITENING:
            raise ConfigError(
                f"Setting 'data.normalization: {cls.kind}' needs images of at most "
                f"{LARGEST_WHITENING:,} values, as it computes a square matrix of that size. "
                f"Got {' x '.join(map(str, images.shape[1:]))} = {values:,} instead; "
                "use 'standard'."
            )
        _check_not_empty(images, at_least=2)
        total = torch.zeros(values, dtype=torch.float64)
        gram = torch.zeros(values, values, dtype=torch.float64)
        # 256 * 255**2 < 2**24, so float32 holds every entry of a chunk's Gram matrix exactly
        for chunk in _chunks(images, 256 * values):
            flat = torch.from_numpy(chunk.reshape(-1, values).astype(np.float32))
            total += flat.sum(0)
            gram += flat.T @ flat
        mean = total / count
        covariance = gram.addr_(total, mean, alpha=-1).div_((count - 1) * 255**2)
        return (mean / 255).float().reshape(images.shape[1:]), covariance

    def __call__(self, images: Tensor) -> Tensor:
        """(x / 255 - mean) T; see `Normalization.__call__`."""
        _check_images(images, tuple(self.mean.shape))
        mean, transform = self._on(images.device, lambda: (self.mean, self.transform))
        centred = images.to(torch.float32).div_(255).sub_(mean)
        whitened: Tensor = centred.flatten(1) @ transform
        return whitened.view_as(centred)

    def forward_unit(self, images: Tensor) -> Tensor:
        """(x - mean) T, with x in [0, 1]."""
        _check_unit(images)
        mean, transform = self._on(images.device, lambda: (self.mean, self.transform))
        whitened: Tensor = (images - mean).flatten(1).float() @ transform
        return whitened.view_as(images)

    def inverse(self, inputs: Tensor) -> Tensor:
        """Inputs T⁻¹ + mean, by solving with T."""
        mean, transform = self._on(inputs.device, lambda: (self.mean, self.transform))
        flat: Tensor = torch.linalg.solve(transform, inputs.flatten(1).float().T).T
        return flat.reshape(inputs.shape) + mean

    def state(self) -> dict[str, Tensor]:
        """`mean` float32 (C, H, W) and `transform` float32 (D, D)."""
        return {"mean": self.mean, "transform": self.transform}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Restore a whitening from its `state()`."""
        return cls(state["mean"].float().cpu(), state["transform"].float().cpu())


@dataclass(frozen=True, eq=False)
class ScaledWhitening(Whitening):
    """ZCA whitening of standardised channels, with a ridge relative to the mean eigenvalue.

    `transform` includes the division by the standard deviations, so it is not symmetric.
    """

    kind: ClassVar[NormalizationKind] = "zca-scaled"

    @classmethod
    def fit(cls, images: ImageArray, epsilon: float = FREPO_RIDGE) -> Self:
        """Compute mean image and whitening matrix of uint8 images (N, C, H, W).

        Args:
            images: images of the training split.
            epsilon: multiple of the mean eigenvalue that is added to the eigenvalues.

        Raises:
            ConfigError: see `Whitening.fit`.
            DataError: there are fewer than two images.
        """
        mean, covariance = cls._moments(images)
        std = Standardization.fit(images).std.repeat_interleave(math.prod(images.shape[2:]))
        covariance = covariance / (std[:, None] * std)
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        ridge = epsilon * covariance.diagonal().mean()
        scaled = vectors * (eigenvalues.clamp_min_(0) + ridge).pow_(-0.25)
        return cls(mean, ((scaled @ scaled.T) / std[:, None]).float())

    def inverse(self, inputs: Tensor) -> Tensor:
        """Inputs T⁻¹ * std + mean, by solving with the transposed matrix."""
        mean, transform = self._on(inputs.device, lambda: (self.mean, self.transform))
        flat: Tensor = torch.linalg.solve(transform.T, inputs.flatten(1).float().T).T
        return flat.reshape(inputs.shape) + mean


KINDS: Mapping[str, type[Standardization] | type[Whitening]] = {
    kind.kind: kind for kind in (Standardization, Whitening, ScaledWhitening)
}
"""Normalisations by their name in settings and artefacts."""


def fit_normalization(kind: str, images: ImageArray) -> Normalization:
    """Fit a normalisation on uint8 images (N, C, H, W).

    Raises:
        ConfigError: the kind is unknown, or does not suit images of this size.
        DataError: there are too few images.
    """
    return _kind(kind).fit(images)


def restore(kind: str, state: Mapping[str, Tensor]) -> Normalization:
    """Restore a normalisation from its stored `state()`.

    Raises:
        ConfigError: the kind is unknown.
        DataError: the state lacks a tensor.
    """
    try:
        return _kind(kind).from_state(state)
    except KeyError as error:
        raise DataError(
            f"The state of normalisation '{kind}' lacks {error}. "
            f"Got {', '.join(state) or 'nothing'} instead."
        ) from error


def _kind(kind: str) -> type[Standardization] | type[Whitening]:
    if kind not in KINDS:
        raise ConfigError(unknown("normalization", kind, KINDS))
    return KINDS[kind]


def _check_not_empty(images: ImageArray, at_least: int = 1) -> None:
    if len(images) < at_least:
        raise DataError(
            f"A normalisation must be fitted on at least {at_least} image(s). "
            f"Got {len(images)} instead."
        )


def channel_histogram(images: Pixels) -> npt.NDArray[np.int64]:
    """Count each value in each channel of images (N, C, H, W), int64 (C, 256)."""
    histogram = np.zeros((images.shape[1], 256), np.int64)
    # a few images at a time, as bincount converts its input to int64
    step = max(1, 2**20 // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        for channel, counts in enumerate(histogram):
            counts += np.bincount(images[start : start + step, channel].ravel(), minlength=256)
    return histogram


def _chunks(images: ImageArray, values: int) -> Iterator[Pixels]:
    """Yield consecutive images in chunks of up to `values` values, but at least one image."""
    step = max(1, values // max(1, math.prod(images.shape[1:])))
    for _, chunk in batches(
        images, (slice(start, start + step) for start in range(0, len(images), step))
    ):
        yield chunk
