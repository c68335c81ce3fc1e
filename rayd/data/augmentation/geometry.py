"""Geometric augmentations: pure functions, and dataclasses of drawn parameters.

Images are (N, channels, H, W), of any floating type, and normalised, so that 0 is the mean colour.
The first dimension of every parameter tensor is N, or 1 for one draw shared by all images.
Everything is differentiable with respect to the images. Parameters are drawn on the CPU from a
private generator and moved to the images' device.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample, pad

from rayd.transfer import upload


def uniform(generator: Generator, low: float, high: float, *size: int) -> Tensor:
    """Draw from U[low, high), float32 on the CPU."""
    return torch.rand(*size, generator=generator) * (high - low) + low


def share(side: int, ratio: float) -> int:
    """Multiply a side by `ratio`, in whole pixels, rounded half up."""
    return int(side * ratio + 0.5)


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror images left to right where `mask`, boolean (N,), is true."""
    # `where` instead of indexing, which would synchronise with the GPU to find the rows
    return torch.where(upload(mask, images.device)[:, None, None, None], images.flip(3), images)


def crop(images: Tensor, shifts: Tensor, margin: int | None = None) -> Tensor:
    """Shift the window by whole pixels: output[y, x] = image[y + dy, x + dx], 0 outside.

    Equivalent to a crop of an image zero-padded by p, with shift = offset - p.

    Args:
        images: (N, channels, H, W).
        shifts: (dy, dx) of each image, (N, 2) or (1, 2).
        margin: upper bound of the shifts in pixels; by default the largest shift, which
            synchronises with the GPU if the shifts are there.
    """
    count, channels, height, width = images.shape
    margin = int(shifts.abs().max()) if margin is None else margin
    dy, dx = upload(shifts, images.device).expand(count, 2)[:, :, None].unbind(1)
    rows = torch.arange(margin, margin + height, device=images.device) + dy
    columns = torch.arange(margin, margin + width, device=images.device) + dx
    positions = rows[:, :, None] * (width + 2 * margin) + columns[:, None, :]
    padded = pad(images, (margin, margin, margin, margin))
    return (
        padded.flatten(2)
        .gather(2, positions.view(count, 1, -1).expand(-1, channels, -1))
        .view_as(images)
    )


def roll(images: Tensor, shift: tuple[int, int]) -> Tensor:
    """Roll all images down and right by `shift` = (dy, dx) pixels, wrapping around the border."""
    return images.roll(shift, (2, 3))


