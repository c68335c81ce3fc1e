"""Examples and formulas in docstrings as code and as MathML; an extension of Griffe.

An example, which pytest runs, would otherwise be a quotation in a quotation, and the role of a
formula would stand in the text.
"""

from __future__ import annotations

import re
from typing import Any

import griffe
from latex2mathml.converter import convert

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n.*\S.*)*", re.MULTILINE)
FLAG = re.compile(r" *# doctest:.*")
FORMULA = re.compile(r":math:`([^`]+)`")


class Docstrings(griffe.Extension):
    """Write examples between fences, and formulas as MathML."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(_fenced, obj.docstring.value)
            obj.docstring.value = FORMULA.sub(_drawn, text)


def _fenced(example: re.Match[str]) -> str:
    indent = example[1]
    return f"{indent}```pycon\n{FLAG.sub('', example[0])}\n{indent}```"


def _drawn(formula: re.Match[str]) -> str:
    # the joiner is not seen; a line that begins with the tag would be a block of its own
    return f"\u2060{convert(' '.join(formula[1].split()))}"
