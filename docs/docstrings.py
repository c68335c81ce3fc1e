"""Examples, tables and formulas in docstrings for the site; an extension of Griffe.

An example, which pytest runs, would otherwise be a quotation in a quotation, a table code that a
phone does not show, and the role of a formula would stand in the text.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parent))
from plain_tables import with_tables

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n.*\S.*)*", re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.+\n*)+")
FLAG = re.compile(r" *# doctest:.*")
FORMULA = re.compile(r":math:`([^`]+)`")


class Docstrings(griffe.Extension):
    """Write examples between fences, and formulas as MathML."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(_fenced, obj.docstring.value)
            text = INDENTED.sub(_as_python, with_tables(text))
            obj.docstring.value = FORMULA.sub(_drawn, text)


def _fenced(example: re.Match[str]) -> str:
    indent = example[1]
    return f"{indent}```pycon\n{FLAG.sub('', example[0])}\n{indent}```"


def _as_python(code: re.Match[str]) -> str:
    """Indented code between fences, so that it is coloured, if it is Python."""
    lines = inspect.cleandoc(code[0])
    try:
        ast.parse(lines)
    except SyntaxError:
        return code[0]
    return f"```python\n{lines}\n```\n\n"


def _drawn(formula: re.Match[str]) -> str:
    # the joiner is not seen; a line that begins with the tag would be a block of its own
    return f"\u2060{convert(' '.join(formula[1].split()))}"
