"""Resizing of images to squares: cropped, squashed or padded.

Bilinear with antialiasing. Cropping scales the short side and keeps the central square, equal to
torchvision's `Resize` followed by `CenterCrop`; padding scales the long side and fills the rest
with a background; both keep the aspect ratio. Squashing scales both sides.
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
    """Image at `side` x `side` pixels; the image itself if it has that size already.

    Args:
        image: of mode L or RGB.
        side: in pixels.
        fit: how an image that is not square becomes one.
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
    """Resize images (N, C, H, W) to (N, C, side, side); returns the array itself if it fits."""
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
    """Luminance of a colour, by PIL's formula."""
    red, green, blue = colour
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
