"""Command groups whose help shows an example of each command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import typer
from typer.core import TyperGroup

from rayd.errors import ConfigError
from rayd.interrupts import NOTHING_DONE, WORK_IS_KEPT, InterruptedRunError

UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])
"""click's error for an invalid command line.

It is not imported from click, as newer versions of Typer vendor click and have a different class of
this name: the base of Typer's `BadParameter` works for both.
"""

_EXAMPLE = "Example: "
"""Prefix of the last line of a command's help."""


def example(line: str) -> str:
    """Format an example as the `epilog` of a command's help."""
    return _EXAMPLE + line


def new_group(add_completion: bool = False, **settings: Any) -> typer.Typer:
    """Create an empty group of commands.

    Args:
        add_completion: add the options that install completion by a shell.
        settings: Typer's settings of a group.
    """
    return typer.Typer(
        cls=CommandGroup,
        no_args_is_help=True,
        add_completion=add_completion,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        **settings,
    )


class CommandGroup(TyperGroup):
    """Command group whose help lists an example of each command; reports interruptions."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List every command with its name, purpose and example."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        indent = max(len(name) for name, _ in commands)
        with formatter.section("Commands"):
            for name, command in commands:
                if command is None:
                    continue
                formatter.write_dl([(name.ljust(indent), command.get_short_help_str(limit=200))])
                if command.epilog:
                    indentation = " " * (formatter.current_indent + indent + 2)
                    formatter.write(f"{indentation}$ {command.epilog.removeprefix(_EXAMPLE)}\n")

    given: Sequence[str] = ()
    """The words after `rayd`, of the group of all commands."""

    def main(self, args: Sequence[str] | None = None, *arguments: Any, **options: Any) -> Any:
        """Run a command line; see click."""
        self.given = sys.argv[1:] if args is None else list(args)
        return super().main(args, *arguments, **options)

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """See `invoke`; click itself would print 'Aborted!' and exit with code 1.

        Empty options, for example from unset shell variables, are refused: an empty path would mean
        the current folder.
        """
        for word, value in pairwise([*self.given, "-"]):
            option, equals, inside = word.partition("=")
            if option.startswith("--") and (not value or (equals and not inside)):
                raise ConfigError(f"Option '{option}' is empty.")
        try:
            return super().make_context(*arguments, **options)
        except UsageError as error:
            raise self._advised(error) from error
        except KeyboardInterrupt as error:
            raise InterruptedRunError(NOTHING_DONE) from error

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an interruption ends it with exit code 130.

        If the command line is invalid, the error ends with the command that was probably intended.
        """
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise self._advised(error) from error
        except KeyboardInterrupt as error:
            raise InterruptedRunError(WORK_IS_KEPT) from error

    def _advised(self, error: Any) -> Any:
        """Add the command that was probably intended to an error, if there is a good guess."""
        from rayd.cli.advice import corrected

        line = corrected(self.given, self) if self.given else None
        if line is not None and line not in error.message:
            what = error.message.partition(" Did you mean")[0].rstrip(".")
            error.message = f"{what}. Did you mean this?\n  {line}"
            if hasattr(error, "possibilities"):
                # click would append its own suggestions of options, which are worse
                error.possibilities = None
        return error
