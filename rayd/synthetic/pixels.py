"""The plain parameterisation: every pixel of every image is a parameter."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from rayd.errors import ConfigError
from rayd.synthetic.base import SyntheticSet, check_labels, is_regular


class Pixels(SyntheticSet):
    """Images as one tensor, with fixed hard labels or learned soft labels.

    >>> images = Pixels(torch.rand(4, 3, 8, 8), torch.tensor([0, 0, 1, 1]))
    >>> batch, labels = images.batch()
    >>> batch.shape, labels.tolist(), [name for name, _ in images.named_parameters()]
    (torch.Size([4, 3, 8, 8]), [0, 0, 1, 1], ['images'])
    """

    labels: Tensor

    def __init__(self, images: Tensor, labels: Tensor):
        """Initialise from normalised images (n, C, H, W), and class indices (n,) or logits.

        Logits (n, classes) are learned.

        Raises:
            ConfigError: images are no floats (n, C, H, W), or labels are neither.
        """
        super().__init__()
        if images.ndim != 4 or not images.is_floating_point():
            kind = str(images.dtype).removeprefix("torch.")
            raise ConfigError(
                "Images of a synthetic set must be normalised, floats (n, C, H, W). Got "
                f"{kind} {tuple(images.shape)} instead."
            )
        check_labels(labels, len(images))
        self.images = nn.Parameter(images.detach().clone().float())
        if labels.is_floating_point():
            self.labels = nn.Parameter(labels.detach().clone().float())
        else:
            self.register_buffer("labels", labels.detach().clone().long())

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def batch(self, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W), and class indices (n,) or rows of probabilities (n, classes)."""
        images = self.images if indices is None else self.images[indices]
        labels = self.labels if indices is None else self.labels[indices]
        return images, labels.softmax(1) if labels.is_floating_point() else labels

    @property
    def samples(self) -> Tensor:
        """Labels of the stored images."""
        return self.labels.argmax(1) if self.labels.is_floating_point() else self.labels

    def part(self, indices: Tensor) -> Self:
        """Extract images with their labels."""
        return type(self)(self.images[indices], self.labels[indices])

    @torch.no_grad()
    def put(self, indices: Tensor, part: Self) -> None:
        """Overwrite images, and soft labels."""
        self.images[indices] = part.images.to(self.images.device)
        if self.labels.is_floating_point():
            self.labels[indices] = part.labels.to(self.labels.device)

    @torch.no_grad()
    def clip(self, lower: Tensor, upper: Tensor) -> None:
        """Clamp all pixels."""
        self.images.clamp_(lower, upper)

    @property
    def implied(self) -> frozenset[str]:
        """Hard labels, if every class has equally many images, sorted by class."""
        if self.labels.is_floating_point():
            return frozenset()
        return frozenset({"labels"}) if is_regular(self.labels) else frozenset()
