r"""Largest eigenvalue of the Hessian of a loss, by power iteration, without forming the matrix.

For a loss :math:`L(\theta)`, the product of its Hessian with a vector is a second backward pass,

.. math:: H v = \nabla_\theta \langle \nabla_\theta L, v \rangle,

and :math:`v \leftarrow Hv / \|Hv\|` converges to the eigenvector of the eigenvalue
:math:`\lambda` largest in absolute value; :math:`|\lambda|` is the spectral norm of H. A flat
minimum has a small one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rayd import seeding
from rayd.analyses.base import PALETTE, Analysis, Subject
from rayd.errors import ConfigError
from rayd.terms import checking

Losses = Callable[[], Iterable[Tensor]]
"""Yields the summands of a loss, scalars with their graphs, as often as it is called."""

BAR_WIDTH = 0.38
"""Width of a bar, of which each training set has two."""


@dataclass(frozen=True)
class Eigenvalue:
    """The result of a power iteration."""

    value: float
    """The eigenvalue that is largest in absolute value, with its sign."""
    iterations: int
    """Products with the Hessian."""
    converged: bool
    """Whether the last two estimates agree within the tolerance."""


def largest_eigenvalue(
    losses: Losses,
    parameters: Sequence[Tensor],
    *,
    iterations: int = 100,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Eigenvalue:
    """Find the eigenvalue of the Hessian of a sum of losses that is largest in absolute value.

    Args:
        losses: yields the summands, so that large sets pass in batches.
        parameters: what the losses are differentiated by.
        iterations: most products with the Hessian.
        tolerance: relative change of the estimate that ends the iteration.
        seed: of the first vector.

    Raises:
        ConfigError: there are no parameters, or no iteration.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> round(largest_eigenvalue(lambda: [2 * x[0] ** 2 - 3 * x[1] ** 2], [x]).value, 3)
    -6.0
    """
    if not parameters or iterations < 1:
        raise ConfigError(
            "A Hessian needs parameters and at least one iteration. "
            f"Got {len(parameters)} parameters and {iterations} iterations."
        )
    draws = seeding.generator(seed, "power iteration")
    vector = [torch.randn(p.shape, generator=draws, dtype=p.dtype).to(p.device) for p in parameters]
    vector = _scaled(vector)
    estimate = math.inf
    for done in range(1, iterations + 1):
        product = hessian_product(losses, parameters, vector)
        previous = estimate
        estimate = float(_dot(vector, product))
        norm = float(_dot(product, product)) ** 0.5
        if norm == 0.0:
            return Eigenvalue(0.0, done, True)
        if abs(estimate - previous) <= tolerance * abs(estimate):
            return Eigenvalue(estimate, done, True)
        vector = _scaled(product)
    return Eigenvalue(estimate, iterations, False)


def hessian_product(
    losses: Losses, parameters: Sequence[Tensor], vector: Sequence[Tensor]
) -> list[Tensor]:
    """Multiply the Hessian of a sum of losses by a vector.

    Args:
        losses: yields the summands.
        parameters: what the losses are differentiated by.
        vector: a tensor of the shape of each parameter.
    """
    total = [torch.zeros_like(p) for p in parameters]
    for loss in losses():
        gradient = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        known = [(g, v) for g, v in zip(gradient, vector, strict=True) if g is not None]
        directional = sum((g * v).sum() for g, v in known)
        if not isinstance(directional, Tensor) or not directional.requires_grad:
            # a loss that is linear in all parameters has no curvature
            continue
        product = torch.autograd.grad(directional, parameters, allow_unused=True)
        for summed, part in zip(total, product, strict=True):
            if part is not None:
                summed += part
    return total


def mean_losses(
    network: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 250
) -> Losses:
    """The mean cross-entropy of a network on images, as summands of batches.

    Args:
        network: differentiable twice; used in its present mode.
        images: network input (n, C, H, W).
        labels: class indices (n,), or soft labels (n, classes).
        batch_size: images of a batch.

    Raises:
        TypeError: labels are neither.
        ValueError: there are not as many labels as images, or the network has no parameter.
    """
    labels = checking.learned_or_indices(labels, len(images), None, "Labels")
    first = next(network.parameters(), None)
    if first is None:
        raise ValueError("The network must have parameters. It has none.")
    device = first.device

    def losses() -> Iterable[Tensor]:
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            logits = network(images[part].to(device))
            loss = cross_entropy(logits, labels[part].to(device), reduction="sum")
            yield loss / len(images)

    return losses


def analyse(subject: Subject) -> Analysis:
    """Compare the Hessian's norm of networks trained on the set and on random images."""
    real, labels = subject.sample(default=300)
    sets = {
        "distilled": (subject.distilled.images, subject.distilled.labels),
        "random": subject.random(),
        "real sample": (real, labels),
    }
    eigenvalues: dict[str, dict[str, float]] = {}
    for name, (images, own_labels) in sets.items():
        network = subject.fitted(images, own_labels)
        parameters = [p for p in network.parameters() if p.requires_grad]
        own = _roughly(mean_losses(network, images, own_labels), parameters)
        on_real = own
        if images is not real:
            on_real = _roughly(mean_losses(network, real, labels), parameters)
        eigenvalues[name] = {"own": own.value, "real": on_real.value}
        subject.progress.log(f"hessian: {name}: {own.value:.4g} and {on_real.value:.4g}")
    lines = [f"{'trained on':<12}  {'loss on it':>12}  {'loss on real':>12}"]
    for name, values in eigenvalues.items():
        lines.append(f"{name:<12}  {values['own']:>12.4g}  {values['real']:>12.4g}")
    lines.append("eigenvalue of the Hessian that is largest in absolute value")
    return Analysis(
        name="hessian",
        title=f"Curvature at the minimum: {subject.title}",
        explanation=(
            "Largest eigenvalue of the Hessian of the cross-entropy at the weights of a "
            f"{subject.network.label} that was trained on each set for {subject.options.steps} "
            f"steps: of the loss on the set's own images, and of the loss on {len(real)} real ones. "
            "Lower is flatter."
        ),
        picture=chart(eigenvalues, subject.title),
        lines=tuple(lines),
        numbers={"eigenvalues": eigenvalues, "real_images": len(real)},
    )