def cutout(images: Tensor, centers: Tensor, size: tuple[int, int]) -> Tensor:
    """Fill a rectangle with 0, clipped at the border.

    Rows from center - size // 2 up to, but excluding, center - size // 2 + size are filled; columns
    likewise.

    Args:
        images: (N, channels, H, W).
        centers: (y, x) of the rectangles, (N, 2) or (1, 2).
        size: (height, width) of the rectangles in pixels.
    """
    center_y, center_x = upload(centers, images.device)[:, :, None].unbind(1)
    top = center_y - size[0] // 2
    left = center_x - size[1] // 2
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    rows = (y >= top) & (y < top + size[0])
    columns = (x >= left) & (x < left + size[1])
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def scale(images: Tensor, factors: Tensor) -> Tensor:
    """Sample images on a grid scaled by `factors`, (N, 2) as (s_x, s_y); factors > 1 shrink."""
    zero = torch.zeros_like(factors[:, 0])
    return _sample_affine(images, torch.stack((factors[:, 0], zero, zero, factors[:, 1])))


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate about the centre, by rotating the sampling grid by `angles`, (N,), in radians.

    Distances are in pixels on both axes, so that images are not sheared.
    """
    aspect = images.shape[2] / images.shape[3]
    cosine = angles.cos()
    sine = angles.sin()
    return _sample_affine(images, torch.stack((cosine, -sine * aspect, sine / aspect, cosine)))


def _sample_affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Sample bilinearly at x' = xx x + xy y, y' = yx x + yy y, with 0 outside.

    Coordinates x and y run from -1 to 1 over the image.

    Args:
        images: (N, channels, H, W).
        matrices: rows xx, xy, yx and yy, (4, N) or (4, 1), as one tensor for a single copy to the
            images' device.
    """
    count, _, height, width = images.shape
    precision = torch.promote_types(images.dtype, torch.float32)
    y, x = (
        (2 * torch.arange(side, device=images.device, dtype=precision) + 1) / side - 1
        for side in (height, width)
    )
    xx, xy, yx, yy = upload(matrices.to(precision), images.device)[:, :, None, None].unbind()
    grid = torch.stack((xx * x + xy * y[:, None], yx * x + yy * y[:, None]), dim=3)
    return _sample(images, grid.expand(count, -1, -1, -1))


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    # coordinates need more precision than half-precision images have
    sampled = grid_sample(
        images.to(grid.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return sampled.to(images.dtype)


def resized_crop(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop a box from each image and resize it bilinearly, without antialiasing.

    Args:
        images: (N, channels, H, W).
        boxes: whole pixels (N, 4) or (1, 4) as (top, left, height, width), inside the image.
        size: (height, width) of the result in pixels.

    Returns:
        (N, channels, *size), equal to `torch.nn.functional.interpolate` on each cut box.
    """
    count, _, height, width = images.shape
    precision = torch.promote_types(images.dtype, torch.float32)
    top, left, box_height, box_width = upload(boxes.to(precision), images.device).unbind(1)
    y = _normalized(_positions(top, box_height, size[0]), height)
    x = _normalized(_positions(left, box_width, size[1]), width)
    grid = torch.stack(
        (x[:, None, :].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])), dim=3
    )
    return _sample(images, grid.expand(count, -1, -1, -1))


def _positions(start: Tensor, length: Tensor, steps: int) -> Tensor:
    """Pixel coordinates (N, steps) that divide each box evenly, clamped to its pixel centres."""
    step = (torch.arange(steps, device=start.device, dtype=start.dtype) + 0.5) / steps
    inside = (step * length[:, None] - 0.5).clamp(min=0).minimum(length[:, None] - 1)
    return start[:, None] + inside


def _normalized(pixels: Tensor, side: int) -> Tensor:
    return (2 * pixels + 1) / side - 1


@dataclass(frozen=True, eq=False)
class Flip:
    """Horizontal mirroring.

    >>> Flip(torch.tensor([True]))(torch.tensor([[[[1.0, 2.0]]]])).tolist()
    [[[[2.0, 1.0]]]]
    """

    mask: Tensor
    """Boolean (N,): which images are mirrored."""

    @classmethod
    def draw(
        cls, generator: Generator, count: int, height: int, width: int, probability: float = 0.5
    ) -> Flip:
        """Mirror each image with the given probability."""
        return cls(torch.rand(count, generator=generator) < probability)

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images (N, channels, H, W)."""
        return flip(images, self.mask)


@dataclass(frozen=True, eq=False)
class Crop:
    """A window shifted by whole pixels, zeros outside: the random crop of a padded image."""

    shifts: Tensor
    """Integer (N, 2): (dy, dx) in pixels."""
    margin: int | None = None
    """Upper bound of the shifts in pixels, if known without reading the tensor."""

    @classmethod
    def draw(
        cls,
        generator: Generator,
        count: int,
        height: int,
        width: int,
        ratio: float = 0.125,
        pixels: int | None = None,
    ) -> Crop:
        """Draw shifts uniformly from -p..p on each axis.

        p is `pixels`, or by default `ratio` of the side (4 pixels at 32).
        """
        padding = [share(side, ratio) if pixels is None else pixels for side in (height, width)]
        shifts = [torch.randint(-p, p + 1, (count,), generator=generator) for p in padding]
        return cls(torch.stack(shifts, dim=1), max(padding))

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images (N, channels, H, W)."""
        return crop(images, self.shifts, self.margin)


@dataclass(frozen=True, eq=False)
class Roll:
    """A roll of the whole batch: the "jitter" of SRe2L (Yin et al., NeurIPS 2023) and successors.

    Their released code draws from 0..limit; drawing from -limit..limit preserves the mean position
    of an image.
    """

    shift: tuple[int, int]
    """(dy, dx) in pixels, shared by all images."""

    @classmethod
    def draw(cls, generator: Generator, count: int, height: int, width: int, limit: int) -> Roll:
        """Draw one shift for the batch, each axis uniform on -limit..limit."""
        dy, dx = torch.randint(-limit, limit + 1, (2,), generator=generator).tolist()
        return cls((dy, dx))

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images (N, channels, H, W)."""
        return roll(images, self.shift)


@dataclass(frozen=True, eq=False)
class Cutout:
    """A rectangle of mean colour."""

    centers: Tensor
    """Integer (N, 2): (y, x) in pixels."""
    size: tuple[int, int]
    """Height and width of the rectangle in pixels."""

    @classmethod
    def draw(
        cls, generator: Generator, count: int, height: int, width: int, ratio: float = 0.5
    ) -> Cutout:
        """Draw centres; sides are `ratio` of the image's.

        The centre is uniform on 0..side, or 0..side - 1 for an odd rectangle.
        """
        size = (share(height, ratio), share(width, ratio))
        ends = [side + 1 - length % 2 for side, length in zip((height, width), size, strict=True)]
        return cls(
            torch.stack([torch.randint(end, (count,), generator=generator) for end in ends], dim=1),
            size,
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images (N, channels, H, W)."""
        return cutout(images, self.centers, self.size)


@dataclass(frozen=True, eq=False)
class Scale:
    """Scaling about the centre, independently on each axis."""

    factors: Tensor
    """(N, 2): (s_x, s_y) of the sampling grid; factors above 1 shrink the content."""

    @classmethod
    def draw(
        cls, generator: Generator, count: int, height: int, width: int, ratio: float = 1.2
    ) -> Scale:
        """Draw each factor from U[1 / ratio, ratio)."""
        return cls(uniform(generator, 1 / ratio, ratio, count, 2))

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images (N, channels, H, W)."""
        return scale(images, self.factors)


@dataclass(frozen=True, eq=False)
class Rotate:
    """Rotation about the centre."""

    angles: Tensor
    """(N,): radians."""

    @classmethod
    def draw(
        cls, generator: Generator, count: int, height: int, width: int, degrees: float = 15.0
    ) -> Rotate:
        """Draw each angle from U[-degrees, degrees)."""
        return cls(torch.deg2rad(uniform(generator, -degrees, degrees, count)))

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images (N, channels, H, W)."""
        return rotate(images, self.angles)


@dataclass(frozen=True, eq=False)
class ResizedCrop:
    """A resized box of each image: RandomResizedCrop with one box per image."""

    boxes: Tensor
    """Integer (N, 4): (top, left, height, width) in pixels."""
    size: tuple[int, int]
    """Height and width of the result in pixels."""

    @classmethod
    def draw(
        cls,
        generator: Generator,
        count: int,
        height: int,
        width: int,
        size: tuple[int, int] | None = None,
        area: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> ResizedCrop:
        """Draw boxes like torchvision.

        Up to ten tries draw a share of the area and a log-uniform ratio; if no box fits, the
        largest central box with an allowed ratio is used.

        Args:
            generator: a private generator on the CPU.
            count: number of boxes.
            height: height of the images in pixels.
            width: width of the images in pixels.
            size: size of the result; by default that of the images.
            area: smallest and largest share of the image's area that a box covers.
            ratio: smallest and largest width / height of a box.
        """
        tries = 10
        areas = height * width * uniform(generator, *area, count, tries)
        ratios = uniform(generator, log(ratio[0]), log(ratio[1]), count, tries).exp()
        widths = (areas * ratios).sqrt().round().long()
        heights = (areas / ratios).sqrt().round().long()
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first = fits.int().argmax(1, keepdim=True)
        box_heights = heights.gather(1, first)[:, 0]
        box_widths = widths.gather(1, first)[:, 0]
        tops = _draw_offsets(generator, height - box_heights)
        lefts = _draw_offsets(generator, width - box_widths)
        drawn = torch.stack((tops, lefts, box_heights, box_widths), dim=1)
        boxes = torch.where(fits.any(1)[:, None], drawn, _central_box(height, width, ratio))
        return cls(boxes, size or (height, width))

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to images (N, channels, H, W)."""
        return resized_crop(images, self.boxes, self.size)


def _draw_offsets(generator: Generator, room: Tensor) -> Tensor:
    """Draw uniformly from 0..room, elementwise, for room >= 0."""
    # float64, as float32 would round a draw just below 1 up to room + 1
    draws = torch.rand(len(room), generator=generator, dtype=torch.float64)
    return (draws * (room + 1)).long()


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> Tensor:
    box_height = height
    box_width = width
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return torch.tensor(
        [(height - box_height) // 2, (width - box_width) // 2, box_height, box_width]
    )
