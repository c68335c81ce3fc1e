"""Augmentation of batches of normalised images, differentiable, with private random draws.

Every augmentation is a frozen dataclass of drawn parameters: `draw(generator, count, height, width)` makes one, and calling it
applies it, as often as wished and always alike. The pure functions beside them take the parameters directly.
"""

from rayd.data.augmentation.color import Color, brightness, contrast, saturation
from rayd.data.augmentation.dsa import DSA, Operation, augmentation
from rayd.data.augmentation.geometry import (
    Crop,
    Cutout,
    Flip,
    ResizedCrop,
    Rotate,
    Scale,
    crop,
    cutout,
    flip,
    resized_crop,
    rotate,
    scale,
)
from rayd.data.augmentation.mixing import CutMix, MixUp, cutmix, mixup

__all__ = [
    "DSA",
    "Color",
    "Crop",
    "CutMix",
    "Cutout",
    "Flip",
    "MixUp",
    "Operation",
    "ResizedCrop",
    "Rotate",
    "Scale",
    "augmentation",
    "brightness",
    "contrast",
    "crop",
    "cutmix",
    "cutout",
    "flip",
    "mixup",
    "resized_crop",
    "rotate",
    "saturation",
    "scale",
]
