"""Show the examples in docstrings, which pytest runs, as code; an extension of Griffe.

A paragraph that begins with `>>>` would otherwise be a quotation in a quotation.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n.*\S.*)*", re.MULTILINE)
FLAG = re.compile(r" *# doctest:.*")


class Doctests(griffe.Extension):
    """Set each example between fences."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(example: re.Match[str]) -> str:
    indent = example[1]
    return f"{indent}```pycon\n{FLAG.sub('', example[0])}\n{indent}```"
