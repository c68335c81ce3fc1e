"""Finding and opening data sets: by name in the data root, or by path.

A name is resolved in the given data root, then in `$RAYD_DATA`, then in `~/.cache/rayd/data`; in
each as `<root>/<name>` (Parquet files, raw files or an image folder), `<root>/<name>.npz`, and in
torchvision's own folders. Data sets from outside the package are found by `package.module:Name` or
by entry points of `rayd.datasets` (`rayd.data.objects.named`). Roots and paths may be URLs
(`rayd.remote`): opening encoded images reads only their labels, and each process fetches the files
it needs (`rayd.data.copies`); arrays are fetched whole.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rayd import plugins, remote
from rayd.data.catalog import KNOWN
from rayd.data.files import Listing
from rayd.data.formats import FORMATS, NAMED_SPLITS, Format, digits, folder, parquet
from rayd.data.formats.base import Source
from rayd.data.layout import requested
from rayd.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    from rayd.config import DataSettings

log = logging.getLogger(__name__)

ROOT_VARIABLE = "RAYD_DATA"
"""Environment variable of the data root."""

PICKLES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".npy", ".joblib"})
"""Files that are, or may be, pickles."""

PICKLED_CIFAR = frozenset({"data_batch_1", "train"})
"""Pickles of CIFAR's Python version, which have no file extension."""

SAMPLE = 1000
"""Maximum number of files of a folder that an error message is based on."""


@dataclass(frozen=True)
class SourceInfo:
    """A line of `rayd data list`."""

    name: str
    """Name of the data set."""
    classes: int | None
    """Number of classes; None if unknown before it is opened."""
    found: Path | None
    """Its path, or `package.module:Name` of an installed package; None if it was not found."""
    how: str
    """How to obtain it, as a clause."""


def data_roots(root: Path | None = None) -> tuple[Path, ...]:
    """Folders that are searched for names, in order."""
    variable = os.environ.get(ROOT_VARIABLE)
    given: list[str | Path] = [root] if root is not None else []
    given += [variable] if variable else []
    return tuple(remote.local(folder) for folder in [*given, "~/.cache/rayd/data"])


def locate(name: str, root: Path | None = None) -> Path | None:
    """Path of the data set with a name or at a path; None if not found or of no known format.

    Raises:
        RaydError: it is from outside the package, and fails to load or is unfit; or this user may
            not read it.
    """
    found = next((path for path in _candidates(name, root) if _exists(path)), None)
    if found is None and (plugins.is_spec(name) or name in plugins.offered("datasets")):
        # arrays and tensors are read by a module that commands on files do without
        from rayd.data.objects import named

        found = named(name)
    return found


def known_sources(root: Path | None = None) -> list[SourceInfo]:
    """List the known data sets, found or not, then other data sets in the data roots."""
    infos = []
    for known in KNOWN.values():
        # what cannot be read stands in the way of no list
        found = None
        with suppress(DataError):
            found = locate(known.name, root)
        infos.append(SourceInfo(known.name, known.classes, found, known.how))
    listed = set[str]()
    for known in KNOWN.values():
        for relative in (known.name, *known.places, *known.pickled):
            listed.add(Path(relative).parts[0])
    for parent in data_roots(root):
        for path in remote.listed(parent):
            name = path.stem if path.suffix == ".npz" else path.name
            if name in listed or name.startswith("."):
                continue
            with suppress(DataError):
                if _exists(path):
                    listed.add(name)
                    infos.append(SourceInfo(name, None, path, "it is not one of rayd's known sets"))
    for name, value in plugins.offered("datasets").items():
        infos.append(SourceInfo(name, None, Path(value), "an installed package has it"))
    return infos


def open_source(
    name: str, root: Path | None = None, settings: DataSettings | None = None
) -> Source:
    """Open a data set by name or path: reads and checks its labels, decodes no image.

    Args:
        name: of a known set, or the path of one's own.
        root: data root, before `$RAYD_DATA` and `~/.cache/rayd/data`.
        settings: which parts are the splits, where that is not certain.

    Raises:
        DataError: it is unknown, missing, empty, damaged, or a pickle.
    """
    path = locate(name, root) if name else None
    known = KNOWN.get(name)
    names = known.class_names if known else None
    if known is not None:
        _tell_namesake(name, path)
    if path is not None and remote.url(path) is not None:
        # encoded images are opened from a listing of their names, which fetches labels alone
        listing = Listing.of(path)
        if parquet.holds(listing):
            return parquet.open_listing(listing, names, settings)
        if folder.holds(listing):
            return folder.open_listing(listing, settings)
        # other formats are arrays in files, which are fetched whole: a single one, or a folder
        if not remote.bring(path):
            remote.bring_all(path)
    format_ = _format(path) if path is not None else None
    if path is None or format_ is None:
        raise DataError(_why_not(name, root))
    for named in NAMED_SPLITS:
        if named is format_:
            return named.open_source(path, names, settings)
    if requested(settings):
        raise ConfigError(
            f"Settings 'data.train', 'data.validation' and 'data.test' have no effect on '{name}', "
            "whose splits are fixed files."
        )
    return format_.open_source(path, names)


