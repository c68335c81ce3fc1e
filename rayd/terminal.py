"""Pictures in terminals: kitty's and iTerm's graphics protocols, and sixels.

A terminal is identified by its environment. `RAYD_PICTURES` selects a protocol, or `none`. Sixels
are only used if it selects them, as terminals do not indicate support for them in the environment.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from typing import Literal, TextIO, get_args

import numpy as np
from PIL import Image

from rayd.errors import ConfigError, unknown
from rayd.pictures import as_png

Protocol = Literal["kitty", "iterm", "sixel", "none"]
VARIABLE = "RAYD_PICTURES"
KITTY = frozenset({"ghostty", "WezTerm", "kitty"})
ITERM = frozenset({"iTerm.app", "vscode", "mintty"})
"""Values of TERM_PROGRAM."""
CHUNK = 4096
"""Characters of a message of kitty's protocol."""
BAND = 6
"""Rows of pixels in a line of sixels."""


def protocol(stream: TextIO, environment: Mapping[str, str] | None = None) -> Protocol:
    """The picture protocol of a stream's terminal; `none` if it has none or is not a terminal.

    Raises:
        ConfigError: `RAYD_PICTURES` names no protocol.
    """
    known = os.environ if environment is None else environment
    if not stream.isatty():
        return "none"
    chosen = known.get(VARIABLE)
    if chosen:
        for name in get_args(Protocol):
            if name == chosen:
                return name  # type: ignore[no-any-return]
        raise ConfigError(unknown("protocol", chosen, get_args(Protocol), VARIABLE))
    if "TMUX" in known or known.get("TERM", "").startswith("screen"):
        # they pass no pictures on
        return "none"
    program = known.get("TERM_PROGRAM", "")
    if program in KITTY or "KITTY_WINDOW_ID" in known or known.get("TERM") == "xterm-kitty":
        return "kitty"
    return "iterm" if program in ITERM else "none"


def encoded(image: Image.Image, how: Protocol) -> str:
    """Characters that draw an image at the cursor; empty for `none`."""
    match how:
        case "kitty":
            return "".join(_kitty(as_png(image))) + "\n"
        case "iterm":
            content = as_png(image)
            text = base64.b64encode(content).decode()
            return f"\x1b]1337;File=inline=1;size={len(content)}:{text}\a\n"
        case "sixel":
            return _sixel(image) + "\n"
        case "none":
            return ""


def _kitty(png: bytes) -> Iterator[str]:
    """Messages that transmit and show a PNG file."""
    text = base64.b64encode(png).decode()
    chunks = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    for index, chunk in enumerate(chunks):
        # a=T: transmit and show; f=100: PNG; m=1: more follows
        control = "a=T,f=100," if index == 0 else ""
        more = int(index + 1 < len(chunks))
        yield f"\x1b_G{control}m={more};{chunk}\x1b\\"


def _sixel(image: Image.Image) -> str:
    """Sixels of an image in at most 256 colours."""
    reduced = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette = np.array(reduced.getpalette(), dtype=int).reshape(-1, 3)
    pixels = np.asarray(reduced)
    height, width = pixels.shape
    parts = [f'\x1bPq"1;1;{width};{height}']
    for colour in np.unique(pixels).tolist():
        red, green, blue = (round(value * 100 / 255) for value in palette[colour].tolist())
        parts.append(f"#{colour};2;{red};{green};{blue}")
    for top in range(0, height, BAND):
        band = pixels[top : top + BAND]
        bits = 2 ** np.arange(len(band))
        for colour in np.unique(band).tolist():
            values = ((band == colour) * bits[:, None]).sum(0)
            # $ goes back to the beginning of the line, for the next colour
            parts.append(f"#{colour}{_runs(values.tolist())}$")
        parts.append("-")
    return "".join([*parts, "\x1b\\"])


def _runs(values: list[int]) -> str:
    """Sixel characters with equal neighbours counted."""
    text = ""
    start = 0
    while start < len(values):
        end = start
        while end < len(values) and values[end] == values[start]:
            end += 1
        character = chr(63 + values[start])
        count = end - start
        text += f"!{count}{character}" if count > 3 else character * count
        start = end
    return text
