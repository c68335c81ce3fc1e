"""Charts without a plotting library: an image, and a pen that draws on it in pixels."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SHARP = 3
"""Supersampling factor, for smooth lines."""
INK, FAINT = "#222222", "#dddddd"


class Sheet:
    """A white image to draw on."""

    def __init__(self, width: int, height: int):
        """Create a sheet of the given size in pixels."""
        self._size = (width, height)
        self._image = Image.new("RGB", (width * SHARP, height * SHARP), "white")
        self.pen = Pen(ImageDraw.Draw(self._image))

    def picture(self) -> Image.Image:
        """Image of everything drawn."""
        return self._image.resize(self._size, Image.Resampling.LANCZOS)


class Pen:
    """Draws in pixels of the finished image."""

    def __init__(self, draw: ImageDraw.ImageDraw):
        """Draw on an enlarged image."""
        self._draw = draw

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        """Draw a line through points."""
        self._draw.line(
            [(SHARP * x, SHARP * y) for x, y in points], colour, round(SHARP * width), joint="curve"
        )

    def dot(self, x: float, y: float, colour: str, radius: float = 3) -> None:
        """Draw a disc."""
        self._draw.ellipse(
            [
                SHARP * (x - radius),
                SHARP * (y - radius),
                SHARP * (x + radius),
                SHARP * (y + radius),
            ],
            fill=colour,
        )

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        """Draw a filled rectangle."""
        self._draw.rectangle(
            [SHARP * left, SHARP * top, SHARP * right, SHARP * bottom], fill=colour
        )

    def text(
        self, x: float, y: float, text: str, size: int = 11, colour: str = INK, anchor: str = "la"
    ) -> None:
        """Draw text at one of Pillow's anchors."""
        self._draw.text(
            (SHARP * x, SHARP * y), text, colour, ImageFont.load_default(SHARP * size), anchor
        )