@cache
def _tell_namesake(name: str, path: Path | None) -> None:
    """Say, once, that a known data set is read, and not a folder of the same name here."""
    own = Path(name)
    with suppress(OSError, DataError):
        is_read = path is not None and path.exists() and own.samefile(path)
        if own.is_dir() and not is_read and _format(own) is not None:
            log.warning(
                "'%s' is the known data set of this name, not the folder '%s' here, which is read "
                "with data=./%s.",
                *(name, name, name),
            )


def _candidates(name: str, root: Path | None) -> Iterator[Path]:
    if name == "digits":
        yield digits.location()
        return
    if name not in KNOWN:
        yield remote.local(name)
    known = KNOWN.get(name)
    for parent in data_roots(root):
        yield parent / name
        yield parent / f"{name}.npz"
        yield from (parent / place for place in (known.places if known else ()))


def _exists(path: Path) -> bool:
    """Whether a data set is at a path; at a URL only existence is checked."""
    return _format(path) is not None if remote.url(path) is None else remote.exists(path)


def _format(path: Path) -> Format | None:
    """Format of what is at a path; None if nothing is, or no data set.

    Raises:
        DataError: this user may not read it.
    """
    try:
        if not path.exists():
            return None
        return next((known for known in FORMATS if known.matches(path)), None)
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror}.") from error


def _why_not(name: str, root: Path | None) -> str:
    """Explain why the data set of this name cannot be opened, with a remedy."""
    if not name:
        return "Setting 'data.name' must not be empty; own data are given as data=PATH."
    known = KNOWN.get(name)
    remedy = f"; {known.how}" if known else ""
    pickled = []
    if known is not None:
        pickled = [parent / place for parent in data_roots(root) for place in known.pickled]
    found = next((path for path in (*_candidates(name, root), *pickled) if path.exists()), None)
    if found is not None:
        return f"{_why_unreadable(found)}{remedy}."
    if known is not None:
        places = ", ".join(f"'{parent / name}'" for parent in data_roots(root))
        return f"Data set '{name}' was not found in {places}{remedy}."
    if os.sep in name or name.startswith(("~", ".")):
        path = remote.local(name)
        place = f"There is no data set at '{remote.shown(path)}'"
        # the mirror of a URL is absolute, too
        if path.is_absolute():
            return f"{place}."
        return f"{place}, seen from '{Path.cwd()}'; {_GOES_ON}."
    names = [info.name for info in known_sources(root)]
    return (
        f"{unknown('data set', name, names)} "
        f"Own data are given as data=PATH, but '{Path.cwd()}' has no folder or .npz file '{name}'; "
        f"{_GOES_ON}."
    )


_GOES_ON = "a run on a relative path goes on in the folder where it was started"


def _why_unreadable(path: Path) -> str:
    """Explain what is wrong with a path that no format matches, as a clause."""
    *others, last = [known.DESCRIPTION for known in NAMED_SPLITS]
    expected = f"must be {', '.join(others)}, or {last}"
    if path.is_file():
        pickle = ", which may be a pickle: none is ever loaded" if path.suffix in PICKLES else ""
        return f"'{path}' {expected}. Got a file{pickle}"
    files = sorted(islice((inside for inside in path.rglob("*") if inside.is_file()), SAMPLE))
    if not files:
        broken = next((link for link in path.rglob("*") if not link.exists()), None)
        if broken is not None:
            return f"'{path}' holds links to files that are not there, e.g. '{broken}'"
        return f"'{path}' is an empty folder"
    if any(file.suffix in PICKLES or file.name in PICKLED_CIFAR for file in files):
        return f"'{path}' holds pickles, which are never loaded"
    suffixes = {file.suffix.lower() for file in files}
    if any(file.parent == path and file.suffix.lower() in folder.SUFFIXES for file in files):
        hint = folder.without_tables(suffixes) or "sort them into one folder per class"
        return f"'{path}' {expected}. Got images outside of folders; {hint}"
    return f"'{path}' {expected}. Got a folder with '{files[0].relative_to(path)}' in it"
