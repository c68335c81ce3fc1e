r"""Neural tangent kernels of infinitely wide networks, and regression with them (KIP).

Jacot, Gabriel and Hongler, "Neural Tangent Kernel" (NeurIPS 2018), for the networks of Nguyen, Chen
and Lee, "Dataset Meta-Learning from Kernel Ridge-Regression" (ICLR 2021), and Nguyen, Novak, Xiao and
Lee, "Dataset Distillation with Infinitely Wide Convolutional Networks" (NeurIPS 2021). K is the
covariance of a layer's values for two images at random weights, T the tangent kernel; they start as
K = <x, y> / d and T = 0, and become

    dense, convolution   K <- w K' + b                  T <- w T' + K           K', T' means over the window of the convolution
    ReLU                 K <- sqrt(p q) (sin a + (pi - a) cos a) / (2 pi)       T <- T (pi - a) / (2 pi)
                         cos a = K / sqrt(p q)
    mean pooling         means over both windows        flattening   means over equal positions

    w, b    variances of weights (over the root of their number) and biases, 2 and 0.01
    p, q    K of the first image with itself and of the second one with itself, at their positions

`fc`: `depth` hidden layers with ReLU, and a dense layer. `conv`: `depth` convolutions of 3 x 3 with
zeros around, each with ReLU and, with `pool`, mean pooling of 2 x 2; then flattening and a dense
layer. Without pooling, only equal positions matter, so the cost is P pairs of positions for P
pixels; with pooling, it is all P^2: 4,096 numbers for each pair of images of 8 x 8 pixels, a
million for 32 x 32.

With a kernel, images X_s and labels Y_s predict (`kernel_predictions`)

    K_ts (K_ss + lambda I)^-1 Y_s           lambda = 1e-6 trace(K_ss) / n

and for given images the best labels are a least-squares problem (`solved_labels`, "label solve").

Everything is computed in float64, as kernels of similar images differ little and the ridge is
small. The derivative of (pi - a) is infinite for images of equal direction and is set to 0 there.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from rayd.config import When
from rayd.config.choices import RELATIVE_RIDGE
from rayd.errors import RunError
from rayd.objectives.ridge import centred_targets, regression_loss, ridge_solution
from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation

WEIGHT_VARIANCE = 2.0
"""Variance of weights, multiplied by the number of a layer's inputs."""
BIAS_VARIANCE = 0.01
"""Variance of biases."""
CLOSE = 1e-14
"""Cosines so close to 1 are of images of equal direction."""


class _Kernels(NamedTuple):
    """Kernels between two sets of images at a layer.

    Trailing dimensions are positions: none, equal ones (H, W), or pairs of them (H, W, H, W).
    """

    covariance: Tensor
    """Between the first and the second images, (n, m, ...)."""
    tangent: Tensor
    """Tangent kernel between them, (n, m, ...)."""
    first: Tensor
    """Covariance of each of the first images with itself, (n, ...)."""
    second: Tensor
    """Covariance of each of the second images with itself, (m, ...)."""

    def windowed(self, mean: Callable[[Tensor], Tensor]) -> _Kernels:
        """Means over windows of all kernels and variances."""
        return _Kernels(*(mean(part) for part in self))

    def weighted(self) -> _Kernels:
        """The kernels after a linear layer whose window has been averaged."""
        covariance = WEIGHT_VARIANCE * self.covariance + BIAS_VARIANCE
        return _Kernels(
            covariance=covariance,
            tangent=WEIGHT_VARIANCE * self.tangent + covariance,
            first=WEIGHT_VARIANCE * self.first + BIAS_VARIANCE,
            second=WEIGHT_VARIANCE * self.second + BIAS_VARIANCE,
        )

    def rectified(self) -> _Kernels:
        """After ReLU."""
        if self.first.ndim < 5:
            # positions of both images are equal
            left = self.first[:, None]
            covariance, slope = _rectified(self.covariance, left, self.second)
            first = self.first / 2
            second = self.second / 2
        else:
            variances = _variances(self.first)
            others = _variances(self.second)
            left = variances[:, None, :, :, None, None]
            covariance, slope = _rectified(self.covariance, left, others[:, None, None])
            first, _ = _rectified(self.first, variances[..., None, None], variances[:, None, None])
            second, _ = _rectified(self.second, others[..., None, None], others[:, None, None])
        return _Kernels(covariance, self.tangent * slope, first, second)


