"""Small sets and networks that train in milliseconds."""

import numpy as np
import torch
from torch import nn

from rayd.config import NetworkSettings
from rayd.data import ImageSet, ImageShape, Standardization
from rayd.networks import build
from rayd.training.sets import TrainingSet

SHAPE = ImageShape(1, 8, 8)
CLASSES = 3
CONVNET = NetworkSettings(name="convnet", depth=2, width=8)
BATCH_NORM = NetworkSettings(name="convnet", depth=2, width=8, norm="batch")
DSA = "color_crop_cutout_flip_scale_rotate"
VIEWS = {"rand_augment": 2, "crop": (0.3, 1.0), "flip": True}


def image_set(count: int, seed: int) -> ImageSet:
    """Noise with one bright quarter, which determines the class."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    images = draw.integers(0, 120, (count, *SHAPE), dtype=np.uint8)
    for row, label in enumerate(labels):
        images[row, 0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 100
    return ImageSet(images, labels.astype(np.int64), ("a", "b", "c"))


REAL = image_set(30, 0)
HELD_OUT = image_set(15, 1)
TEST = image_set(40, 2)
NORMALIZATION = Standardization.fit(REAL.images)


def of(images: ImageSet, name: str = "training") -> TrainingSet:
    return TrainingSet.from_images(images, NORMALIZATION, name=name)


def network(seed: int = 0, settings: NetworkSettings = CONVNET) -> nn.Module:
    return build(settings, SHAPE, CLASSES, seed=seed)


def teachers() -> list[nn.Module]:
    """Two teachers that disagree, with logits that overflow float16."""
    made = [network(1), network(2, BATCH_NORM)]
    with torch.no_grad():
        for each in made:
            list(each.parameters())[-2].mul_(5)
    return made
