"""A random view of every image of a batch, drawn once, and replayed as often as wished.

The parts act in the order of `Transform`'s fields. All but RandAugment act on normalised images and
are differentiable. RandAugment acts on pixels in [0, 1] and is not: the transform undoes the
normalisation for it, and normalises again.

Stored soft labels belong to one view of one batch, so a drawn transform can be stored (`state`) and
replayed (`from_state`) byte for byte. Its tensors share no name with those of a mix (see `mixing`):
one mapping can hold both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rayd.config import TransformSettings
from rayd.data.augmentation.geometry import Crop, Flip, ResizedCrop, Roll
from rayd.data.augmentation.rand_augment import RandAugment
from rayd.data.normalization import Normalization
from rayd.errors import DataError


@dataclass(frozen=True, eq=False)
class Transform:
    """One drawn view of a batch; what is None is left out."""

    rand_augment: RandAugment | None = None
    """Operations on pixels, without a gradient."""
    crop: ResizedCrop | None = None
    """A box of each image, resized to the image's size."""
    shift: Crop | None = None
    """Each image moved by whole pixels, the mean colour outside."""
    flip: Flip | None = None
    """Which images are mirrored left to right."""
    roll: Roll | None = None
    """All images rolled around the border."""

    def __call__(self, images: Tensor, normalization: Normalization | None = None) -> Tensor:
        """Apply to normalised images (N, C, H, W), differentiably unless with RandAugment; without
        any part, they come back.

        Args:
            images: as many as were drawn for, of the size that was drawn for.
            normalization: of the images; only RandAugment needs it.

        Raises:
            ConfigError: RandAugment meets images that need a gradient.
            DataError: RandAugment has no normalisation to undo.
        """
        if self.rand_augment is not None:
            if normalization is None:
                raise DataError(
                    "RandAugment acts on pixels, so it must get the normalisation of the images. Got none instead."
                )
            pixels = self.rand_augment(normalization.inverse(images).clamp(0, 1))
            images = normalization.forward_unit(pixels).to(images.dtype)
        for part in (self.crop, self.shift, self.flip, self.roll):
            if part is not None:
                images = part(images)
        return images

    def state(self) -> dict[str, Tensor]:
        """All that `from_state` needs, as CPU tensors fit for safetensors; only of the parts that
        are on.

        `rand_augment.operations` uint8 and `rand_augment.signs` bool (N, layers),
        `rand_augment.magnitude` uint8 (); `crop` int16 (N, 4); `shift` int16 (N, 2); `flip` bool
        (N,); `roll` int16 (2,).
        """
        state = {}
        if self.rand_augment is not None:
            state["rand_augment.operations"] = self.rand_augment.operations.to(torch.uint8)
            state["rand_augment.signs"] = self.rand_augment.signs
            state["rand_augment.magnitude"] = torch.tensor(
                self.rand_augment.magnitude, dtype=torch.uint8
            )
        if self.crop is not None:
            state["crop"] = self.crop.boxes.short()
        if self.shift is not None:
            state["shift"] = self.shift.shifts.short()
        if self.flip is not None:
            state["flip"] = self.flip.mask
        if self.roll is not None:
            state["roll"] = torch.tensor(self.roll.shift, dtype=torch.int16)
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], size: tuple[int, int]) -> Transform:
        """The transform whose `state()` is among these tensors, for images of `size` = (height,
        width).
        """
        rand_augment = roll = None
        if "rand_augment.operations" in state:
            signs = state["rand_augment.signs"].bool()
            magnitude = int(state["rand_augment.magnitude"])
            rand_augment = RandAugment(state["rand_augment.operations"].long(), signs, magnitude)
        if "roll" in state:
            dy, dx = state["roll"].tolist()
            roll = Roll((dy, dx))
        return cls(
            rand_augment,
            ResizedCrop(state["crop"].long(), size) if "crop" in state else None,
            Crop(state["shift"].long()) if "shift" in state else None,
            Flip(state["flip"].bool()) if "flip" in state else None,
            roll,
        )


def draw_transform(
    settings: TransformSettings,
    generator: Generator,
    count: int,
    height: int,
    width: int,
    least: float | None = None,
) -> Transform:
    """Draw a view of every image of a batch.

    Args:
        settings: which parts are on, and how strong.
        generator: a private generator on the CPU; parts that are off draw nothing from it.
        count: number of images.
        height: of the images in pixels.
        width: of the images in pixels.
        least: in place of the least share of `settings.crop`, for a curriculum; at most its largest
            share counts.
    """
    size = (generator, count, height, width)
    crop = None
    if settings.crop is not None:
        lower, upper = settings.crop
        crop = ResizedCrop.draw(*size, area=(lower if least is None else min(least, upper), upper))
    return Transform(
        RandAugment.draw(*size, settings.rand_augment, settings.magnitude)
        if settings.rand_augment
        else None,
        crop,
        Crop.draw(*size, pixels=settings.shift) if settings.shift else None,
        Flip.draw(*size) if settings.flip else None,
        Roll.draw(*size, settings.roll) if settings.roll else None,
    )
