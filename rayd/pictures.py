"""Pictures of distilled sets: contact sheets, and the formats of picture files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rayd.errors import OutputError

if TYPE_CHECKING:
    from rayd.distilled import Distilled

CELL = 48
COLUMNS = 10
ROWS = 20
GAP = 2
"""Contact sheet: minimum side of an image, maximum numbers of images per class and of classes, and
gap between images (pixels).
"""
LONGEST_NAME = 24
"""Maximum characters of a class name on a contact sheet."""


def contact_sheet(distilled: Distilled, classes: Sequence[int] | None = None) -> Image.Image:
    """Draw a row for each class, with its name and first `COLUMNS` images.

    Args:
        distilled: the set.
        classes: labels of the classes; by default the first `ROWS`.
    """
    from torchvision.utils import make_grid

    labels = distilled.hard_labels
    if classes is None:
        classes = range(min(distilled.classes, ROWS))
    groups = [(labels == label).nonzero().squeeze(1)[:COLUMNS] for label in classes]
    columns = max(1, *map(len, groups))
    # of a large set only the images that are shown are denormalised
    shown = torch.split(
        _visible(distilled.pixels_of(torch.cat(groups))), [len(group) for group in groups]
    )
    tiles = shown[0].new_full((len(groups) * columns, 3, *shown[0].shape[2:]), 255)
    for row, group in enumerate(shown):
        tiles[row * columns : row * columns + len(group)] = group
    grid = make_grid(tiles, nrow=columns, padding=GAP, pad_value=255)
    return _with_names(grid, [_short(distilled.class_names[label]) for label in classes])


def picture(distilled: Distilled) -> bytes:
    """Draw the contact sheet as a PNG file."""
    return as_png(contact_sheet(distilled))


def as_png(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    return as_file(image, "PNG")


def as_file(image: Image.Image, format: str) -> bytes:
    """Encode an image in one of the formats of `PICTURE_FORMATS`."""
    buffer = io.BytesIO()
    image.save(buffer, format=format, quality=95)
    return buffer.getvalue()


def data_url(image: Image.Image, format: str = "PNG") -> str:
    """Encode an image as a `data:` URL, for HTML without other files."""
    content = base64.b64encode(as_file(image, format)).decode()
    return f"data:image/{format.lower()};base64,{content}"


PICTURE_FORMATS = {"": "PNG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Formats of pictures by file extension."""


def picture_format(path: Path) -> str:
    """Format of a picture according to its file extension.

    Raises:
        OutputError: the format is not supported.
    """
    suffix = path.suffix.lower()
    if suffix not in PICTURE_FORMATS:
        known = ", ".join(name for name in PICTURE_FORMATS if name)
        raise OutputError(
            f"A picture's file must end in one of {known}. Got '{path.name}' instead."
        )
    return PICTURE_FORMATS[suffix]


def _visible(pixels: Tensor) -> Tensor:
    """Convert to uint8 RGB (n, 3, H, W), enlarged by whole factors to at least `CELL` pixels."""
    if pixels.shape[1] != 3:
        pixels = pixels.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1)
    factor = -(-CELL // min(pixels.shape[2:]))
    return pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def _with_names(grid: Tensor, names: Sequence[str]) -> Image.Image:
    font = ImageFont.load_default()
    margin = 3 * GAP + int(max(font.getlength(name) for name in names)) + 1
    _, height, width = grid.shape
    sheet = Image.new("RGB", (margin + width, height), "white")
    sheet.paste(Image.fromarray(np.ascontiguousarray(grid.permute(1, 2, 0).numpy())), (margin, 0))
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        draw.text(
            (2 * GAP, height * (row + 0.5) / len(names)), name, fill="black", font=font, anchor="lm"
        )
    return sheet


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…"
