"""RDED: images stitched from the patches of real images that an observer finds most realistic.

The method, with its paper and formula, is in `rayd.methods.rded`; here are its steps for a class:

    candidates       draws the real images that patches are cut from
    score            scores random crops of each, and finds the best
    most_realistic   chooses the IPC f^2 best of these
    stitched         joins f x f of them to an image

A crop is scored at side S / f, in the middle of an image of side S filled with the mean colour, as
in the released code. Crops are scored after plain bilinear resizing, in one batched call; selected
patches are cut again from the pixels with antialiasing. If f does not divide S, patches have sides
that differ by one pixel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.config import SyntheticSettings
from rayd.data import ImageSet, Normalization
from rayd.data.augmentation import ResizedCrop, resized_crop
from rayd.data.images import ImageArray, Rows
from rayd.data.streaming import batches
from rayd.errors import DataError
from rayd.seeding import generator

Scores = dict[str, Tensor]
"""`loss` (n,) of each candidate's best crop, and its `box` (n, 4) as (top, left, height, width)."""

CHUNK = 32
"""Number of candidates whose crops are scored in one forward pass."""


def candidates(images: ImageSet, label: int, settings: SyntheticSettings, seed: int) -> Rows:
    """Draw the rows of a class's images that patches are cut from, without replacement."""
    rows = images.class_index[label]
    chosen = torch.randperm(len(rows), generator=generator(seed, "rded candidates", label))[
        : settings.candidates
    ]
    drawn: Rows = rows[chosen.numpy()]
    return drawn


@torch.no_grad()
def score(
    observer: Callable[[Tensor], Tensor],
    images: ImageArray,
    label: int,
    settings: SyntheticSettings,
    seed: int,
    normalization: Normalization,
    device: torch.device | str = "cpu",
) -> Scores:
    """Score random crops of every candidate and find the most realistic of each.

    Args:
        observer: maps network input (N, C, S, S) to logits (N, classes).
        images: uint8 candidates (n, C, H, W), all of one class; streamed ones are read in chunks, a
            few of which are in memory at a time.
        label: class index.
        settings: number and size of the crops, patches along a side.
        seed: seed of the crops, which differ by class.
        normalization: maps pixels to network input.
        device: device of the observer.
    """
    count, _, height, width = images.shape
    side = (-(-height // settings.patches), -(-width // settings.patches))
    draws = generator(seed, "rded crops", label)
    drawn = ResizedCrop.draw(
        draws, count * settings.crops, height, width, side, area=settings.crop, ratio=(1.0, 1.0)
    )
    boxes = drawn.boxes.reshape(count, settings.crops, 4)
    losses = []
    chunks = (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
    for rows, pixels in batches(images, chunks):
        inputs = normalization(torch.tensor(pixels).to(device)).repeat_interleave(settings.crops, 0)
        crops = _framed(resized_crop(inputs, boxes[rows].flatten(0, 1), side), height, width)
        target = torch.full((len(crops),), label, device=crops.device)
        loss = F.cross_entropy(observer(crops), target, reduction="none")
        losses.append(loss.cpu().reshape(len(pixels), -1))
    lowest, best = torch.cat(losses).min(1)
    return {"loss": lowest, "box": boxes[torch.arange(count), best]}


def _framed(crops: Tensor, height: int, width: int) -> Tensor:
    """Place crops in the middle of images filled with 0, the mean colour."""
    vertical = height - crops.shape[2]
    horizontal = width - crops.shape[3]
    return F.pad(
        crops,
        (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2),
    )


def most_realistic(scores: Scores, ipc: int, patches: int) -> Tensor:
    """Indices of the most realistic candidates of a class, int64 (ipc * patches^2,), best first."""
    return scores["loss"].argsort(stable=True)[: ipc * patches**2]


def stitched(pixels: Tensor, boxes: Tensor, patches: int) -> Tensor:
    """Stitch the images of one class, uint8 (ipc, C, H, W), from its most realistic patches.

    Args:
        pixels: uint8 (ipc * patches^2, C, H, W), the most realistic candidates, best first.
        boxes: best crop of each candidate, (ipc * patches^2, 4).
        patches: number of patches along each side of an image.
    """
    from torchvision.transforms.v2.functional import resized_crop as antialiased_crop

    # patches of neighbouring rank go to different images, so that every image gets some of the best
    grids = torch.arange(len(pixels)).reshape(patches**2, -1).T.reshape(-1, patches, patches)
    heights, widths = (_sides(side, patches) for side in pixels.shape[2:])

    def patch(row: int, height: int, width: int) -> Tensor:
        top, left, box_height, box_width = boxes[row].tolist()
        cut: Tensor = antialiased_crop(
            pixels[row], top, left, box_height, box_width, [height, width], antialias=True
        )
        return cut

    images = []
    for grid in grids:
        lines = []
        for line, height in zip(grid, heights, strict=True):
            cells = [
                patch(int(row), height, width) for row, width in zip(line, widths, strict=True)
            ]
            lines.append(torch.cat(cells, dim=2))
        images.append(torch.cat(lines, dim=1))
    return torch.stack(images)


def _sides(side: int, patches: int) -> list[int]:
    """Sides of the patches, larger ones first."""
    return [side // patches + (index < side % patches) for index in range(patches)]


def check_candidates(images: ImageSet, settings: SyntheticSettings, ipc: int) -> None:
    """Reject a budget for which a class has too few candidates.

    Raises:
        DataError: the budget exceeds a class; the message names both.
    """
    if settings.patches > min(images.shape[1:]):
        raise DataError(
            "'synthetic.patches' must not exceed the images' side. "
            f"Got {settings.patches} for {tuple(images.shape)} instead."
        )
    needed = ipc * settings.patches**2
    smallest = int(images.counts.argmin())
    available = min(int(images.counts[smallest]), settings.candidates)
    if available < needed:
        raise DataError(
            f"RDED takes each patch from another image, so {ipc} images of "
            f"{settings.patches}x{settings.patches} patches need {needed} candidates of every "
            f"class. Got {available} of '{images.class_names[smallest]}' instead; "
            "lower ipc or synthetic.patches, or raise synthetic.candidates."
        )
