"""Images at another size: the short side scaled to the wanted one, the middle square kept.

Bilinear with antialiasing, as torchvision's `Resize` and `CenterCrop` do together; the aspect ratio
stays.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from rayd.data.arrays import Pixels


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """The middle square of an image at `side` x `side` pixels; the image itself if it has that
    size.
    """
    if image.size == (side, side):
        return image
    return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)


def resize(images: Pixels, side: int) -> Pixels:
    """Images (N, C, H, W) as (N, C, side, side); the array itself if it has that size."""
    if images.shape[2:] == (side, side):
        return images
    resized = np.empty((*images.shape[:2], side, side), np.uint8)
    for source, target in zip(images, resized, strict=True):
        for plane, channel in zip(source, target, strict=True):
            channel[:] = np.asarray(fit_square(Image.fromarray(plane), side))
    return resized
