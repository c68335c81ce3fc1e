"""Colour augmentations: pure functions, and dataclasses of drawn parameters.

Images are (N, channels, H, W), normalised; parameters are (N,), or (1,) for one draw shared by all
images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rayd.data.augmentation.geometry import uniform
from rayd.transfer import upload


def brightness(images: Tensor, offsets: Tensor) -> Tensor:
    """Add an offset to each image, in units of normalised pixels."""
    return images + _like(offsets, images)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance from grey: (x - m) * factor + m, with m the channel mean of each pixel."""
    mean = images.mean(dim=1, keepdim=True)
    return (images - mean) * _like(factors, images) + mean


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance from the mean: (x - m) * factor + m, with m the mean of each image."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * _like(factors, images) + mean


def _like(parameters: Tensor, images: Tensor) -> Tensor:
    return upload(parameters.to(images.dtype), images.device)[:, None, None, None]


@dataclass(frozen=True, eq=False)
class Color:
    """Brightness, saturation and contrast, in this order."""

    offsets: Tensor
    """(N,): offsets added to the pixels."""
    saturations: Tensor
    """(N,): factors of the distance from grey."""
    contrasts: Tensor
    """(N,): factors of the distance from the mean colour."""

    @classmethod
    def draw(cls, generator: Generator, count: int, height: int, width: int) -> Color:
        """Draw offsets from U[-0.5, 0.5), saturations from U[0, 2), contrasts from U[0.5, 1.5)."""
        return cls(
            uniform(generator, -0.5, 0.5, count),
            uniform(generator, 0.0, 2.0, count),
            uniform(generator, 0.5, 1.5, count),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images (N, channels, H, W)."""
        # move all parameters to the images' device in a single copy
        parameters = upload(
            torch.stack((self.offsets, self.saturations, self.contrasts)), images.device
        )
        offsets, saturations, contrasts = parameters.unbind()
        return contrast(saturation(brightness(images, offsets), saturations), contrasts)
