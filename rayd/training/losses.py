r"""What a network in training is told of its logits.

With s = `student`, t = `teacher` the logits (n, classes), T the temperature:

- `cross_entropy`: with class indices or soft label rows. On mixed images it is
  kept · CE(s, own label) + (1 - kept) · CE(s, partner's label).
- `kl`: :math:`\frac1n \sum_i \mathrm{KL}(\mathrm{softmax}(t_i/T) \,\|\, \mathrm{softmax}(s_i/T))`,
  **not** multiplied by :math:`T^2`, as in the released code of SRe2L, RDED and their descendants;
  gradients shrink with T² accordingly.
- `mse`: the mean of :math:`(s - t)^2` over all n · classes elements (G-VBSM and EDC, "MSE-GT").

To both of the latter `loss_of` adds `hard_weight` times the cross-entropy with each image's **own
hard** label. On mixed images that is the label of the un-mixed image whatever its share, as in the
released code of EDC; of a soft label it is the largest entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.config import EvaluationSettings


@dataclass(frozen=True, eq=False)
class Target:
    """What a batch of n images, mixed or not, is to be taken for."""

    labels: Tensor
    """The images' own labels, class indices int64 (n,) or soft labels (n, classes), then those of
    images that are there as partners only.
    """
    partners: Tensor | None = None
    """Which image each is mixed with, int64 (n,); None if they are not mixed."""
    kept: float = 1.0
    """The share of the image itself."""
    logits: Tensor | None = None
    """What the teachers say of the mixed images, float32 (n, classes)."""

    @property
    def own(self) -> Tensor:
        """The labels of the n images themselves."""
        return self.labels if self.partners is None else self.labels[: len(self.partners)]


Loss = Callable[[Tensor, Target], Tensor]
"""From the logits (n, classes) of a network and the target of its batch to a scalar."""


def cross_entropy(student: Tensor, target: Target) -> Tensor:
    """Mean cross-entropy with the labels, shared between own and partner's where images are
    mixed.
    """
    own = F.cross_entropy(student, target.own)
    if target.partners is None:
        return own
    partners = F.cross_entropy(student, target.labels[target.partners.to(target.labels.device)])
    return target.kept * own + (1 - target.kept) * partners


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over the batch of the divergence of the student's softened distribution from the
    teacher's; not times T².
    """
    said, meant = (F.log_softmax(_wide(logits) / temperature, 1) for logits in (student, teacher))
    return F.kl_div(said, meant, reduction="batchmean", log_target=True)


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all elements of the squared difference of the logits."""
    return F.mse_loss(_wide(student), _wide(teacher))


def own_hard_label(student: Tensor, target: Target) -> Tensor:
    """Mean cross-entropy with each image's own hard label, as if it were not mixed."""
    labels = target.own.argmax(1) if target.own.is_floating_point() else target.own
    return F.cross_entropy(_wide(student), labels)


def loss_of(settings: EvaluationSettings) -> Loss:
    """The loss that a protocol names; `kl` and `mse` need targets with teachers' logits."""
    if settings.loss == "cross-entropy":
        return cross_entropy

    def taught(student: Tensor, target: Target) -> Tensor:
        assert target.logits is not None
        near = (
            kl(student, target.logits, settings.temperature)
            if settings.loss == "kl"
            else mse(student, target.logits)
        )
        return (
            near + settings.hard_weight * own_hard_label(student, target)
            if settings.hard_weight
            else near
        )

    return taught


def _wide(logits: Tensor) -> Tensor:
    """At least float32, as exponentials need."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
