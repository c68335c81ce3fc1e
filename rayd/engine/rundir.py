"""The directory of a run and its lock.

config.yaml  metrics.jsonl  status.json  tensorboard/  checkpoints/  distilled/  evaluation.json
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unicodedata import category

from rayd import remote
from rayd.artifacts import unfinished, write_bytes
from rayd.config import Recipe, flat, read_yaml
from rayd.engine.runlog import RunLog
from rayd.engine.status import NAME, StatusFile
from rayd.errors import ConfigError, OutputError
from rayd.locks import LOCK, locked
from rayd.names import inside
from rayd.plugins import import_options
from rayd.recipes import restore

MARK = "# A run of rayd: its whole recipe, every default resolved.\n"
"""First line of a run's config.yaml; a directory without it never counts as a run."""


RUNS = "runs"
"""Folder of runs without a given directory."""

ADDED = (
    "snapshots",
    "early-stopping",
    "metrics.csv",
    "analyses",
    "architectures.png",
    "report.html",
)
"""Files that callbacks and later commands add to a run's directory; they belong to that run."""


class RunDirectory:
    """A run's directory, locked while the run has it open.

    Args:
        path: path of the directory, which is not touched before `opened`.
    """

    log: RunLog
    status: StatusFile

    def __init__(self, path: Path):
        self.path = path = remote.local(path).resolve()
        self._name = remote.shown(path)
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.distilled = path / "distilled"
        self.evaluation = path / "evaluation.json"
        self._metrics = path / "metrics.jsonl"
        self._tensorboard = path / "tensorboard"
        self._status = path / NAME

    @contextmanager
    def opened(
        self, recipe: Recipe, resume: bool, overwrite: bool, command: str | None = None
    ) -> Iterator[RunDirectory]:
        """Lock the directory for a run, and release it at the end.

        The directory may be new or empty. One that holds a run is continued with `resume`, if it is
        the same run (resources and evaluation may differ), or emptied with `overwrite`, which never
        deletes a directory that is not a run.

        Args:
            recipe: the run.
            resume: continue the run that the directory holds.
            overwrite: replace it.
            command: continues the run after an interruption, for `rayd status`.

        Raises:
            OutputError: the directory is in use, cannot be written, or holds something else; or
                both `resume` and `overwrite` are given.
        """
        if resume and overwrite:
            raise OutputError(
                f"'{self._name}' can be continued or replaced: give --resume or --overwrite, not "
                "both."
            )
        if not set(map(category, str(self.path))).isdisjoint(("Cc", "Cs")):
            raise OutputError(
                f"The name of a run's directory must be text in UTF-8, without control characters. "
                f"Got {str(self.path)!r} instead; choose another --out."
            )
        # without waiting, as the holder may take days and its user should know immediately
        with locked(self.path):
            try:
                if overwrite:
                    self._empty()
                remote.bring_all(self.path)
                if not overwrite and self.holds_run():
                    self._continue(recipe, resume)
                elif not overwrite and self._holds_others():
                    raise OutputError(
                        f"'{self._name}' is not empty and holds no run of rayd; choose another "
                        "--out."
                    )
                write_bytes(self.config, (MARK + recipe.to_yaml()).encode())
                self.log = RunLog(self._metrics, self._tensorboard)
            except OSError as error:
                raise OutputError(f"Cannot write into '{self.path}': {error.strerror}.") from error
            self.status = StatusFile(self._status, command)
            try:
                yield self
            # `rayd status` also reports interruptions
            except BaseException as error:
                self.status.close(error)
                raise
            else:
                self.status.close()
            finally:
                self.log.close()

    def holds_run(self) -> bool:
        """Whether the directory holds a run, finished or not."""
        if not remote.bring(self.config):
            return False
        try:
            return self.config.read_bytes().startswith(MARK.encode())
        except OSError as error:
            raise OutputError(f"Cannot read '{self.config}': {error.strerror}.") from error

    def recipe(self, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of the run that the directory holds, for resuming it.

        Args:
            overrides: settings that override it, of resources and evaluation only.

        Raises:
            OutputError: the directory holds no run.
            ConfigError: its `config.yaml` is damaged, or a setting does not exist or does not fit.
        """
        if not self.holds_run():
            raise OutputError(
                f"'{self._name}' holds no run of rayd to continue; name the --out of one."
            )
        return restore(read_yaml(self.config), overrides, f"'{self.config}'")

    def _holds_others(self) -> bool:
        """Whether there is anything except the lock and temporary files of a killed run."""
        return any(
            entry.name != LOCK and not unfinished(entry) for entry in remote.listed(self.path)
        )

    def _continue(self, recipe: Recipe, resume: bool) -> None:
        if not resume:
            raise OutputError(
                f"'{self._name}' holds a run already; add --resume to continue it, or choose "
                "another --out."
            )
        before = self.recipe()
        changed = sorted(_differences(_identity(before), _identity(recipe)))
        if changed:
            differ = "differs" if len(changed) == 1 else "differ"
            raise OutputError(
                f"'{self._name}' holds another run: {', '.join(changed[:5])} {differ}; choose "
                f"another --out, or continue that run as it is with '{continuation(self.path)}'."
            )

    def _empty(self) -> None:
        if not self.holds_run() and self._holds_others():
            raise OutputError(
                f"'{self._name}' holds no run of rayd, so --overwrite leaves it alone; choose "
                "another --out."
            )
        for directory in (self._tensorboard, self.checkpoints, self.distilled):
            remote.remove(directory)
        for name in ADDED:
            # the new run would be shown with them, mixed with the old one's steps
            remote.remove(self.path / name)
        # config.yaml marks the directory as a run until the new one replaces it
        for file in (self._metrics, self._status, self.evaluation):
            remote.remove(file)


def default_directory(recipe: Recipe) -> Path:
    """Directory of a run for which none is given: `runs/<name of the recipe>`.

    Raises:
        ConfigError: the name, which may come from an untrusted file, leads out of `runs`.
    """
    return Path(RUNS) / inside(recipe.name, RUNS, ConfigError)


def continuation(directory: Path, data_root: Path | None = None, cache: Path | None = None) -> str:
    """The command that continues the run in a directory.

    Args:
        directory: of the run, which holds its recipe.
        data_root: where the run searches named data first, if given.
        cache: root of the store that the run uses, if given.

    >>> continuation(Path("/runs/my digits"), cache=Path("/scratch/cache"))
    "rayd distill --resume '/runs/my digits' --cache /scratch/cache"
    """
    paths = {"--resume": directory, "--data-root": data_root, "--cache": cache}
    words = ["rayd", "distill"]
    for option, path in paths.items():
        if path is not None:
            words += [option, remote.shown(remote.local(path).absolute())]
    for name in import_options():
        # the recipe uses plug-ins that these files register
        words += ["--import", name]
    return shlex.join(words)


def check_writable(path: Path, purpose: str) -> None:
    """Refuse a directory that this user cannot write to, before anything is created.

    Raises:
        OutputError: the directory, or its nearest existing parent, cannot be written.
    """
    if not writable(path):
        raise OutputError(f"The {purpose} '{path}' cannot be written; choose another.")


def writable(path: Path) -> bool:
    """Whether this user may write to a directory or create it under its nearest parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK)


def _identity(recipe: Recipe) -> dict[str, Any]:
    """All settings that a synthetic set depends on, by dotted key."""
    return flat(recipe.identity())


def _differences(left: dict[str, Any], right: dict[str, Any]) -> set[str]:
    return {key for key in left.keys() | right.keys() if left.get(key) != right.get(key)}
