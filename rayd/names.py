"""Names of files: as users write them, and as they come from a bucket, an archive, a card, a URL.

Object stores accept any name, and a card is a file that anybody may have written, so a name in one
of them may lead out of the folder that it belongs to. Every reader asks `inside` before it joins
such a name to a path.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from rayd.errors import ArtifactError, RaydError


def expanded(path: str | Path) -> Path:
    """Path as a user writes it, with `~` replaced by a home directory.

    That of an unknown user stays as it is: the path is missing, or a file has this name.

    >>> expanded("~/photos") == Path.home() / "photos", expanded("~old").name
    (True, '~old')
    """
    return Path(os.path.expanduser(path))


def data_title(name: str) -> str:
    """Short name of a data set that is given by a path: without its folders, and without `.npz`.

    >>> data_title("~/photos/v1.2"), data_title("s3://bucket/digits.npz"), data_title("cifar10")
    ('v1.2', 'digits', 'cifar10')
    """
    if "/" not in name:
        return name
    path = Path(name)
    return path.stem if path.suffix == ".npz" else path.name


def inside(name: str, where: str, error: type[RaydError] = ArtifactError) -> str:
    r"""Return a relative name, or refuse one that leads out of its folder.

    Both kinds of separators count on every system, as the folder may be copied to another one.

    Args:
        name: relative to the folder.
        where: what holds the name, for the error.
        error: class of the error.

    Raises:
        RaydError: the name is absolute, has a drive, or has a `..` among its parts.

    >>> inside("labels/a", "a card")
    'labels/a'
    >>> inside("labels/../../b", "card.json")
    Traceback (most recent call last):
    rayd.errors.ArtifactError: The name 'labels/../../b' in 'card.json' leads out of that folder; rename or remove it.
    """
    windows = PureWindowsPath(name)
    parts = (*PurePosixPath(name).parts, *windows.parts)
    # 'c:1.png' is a plain name elsewhere
    drive = windows.drive if os.name == "nt" else ""
    if drive or name.startswith(("/", "\\")) or ".." in parts or "\0" in name:
        shown = name.replace("\0", "\\0")
        raise error(
            f"The name '{shown}' in '{where}' leads out of that folder; rename or remove it."
        )
    return name
