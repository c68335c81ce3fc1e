"""Charts without a plotting library: a sheet, and a pen that draws on it in pixels."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SHARP = 3
"""Everything is drawn this many times larger, then reduced, so that lines are smooth."""
INK, FAINT = "#222222", "#dddddd"


class Sheet:
    """A white image to draw on."""

    def __init__(self, width: int, height: int):
        """Of that many pixels."""
        self._size = (width, height)
        self._image = Image.new("RGB", (width * SHARP, height * SHARP), "white")
        self.pen = Pen(ImageDraw.Draw(self._image))

    def picture(self) -> Image.Image:
        """What was drawn."""
        return self._image.resize(self._size, Image.Resampling.LANCZOS)


class Pen:
    """Draws in pixels of the finished image."""

    def __init__(self, draw: ImageDraw.ImageDraw):
        """Draw on an enlarged image."""
        self._draw = draw

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        """A line through points."""
        self._draw.line(
            [(SHARP * x, SHARP * y) for x, y in points], colour, round(SHARP * width), joint="curve"
        )

    def dot(self, x: float, y: float, colour: str, radius: float = 3) -> None:
        """A disc."""
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
        """A filled rectangle."""
        self._draw.rectangle(
            [SHARP * left, SHARP * top, SHARP * right, SHARP * bottom], fill=colour
        )

    def text(
        self, x: float, y: float, words: str, size: int = 11, colour: str = INK, anchor: str = "la"
    ) -> None:
        """Words, at an anchor of Pillow's."""
        self._draw.text(
            (SHARP * x, SHARP * y), words, colour, ImageFont.load_default(SHARP * size), anchor
        )