def _rectified(covariance: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance after ReLU, and the factor of the tangent kernel; `left` and `right` are the
    variances of the first and the second images.
    """
    scale = (left * right).sqrt()
    # the derivative of the angle is infinite at 1; clamping makes it 0 there
    cosine = (covariance / scale).clamp(CLOSE - 1, 1 - CLOSE)
    angle = cosine.arccos()
    after = scale * (angle.sin() + (pi - angle) * cosine) / (2 * pi)
    return after, (pi - angle) / (2 * pi)


def _variances(pairs: Tensor) -> Tensor:
    """Variances (n, H, W) of covariances (n, H, W, H, W)."""
    import torch

    return torch.einsum("nhwhw->nhw", pairs)


def fc_kernel(first: Tensor, second: Tensor, depth: int = 1) -> Tensor:
    """Tangent kernel (n, m) of a fully connected network.

    Args:
        first: images (n, ...), which are flattened.
        second: images (m, ...).
        depth: number of hidden layers.

    Returns:
        float64, differentiable in both.

    >>> import torch
    >>> x = torch.tensor([[1.0, 1.0]])
    >>> float(fc_kernel(x, x, depth=0))
    2.01
    """
    x, y = (side.double().flatten(1) for side in (first, second))
    size = x.shape[1]
    covariance = x @ y.T / size
    kernels = _Kernels(
        covariance=covariance,
        tangent=covariance.new_zeros(covariance.shape),
        first=(x * x).sum(1) / size,
        second=(y * y).sum(1) / size,
    )
    for _ in range(depth):
        kernels = kernels.weighted().rectified()
    return kernels.weighted().tangent


def conv_kernel(first: Tensor, second: Tensor, depth: int = 3, pool: bool = True) -> Tensor:
    """Tangent kernel (n, m) of a convolutional network.

    Args:
        first: images (n, C, H, W).
        second: images (m, C, H, W).
        depth: number of convolutions.
        pool: whether mean pooling follows each convolution, for sides that are multiples of
            2^depth.

    Returns:
        float64, differentiable in both.

    Raises:
        ValueError: the sides of the images are not divisible by 2^depth.
    """
    import torch

    x, y = (side.double() for side in (first, second))
    channels, height, width = x.shape[1:]
    if pool and (height % 2**depth or width % 2**depth):
        raise ValueError(
            f"Images that are pooled {depth} times must have sides that are multiples of {2**depth}. "
            f"Got {height} x {width} instead."
        )
    between, within = ("nchw,mcij->nmhwij", "nchw,ncij->nhwij")
    if not pool:
        between, within = ("nchw,mchw->nmhw", "nchw,nchw->nhw")
    covariance = torch.einsum(between, x, y) / channels
    kernels = _Kernels(
        covariance=covariance,
        tangent=torch.zeros_like(covariance),
        first=torch.einsum(within, x, x) / channels,
        second=torch.einsum(within, y, y) / channels,
    )
    neighbours = _mean_of_neighbour_pairs if pool else _mean_of_neighbours
    for _ in range(depth):
        kernels = kernels.windowed(neighbours).weighted().rectified()
        if pool:
            kernels = kernels.windowed(_pooled_pairs)
    positions = "...hwhw->..." if pool else "...hw->..."
    flat = kernels.windowed(
        lambda part: torch.einsum(positions, part) / (part.shape[-1] * part.shape[-2])
    )
    return flat.weighted().tangent


def _mean_of_neighbours(maps: Tensor) -> Tensor:
    """Means over windows of 3 x 3 of maps (..., H, W), with zeros around."""
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(maps.flatten(0, -3).unsqueeze(1), 3, 1, 1).view_as(maps)


def _mean_of_neighbour_pairs(pairs: Tensor) -> Tensor:
    """Means of pairs (..., H, W, H, W) over windows of 3 x 3, with equal offsets in both images."""
    import torch
    from torch.nn.functional import pad

    height, width = pairs.shape[-2:]
    padded = pad(pairs, (1,) * 8)
    total = torch.zeros_like(pairs)
    for top in range(3):
        for left in range(3):
            rows = slice(top, top + height)
            columns = slice(left, left + width)
            total = total + padded[..., rows, columns, rows, columns]
    return total / 9


def _pooled_pairs(pairs: Tensor) -> Tensor:
    """Means over windows of 2 x 2 of either image, of pairs (..., H, W, H, W)."""
    *batch, height, width, _, _ = pairs.shape
    halves = (height // 2, 2, width // 2, 2)
    return pairs.reshape(*batch, *halves, *halves).mean((-1, -3, -5, -7))


def kernel_predictions(
    between: Tensor, among: Tensor, targets: Tensor, relative: float = RELATIVE_RIDGE
) -> Tensor:
    """Predictions (N, C) of kernel ridge regression.

    Args:
        between: kernel of the images to predict with the training images, (N, n).
        among: kernel of the latter, (n, n).
        targets: targets of the latter (n, C).
        relative: the ridge, relative to the mean eigenvalue of `among`.

    Raises:
        ValueError: the kernel is not finite.
    """
    ridge = relative * among.trace() / len(among)
    return between @ ridge_solution(among, ridge, targets.to(among.dtype))


def solved_labels(
    between: Tensor, among: Tensor, targets: Tensor, relative: float = RELATIVE_RIDGE
) -> Tensor:
    """The targets (n, C) with which `kernel_predictions` are closest to the targets (N, C) of real
    images; if they are not unique, those of smallest norm ("label solve").

    Args:
        between: kernel of the real images with the learned ones, (N, n).
        among: kernel of the latter, (n, n).
        targets: targets of the real images (N, C).
        relative: the ridge, relative to the mean eigenvalue of `among`.
    """
    import torch

    ridge = relative * among.trace() / len(among)
    predictor = ridge_solution(among, ridge, between.T).T
    best: Tensor = torch.linalg.pinv(predictor) @ targets.to(among.dtype)
    return best


class KernelRegression(Term):
    """Loss on a real mini-batch of a regression on the synthetic images, with the kernel of an
    infinitely wide network; independent of the observer.
    """

    name = "kernel_regression"
    needs_batch = True
    learns_labels = True

    network: Literal["fc", "conv"] = "fc"
    """Which network."""
    depth: int = Field(default=1, ge=1)
    """Number of its hidden layers, or convolutions."""
    pool: Annotated[bool, When(network="conv")] = True
    """`conv`: whether mean pooling follows each convolution."""
    relative_ridge: float = Field(default=RELATIVE_RIDGE, gt=0)
    """The ridge, relative to the mean eigenvalue of the kernel matrix."""

    def kernel(self, first: Tensor, second: Tensor) -> Tensor:
        """Tangent kernel (n, m) of images (n, C, H, W) and (m, C, H, W), float64.

        Raises:
            ValueError: the sides of the images are not divisible by 2^depth.
        """
        if self.network == "fc":
            return fc_kernel(first, second, self.depth)
        return conv_kernel(first, second, self.depth, self.pool)

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """The mean loss of the real images; labels are class indices (n,), or soft (n, C).

        Raises:
            RunError: the images are no longer finite, or cannot be pooled.
        """
        _, batch = context.seen_through()
        classes = seen.logits.shape[1]
        device = seen.images.device
        home = "cpu" if device.type == "mps" else device  # MPS has no float64
        ours = seen.images.to(home)
        targets = centred_targets(labels, classes).to(home)
        wanted = centred_targets(batch.labels, classes).to(home).double()
        try:
            among = self.kernel(ours, ours)
            between = self.kernel(batch.images.to(home), ours)
            predicted = kernel_predictions(between, among, targets, self.relative_ridge)
        except ValueError as error:
            raise RunError(str(error)) from error
        return regression_loss(predicted, wanted).float().to(device)
