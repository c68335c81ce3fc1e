"""Resizing of images to squares by cropping, squashing or padding, bilinear with antialiasing.

Cropping scales the short side and keeps the central square, like torchvision's `Resize` followed by
`CenterCrop`. Padding scales the long side and fills the rest with a background colour. Both keep
the aspect ratio; squashing scales each side independently.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from rayd.data.arrays import Pixels

Fit = Literal["crop", "squash", "pad"]
"""Ways to make an image square."""

WHITE = (255, 255, 255)


def fit_square(
    image: Image.Image,
    side: int,
    fit: Fit = "crop",
    background: tuple[int, int, int] = WHITE,
) -> Image.Image:
    """Resize an image to `side` x `side` pixels; returns the image itself if it has that size.

    Args:
        image: image of mode L or RGB.
        side: side in pixels.
        fit: how to make the image square.
        background: colour around padded images.
    """
    if image.size == (side, side):
        return image
    if fit == "squash":
        return image.resize((side, side), Image.Resampling.BILINEAR)
    if fit == "pad":
        colour = background if image.mode == "RGB" else _grey(background)
        return ImageOps.pad(image, (side, side), Image.Resampling.BILINEAR, color=colour)
    return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)


def resize(
    images: Pixels, side: int, fit: Fit = "crop", background: tuple[int, int, int] = WHITE
) -> Pixels:
    """Resize images (N, C, H, W) to (N, C, side, side); returns the array itself if unchanged."""
    if images.shape[2:] == (side, side):
        return images
    colours = background if images.shape[1] == 3 else (_grey(background),)
    resized = np.empty((*images.shape[:2], side, side), np.uint8)
    for source, target in zip(images, resized, strict=True):
        for plane, channel, value in zip(source, target, colours, strict=True):
            picture = Image.fromarray(plane)
            channel[:] = np.asarray(fit_square(picture, side, fit, (value, value, value)))
    return resized


def _grey(colour: tuple[int, int, int]) -> int:
    """Luminance of an RGB colour, by PIL's formula."""
    red, green, blue = colour
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
