"""Pictures in a terminal: what is written is the picture."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from rayd.errors import ConfigError
from rayd.terminal import encoded, protocol


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


PICTURE = Image.fromarray(
    np.random.default_rng(0).integers(0, 2, (13, 40, 3), dtype=np.uint8) * 255, "RGB"
)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color"}, "none"),
        ({"TERM": "xterm-256color", "RAYD_PICTURES": "sixel"}, "sixel"),
        ({"TERM": "xterm-kitty", "RAYD_PICTURES": "none"}, "none"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, "none"),
    ],
)
def test_terminal_is_known_by_its_environment(environment, expected):
    assert protocol(Terminal(), environment) == expected


def test_pipes_get_no_pictures():
    assert protocol(io.StringIO(), {"TERM": "xterm-kitty"}) == "none"


def test_unknown_protocol_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'sixel'"):
        protocol(Terminal(), {"RAYD_PICTURES": "sixels"})


def test_kitty_gets_the_whole_picture_in_chunks():
    large = Image.effect_noise((200, 200), 50).convert("RGB")
    messages = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", encoded(large, "kitty"))
    assert len(messages) > 2
    assert [control[-3:] for control, _ in messages] == ["m=1"] * (len(messages) - 1) + ["m=0"]
    assert all(len(chunk) <= 4096 for _, chunk in messages)
    content = base64.b64decode("".join(chunk for _, chunk in messages))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(large))


def test_iterm_gets_the_whole_picture():
    text = re.search(r":([^\a]*)\a", encoded(PICTURE, "iterm"))[1]
    content = Image.open(io.BytesIO(base64.b64decode(text)))
    assert np.array_equal(np.asarray(content), np.asarray(PICTURE))


def test_sixels_are_the_picture():
    assert np.array_equal(from_sixels(encoded(PICTURE, "sixel")), np.asarray(PICTURE))


def from_sixels(text: str) -> np.ndarray:
    """A decoder of the sixels that rayd writes."""
    width, height = map(int, re.search(r'"1;1;(\d+);(\d+)', text).groups())
    body = text.partition('"1;1;')[2].partition(f"{width};{height}")[2].removesuffix("\x1b\\\n")
    palette = {}
    pixels = np.zeros((height + 6, width, 3), dtype=np.uint8)
    top = left = colour = 0
    token = r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)(.)|([$-])|(.)"
    for define, red, green, blue, use, count, repeated, move, single in re.findall(token, body):
        if define:
            palette[int(define)] = [round(int(value) * 2.55) for value in (red, green, blue)]
        elif use:
            colour = int(use)
        elif move:
            left = 0
            top += 6 * (move == "-")
        else:
            times = int(count or 1)
            bits = ord(repeated or single) - 63
            for bit in range(6):
                if bits >> bit & 1:
                    pixels[top + bit, left : left + times] = palette[colour]
            left += times
    return pixels[:height]
