"""Ridge regression on features: a linear classifier trained on a set, in closed form.

Zhou, Nezhadarya and Ba, "Dataset Distillation using Neural Feature Regression" (FRePo, NeurIPS
2022); Nguyen, Novak, Xiao and Lee, "Dataset Distillation with Infinitely Wide Convolutional
Networks" (KIP, NeurIPS 2021):

    P = K_ts (K_ss + lambda I)^-1 Y_s          lambda = 1e-6 trace(K_ss) / n          K_ab = X_a X_b^T

    loss = mean_i (1/2) || P_i - Y_t,i ||^2  -  mean_j min(first_j - second_j, 1/C)

    X_t  features of the real images (N, d)            Y_t  their targets (N, C)
    X_s  features of the n synthetic images (n, d)     Y_s  their targets (n, C), which may be learned
    first_j, second_j   largest and second largest entry of row j of Y_s: learned labels keep a margin

Targets are centred one-hot rows: y - 1/C of the real images, (y - 1/C) / sqrt(C / 10) of the
synthetic ones. Learned targets are derived from rows of probabilities, initially 0.9 for the
image's class. KIP has the kernel of an infinitely wide network in place of X X^T.

With more images than features, the same P results from a smaller system, X_t (X_s^T X_s + lambda
I)^-1 X_s^T Y_s, which is a ridge filter: with C = X_s^T X_s / n and S = X_s^T Y_s / n, P = X_t f(C)
S for f(l) = 1 / (l + lambda / n) (Bo, Liu and Wang, UniDD, ICLR 2026; see
`rayd.objectives.filters`).

**Paper and released code.** In both, the ridge is relative to the trace, and its gradient is
included. The factor 1/2 of the squared distance and the margin are those of the code. Here,
everything is computed in float64, as a ridge of 1e-6 is below the rounding of float32 even for ten
images. Reimplementations without whitening or centring report chance accuracy.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from pydantic import Field

from rayd.config.choices import RELATIVE_RIDGE, LayerRole
from rayd.errors import RunError
from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation


def centred_targets(labels: Tensor, classes: int) -> Tensor:
    """Targets of real images: centred rows (N, classes) of class indices (N,) or of soft labels (N,
    classes), float32 unless these are float64.

    >>> import torch
    >>> centred_targets(torch.tensor([1]), 2)
    tensor([[-0.5000,  0.5000]])
    """
    from torch.nn import functional

    from rayd.statistics.transforms import wide

    if labels.is_floating_point():
        return wide(labels) - 1 / classes
    return functional.one_hot(labels, classes).float() - 1 / classes


def regression_targets(labels: Tensor, classes: int) -> Tensor:
    """Targets of synthetic images: centred rows, divided by sqrt(classes / 10).

    >>> import torch
    >>> regression_targets(torch.tensor([1]), 2)
    tensor([[-1.1180,  1.1180]])
    """
    return centred_targets(labels, classes) / sqrt(classes / 10)


def ridge_of(features: Tensor, relative: float = RELATIVE_RIDGE) -> Tensor:
    """The lambda for features (n, d): `relative` times the mean of the n eigenvalues of their
    kernel matrix, a scalar.
    """
    return relative * features.square().sum() / len(features)


def predictions(
    real: Tensor, synthetic: Tensor, targets: Tensor, relative: float = RELATIVE_RIDGE
) -> Tensor:
    """Predictions on the real features of a ridge regression that is trained on the synthetic set.

    Args:
        real: features (N, d).
        synthetic: features (n, d).
        targets: of the synthetic set (n, C).
        relative: the ridge, relative to the mean eigenvalue of the kernel matrix.

    Returns:
        (N, C), in the dtype of the real features; differentiable in all three.

    Raises:
        ValueError: `relative` is not above 0, or the synthetic features are all zero or not finite.
    """
    if not relative > 0:
        raise ValueError(f"The 'relative' ridge must be above 0. Got {relative} instead.")

    home = "cpu" if real.device.type == "mps" else real.device  # MPS has no float64
    # moved first, as a copy would be converted on the source device
    x_t, x_s, y_s = (tensor.to(home).double() for tensor in (real, synthetic, targets))
    ridge = ridge_of(x_s, relative)
    if len(x_s) > x_s.shape[1]:
        found = x_t @ ridge_solution(x_s.T @ x_s, ridge, x_s.T @ y_s)
    else:
        found = (x_t @ x_s.T) @ ridge_solution(x_s @ x_s.T, ridge, y_s)
    return found.to(real.device, real.dtype)


def regression_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of half the squared distance of predictions (N, C) from targets (N, C)."""
    return 0.5 * (predicted - targets).square().sum(1).mean()


def label_margin(targets: Tensor) -> Tensor:
    """Negative mean margin of learned targets (n, C): largest minus second largest entry, clipped
    at 1 / C.
    """
    best = targets.topk(2, dim=1).values
    return -(best[:, 0] - best[:, 1]).clamp(max=1 / targets.shape[1]).mean()


def ridge_solution(matrix: Tensor, ridge: Tensor, right: Tensor) -> Tensor:
    """Solve (matrix + ridge I) Z = right for Z.

    Args:
        matrix: symmetric and positive (n, n).
        ridge: a positive scalar.
        right: (n, C).

    Raises:
        ValueError: the matrix is zero or not finite.
    """
    import torch

    factor, failed = torch.linalg.cholesky_ex(
        matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    )
    if matrix.device.type != "cpu":
        # no wait for the device in every step: NaN is detected when losses are logged and sets are
        # saved
        return torch.where(failed == 0, torch.cholesky_solve(right, factor), torch.nan)
    if failed:
        raise ValueError(
            "Ridge regression needs synthetic features that are finite and not all zero. Got others instead."
        )
    return torch.cholesky_solve(right, factor)


class RidgeRegression(Term):
    """Loss on a real mini-batch of a ridge regression on the synthetic images, with the
    classifier's inputs as features.
    """

    name = "regression"
    needs_batch = True
    learns_labels = True

    relative_ridge: float = Field(default=RELATIVE_RIDGE, gt=0)
    """The ridge, relative to the mean eigenvalue of the kernel matrix."""

    @property
    def layer_roles(self) -> frozenset[LayerRole]:
        """The features."""
        return frozenset({LayerRole.FEATURES})

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """The mean loss of the real images; labels are class indices (n,), or soft (n, C), whose
        margin is then included.

        Raises:
            RunError: the features are all zero or no longer finite.
        """
        from rayd.statistics.transforms import wide

        _, batch = context.seen_through()
        classes = seen.logits.shape[1]
        learned = labels.is_floating_point()
        targets = regression_targets(labels, classes)
        (theirs,) = batch.look().layers[LayerRole.FEATURES]
        (ours,) = seen.layers[LayerRole.FEATURES]
        try:
            predicted = predictions(wide(theirs), wide(ours), targets, self.relative_ridge)
        except ValueError as error:
            # features of real images depend only on the network
            diverged = not bool(theirs.isfinite().all())
            rate = "observers.model_pool" if diverged else "synthesis"
            raise RunError(f"{error} Lower {rate}.learning_rate.") from error
        loss = regression_loss(predicted, centred_targets(batch.labels, classes))
        return loss + label_margin(targets) if learned else loss
