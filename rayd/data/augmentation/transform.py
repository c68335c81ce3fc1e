"""Random views of a batch of images, drawn once and replayed any number of times.

Augmentations are applied in the order of `Transform`'s fields. All except RandAugment act on
normalised images and are differentiable. RandAugment acts on pixels in [0, 1]: the transform undoes
the normalisation before it and reapplies it afterwards.

Stored soft labels belong to one view of one batch, so a drawn transform can be stored (`state`) and
replayed (`from_state`) byte for byte. The names of its tensors differ from those of a mix (see
`mixing`), so that one mapping can hold both.
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
    """A drawn view of a batch; augmentations that are None are skipped."""

    rand_augment: RandAugment | None = None
    """Operations on pixels, not differentiable."""
    crop: ResizedCrop | None = None
    """A box of each image, resized to the image's size."""
    shift: Crop | None = None
    """A shift of each image by whole pixels, the mean colour outside."""
    flip: Flip | None = None
    """Mirroring of some images left to right."""
    roll: Roll | None = None
    """A roll of all images around the border."""

    def __call__(self, images: Tensor, normalization: Normalization | None = None) -> Tensor:
        """Apply to normalised images (N, C, H, W); differentiable except RandAugment.

        Args:
            images: images of the size and number for which the view was drawn; any number if drawn
                for 1.
            normalization: normalisation of the images; needed by RandAugment only.

        Raises:
            ConfigError: RandAugment is applied to images that require a gradient.
            DataError: RandAugment is applied without a normalisation.
        """
        if self.rand_augment is not None:
            if normalization is None:
                raise DataError(
                    "RandAugment acts on pixels, so it needs the normalisation of the images: pass "
                    "'normalization'."
                )
            pixels = self.rand_augment(normalization.inverse(images).clamp(0, 1))
            images = normalization.forward_unit(pixels).to(images.dtype)
        for part in (self.crop, self.shift, self.flip, self.roll):
            if part is not None:
                images = part(images)
        return images

    def state(self) -> dict[str, Tensor]:
        """State for `from_state`: CPU tensors of active augmentations, for safetensors.

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
        """Restore a transform from its `state()`, for images of `size` = (height, width)."""
        rand_augment = None
        roll = None
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
    """Draw a view of a batch.

    Args:
        settings: augmentations and their strengths.
        generator: a private generator on the CPU; inactive augmentations draw nothing.
        count: number of images, or 1 for one view that all images share.
        height: height of the images in pixels.
        width: width of the images in pixels.
        least: overrides the smallest area of `settings.crop`, for a curriculum; capped at the
            largest area.
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
