r"""Losses of networks in training.

With s = `student`, t = `teacher` the logits (n, classes), T the temperature:

- `cross_entropy`: with class indices or soft label rows. On mixed images it is
  kept · CE(s, own label) + (1 - kept) · CE(s, partner's label).
- `kl`: :math:`\frac1n \sum_i \mathrm{KL}(\mathrm{softmax}(t_i/T) \,\|\, \mathrm{softmax}(s_i/T))`,
  **not** multiplied by :math:`T^2`, as in the released code of SRe2L, RDED and their descendants;
  gradients shrink with T² accordingly.
- `mse`: the mean of :math:`(s - t)^2` over all n · classes elements (G-VBSM and EDC, "MSE-GT").

To `kl` and `mse`, `loss_of` adds `hard_weight` times the cross-entropy with each image's **own
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
    """Targets of a batch of n images, mixed or not."""

    labels: Tensor
    """Class indices int64 or soft labels (rows of classes) of the n images, followed by those of
    images that are only partners.
    """
    partners: Tensor | None = None
    """Index of each image's partner, int64 (n,); None if images are not mixed."""
    kept: float = 1.0
    """Share of the image itself."""
    logits: Tensor | None = None
    """Teachers' logits of the mixed images, float32 (n, classes)."""

    @property
    def own(self) -> Tensor:
        """Labels of the n images themselves."""
        return self.labels if self.partners is None else self.labels[: len(self.partners)]


Loss = Callable[[Tensor, Target], Tensor]
"""Maps the logits (n, classes) of a network and the target of the batch to a scalar."""


def cross_entropy(student: Tensor, target: Target) -> Tensor:
    """Mean cross-entropy with the labels, weighted between image and partner if mixed."""
    own = F.cross_entropy(student, target.own)
    if target.partners is None:
        return own
    partners = F.cross_entropy(student, target.labels[target.partners.to(target.labels.device)])
    return target.kept * own + (1 - target.kept) * partners


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the student's softened distribution from the teacher's, batch mean.

    It is not multiplied by T².
    """
    log_student = F.log_softmax(_wide(student) / temperature, 1)
    log_teacher = F.log_softmax(_wide(teacher) / temperature, 1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the logits, over all elements."""
    return F.mse_loss(_wide(student), _wide(teacher))


def own_hard_label(student: Tensor, target: Target) -> Tensor:
    """Mean cross-entropy with each image's own hard label, ignoring the mixing."""
    labels = target.own.argmax(1) if target.own.is_floating_point() else target.own
    return F.cross_entropy(_wide(student), labels)


def loss_of(settings: EvaluationSettings) -> Loss:
    """Loss of a protocol; `kl` and `mse` need targets with teachers' logits."""
    if settings.loss == "cross-entropy":
        return cross_entropy

    def distillation(student: Tensor, target: Target) -> Tensor:
        assert target.logits is not None
        loss = (
            kl(student, target.logits, settings.temperature)
            if settings.loss == "kl"
            else mse(student, target.logits)
        )
        if settings.hard_weight:
            loss = loss + settings.hard_weight * own_hard_label(student, target)
        return loss

    return distillation


def _wide(logits: Tensor) -> Tensor:
    """Convert to at least float32, as exponentials need."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
