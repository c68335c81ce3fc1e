"""Common parts of pages: the layout, embedded pictures, and formatting of quantities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from rayd.artifacts import write_bytes
from rayd.errors import OutputError
from rayd.names import expanded
from rayd.pictures import data_url
from rayd.recipes.difference import shown

MARK = b'<meta name="generator" content="rayd">'
"""Identifies pages of rayd; other files are not overwritten."""
WIDEST = 900
"""Pixels to which small contact sheets are enlarged, by whole factors."""
LARGEST = 1400
"""Pixels to which large contact sheets are shrunk."""


@dataclass(frozen=True)
class Picture:
    """An image that is embedded in the page."""

    source: str
    """`data:` URL."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    step: int | None = None
    """Step of the synthesis."""
    enlarged: bool = False
    """Whether it is magnified, with sharp pixels; others are not, so that labels stay legible."""

    @classmethod
    def of(cls, image: Image.Image, step: int | None = None) -> Picture:
        """Encode an image for the page: magnify small ones without blurring, shrink large ones."""
        longest = max(image.size)
        format = "PNG"
        if longest > LARGEST:
            image = image.convert("RGB")
            image.thumbnail((LARGEST, LARGEST))
            format = "JPEG"
        factor = max(1, WIDEST // longest)
        return cls(
            source=data_url(image, format),
            width=image.width * factor,
            height=image.height * factor,
            step=step,
            enlarged=factor > 1,
        )


def environment(package: str = "rayd.page") -> jinja2.Environment:
    """Templates of a package, which may extend `layout.html.j2`."""
    loaders = [jinja2.PackageLoader(name, ".") for name in dict.fromkeys((package, "rayd.page"))]
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters["seconds"] = seconds
    made.filters["size"] = size
    made.filters["value"] = shown
    made.filters["sentence"] = sentence
    made.filters["rounded"] = rounded
    return made


def write(path: Path, page: str) -> Path:
    """Write a page.

    Args:
        path: a new file, or one that holds a page of rayd.
        page: as HTML.

    Returns:
        The file.

    Raises:
        OutputError: it cannot be written, or holds something else.
    """
    path = expanded(path)
    try:
        if path.exists() and not (path.is_file() and MARK in path.read_bytes()[:1000]):
            raise OutputError(
                f"'{path}' exists already and is no page of rayd; choose another file with --to."
            )
        write_bytes(path, page.encode())
    except OSError as error:
        raise OutputError(f"Cannot write '{path}': {error.strerror}.") from error
    return path


def rounded(setting: Any) -> Any:
    """Round a number that a search drew to four digits; other settings are unchanged.

    >>> rounded(0.10258439388535061), rounded(2.0), rounded(4096), rounded("adam")
    (0.1026, 2.0, 4096, 'adam')
    """
    return float(f"{setting:.4g}") if isinstance(setting, float) else setting


def sentence(text: str) -> str:
    """End a text with a full stop; empty for an empty one.

    >>> sentence("DM on digits"), sentence("Done."), sentence("")
    ('DM on digits.', 'Done.', '')
    """
    return f"{text.rstrip('.')}." if text else ""


def seconds(duration: float | None) -> str:
    """Format a duration in s, min or h; empty for None.

    >>> seconds(4.21), seconds(600.0), seconds(7200.0)
    ('4.2 s', '10.0 min', '2.0 h')
    """
    if duration is None:
        return ""
    if duration < 90:
        return f"{duration:.1f} s"
    return f"{duration / 60:.1f} min" if duration < 5400 else f"{duration / 3600:.1f} h"


def size(count: float | None) -> str:
    """Format a number of bytes; empty for None.

    >>> size(980), size(123456), size(5.2e9)
    ('980 bytes', '123 kB', '5.2 GB')
    """
    if count is None:
        return ""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} GB"
