"""Batched RandAugment: random operations on every image, all of the same magnitude.

Source: Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search
Space" (NeurIPS 2020), with the operations, strengths and rounding of torchvision's `RandAugment`,
nearest-neighbour sampling, and black outside the image. For every layer, each image draws one of 14
operations, uniformly and with replacement. A magnitude m in 0..30 scales each operation to m / 30
of its largest effect:

| operation | strength at m | signed |
|---|---|---|
| Identity, AutoContrast, Equalize | none | |
| ShearX, ShearY | shift of 0.3 m / 30 pixels per pixel | yes |
| TranslateX, TranslateY | 150 / 331 m / 30 of the side, in whole pixels | yes |
| Rotate | 30 m / 30 degrees | yes |
| Brightness, Color, Contrast, Sharpness | factor 1 + 0.9 m / 30 | yes |
| Posterize | keeps 8 - 4 m / 30 bits, rounded | |
| Solarize | inverts pixels from 1 - m / 30 on | |

torchvision draws one operation for all images of a call. Here, every image has its own, and images
with the same operation and sign are processed together. The two versions of torchvision's transform
disagree about Solarize at m = 16, 18 and 24: version 2 rounds the threshold to just above a whole
pixel value, so that pixels of this value are not inverted. Here they are, as in version 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import atan, degrees
from typing import Any

import torch
from torch import Generator, Tensor

from rayd.errors import ConfigError
from rayd.transfer import upload

BINS = 31
"""Number of strengths of an operation, from none to its largest effect."""

_Apply = Callable[[Tensor, float], Tensor]


def _torchvision(operation: str, images: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    """Call an operation of torchvision, whose import takes as long as torch's, so only if used."""
    from torchvision.transforms.v2 import functional

    changed: Tensor = getattr(functional, operation)(images, *arguments, **keywords)
    return changed


def _affine(
    images: Tensor, shift: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """Translate by whole pixels (dx, dy), or shear by (x, y) about the top left corner."""
    angles = [degrees(atan(slope)) for slope in shear]
    return _torchvision(
        "affine", images, angle=0.0, translate=list(shift), scale=1.0, shear=angles, center=[0, 0]
    )


def _on_bytes(apply: _Apply) -> _Apply:
    """Wrap an operation that counts or quantises pixel values, so that it acts on 0..255."""

    def on_bytes(images: Tensor, strength: float) -> Tensor:
        pixels = (images * 255).round().to(torch.uint8)
        return apply(pixels, strength).to(images.dtype) / 255

    return on_bytes


_OPERATIONS: dict[str, _Apply] = {
    "Identity": lambda images, _: images,
    "ShearX": lambda images, slope: _affine(images, shear=(slope, 0.0)),
    "ShearY": lambda images, slope: _affine(images, shear=(0.0, slope)),
    "TranslateX": lambda images, pixels: _affine(images, shift=(int(pixels), 0)),
    "TranslateY": lambda images, pixels: _affine(images, shift=(0, int(pixels))),
    "Rotate": lambda images, angle: _torchvision("rotate", images, angle),
    "Brightness": lambda images, change: _torchvision("adjust_brightness", images, 1 + change),
    "Color": lambda images, change: _torchvision("adjust_saturation", images, 1 + change),
    "Contrast": lambda images, change: _torchvision("adjust_contrast", images, 1 + change),
    "Sharpness": lambda images, change: _torchvision("adjust_sharpness", images, 1 + change),
    "Posterize": _on_bytes(lambda images, bits: _torchvision("posterize", images, int(bits))),
    # thresholds are multiples of 255 / 30 = 8.5; without rounding to halves, errors in the share
    # would exclude pixels that equal a whole threshold
    "Solarize": _on_bytes(
        lambda images, share: _torchvision("solarize", images, round(510 * share) / 2)
    ),
    "AutoContrast": lambda images, _: _torchvision("autocontrast", images),
    "Equalize": _on_bytes(lambda images, _: _torchvision("equalize", images)),
}

OPERATIONS = tuple(_OPERATIONS)
"""Operation names, by their index in `RandAugment.operations`."""

_SIGNED = OPERATIONS.index("ShearX"), OPERATIONS.index("Sharpness")
"""First and last operation whose strength has a sign."""


def strength(name: str, magnitude: int, height: int, width: int) -> float:
    """Strength of an operation at a magnitude of 0..30 for images of height x width pixels.

    Units depend on the operation; see the module's docstring.

    >>> strength("TranslateX", 30, 331, 331), strength("Posterize", 9, 32, 32)
    (150.0, 7.0)
    >>> strength("Solarize", 30, 32, 32)
    0.0
    """
    if name == "Posterize":
        return float(8 - round(magnitude / ((BINS - 1) / 4)))
    first, last = {
        "ShearX": (0.0, 0.3),
        "ShearY": (0.0, 0.3),
        "TranslateX": (0.0, 150 / 331 * width),
        "TranslateY": (0.0, 150 / 331 * height),
        "Rotate": (0.0, 30.0),
        "Brightness": (0.0, 0.9),
        "Color": (0.0, 0.9),
        "Contrast": (0.0, 0.9),
        "Sharpness": (0.0, 0.9),
        "Solarize": (1.0, 0.0),
    }.get(name, (0.0, 0.0))
    # float32 as in torchvision: the last digit matters when sampling halfway between two pixels
    return float(torch.linspace(first, last, BINS)[magnitude])


@dataclass(frozen=True, eq=False)
class RandAugment:
    """Operations of one magnitude for every image, applied in order; not differentiable."""

    operations: Tensor
    """int64 (N, layers), or (1, layers) for all images: indices into `OPERATIONS`, in order."""
    signs: Tensor
    """Boolean, same shape: whether to negate the strength, for operations with a sign."""
    magnitude: int
    """Strength of all operations, 0..30."""

    @classmethod
    def draw(
        cls,
        generator: Generator,
        count: int,
        height: int,
        width: int,
        layers: int = 2,
        magnitude: int = 9,
    ) -> RandAugment:
        """Draw uniform operations and signs."""
        operations = torch.randint(len(OPERATIONS), (count, layers), generator=generator)
        return cls(operations, torch.rand(count, layers, generator=generator) < 0.5, magnitude)

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images (N, 1 or 3, H, W) of a floating type in [0, 1].

        Raises:
            ConfigError: the images require a gradient, but most operations have none.
        """
        if images.requires_grad and torch.is_grad_enabled():
            raise ConfigError(
                "RandAugment has no gradient, so images cannot be optimised through it. Got images "
                "that need one instead; set 'rand_augment' of their transform to 0."
            )
        height, width = images.shape[2:]
        images = images.clone()
        drawn = (
            parameter.expand(len(images), -1).unbind(1)
            for parameter in (self.operations, self.signs)
        )
        for operations, signs in zip(*drawn, strict=True):
            signed = signs & (operations >= _SIGNED[0]) & (operations <= _SIGNED[1])
            for index, negative in sorted(
                set(zip(operations.tolist(), signed.tolist(), strict=True))
            ):
                name = OPERATIONS[index]
                if name == "Identity":
                    continue
                rows = ((operations == index) & (signed == negative)).nonzero()[:, 0]
                rows = upload(rows, images.device)
                size = strength(name, self.magnitude, height, width)
                images[rows] = _OPERATIONS[name](images[rows], -size if negative else size)
        return images