def _roughly(losses: Losses, parameters: Sequence[Tensor]) -> Eigenvalue:
    """The eigenvalue to a relative tolerance of 0.001, finer than a chart shows."""
    return largest_eigenvalue(losses, parameters, iterations=50, tolerance=1e-3)


def chart(eigenvalues: Mapping[str, Mapping[str, float]], title: str = "") -> Image.Image:
    """Draw eigenvalues as bars.

    Args:
        eigenvalues: for each training set, that of the loss on its own images (`own`) and of the
            loss on real ones (`real`).
        title: above the bars.
    """
    from rayd.drawing import as_image, new_figure, styled

    losses = {"own": "its own images", "real": "real images"}
    with styled():
        figure = new_figure(620, 360)
        axes = figure.subplots()
        for number, (key, label) in enumerate(losses.items()):
            places = [index + (number - 0.5) * BAR_WIDTH for index in range(len(eigenvalues))]
            values = [abs(one[key]) for one in eigenvalues.values()]
            bars = axes.bar(places, values, BAR_WIDTH, color=PALETTE[number], label=label)
            axes.bar_label(bars, fmt="{:.3g}")
        axes.set_xticks(range(len(eigenvalues)), list(eigenvalues))
        axes.set_xlabel("trained on")
        axes.set_ylabel("largest |eigenvalue| of the Hessian")
        axes.grid(visible=False, axis="x")
        axes.legend(title="loss on", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        axes.set_title(title)
        return as_image(figure)


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    products = [(_double(a) * _double(b)).sum() for a, b in zip(first, second, strict=True)]
    return torch.stack(products).sum()


def _double(tensor: Tensor) -> Tensor:
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()  # MPS has no float64


def _scaled(vector: Sequence[Tensor]) -> list[Tensor]:
    norm = _dot(vector, vector) ** 0.5
    return [part / norm.to(part.dtype) for part in vector]
