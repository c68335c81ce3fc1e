"""Terms that take a batch of real images in addition to the synthetic ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayd import objectives
from rayd.objectives.terms import Batch, Context
from rayd.terms import checking
from rayd.terms.calling import functional, is_observation, observation_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rayd.networks import Observation

_NO_NETWORK: Any = object()


class GradientMatching(objectives.GradientMatching):
    """Distances of a network's gradients on real and synthetic images (DC).

    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> images = torch.rand(4, 1, 2, 2)
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> GradientMatching()(images, images, labels, labels, network=network).item() < 1e-2
    True
    """

    def __call__(  # type: ignore[override]
        self,
        real: Any,
        synthetic: Any,
        real_labels: Any,
        labels: Any,
        *,
        network: nn.Module | None = None,
    ) -> Tensor:
        """The unweighted value, a scalar, differentiable in the synthetic images.

        Args:
            real: normalised real images (N, channels, h, w), at least one of every class among
                `labels`.
            synthetic: normalised synthetic images (M, channels, h, w), of the same shape.
            real_labels: class indices (N,).
            labels: class indices (M,).
            network: maps images to logits; not modified.

        Raises:
            TypeError: an argument is missing or not a tensor of the right kind, or the network is
                not a module.
            ValueError: shapes are inconsistent, a class has no real image, or a label is out of
                range.
        """
        if is_observation(synthetic):
            return super().__call__(real, synthetic, real_labels, labels)
        import torch

        from rayd.derived import rows_by_class

        if not isinstance(network, torch.nn.Module):
            raise TypeError(
                "GradientMatching needs the network whose gradients are compared, a torch module. "
                f"Got {type(network).__name__} instead."
            )
        real = checking.images(real, "Real images")
        synthetic = checking.images(synthetic, "Synthetic images")
        real_labels = checking.indices(real_labels, len(real), None, "Labels of the real images")
        labels = checking.indices(labels, len(synthetic), None, "Labels of the synthetic images")
        if real.shape[1:] != synthetic.shape[1:]:
            raise ValueError(
                "GradientMatching needs real and synthetic images of the same shape. Got "
                f"{tuple(real.shape[1:])} and {tuple(synthetic.shape[1:])} instead."
            )
        absent = sorted({*rows_by_class(labels)} - {*rows_by_class(real_labels)})
        if absent:
            raise ValueError(
                "GradientMatching needs a real image of every class among the synthetic ones. Got "
                f"none of {absent[0]}."
            )
        batch = Batch(real, real_labels, _no_look)
        seen = observation_of(images=synthetic)
        most = checking.largest(labels)

        def enough_logits(_: nn.Module, __: Any, logits: Tensor) -> None:
            # on a device, a label without a logit would fail an assertion and end the process
            if logits.ndim != 2 or logits.shape[1] <= most:
                raise ValueError(
                    f"The network of GradientMatching must give logits (n, classes) of more than "
                    f"{most} classes, the largest label. Got {tuple(logits.shape)} instead."
                )

        hook = network.register_forward_hook(enough_logits)
        try:
            return super().__call__({}, seen, labels, Context(network=network, batch=batch))
        finally:
            hook.remove()


gradient_matching = functional(
    GradientMatching, "gradient_matching", ("real_labels", "labels", "network")
)


class RidgeRegression(objectives.RidgeRegression):
    """Loss on real features of a ridge regression that was fitted to synthetic ones (FRePo).

    >>> import torch
    >>> features = torch.eye(4)
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> right = RidgeRegression()(features, features, labels, labels)
    >>> wrong = RidgeRegression()(features, features, labels, 1 - labels)
    >>> bool(right < wrong)
    True
    """

    def __call__(  # type: ignore[override]
        self,
        real: Any,
        synthetic: Any,
        real_labels: Any,
        labels: Any,
        *,
        classes: int | None = None,
    ) -> Tensor:
        """The unweighted value, a scalar, differentiable in features and soft labels.

        Args:
            real: feature vectors (N, d).
            synthetic: feature vectors (M, d).
            real_labels: class indices (N,).
            labels: class indices (M,), or learned ones (M, C).
            classes: number of classes; by default that of learned labels, or the largest index plus
                one.

        Raises:
            TypeError: an argument is not a tensor of the right kind.
            ValueError: shapes are inconsistent, there are no images, or a label is out of range.
        """
        if is_observation(synthetic):
            return super().__call__(real, synthetic, real_labels, labels)
        real = checking.vectors(real, "Features of real images")
        synthetic = checking.vectors(synthetic, "Features of synthetic images")
        if real.shape[1] != synthetic.shape[1]:
            raise ValueError(
                "RidgeRegression needs real and synthetic features of the same dimension. Got "
                f"{real.shape[1]} and {synthetic.shape[1]} instead."
            )
        labels = checking.learned_or_indices(
            labels, len(synthetic), classes, "Labels of the synthetic images"
        )
        if labels.is_floating_point():
            classes = labels.shape[1]
        real_labels = checking.indices(real_labels, len(real), classes, "Labels of the real images")
        if classes is None:
            classes = 1 + max(checking.largest(real_labels), checking.largest(labels))

        def look() -> Observation:
            return observation_of(features=real, classes=classes)

        seen = observation_of(features=synthetic, classes=classes)
        # only labels and features of the batch are used; no network is evaluated
        context = Context(network=_NO_NETWORK, batch=Batch(real, real_labels, look))
        return super().__call__({}, seen, labels, context)


ridge_regression = functional(
    RidgeRegression, "ridge_regression", ("real_labels", "labels", "classes")
)


def _no_look() -> Any:
    raise RuntimeError("Only the images of this batch are available, not its features.")
