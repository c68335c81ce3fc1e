"""Gradients of a network, compared layer by layer.

Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching" (DC, ICLR 2021), used with the
augmentation of DSA (Zhao and Bilen, ICML 2021):

    D(g, h) = sum_l sum_r ( 1 - <g_lr, h_lr> / ( ||g_lr|| ||h_lr|| + 1e-6 ) )

    g, h  gradients of the mean cross-entropy on real and on synthetic images, one tensor a
          parameter
    g_lr  row r of parameter l: the weights of one output. A convolution (out, in, k, k) has the
          rows (out, in k k), a linear layer (out, in); parameters of one dimension (biases,
          normalisations) add nothing

`distance: squared` is sum_l || g_l - h_l ||^2 over the same parameters, `absolute` the sum of
absolute differences (Kim et al., IDC, ICML 2022); these depend on lengths. `layers: convolutions`
leaves out linear layers, that is the classifier, as IDC's released code does. `classes: together`
sums the gradients of all classes before they are compared, so that components that classes share
cancel or add up in the same way on both sides, which emphasises contrasts between classes (Lee et
al., DCC, ICML 2022); with a `warm_up`, the first networks are compared class by class in their
first steps.

The cosine distance is independent of the length of gradients. For a linear model that regresses labels y on
fixed features x, one gradient step is a filter: with C = X^T X / n and S = X^T Y / n, the weights
go from W to (I - alpha C) W + alpha S (Bo, Liu and Wang, UniDD, ICLR 2026; see
`rayd.objectives.filters`).

**Cost.** Each class is forwarded separately, so that its gradient costs only its own images,
whereas with a single forward pass, the gradient of each class's loss would cost the images of all
classes. A loop over the classes takes 0.55 to 0.8 of the time of `torch.func.vmap` over them (a
ConvNet of depth 3, 32 x 32 pixels, on a CPU). Gradients of parameters of one dimension are not
computed.

**Paper and released code.** The 1e-6 and the omission of parameters of one dimension are the
code's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rayd.config import Settings, When
from rayd.errors import RunError
from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rayd.networks import Observation

EPSILON = 1e-6
"""Gives rows with zero gradient a distance of 1 from all others."""


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum of the cosine distances of all rows of all parameters, a scalar.

    Args:
        real: gradients, one per parameter.
        synthetic: gradients of the same parameters, in the same order and shapes; the distance is
            differentiable in them.

    Raises:
        ValueError: numbers or shapes differ, or no parameter has rows.
    """
    import torch

    shapes = []
    for side in (real, synthetic):
        shapes.append([tuple(gradient.shape) for gradient in side])
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Gradients must be of the same parameters. Got shapes {shapes[0]} and {shapes[1]} instead."
        )
    parts = [
        _rows_apart(one.flatten(1), other.flatten(1))
        for one, other in zip(real, synthetic, strict=True)
        if one.ndim > 1
    ]
    if not parts:
        raise ValueError(f"At least one parameter must have rows. Got shapes {shapes[0]} instead.")
    return torch.stack(parts).sum()


def _rows_apart(real: Tensor, synthetic: Tensor) -> Tensor:
    import torch

    # 1 - cos cancels, so gradients from bfloat16 are compared in float32
    precision = torch.promote_types(real.dtype, torch.float32)
    real = real.to(precision)
    synthetic = synthetic.to(precision)
    product = (real * synthetic).sum(1)
    lengths: Tensor = torch.linalg.vector_norm(real, dim=1) * torch.linalg.vector_norm(
        synthetic, dim=1
    )
    return (1 - product / (lengths + EPSILON)).sum()


def squared_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum of the squared differences of all entries of parameters with rows, a scalar; arguments as
    of `gradient_distance`.
    """
    return _entries_apart(real, synthetic, 2)


def absolute_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum of the absolute differences of all entries of parameters with rows, a scalar; arguments as
    of `gradient_distance`.
    """
    return _entries_apart(real, synthetic, 1)


def _entries_apart(real: Sequence[Tensor], synthetic: Sequence[Tensor], power: int) -> Tensor:
    import torch

    halves = (torch.bfloat16, torch.float16)
    parts = [
        (one.float() - other.float() if one.dtype in halves else one - other).abs().pow(power).sum()
        for one, other in zip(real, synthetic, strict=True)
        if one.ndim > 1
    ]
    return torch.stack(parts).sum()


