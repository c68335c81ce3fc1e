"""What teachers say of the images that a student sees: while it trains, or once for all students to
come.

Images are mixed first and labelled then: labels of un-mixed images, as one branch of G-VBSM's
released code makes them, are those of other pictures. Several teachers speak by the mean of their
logits. That mean is rounded to the precision in which labels are stored, online too, so that
students cannot tell the two apart.
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
TOGETHER = 64
"""Images of which small batches make up one question: as many batches as it takes to have that
many.
"""

Asked = TypeVar("Asked", bound=Sized)


class Teachers:
    """Frozen networks whose mean logits are the label.

    Args:
        networks: at least one; they are moved to the device and stay in eval mode.
        precision: in which logits are kept, see `LabelSettings.precision`.
        arithmetic: of the forward pass, see `TrainingSettings.precision`.
        device: where they are.
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
        """Mean logits (n, classes) of network input (n, C, H, W): float32, but no finer than the
        precision of labels.

        They may be infinite or NaN; see `check`.
        """
        with convolutions(self.device, self._arithmetic), autocast(self.device, self._arithmetic):
            pairs = zip(self._networks, self._layouts, strict=True)
            said = [
                network(images.contiguous(memory_format=layout)).float()
                for network, layout in pairs
            ]
        mean = torch.stack(said).mean(0) if len(said) > 1 else said[0]
        # NaN stays NaN in both
        largest = mean.abs().amax()
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        return mean.to(self._precision).float()

    def check(self) -> None:
        """Refuse logits that were not finite. It waits for the device, so it is for the end of an
        epoch.

        Raises:
            RunError: a logit since the last check is not finite in the precision of labels.
        """
        largest = self._largest
        self._largest = None
        if largest is not None and not largest.to(self._precision).isfinite():
            raise RunError(
                f"The teachers' logits must be finite in {str(self._precision).removeprefix('torch.')}. Got up to "
                f"{float(largest):g}; a teacher diverged, or 'labels.precision: float32' is needed."
            )

    def of_each(self, batches: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Mean logits of several batches, asked at once; see `gathered`."""
        return torch.split(self(torch.cat(tuple(batches))), [len(batch) for batch in batches])


def gathered(batches: Iterable[Asked]) -> Iterator[list[Asked]]:
    """Neighbouring batches, taken together until they have `TOGETHER` images.

    >>> [list(map(len, some)) for some in gathered([range(50), range(50), range(80), range(5)])]
    [[50, 50], [80], [5]]
    """
    some: list[Asked] = []
    images = 0
    for batch in batches:
        some.append(batch)
        images += len(batch)
        if images >= TOGETHER:
            yield some
            some = []
            images = 0
    if some:
        yield some


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
    """Label what a student will see in some epochs: the tensors of a chunk, see
    `rayd.training.stored`.

    An epoch's labels do not depend on which epochs they are made with.

    Args:
        images: network input (N, C, H, W).
        settings: size and views of the batches, and the arithmetic.
        labels: the precision.
        teachers: at least one network; moved to the device.
        normalization: of the images; operations on pixels need it.
        seed: of all draws.
        epochs: which ones.
        device: where the work is done.

    Raises:
        RunError: a label is not finite.
    """
    said = Teachers(teachers, labels.precision, settings.precision, device)
    draws = Draws(settings, len(images), ImageShape(*images.shape[1:]), seed)
    made = [
        _label(images, draws, said, normalization, epoch, PRECISIONS[labels.precision])
        for epoch in epochs
    ]
    return stack(made)


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
    # all of the epoch stays on the device, which is waited for once
    said = torch.cat([teachers(torch.cat(some)).to(precision) for some in mixed]).cpu()
    teachers.check()
    logits = [{"logits": part} for part in torch.split(said, list(draws.sizes))]
    transforms = [
        batch.transform.state() if batch.transform is not None else {} for batch in batches
    ]
    mixes = [batch.mix.state() if batch.mix is not None else {} for batch in batches]
    order = draws.order(epoch)
    return {
        **({} if order is None else {"order": order}),
        **pack("transform", transforms, draws.sizes),
        **pack("mix", mixes, draws.sizes),
        **pack("labels", logits, draws.sizes),
    }


def _mixed(
    images: Tensor, batch: DrawnBatch, teachers: Teachers, normalization: Normalization | None
) -> Tensor:
    rows = batch.rows if isinstance(batch.rows, slice) else upload(batch.rows, images.device)
    return batch.mixed(batch.view(upload(images[rows], teachers.device), normalization))[0]
