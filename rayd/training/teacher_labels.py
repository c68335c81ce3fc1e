"""Labels by teachers: their logits for a student's batches, online or once for all students.

`rayd.training.stored_labels` keeps those of all students and replays them.

Images are mixed before they are labelled: labels of un-mixed images, as in one branch of G-VBSM's
released code, would belong to other images. The logits of several teachers are averaged. The mean
is rounded to the precision of stored labels, also online, so that students get the same labels
either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

import torch
from torch import Tensor, nn

from rayd.config import EvaluationSettings, LabelSettings
from rayd.data.images import ImageShape
from rayd.data.normalization import Normalization
from rayd.devices import autocast, convolutions, to_device
from rayd.errors import RunError
from rayd.training.batches import DrawnBatch, Draws
from rayd.training.packing import pack, stack
from rayd.transfer import upload

PRECISIONS = {"float16": torch.float16, "float32": torch.float32}
"""Types of stored logits."""
MIN_TEACHER_BATCH = 64
"""Minimum number of images per forward pass of the teachers; smaller batches are combined."""

Item = TypeVar("Item", bound=Sized)


class Teachers:
    """Frozen networks whose mean logits are the labels.

    Args:
        networks: at least one network; moved to the device and kept in eval mode.
        precision: type of the logits, see `LabelSettings.precision`.
        arithmetic: arithmetic of the forward pass, see `TrainingSettings.precision`.
        device: device of the networks.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        precision: str,
        arithmetic: str = "float32",
        device: torch.device | str = "cpu",
    ):
        self.device = torch.device(device)
        self._networks = [network.eval() for network in networks]
        self._layouts = [to_device(network, self.device) for network in networks]
        self._precision = PRECISIONS[precision]
        self._arithmetic = arithmetic
        self._largest: Tensor | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Mean logits (n, classes) of network input (n, C, H, W), rounded to the labels' precision.

        They are float32, and may be infinite or NaN; see `check`.
        """
        with convolutions(self.device, self._arithmetic), autocast(self.device, self._arithmetic):
            pairs = zip(self._networks, self._layouts, strict=True)
            logits = [
                network(images.contiguous(memory_format=layout)).float()
                for network, layout in pairs
            ]
        mean = torch.stack(logits).mean(0) if len(logits) > 1 else logits[0]
        # amax and maximum propagate NaN
        largest = mean.abs().amax()
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        return mean.to(self._precision).float()

    def check(self) -> None:
        """Raise an error if any logit was not finite. It synchronises with the device, so call it
        once per epoch.

        Raises:
            RunError: a logit since the last check is not finite in the precision of labels.
        """
        largest = self._largest
        self._largest = None
        if largest is not None and not largest.to(self._precision).isfinite():
            raise RunError(
                "The teachers' logits must be finite in "
                f"{str(self._precision).removeprefix('torch.')}. "
                f"Got up to {float(largest):g}; "
                "a teacher diverged, or 'labels.precision: float32' is needed."
            )

    def of_each(self, batches: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Mean logits of several batches, in one forward pass; see `gathered`."""
        return torch.split(self(torch.cat(tuple(batches))), [len(batch) for batch in batches])


def gathered(batches: Iterable[Item]) -> Iterator[list[Item]]:
    """Combine consecutive batches until they have `MIN_TEACHER_BATCH` images.

    >>> [list(map(len, group)) for group in gathered([range(50), range(50), range(80), range(5)])]
    [[50, 50], [80], [5]]
    """
    group: list[Item] = []
    images = 0
    for batch in batches:
        group.append(batch)
        images += len(batch)
        if images >= MIN_TEACHER_BATCH:
            yield group
            group = []
            images = 0
    if group:
        yield group


@torch.no_grad()
def label_epochs(
    images: Tensor,
    settings: EvaluationSettings,
    labels: LabelSettings,
    teachers: Sequence[nn.Module],
    normalization: Normalization | None,
    seed: int,
    epochs: range,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """Label the batches of some epochs of a student: tensors of a `LabelChunk`.

    An epoch's labels do not depend on which other epochs are labelled in the same call.

    Args:
        images: network input (N, C, H, W).
        settings: size and views of the batches, and the arithmetic.
        labels: precision of the labels.
        teachers: at least one network; moved to the device.
        normalization: normalisation of the images, for operations on pixels.
        seed: seed of all draws.
        epochs: epochs to label.
        device: device to compute on.

    Raises:
        RunError: a label is not finite.
    """
    labeller = Teachers(teachers, labels.precision, settings.precision, device)
    draws = Draws(settings, len(images), ImageShape(*images.shape[1:]), seed)
    labelled = [
        _label(images, draws, labeller, normalization, epoch, PRECISIONS[labels.precision])
        for epoch in epochs
    ]
    return stack(labelled)


def _label(
    images: Tensor,
    draws: Draws,
    teachers: Teachers,
    normalization: Normalization | None,
    epoch: int,
    precision: torch.dtype,
) -> dict[str, Tensor]:
    batches = list(draws.epoch(epoch))
    mixed = gathered(_mixed(images, batch, teachers, normalization) for batch in batches)
    # logits of the whole epoch stay on the device, so that the host synchronises only once
    logits = torch.cat([teachers(torch.cat(group)).to(precision) for group in mixed]).cpu()
    teachers.check()
    by_batch = [{"logits": part} for part in torch.split(logits, list(draws.sizes))]
    transforms = [
        batch.transform.state() if batch.transform is not None else {} for batch in batches
    ]
    mixes = [batch.mix.state() if batch.mix is not None else {} for batch in batches]
    order = draws.order(epoch)
    return {
        **({} if order is None else {"order": order}),
        **pack("transform", transforms, draws.sizes),
        **pack("mix", mixes, draws.sizes),
        **pack("labels", by_batch, draws.sizes),
    }


def _mixed(
    images: Tensor, batch: DrawnBatch, teachers: Teachers, normalization: Normalization | None
) -> Tensor:
    rows = batch.rows if isinstance(batch.rows, slice) else upload(batch.rows, images.device)
    return batch.mixed(batch.view(upload(images[rows], teachers.device), normalization))[0]