def loss_gradients(
    network: nn.Module, images: Tensor, labels: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Gradients of the mean cross-entropy by every parameter that has rows.

    Args:
        network: not modified, nor are its own gradients.
        images: network input (N, C, H, W).
        labels: class indices (N,).
        create_graph: whether the gradients are differentiable in the images.
    """
    import torch
    from torch.func import functional_call
    from torch.nn import functional

    own = {name: parameter.detach() for name, parameter in network.named_parameters()}
    with_rows = {
        name: parameter.requires_grad_() for name, parameter in own.items() if parameter.ndim > 1
    }
    with torch.enable_grad():
        logits = functional_call(network, own, (images,))
        # at least float32; a network in float64 keeps its precision
        loss = functional.cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)), labels
        )
        return torch.autograd.grad(loss, tuple(with_rows.values()), create_graph=create_graph)


class WarmUp(Settings):
    """Steps that are compared class by class before gradients are added up (DCC)."""

    networks: int = Field(default=250, ge=1)
    """Number of networks with a warm-up."""
    steps: int = Field(default=10, ge=1)
    """Number of warm-up steps of each of them."""
    per_network: int = Field(default=10, ge=1)
    """Number of steps for which each network is used: `observers.model_pool.push_every`."""

    def covers(self, step: int) -> bool:
        """Whether a step, counted from 0, is part of the warm-up.

        >>> warm_up = WarmUp(networks=2, steps=1, per_network=3)
        >>> [warm_up.covers(step) for step in range(7)]
        [True, False, False, True, False, False, False]
        """
        network, step_of_network = divmod(step, self.per_network)
        return network < self.networks and step_of_network < self.steps


class GradientMatching(Term):
    """Distance of a network's gradients on real and synthetic images of a class, summed over
    classes.
    """

    name = "gradient"
    needs_batch = True

    distance: Literal["cosine", "squared", "absolute"] = "cosine"
    """Distance of two gradients: of the directions of their rows (DC), or squared or absolute
    differences of their entries (IDC).
    """
    classes: Literal["each", "together"] = "each"
    """Whether gradients are compared class by class, or summed over the classes first (DCC)."""
    warm_up: Annotated[WarmUp | None, When(classes="together")] = None
    """`together`: steps that are compared class by class nevertheless; by default none."""
    layers: Literal["all", "convolutions"] = "all"
    """Parameters that are compared: all with rows, or those of convolutions alone (IDC)."""

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Sum over the classes of the synthetic images, or the distance of the sums; labels are
        class indices (N,).
        """
        import torch

        from rayd.derived import rows_by_class

        network, batch = context.seen_through()
        measure = {
            "cosine": gradient_distance,
            "squared": squared_distance,
            "absolute": absolute_distance,
        }[self.distance]
        real_sides = []
        synthetic_sides = []
        # computed on the host: a mask for each class would wait for the device five times
        real_rows = rows_by_class(batch.labels)
        for label, ours in rows_by_class(labels).items():
            theirs = real_rows[label]
            wanted = loss_gradients(network, batch.images[theirs], batch.labels[theirs])
            given = loss_gradients(network, seen.images[ours], labels[ours], create_graph=True)
            real_sides.append(self._compared(wanted))
            synthetic_sides.append(self._compared(given))
        warming_up = self.warm_up is not None and self.warm_up.covers(context.step)
        if self.classes == "together" and not warming_up:
            return measure(_added(real_sides), _added(synthetic_sides))
        pairs = zip(real_sides, synthetic_sides, strict=True)
        return torch.stack([measure(*pair) for pair in pairs]).sum()

    def _compared(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The gradients of the chosen layers."""
        if self.layers == "all":
            return gradients
        chosen = tuple(gradient for gradient in gradients if gradient.ndim > 2)
        if not chosen:
            raise RunError(
                f"'terms.{self.name}.layers: convolutions' found none in the observer: set it to all."
            )
        return chosen


def _added(gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Sums of the gradients of all classes, parameter by parameter."""
    import torch

    return [torch.stack(parts).sum(0) for parts in zip(*gradients, strict=True)]
