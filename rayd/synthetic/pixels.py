"""The plain parameterisation: every pixel of every image is a parameter."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from rayd.synthetic.base import SyntheticSet


class Pixels(SyntheticSet):
    """Images as one tensor; hard labels, or soft ones, which are learned."""

    labels: Tensor

    def __init__(self, images: Tensor, labels: Tensor):
        """Start from images (n, C, H, W) in normalised space, and class indices (n,) or logits (n,
        classes).
        """
        super().__init__()
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
        images, labels = (
            (self.images, self.labels)
            if indices is None
            else (self.images[indices], self.labels[indices])
        )
        return images, labels.softmax(1) if labels.is_floating_point() else labels

    @property
    def samples(self) -> Tensor:
        """Labels of the stored images."""
        return self.labels.argmax(1) if self.labels.is_floating_point() else self.labels

    def part(self, indices: Tensor) -> Self:
        """Every image stands for itself."""
        return type(self)(self.images[indices], self.labels[indices])

    @torch.no_grad()
    def put(self, indices: Tensor, part: Self) -> None:
        """Overwrite images, and their labels where these are learned."""
        self.images[indices] = part.images.to(self.images.device)
        if self.labels.is_floating_point():
            self.labels[indices] = part.labels.to(self.labels.device)

    @torch.no_grad()
    def clip(self, lower: Tensor, upper: Tensor) -> None:
        """Clamp every pixel."""
        self.images.clamp_(lower, upper)

    @property
    def implied(self) -> frozenset[str]:
        """Hard labels are free while every class has as many images, sorted by class."""
        if self.labels.is_floating_point():
            return frozenset()
        counts = torch.bincount(self.labels)
        regular = bool((counts == counts[0]).all() and (self.labels.diff() >= 0).all())
        return frozenset({"labels"}) if regular else frozenset()
