"""Groups of commands, whose help shows an example of each."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from rayd.interrupts import NOTHING_DONE, InterruptedRunError

_EXAMPLE = "Example: "
"""Prefix of the last line of a command's help."""


def example(line: str) -> str:
    """Format the last line of a command's help, to be its `epilog`."""
    return _EXAMPLE + line


def new_group(**settings: Any) -> typer.Typer:
    """Make an empty group of commands, with Typer's settings of a group."""
    return typer.Typer(
        cls=CommandGroup,
        no_args_is_help=True,
        add_completion=False,
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

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """See `invoke`; click itself would say 'Aborted!' and exit with code 1."""
        try:
            return super().make_context(*arguments, **options)
        except KeyboardInterrupt as error:
            raise InterruptedRunError(NOTHING_DONE) from error

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an interruption ends it with exit code 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise InterruptedRunError("Interrupted; finished work is kept.") from error
