"""Batched augmentation of normalised images, differentiable except for RandAugment.

The same operations augment real and synthetic images. They are drawn by `rayd.engine.task_draws`
for observers during synthesis, by `rayd.training.batches` for networks and students in training, by
`rayd.objectives.trajectory` for students that follow an expert's trajectory, and by
`rayd.engine.gradients.model_pool` for the networks of a model pool.

Every augmentation is a frozen dataclass of drawn parameters: `draw(generator, count, height,
width)` creates one from a private generator, and each call applies the same parameters. The
corresponding pure functions take the parameters directly.

    generator = torch.Generator().manual_seed(0)
    crop = Crop.draw(generator, count=16, height=32, width=32)
    views = crop(images)  # (16, channels, 32, 32), the same every time
"""

from rayd.data.augmentation.by_class import ALL, ByClass, Rows
from rayd.data.augmentation.color import Color, brightness, contrast, saturation
from rayd.data.augmentation.dsa import DSA, Operation, augmentation
from rayd.data.augmentation.geometry import (
    Crop,
    Cutout,
    Flip,
    ResizedCrop,
    Roll,
    Rotate,
    Scale,
    crop,
    cutout,
    flip,
    resized_crop,
    roll,
    rotate,
    scale,
)
from rayd.data.augmentation.mixing import CutMix, MixUp, cutmix, draw_mix, mix_from_state, mixup
from rayd.data.augmentation.rand_augment import RandAugment
from rayd.data.augmentation.rows import at_rows
from rayd.data.augmentation.transform import Transform, draw_transform

__all__ = [
    "ALL",
    "DSA",
    "ByClass",
    "Color",
    "Crop",
    "CutMix",
    "Cutout",
    "Flip",
    "MixUp",
    "Operation",
    "RandAugment",
    "ResizedCrop",
    "Roll",
    "Rotate",
    "Rows",
    "Scale",
    "Transform",
    "at_rows",
    "augmentation",
    "brightness",
    "contrast",
    "crop",
    "cutmix",
    "cutout",
    "draw_mix",
    "draw_transform",
    "flip",
    "mix_from_state",
    "mixup",
    "resized_crop",
    "roll",
    "rotate",
    "saturation",
    "scale",
]
