"""Differentiable Siamese augmentation.

Source: Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021).
One operation is drawn per batch (mode "S" of the released code, here `single`); mode `all` ("M")
applies every operation of the strategy in order. Siamese calls share one draw of parameters over
the batch, so that a real and a synthetic batch of different sizes are augmented alike if their
generators have the same seed. The released code reseeds the global generator; here, generators are
private.

A strategy is a list of operations joined by underscores. For digits, omit `flip`. Operations joined
by `+` count as one and are applied together: `color+crop+cutout` applies all three (NCFM's
matching), and `flip+color+crop_flip+color+scale` flips, changes colours, and either crops or
scales.

| operation | distribution |
|---|---|
| `color` | brightness + U[-0.5, 0.5), then saturation x U[0, 2), then contrast x U[0.5, 1.5) |
| `crop` | a shift of -p..p pixels on each axis, p = 1/8 of the side, zeros outside |
| `cutout` | the centre of a zero square of half the side, clipped at the border |
| `flip` | left to right, with probability 1/2 |
| `scale` | a stretch of the sampling grid by U[1/1.2, 1.2) on each axis |
| `rotate` | an angle from U[-15, 15) degrees |

The released code rotates the grid in coordinates from -1 to 1 on both axes, which shears images
that are not square; here, distances are in pixels. For square images, both are the same.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from rayd.data.augmentation.color import Color
from rayd.data.augmentation.geometry import Crop, Cutout, Flip, Rotate, Scale
from rayd.errors import ConfigError, unknown

Mode = Literal["single", "all"]


class Operation(Protocol):
    """Drawn parameters that can be applied to images (N, channels, H, W) repeatedly."""

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images (N, channels, H, W)."""
        ...


class _Drawable(Protocol):
    def draw(self, generator: Generator, count: int, height: int, width: int) -> Operation: ...


OPERATIONS: dict[str, _Drawable] = {
    "color": Color,
    "crop": Crop,
    "cutout": Cutout,
    "flip": Flip,
    "scale": Scale,
    "rotate": Rotate,
}
"""Operations of a strategy, by name."""


class DSA:
    """Differentiable Siamese augmentation of normalised images.

    Args:
        strategy: alternatives joined by underscores, each an operation or several joined by `+`;
            None or an empty string is the identity.
        mode: `single` draws one alternative per call, uniformly; `all` applies every operation in
            the strategy's order.

    Raises:
        ConfigError: an operation is unknown, or an alternative or an operation in it is named
            twice.

    >>> augment = DSA("color_crop_cutout")
    >>> images = torch.randn(4, 3, 8, 8, requires_grad=True)
    >>> augment(images, torch.Generator().manual_seed(0), siamese=True).shape
    torch.Size([4, 3, 8, 8])
    """

    def __init__(self, strategy: str | None, mode: Mode = "single") -> None:
        self.strategy = strategy or ""
        self.mode = mode
        alternatives = self.strategy.split("_") if self.strategy else []
        self.alternatives = tuple(tuple(one.split("+")) for one in alternatives)
        """Operations of each alternative, which are applied together."""
        self.operations = tuple(name for one in self.alternatives for name in one)
        """All operations, in order."""
        for name in self.operations:
            if name not in OPERATIONS:
                raise ConfigError(
                    unknown("operation", name, OPERATIONS, f"augmentation '{self.strategy}'")
                )
        for names in (alternatives, *self.alternatives):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ConfigError(
                    f"The augmentation '{self.strategy}' must name each operation once. "
                    f"Got '{twice}' twice instead."
                )

    def draw(
        self, generator: Generator, count: int, height: int, width: int
    ) -> tuple[Operation, ...]:
        """Draw the operations for one batch of images of height x width pixels.

        `count` is the number of draws of parameters: one per image, or 1 to share a draw.
        """
        names = self.operations
        if names and self.mode == "single":
            index = int(torch.randint(len(self.alternatives), (), generator=generator))
            names = self.alternatives[index]
        return tuple(OPERATIONS[name].draw(generator, count, height, width) for name in names)

    def __call__(self, images: Tensor, generator: Generator, siamese: bool = False) -> Tensor:
        """Augment one batch.

        Args:
            images: (N, channels, H, W), normalised, so that 0 is the mean colour; of any floating
                type, on any device.
            generator: a private generator on the CPU.
            siamese: share one draw of parameters over the whole batch, independent of N, instead of
                one draw per image. The operation is drawn once per batch in either case.

        Returns:
            Images of the same shape, differentiable with respect to `images`.
        """
        count, _, height, width = images.shape
        for operation in self.draw(generator, 1 if siamese else count, height, width):
            images = operation(images)
        return images

    def __repr__(self) -> str:
        return f"DSA({self.strategy!r}, mode={self.mode!r})"


def augmentation(strategy: str | None, mode: Mode = "single") -> DSA:
    """Create the augmentation named by a setting; None is the identity.

    Raises:
        ConfigError: an operation is unknown or named twice.
    """
    return DSA(strategy, mode)
