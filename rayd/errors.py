"""What rayd raises: one sentence that says what is wrong, where, what was wanted and what came.

Every mistake that a user can make ends in a `RaydError`; the command line prints its sentence and
exits with the class's `exit_code`. Anything else that escapes is a bug of rayd itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class RaydError(Exception):
    """Base of all errors that rayd raises on purpose."""

    exit_code = 2
    setting: str | None = None
    """An override, `key.sub=value`, with which the same command would work; the command line shows
    that command.
    """


class ConfigError(RaydError):
    """A setting, recipe, network, method or command-line argument that does not exist or does not
    fit.
    """


class DataError(RaydError):
    """A data set that is missing, damaged, or unfit for what was asked of it."""


class ImageSizeError(DataError):
    """Images of different sizes, and no size that they should be scaled to."""


class ArtifactError(RaydError):
    """A distilled set, checkpoint or cached file that is missing, damaged, or not what its card
    says.
    """


class OutputError(RaydError):
    """An output directory that is in use, holds another run, or cannot be written."""


class ResourceError(RaydError):
    """A cluster that cannot be reached or cannot hold what was asked for."""


class RunError(RaydError):
    """A run that started well and failed later; finished stages are kept and `--resume`
    continues.
    """

    exit_code = 1


class OutOfMemoryError(RunError):
    """A stage that needed more memory than its device, or the machine, has."""

    def __init__(self, what: str, where: str | None = None):
        """Say what ran out, as the beginning of a sentence, and where, with what to do about it, if
        that is known already.
        """
        super().__init__(f"{what} {where or 'in a worker'}.")
        self.what = what
        self.where = where


def nearest(name: object, known: Iterable[str], count: int = 1) -> list[str]:
    """The known names that are most like a name, the nearest first; none where none is like it.

    >>> nearest("convnett", ["convnet", "mlp"])
    ['convnet']
    """
    return get_close_matches(str(name), sorted(known), n=count, cutoff=0.5)


def unknown(kind: str, name: object, known: Iterable[str], where: str = "") -> str:
    """The sentence for a name that is not among the known ones, with the nearest of them.

    >>> unknown("network", "convnett", ["convnet", "mlp"])
    "Unknown network 'convnett'; did you mean 'convnet'? Known: convnet, mlp."
    """
    names = sorted(known)
    near = nearest(name, names)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    place = f" in {where}" if where else ""
    return f"Unknown {kind} '{name}'{place}{hint} Known: {', '.join(names)}."


_SWITCHES = frozenset({"resume", "overwrite"})
_IN_SENTENCES = re.compile(
    r"(?P<kept>ray job submit .*)"
    r"|'rayd distill --resume (?P<directory>[^ ']+)[^']*'"
    r"|`?--(?P<option>resume|overwrite|out|cache|data-root|workers|address|network|seeds)\b`?(?: (?P<value>N|\d+)\b)?"
)


def in_python(sentence: str) -> str:
    """A sentence about options of the command line, in terms of the Python API's keywords.

    >>> in_python("add --resume to continue it, or choose another --out.")
    'add resume=True to continue it, or choose another out.'
    >>> in_python("run in process with --workers 0, or continue it with 'rayd distill --resume /runs/a'.")
    "run in process with workers=0, or continue it with rayd.distill(resume='/runs/a')."
    """
    return _IN_SENTENCES.sub(_keyword, sentence)


def _keyword(found: re.Match[str]) -> str:
    if found["kept"] is not None:
        return found["kept"]
    if found["directory"] is not None:
        return f"rayd.distill(resume={found['directory']!r})"
    name = {"network": "networks"}.get(found["option"], found["option"].replace("-", "_"))
    value = "True" if name in _SWITCHES else found["value"]
    return name if value is None else f"{name}={value}"


@contextmanager
def errors_for_python() -> Iterator[None]:
    """Errors that leave the block name keywords of the Python API instead of options of the command
    line.
    """
    try:
        yield
    except RaydError as error:
        error.args = tuple(
            in_python(part) if isinstance(part, str) else part for part in error.args
        )
        raise
