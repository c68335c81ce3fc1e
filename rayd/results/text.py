"""Published and measured results of a recipe, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rayd.config import MeasuredResult, PaperResult, Recipe
from rayd.config.recipe import ACCURACY

INDENT = "#   "
"""Beginning of a line, a YAML comment."""


def results_text(recipe: Recipe, width: int = 100) -> str:
    """Results of a recipe as comments, one line each; empty if there are none.

    Args:
        recipe: the recipe.
        width: maximum length of lines; longer ones are wrapped with indentation.

    Example:
        >>> from rayd.recipes import resolve
        >>> print(results_text(resolve("cfm-cifar10-ipc50-convnet")), end="")
        # Accuracy in papers:
        #   0.640 ± 0.004  convnet-w128  UniDD, Table 2
    """
    own = [result for result in recipe.paper if result.of_recipe]
    rest = [result for result in recipe.paper if not result.of_recipe]
    parts = [
        ("Accuracy in papers", _published(own)),
        ("Accuracy measured by us", map(_measured, recipe.measured)),
        ("Other results in papers, such as those of other settings", _published(rest)),
    ]
    text = ""
    for title, rows in parts:
        lines = list(rows)
        if not lines:
            continue
        text += f"# {title}:\n"
        for line in lines:
            text += textwrap.fill(
                line,
                width,
                initial_indent=INDENT,
                subsequent_indent=INDENT + " " * 15,
                break_long_words=False,
                break_on_hyphens=False,
            )
            text += "\n"
    return text


def _published(results: list[PaperResult]) -> Iterator[str]:
    """A line for each published result."""
    networks = max((len(result.network or "") for result in results), default=0)
    for result in results:
        accuracy = result.metric == ACCURACY
        number = three_digits(result.value, result.std) if accuracy else f"{result.value:g}"
        metric = "" if accuracy else result.metric
        parts = (metric, result.table, result.setting, result.note)
        words = "; ".join(part for part in parts if part)
        yield f"{number:<15}{(result.network or '').ljust(networks)}  {words}"


def _measured(result: MeasuredResult) -> str:
    """The line of a result of this code."""
    others = {
        "random images": result.random,
        "whole set": result.whole,
        "with hard labels": result.hard_labels,
        "random images of as many bytes": result.equal_storage,
    }
    beside = [f"{name} {value:.3f}" for name, value in others.items() if value is not None]
    gaps = {"IOR": result.ior, "HLR": result.hlr}
    beside += [f"{name} {value:+.3f}" for name, value in gaps.items() if value is not None]
    if result.lrs is not None:
        beside.append(f"LRS {result.lrs:.3f}")
    words = "; ".join([*beside, result.seeds, result.command])
    return f"{three_digits(result.accuracy, result.std):<15}{words}"


def three_digits(value: float | None, std: float | None = None) -> str:
    """A number with its standard deviation, if known; empty if there is none."""
    if value is None:
        return ""
    return f"{value:.3f}" if std is None else f"{value:.3f} ± {std:.3f}"
