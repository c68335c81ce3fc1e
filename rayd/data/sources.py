"""Locating and opening data sets, by name in a data root or by path.

A name is looked up in the given data root, then in `$RAYD_DATA`, then in `~/.cache/rayd/data`; in
each of them as `<root>/<name>` (Parquet files, raw files or an image folder), as
`<root>/<name>.npz`, and in torchvision's folders. Installed packages provide data sets as
`package.module:Name` or through entry points of `rayd.datasets` (`rayd.data.objects.named`). Roots
and paths may be URLs (`rayd.remote`): opening encoded images reads only their labels, and each
process fetches the files that it needs (`rayd.data.copies`); arrays are fetched whole.
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
"""Environment variable with the data root."""

PICKLES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".npy", ".joblib"})
"""File extensions of pickles and of files that may contain them."""

PICKLED_CIFAR = frozenset({"data_batch_1", "train"})
"""Pickles of CIFAR's Python version, which have no file extension."""

SAMPLE = 1000
"""Maximum number of files in a folder that are inspected for an error message."""


@dataclass(frozen=True)
class SourceInfo:
    """A line of `rayd data list`."""

    name: str
    """Name of the data set."""
    classes: int | None
    """Number of classes; None if unknown until the data set is opened."""
    found: Path | None
    """Its path, or `package.module:Name` in an installed package; None if it was not found."""
    how: str
    """How to obtain it, as a clause."""


def data_roots(root: Path | None = None) -> tuple[Path, ...]:
    """Folders that are searched for data sets, in order."""
    variable = os.environ.get(ROOT_VARIABLE)
    given: list[str | Path] = [root] if root is not None else []
    given += [variable] if variable else []
    return tuple(remote.local(folder) for folder in [*given, "~/.cache/rayd/data"])


def locate(name: str, root: Path | None = None) -> Path | None:
    """Path of a data set given by name or path; None if not found or not in a known format.

    Raises:
        RaydError: a data set from an installed package cannot be loaded or is not valid, or the
            user may not read the path.
    """
    found = next((path for path in _candidates(name, root) if _exists(path)), None)
    if found is None and (plugins.is_spec(name) or name in plugins.offered("datasets")):
        # imported here because commands on files do not need it
        from rayd.data.objects import named

        found = named(name)
    return found


def known_sources(root: Path | None = None) -> list[SourceInfo]:
    """List all known data sets, then others in the data roots and from installed packages."""
    infos = []
    for known in KNOWN.values():
        # unreadable data must not prevent the listing
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
        infos.append(SourceInfo(name, None, Path(value), "an installed package provides it"))
    return infos


def open_source(
    name: str, root: Path | None = None, settings: DataSettings | None = None
) -> Source:
    """Open a data set by name or path: read and check its labels, without decoding images.

    Args:
        name: name of a known set, or a path.
        root: data root, searched before `$RAYD_DATA` and `~/.cache/rayd/data`.
        settings: may name the parts to use as splits, where that is ambiguous.

    Raises:
        ConfigError: the settings name splits of a data set whose splits are fixed.
        DataError: the data set is unknown, missing, empty, damaged, or a pickle.
    """
    path = locate(name, root) if name else None
    known = KNOWN.get(name)
    names = known.class_names if known else None
    if known is not None:
        _warn_about_namesake(name, path)
    if path is not None and remote.url(path) is not None:
        # encoded images are opened from a file listing, which fetches only labels
        listing = Listing.of(path)
        if parquet.holds(listing):
            return parquet.open_listing(listing, names, settings)
        if folder.holds(listing):
            return folder.open_listing(listing, settings)
        # other formats are arrays and fetched whole: a single file, or a folder of files
        if not remote.bring(path):
            remote.bring_all(path)
    format_ = _format(path) if path is not None else None
    if path is None or format_ is None:
        raise DataError(_not_found(name, root))
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
def _warn_about_namesake(name: str, path: Path | None) -> None:
    """Warn once that a name means a known data set, not the folder of that name here."""
    own = Path(name)
    with suppress(OSError, DataError):
        is_read = path is not None and path.exists() and own.samefile(path)
        if own.is_dir() and not is_read and _format(own) is not None:
            log.warning(
                "'%s' is the known data set of this name, not the folder '%s' here; to read the "
                "folder, use data=./%s.",
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
    """Whether there is a data set at a path; for a URL, whether there is anything."""
    return _format(path) is not None if remote.url(path) is None else remote.exists(path)


def _format(path: Path) -> Format | None:
    """Format of the data set at a path; None if there is none.

    Raises:
        DataError: the user may not read the path.
    """
    try:
        if not path.exists():
            return None
        return next((known for known in FORMATS if known.matches(path)), None)
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror}.") from error


def _not_found(name: str, root: Path | None) -> str:
    """Error message for a data set that cannot be opened, with a remedy."""
    if not name:
        return "Setting 'data.name' must not be empty; use data=PATH for your own data."
    known = KNOWN.get(name)
    remedy = f"; {known.how}" if known else ""
    pickled = []
    if known is not None:
        pickled = [parent / place for parent in data_roots(root) for place in known.pickled]
    found = next((path for path in (*_candidates(name, root), *pickled) if path.exists()), None)
    if found is not None:
        return f"{_unreadable(found)}{remedy}."
    if known is not None:
        places = ", ".join(f"'{parent / name}'" for parent in data_roots(root))
        return f"Data set '{name}' was not found in {places}{remedy}."
    if os.sep in name or name.startswith(("~", ".")):
        path = remote.local(name)
        place = f"There is no data set at '{remote.shown(path)}'"
        # also holds for URLs, whose mirror paths are absolute
        if path.is_absolute():
            return f"{place}."
        return f"{place}, relative to '{Path.cwd()}'; {_RELATIVE}."
    names = [info.name for info in known_sources(root)]
    return (
        f"{unknown('data set', name, names)} "
        f"Use data=PATH for your own data; '{Path.cwd()}' has no folder or .npz file '{name}'; "
        f"{_RELATIVE}."
    )


_RELATIVE = "resume a run with a relative data path from the folder where it was started"


def _unreadable(path: Path) -> str:
    """Explain why no format matches a path, as a clause."""
    *others, last = [known.DESCRIPTION for known in NAMED_SPLITS]
    expected = f"must be {', '.join(others)}, or {last}"
    if path.is_file():
        pickle = ", which may be a pickle: none is ever loaded" if path.suffix in PICKLES else ""
        return f"'{path}' {expected}. Got a file{pickle}"
    files = sorted(islice((inside for inside in path.rglob("*") if inside.is_file()), SAMPLE))
    if not files:
        broken = next((link for link in path.rglob("*") if not link.exists()), None)
        if broken is not None:
            return f"'{path}' holds broken links, e.g. '{broken}'"
        return f"'{path}' is an empty folder"
    if any(file.suffix in PICKLES or file.name in PICKLED_CIFAR for file in files):
        return f"'{path}' holds pickles, which are never loaded"
    suffixes = {file.suffix.lower() for file in files}
    if any(file.parent == path and file.suffix.lower() in folder.SUFFIXES for file in files):
        hint = folder.without_tables(suffixes) or "sort them into one folder per class"
        return f"'{path}' {expected}. Got images outside of class folders; {hint}"
    return f"'{path}' {expected}. Got a folder that holds '{files[0].relative_to(path)}' instead"
