"""The program: all commands, and the handling of errors, interruptions and exit codes."""

from __future__ import annotations

import codecs
import io
import logging
import os
import shlex
import sys
import threading
from typing import Annotated

import typer

from rayd.cli import (
    analyses,
    applications,
    cite,
    data,
    distilled,
    doctor,
    evaluation,
    recipes,
    runs,
    tune,
)
from rayd.cli.group import new_group
from rayd.cli.printing import out
from rayd.errors import ClusterLostError, ConfigError, RaydError
from rayd.interrupts import WORK_IS_KEPT, InterruptedRunError, leave, one_interrupt
from rayd.version import __version__

app = new_group(
    name="rayd",
    add_completion=True,
    help=(
        "Distil a labelled image data set into a small synthetic one that trains networks almost "
        "as well. Every command takes --import FILE.py: own methods, terms and networks."
    ),
)
# without a name, the commands of a module are top-level commands
for module in (recipes, runs, evaluation, distilled, analyses, tune, doctor, cite):
    app.add_typer(module.commands)
app.add_typer(data.commands, name="data")
app.add_typer(applications.commands, name="apply")


def _version(requested: bool) -> None:
    if requested:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    threading.excepthook = _thread_failed


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Ignore OSErrors of TensorBoard's writer thread, which the run's log also reports."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


PLAIN = {"±": "+-", "…": "...", "×": "x", "–": "-", "’": "'", "━": "-"}
"""Characters in rayd's output that a terminal may lack, and their replacements."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that a terminal's encoding lacks by similar ones, or escape them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    escaped = (PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking)
    return "".join(escaped), error.end


def _print_anything() -> None:
    """Let standard output and error accept any text, including names that are not UTF-8."""
    codecs.register_error("rayd", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="rayd")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    given = sys.argv[1:] if arguments is None else arguments
    _print_anything()
    with one_interrupt():
        _main_in_order(given)


def _without_imports(given: list[str]) -> list[str]:
    """Import the files of `--import`, an option of all commands, and return the other words."""
    from rayd import plugins

    kept: list[str] = []
    words = iter(given)
    for word in words:
        option, equals, file = word.partition("=")
        if option != "--import":
            kept.append(word)
            continue
        file = file if equals else next(words, "")
        if not file:
            raise ConfigError("Option --import needs a file: --import my_method.py.")
        plugins.load_file(file)
    return kept


def _corrected(given: list[str]) -> str | None:
    """The command that was probably intended, if settings were not written as `key=value`."""
    from rayd.cli.advice import corrected

    return corrected(given, typer.main.get_command(app))


def _main_in_order(given: list[str]) -> None:
    try:
        app(_without_imports(given))
    except RaydError as error:
        if "--debug" in given:
            raise
        if isinstance(error, ClusterLostError):
            # on exit Ray would wait a minute for the head, and print a long log
            leave(str(error), error.exit_code)
        sys.stderr.write(f"rayd: {error}\n")
        if error.setting is not None:
            sys.stderr.write(f"  rayd {shlex.join([*given, error.setting])}\n")
        elif isinstance(error, ConfigError) and (line := _corrected(given)) is not None:
            sys.stderr.write(f"  {line}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write(f"rayd: {WORK_IS_KEPT}\n")
        sys.exit(InterruptedRunError.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if "--debug" in given:
            raise
        sys.stderr.write(f"rayd: {_system_error(error)}\n")
        sys.exit(1)


def _system_error(error: OSError) -> str:
    """One-sentence message for an error of the operating system that is not handled elsewhere."""
    if isinstance(error, FileNotFoundError) and error.filename is None:
        try:
            os.getcwd()
        except FileNotFoundError:
            return "The current folder no longer exists; run the command in another one."
    reason = error.strerror or str(error)
    return f"{reason}: {error.filename}." if error.filename else f"{reason}."
