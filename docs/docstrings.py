"""Griffe extension for examples, tables and formulas in docstrings on the site.

Otherwise, doctest examples would be rendered as nested quotations, tables as code too wide for
phones, and roles of formulas as literal text.
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
    """Convert examples to fenced code, and formulas to MathML."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Convert the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(_fenced, obj.docstring.value)
            text = INDENTED.sub(_as_python, with_tables(text))
            obj.docstring.value = FORMULA.sub(_drawn, text)


def _fenced(example: re.Match[str]) -> str:
    indent = example[1]
    return f"{indent}```pycon\n{FLAG.sub('', example[0])}\n{indent}```"


def _as_python(code: re.Match[str]) -> str:
    """Convert indented Python code to fenced code, for syntax highlighting."""
    lines = inspect.cleandoc(code[0])
    try:
        ast.parse(lines)
    except SyntaxError:
        return code[0]
    return f"```python\n{lines}\n```\n\n"


def _drawn(formula: re.Match[str]) -> str:
    # the joiner is invisible; a line that begins with the tag would become a separate block
    return f"\u2060{convert(' '.join(formula[1].split()))}"
