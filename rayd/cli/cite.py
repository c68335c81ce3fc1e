"""Command `cite`: citations of everything that a recipe uses."""

from __future__ import annotations

import sys

from rayd.cli.group import example, new_group
from rayd.cli.options import Debug, RecipeName

commands = new_group()


@commands.command(epilog=example("rayd cite edc-cifar10-ipc10"))
def cite(recipe: RecipeName, debug: Debug = False) -> None:
    """Print BibTeX entries of everything that a recipe uses."""
    from rayd import methods, recipes
    from rayd.citations import citations

    resolved = recipes.resolve(recipe)
    sys.stdout.write("\n\n".join(citations(resolved, methods.get(resolved.method).citation)) + "\n")
