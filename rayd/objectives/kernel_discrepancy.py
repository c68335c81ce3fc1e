"""Maximum mean discrepancy of classes with a kernel over all pairs, which spectral distances
estimate.

Gretton et al., "A Kernel Two-Sample Test" (JMLR 2012); the comparison of CSDM's Figure 2.

    loss_c = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)        loss = mean or sum of loss_c over classes c

    x    features of the real images of class c in a mini-batch      y    those of the synthetic ones
    k    a kernel of length s (`rayd.statistics.frequencies`); means are over all pairs, equal ones included, so at least 0

It is the expectation over frequencies of the squared distance of characteristic functions
(`rayd.objectives.characteristic_function_distance`), so the two terms are comparable with 'uniform'
classes and an amplitude weight of 1/2. Its cost grows with the number of pairs of images, including
pairs with real ones, so it takes real mini-batches: `real: sampled`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from rayd.config import When
from rayd.config.choices import Kernel, LayerRole, OverClasses
from rayd.objectives.characteristic_function import Length
from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation
    from rayd.statistics import Frequencies


def kernel_values(kernel: Frequencies, one: Tensor, other: Tensor) -> Tensor:
    """Values k(x, y) of all pairs (n, m), of features (n, d) and (m, d); differentiable."""
    import torch

    # all these kernels depend only on a norm of the difference, so the norms of pairs suffice; the
    # differences themselves would not fit into memory
    order = 1.0 if kernel.kernel == "laplace" else 2.0
    distances = torch.cdist(one, other, order, "donot_use_mm_for_euclid_dist")
    return kernel.closed_form(distances.unsqueeze(-1))


def discrepancy(kernel: Frequencies, real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of features (n, d) and (m, d), a scalar.

    >>> import torch
    >>> from rayd.statistics import Frequencies
    >>> same = torch.tensor([[0.0], [1.0]])
    >>> float(discrepancy(Frequencies("gaussian", 1.0), same, same))
    0.0
    """
    among_real = kernel_values(kernel, real, real).mean()
    among_synthetic = kernel_values(kernel, synthetic, synthetic).mean()
    return among_real + among_synthetic - 2 * kernel_values(kernel, real, synthetic).mean()


class KernelDiscrepancy(Term):
    """Maximum mean discrepancy of the features of every class, with a configurable kernel."""

    name = "kernel_discrepancy"
    for_any_method = True
    needs_batch = True

    weight: float = Field(default=300.0, ge=0)
    """Factor of the term; 0 switches it off."""
    kernel: Kernel = "gaussian"
    """Which kernel."""
    scale: Length = "median"
    """Length of the kernel in units of the features, or the median distance between real features
    of the mini-batch.
    """
    smoothness: Annotated[float, When(kernel="matern")] = Field(default=1.5, gt=0)
    """`matern`: its nu, a half-integer: 0.5, 1.5, 2.5, ..."""
    mixture: Annotated[float, When(kernel="rational-quadratic")] = Field(default=1.0, gt=0)
    """`rational-quadratic`: its exponent a."""
    normalize: bool = False
    """Whether features are divided by their Euclidean norm."""
    over_classes: OverClasses = "mean"
    """Reduction over classes."""

    @model_validator(mode="after")
    def _elementary(self) -> KernelDiscrepancy:
        if self.kernel == "matern" and (self.smoothness - 0.5) % 1 != 0:
            raise ValueError(
                "'smoothness' must be a half-integer (0.5, 1.5, 2.5, ...), as other Matern kernels "
                f"have no closed form. Got {self.smoothness:g} instead"
            )
        return self

    @cached_property
    def _kernel(self) -> Frequencies:
        from rayd.statistics import Frequencies

        return Frequencies(
            kernel=self.kernel,
            scale=self.scale,
            number=1,
            smoothness=self.smoothness,
            mixture=self.mixture,
        )

    @property
    def layer_roles(self) -> frozenset[LayerRole]:
        """Input of the classifier."""
        return frozenset({LayerRole.FEATURES})

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Mean or sum over the classes of the synthetic images; labels are class indices (N,)."""
        import torch
        from torch.nn.functional import normalize

        from rayd.derived import rows_by_class

        _, batch = context.seen_through()
        (theirs,) = (layer.float() for layer in batch.look().layers[LayerRole.FEATURES])
        (ours,) = (layer.float() for layer in seen.layers[LayerRole.FEATURES])
        if self.normalize:
            theirs = normalize(theirs)
            ours = normalize(ours)
        kernel = self._kernel.resolved(theirs)
        real_rows = rows_by_class(batch.labels)
        parts = [
            discrepancy(kernel, theirs[real_rows[label]], ours[rows])
            for label, rows in rows_by_class(labels).items()
        ]
        total = torch.stack(parts).sum()
        return total if self.over_classes == "sum" else total / len(parts)
