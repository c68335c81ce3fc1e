"""Data densification: images of a class should differ from each other.

Shao et al., "Generalized Large-Scale Data Condensation via Various Backbone and Statistical
Matching" (CVPR 2024):

    loss = sum_c KL( softmax(l_c / tau) || softmax(l_c) )      l_c = eigenvalues of X_c X_c^T, (n_c,)

    X_c  the n_c images of class c that the step holds, as the observer gets them, pooled to 32 x 32
         pixels, flattened
    tau  temperature, 4; the first argument is a target without gradient

Similar images give one large eigenvalue; the softened distribution pulls the spectrum towards equal
eigenvalues. A class with a single image has one eigenvalue and contributes 0. Eigenvalues are sums
of some 3,000 squared pixels: if they are further apart than a few tau, both distributions are
almost one-hot, and the term and its gradient vanish. The released code uses a solver for general
matrices; here, a solver for symmetric matrices is applied to all classes of one size at once.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from pydantic import Field

from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation

SIDE = 32
"""Pixels that images are pooled to."""


def spectra(images: Tensor, labels: Tensor) -> list[Tensor]:
    """Eigenvalues of the Gram matrices of pooled images (N, channels, h, w), ascending, a tensor
    (classes, n) for every n > 1.

    Args:
        images: images.
        labels: class indices (N,).

    Returns:
        A row for every class with n images, for each n above 1 that occurs.
    """
    import torch
    from torch.nn import functional

    from rayd.derived import derived

    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    flat = functional.adaptive_avg_pool2d(wide, SIDE).flatten(1)
    found = []
    for index in derived(labels, "rows by class size", lambda: _by_size(labels)):
        together = flat.index_select(0, index.flatten()).reshape(*index.shape, -1)
        gram = together @ together.mT
        able = (
            gram.cpu() if gram.device.type == "mps" else gram
        )  # MPS has no solver for eigenvalues
        found.append(torch.linalg.eigvalsh(able).to(gram.device))
    return found


def _by_size(labels: Tensor) -> list[Tensor]:
    """Rows (classes, n) of the classes that have n images, for each n above 1, ascending."""
    import torch

    from rayd.derived import on_host, rows_by_class, uploaded

    by_size: dict[int, list[Tensor]] = defaultdict(list)
    for rows in rows_by_class(on_host(labels)).values():
        by_size[len(rows)].append(rows)
    return [
        uploaded(torch.stack(by_size[size]), labels.device) for size in sorted(by_size.keys() - {1})
    ]


def flattening(eigenvalues: Tensor, temperature: float) -> Tensor:
    """Sum over rows of KL(softmax(l / tau) || softmax(l)) of eigenvalues (rows, n), the first
    argument without gradient.
    """
    from torch.nn import functional

    target = functional.log_softmax(eigenvalues.detach() / temperature, dim=-1)
    return functional.kl_div(
        functional.log_softmax(eigenvalues, dim=-1), target, reduction="sum", log_target=True
    )


class Densification(Term):
    """Divergence of the spectra of the classes from softer ones."""

    name = "densification"
    for_any_method = True

    temperature: float = Field(default=4.0, gt=0)
    """Temperature of the softened spectrum."""

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Sum over the classes, differentiable in the network inputs (N, channels, h, w)."""
        import torch

        values = []
        for eigenvalues in spectra(seen.images, labels):
            values.append(flattening(eigenvalues, self.temperature))
        return torch.stack(values).sum() if values else seen.logits.new_zeros(())
