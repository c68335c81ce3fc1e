"""Charts: matplotlib figures, drawn into images without a window or pyplot's state.

matplotlib is imported when the first chart is drawn, as its import takes half a second.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 100
SETTINGS = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "font.size": 9,
    "grid.color": "#dddddd",
    # names such as 'a$b$c' must not be parsed as mathtext
    "text.parse_math": False,
}


def styled() -> AbstractContextManager[None]:
    """Use the style of rayd's charts, whatever the user's matplotlibrc says."""
    import matplotlib

    return matplotlib.rc_context({**matplotlib.rcParamsDefault, **SETTINGS})


def new_figure(width: int, height: int) -> Figure:
    """Create an empty figure of a size in pixels; use it inside `styled`."""
    from rayd.figure import Figure as ShownFigure

    size = (width / DOTS_PER_INCH, height / DOTS_PER_INCH)
    return ShownFigure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")


def image_figure(image: Image.Image, interpolation: str | None = None) -> Figure:
    """A figure of an image alone, in its own size."""
    with styled():
        figure = new_figure(*image.size)
        # the image has margins of its own
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(image, interpolation=interpolation)
        axes.set_axis_off()
        return figure


def as_image(figure: Figure) -> Image.Image:
    """Draw a figure into an RGB image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
