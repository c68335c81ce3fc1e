r"""Cosine between gradients on a set and on the whole training set: do steps point the same way?

For the mean cross-entropy L of a network with weights :math:`\theta` on a set S and on the whole
training set R,

.. math:: \cos = \frac{\langle \nabla L_S(\theta), \nabla L_R(\theta) \rangle}
                      {\|\nabla L_S(\theta)\| \, \|\nabla L_R(\theta)\|}.

The gradient on R is exact: a sum over all its images, in batches, in float64. The network is in
eval mode, so that images do not influence each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor, nn

from rayd.analyses.base import PALETTE, Analysis, Subject
from rayd.analyses.hessian import mean_losses
from rayd.training.fitting import fit

AT = (0, 10, 30, 100, 300)
"""Steps of a training on real images after which gradients are compared."""


def gradient(network: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 250) -> Tensor:
    """Gradient of the mean cross-entropy with respect to all parameters, exact over batches.

    Args:
        network: used in eval mode; its own mode is restored.
        images: network input (n, C, H, W).
        labels: class indices (n,), or soft labels (n, classes).
        batch_size: images of a backward pass; the result depends on it by rounding only.

    Returns:
        One vector (parameters,), float64 on the CPU.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    mode = network.training
    network.eval()
    try:
        for loss in mean_losses(network, images, labels, batch_size)():
            parts = torch.autograd.grad(loss, parameters)
            total += torch.cat([part.flatten() for part in parts]).cpu().double()
    finally:
        network.train(mode)
    return total


def cosine(first: Tensor, second: Tensor) -> float:
    """Cosine of two vectors; 0 if one of them is zero.

    >>> round(cosine(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])), 4)
    0.7071
    """
    norms = first.norm() * second.norm()
    return float(first @ second / norms) if norms > 0 else 0.0


def analyse(subject: Subject) -> Analysis:
    """Compare gradients along the training of a network on real images."""
    options = subject.options
    whole = subject.sample(default=0)
    sets: dict[str, Sequence[tuple[Tensor, Tensor]]] = {
        "distilled": [(subject.distilled.images, subject.distilled.labels)],
        # several draws, as a single random set varies
        "random": [subject.random(seed) for seed in range(3)],
    }
    at = sorted({step for step in AT if step <= options.steps} | {options.steps})
    found: dict[str, list[float]] = {name: [] for name in sets}
    network = subject.build()

    def compare(step: int) -> None:
        if step not in at:
            return
        reference = gradient(network, *whole)
        for name, drawn in sets.items():
            cosines = [cosine(gradient(network, *one), reference) for one in drawn]
            found[name].append(fmean(cosines))
        subject.progress.log(f"gradients: step {step}: distilled {found['distilled'][-1]:.3f}")

    fit(network, *whole, steps=options.steps, seed=options.seed, on_step=compare)
    lines = ["  ".join(["step".ljust(9), *(f"{step:>6}" for step in at)])]
    for name, values in found.items():
        lines.append("  ".join([name.ljust(9), *(f"{value:>6.3f}" for value in values)]))
    return Analysis(
        name="gradients",
        title=f"Direction of the gradient: {subject.title}",
        explanation=(
            f"Cosine of the gradient of the set with that of {len(whole[0])} real images, computed "
            f"exactly, along the training of a {subject.network.label} on these. 1 is the same "
            "direction; random are as many real images of each class (mean of 3 draws)."
        ),
        picture=chart(at, found, subject.title),
        lines=tuple(lines),
        numbers={"steps": at, "cosines": found, "real_images": len(whole[0])},
    )


def chart(
    steps: Sequence[int], found: Mapping[str, Sequence[float]], title: str = ""
) -> Image.Image:
    """Draw cosines over the steps of the training, a line for each set."""
    from rayd.drawing import as_image, new_figure, styled

    with styled():
        figure = new_figure(560, 360)
        axes = figure.subplots()
        places = range(len(steps))
        for colour, (name, values) in zip(PALETTE, found.items(), strict=False):
            axes.plot(places, values, marker="o", color=colour, label=name)
        axes.set_xticks(places, [str(step) for step in steps])
        axes.set_xlabel("steps of training on real images")
        axes.set_ylabel("cosine with the real gradient")
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.legend(frameon=False)
        axes.set_title(title)
        return as_image(figure)
