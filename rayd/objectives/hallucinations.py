"""Images of one basis that should differ, and a network that finds what they share: HaBa.

Liu et al., "Dataset Distillation via Factorization" (NeurIPS 2022). Hallucinators and an adversary
pull the features of the images of one basis in opposite directions:

    hallucinators    L_H = mean_(i, j) (1 + cos(f_i, f_j)) / 2                               down: images differ
    adversary        L_A = mean_i CE(phi_i, y_i) + a mean_(i, j) (1 - cos(f_i, f_j)) / 2 + b L_con

    L_con = - mean_i mean_{p in P(i)} log( exp(<u_i, u_p> / tau) / sum_{q != i} exp(<u_i, u_q> / tau) )

    f_i    features (d,) before the classifier of image i in the adversary      u_i   f_i of norm 1
    phi_i  its logits                                   (i, j)   pairs of images of the same basis by different hallucinators
    P(i)   other images of the same class as i          tau      0.07          a, b     0.1, 0.1

The adversary is an observer that learns from the hallucinated images between two steps
(`observers.model_pool`, with `loss: contrast`).

**Released code.** It draws two hallucinators a step for both losses; here all pairs of images that
are there count, whose mean is the expectation of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayd.config import Recipe
from rayd.config.choices import LayerRole
from rayd.errors import ConfigError
from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation

TEMPERATURE = 0.07
"""The tau of the contrastive loss."""
LIKENESS = 0.1
"""Weight of the likeness of images of one basis in the adversary's loss."""
CONTRAST = 0.1
"""Weight of the contrastive loss in the adversary's loss."""


def cosines(features: Tensor) -> Tensor:
    """Cosines (n, n) of the angles between features (n, d)."""
    from torch.nn.functional import normalize

    directions = normalize(features)
    return directions @ directions.T


def siblings(bases: Tensor) -> Tensor:
    """Which pairs of images (n, n) are of the same basis, each image with itself left out; bases are
    indices (n,).

    >>> import torch
    >>> siblings(torch.tensor([0, 0, 1]))[0].tolist()
    [False, True, False]
    """
    same = bases[:, None] == bases
    return same.fill_diagonal_(False)


def likeness(features: Tensor, bases: Tensor) -> Tensor:
    """Mean of (1 + cos) / 2 over pairs of images of the same basis, a scalar in [0, 1]; 0 where there
    is no pair.
    """
    pairs = siblings(bases)
    return (pairs * (1 + cosines(features)) / 2).sum() / pairs.sum().clamp(min=1)


def class_contrast(features: Tensor, labels: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020) of features (n, d) with class
    indices (n,), a scalar; images that are alone in their class do not count.
    """
    import torch

    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    products = cosines(features) / temperature
    log_shares = products.masked_fill(itself, -torch.inf).log_softmax(1)
    positive = (labels[:, None] == labels) & ~itself
    counts = positive.sum(1)
    of_each = -log_shares.masked_fill(~positive, 0.0).sum(1) / counts.clamp(min=1)
    return of_each.sum() / (counts > 0).sum().clamp(min=1)


def adversary_loss(logits: Tensor, features: Tensor, labels: Tensor, bases: Tensor) -> Tensor:
    """The adversary's loss, a scalar: cross-entropy, and similarity of images of one basis and of
    one class.

    Args:
        logits: of the adversary (n, classes).
        features: of the adversary (n, d).
        labels: class indices (n,).
        bases: of which basis each image is, indices (n,).
    """
    from torch.nn.functional import cross_entropy

    pairs = siblings(bases)
    unlike = (pairs * (1 - cosines(features)) / 2).sum() / pairs.sum().clamp(min=1)
    contrast = class_contrast(features, labels)
    return cross_entropy(logits, labels) + LIKENESS * unlike + CONTRAST * contrast


class HallucinatorContrast(Term):
    """Similarity of the images of one basis, in the features of a trained adversary."""

    name = "hallucinator_contrast"

    weight: float = Field(default=0.1, ge=0)
    """Factor of the term; 0 switches it off."""
    per_basis: int = Field(default=5, ge=1)
    """Images of a basis, which are consecutive: `synthetic.hallucinators`."""

    @property
    def layer_roles(self) -> frozenset[LayerRole]:
        """Input of the classifier."""
        return frozenset({LayerRole.FEATURES})

    def check(self, recipe: Recipe) -> None:
        """Refuse images that are not of several hallucinators.

        Raises:
            ConfigError: says what to set.
        """
        made = recipe.synthetic.per_basis
        if made < 2 or made != self.per_basis:
            raise ConfigError(
                f"The term '{self.name}' needs several images of each basis, and to know how many: set "
                "'synthetic.kind: hallucinated' with 'synthetic.hallucinators' of 2 or more and "
                f"'terms.{self.name}.per_basis' like it, or 'terms.{self.name}.weight: 0'."
            )

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Mean over pairs of images of the same basis, a scalar in [0, 1]."""
        import torch

        (features,) = (layer.float() for layer in seen.layers[LayerRole.FEATURES])
        images = torch.arange(len(features), device=features.device)
        return likeness(features, images // self.per_basis)
