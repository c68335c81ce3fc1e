"""Resizing of images: scale the short side, then crop the central square.

Bilinear with antialiasing, equal to torchvision's `Resize` followed by `CenterCrop`; keeps the
aspect ratio.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from rayd.data.arrays import Pixels


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """Central square of an image at `side` x `side` pixels; the image itself if it fits already."""
    if image.size == (side, side):
        return image
    return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)


def resize(images: Pixels, side: int) -> Pixels:
    """Resize images (N, C, H, W) to (N, C, side, side); returns the array itself if it fits."""
    if images.shape[2:] == (side, side):
        return images
    resized = np.empty((*images.shape[:2], side, side), np.uint8)
    for source, target in zip(images, resized, strict=True):
        for plane, channel in zip(source, target, strict=True):
            channel[:] = np.asarray(fit_square(Image.fromarray(plane), side))
    return resized
