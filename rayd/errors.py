"""Exceptions of rayd: one sentence on what is wrong, where, what was expected and what was given.

Every user error raises a `RaydError`; the command line prints its message and exits with the
class's `exit_code`. Any other exception is a bug of rayd.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class RaydError(Exception):
    """Base class of all errors that rayd raises on purpose."""

    exit_code = 2
    setting: str | None = None
    """Override `key.sub=value` with which the same command works; shown by the command line."""

    def _render_traceback_(self) -> list[str]:
        """Traceback in IPython: only the message; `%debug` has the rest."""
        notes = getattr(self, "__notes__", [])
        return [f"{type(self).__name__}: {self}", *notes]


class ConfigError(RaydError):
    """A setting, recipe, network, method or argument that does not exist or does not fit."""


class DataError(RaydError):
    """A data set that is missing, damaged, or unfit for its purpose."""


class ImageSizeError(DataError):
    """Images of different sizes without a target size."""


class ArtifactError(RaydError):
    """A distilled set, checkpoint or cached file that is missing, damaged or inconsistent."""


class OutputError(RaydError):
    """An output directory that is in use, contains another run, or is not writable."""


class ResourceError(RaydError):
    """A cluster that is unreachable or lacks requested resources."""


class RunError(RaydError):
    """A run that failed after its start; finished stages are kept and `--resume` continues."""

    exit_code = 1


class OutOfMemoryError(RunError):
    """A stage that needed more memory than its device or machine has."""

    def __init__(self, what: str, where: str | None = None):
        """Describe the error.

        Args:
            what: beginning of the message, what ran out of memory.
            where: rest of the message, where, and what to do about it; if known.
        """
        super().__init__(f"{what} {where or 'in a worker'}.")
        self.what = what
        self.where = where


class DeviceFaultError(RunError):
    """A GPU or its driver failed, and its process cannot use it again."""


class ClusterLostError(RunError):
    """The head of the Ray cluster is gone, so that calls to Ray are no longer possible."""


def nearest(name: object, known: Iterable[str], count: int = 1) -> list[str]:
    """Known names most similar to a name, best first; empty if none is similar.

    >>> nearest("convnett", ["convnet", "mlp"])
    ['convnet']
    """
    # imported only for mistakes: imports before Ctrl-C is handled should be fast
    from difflib import get_close_matches

    return get_close_matches(str(name), sorted(known), n=count, cutoff=0.5)


def alternatives(words: Sequence[str]) -> str:
    """Words as alternatives of a sentence.

    >>> alternatives(["a"]), alternatives(["a", "b", "c"])
    ('a', 'a, b or c')
    """
    return " or ".join([", ".join(words[:-1]), words[-1]]) if words[1:] else words[0]


def proposal(name: object, known: Iterable[str], count: int = 3) -> str:
    """End of a sentence about an unknown name: the nearest known ones, or a full stop.

    >>> proposal("digts", ["digits", "dc-digits", "edc"])
    "; did you mean 'digits' or 'dc-digits'?"
    >>> proposal("x", ["digits"])
    '.'
    """
    near = [f"'{one}'" for one in nearest(name, sorted(known), count=count)]
    return f"; did you mean {alternatives(near)}?" if near else "."


def unknown(kind: str, name: object, known: Iterable[str], where: str = "") -> str:
    """Message for an unknown name, with the nearest known one.

    >>> unknown("network", "convnett", ["convnet", "mlp"])
    "Unknown network 'convnett'; did you mean 'convnet'? Known: convnet, mlp."
    """
    names = sorted(known)
    hint = proposal(name, names, count=1)
    location = f" in {where}" if where else ""
    return f"Unknown {kind} '{name}'{location}{hint} Known: {', '.join(names)}."


_SWITCHES = frozenset({"resume", "overwrite"})
_IN_SENTENCES = re.compile(
    r"(?P<kept>ray job submit .*)"
    r"|'rayd distill --resume (?P<directory>[^ ']+)[^']*'"
    r"|`?--(?P<option>resume|overwrite|out|cache|data-root|workers|address|network|seeds)\b`?(?: (?P<value>N|\d+)\b)?"
)


def in_python(sentence: str) -> str:
    """Replace command line options in a message by keywords of the Python API.

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
    """Convert messages of errors raised in the context to keywords of the Python API."""
    try:
        yield
    except RaydError as error:
        error.args = tuple(
            in_python(part) if isinstance(part, str) else part for part in error.args
        )
        raise
