"""Which parts of a data set are its splits, by name, by structure, or by setting.

Folders, Parquet files and keys of npz files are named in many ways: `seg_train`, `train2017`,
`x_eval`. `split_names` reads such names; where they allow two readings, the data are refused with
both, and with the setting that decides.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from rayd.errors import DataError, unknown

if TYPE_CHECKING:
    from rayd.config import DataSettings

SplitName = Literal["train", "validation", "test"]

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

WORDS: Mapping[str, SplitName] = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "trn": "train",
    "validation": "validation",
    "validate": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "devel": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "eval": "test",
    "evaluation": "test",
    "holdout": "test",
    "heldout": "test",
}
"""Words that name a split."""

# fmt: off
DECORATIONS = frozenset({
    "set", "sets", "data", "dataset", "image", "images", "img", "imgs", "pictures", "photos", "x",
    "files", "split", "part", "folder", "sample", "samples", "full", "labeled", "labelled", "y",
})
# fmt: on
"""Words beside the split's in names such as `test_images`; numbers are decorations, too."""

# fmt: off
OTHER_PARTS = frozenset({
    "background", "extra", "unlabeled", "unlabelled", "unseen", "gallery", "query", "probe",
    "support", "novel", "base", "public", "private", "pool", "labeled", "labelled", "source",
    "target", "raw", "processed", "original", "augmented", "fold", "part", "batch", "split",
})
# fmt: on
"""Words of folders that are parts of a data set, but neither classes nor known splits."""

SYSTEM_FOLDERS = frozenset(
    {
        "__MACOSX",
        "__pycache__",
        "@eaDir",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "#recycle",
    }
)
"""Folders that operating systems and storage devices make."""


def words(name: str, numbers: bool = False) -> list[str]:
    """Words of a name in lower case.

    Args:
        name: in any spelling.
        numbers: whether numbers are words.

    >>> words("seg_train"), words("TestImages2017")
    (['seg', 'train'], ['test', 'images'])
    """
    word = r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+"
    found = re.findall(rf"{word}|\d+" if numbers else word, name)
    return [word.lower() for word in found]


def split_of(name: str) -> tuple[SplitName, tuple[str, ...]] | None:
    """Split that a name tells, and the words beside it that are no decorations.

    >>> split_of("test_images"), split_of("seg_train"), split_of("cats")
    (('test', ()), ('train', ('seg',)), None)
    """
    found = words(name)
    if (joined := "".join(found)) in WORDS:
        return WORDS[joined], ()
    named = {WORDS[word] for word in found if word in WORDS}
    if len(named) != 1:
        return None
    beside = [word for word in found if word not in WORDS and word not in DECORATIONS]
    return named.pop(), tuple(beside)


def split_names(names: Iterable[str]) -> dict[str, SplitName]:
    """Splits that names tell, those of other names left out.

    Words beside the split's must be decorations, or common to several names: `seg_train` and
    `seg_test` are splits, `train_station` is not.

    >>> split_names(["seg_train", "seg_test", "train_station"])
    {'seg_train': 'train', 'seg_test': 'test'}
    """
    read = {name: found for name in names if (found := split_of(name)) is not None}
    common = Counter(beside for _, beside in read.values())
    return {
        name: split for name, (split, beside) in read.items() if not beside or common[beside] > 1
    }


def requested(settings: DataSettings | None) -> dict[SplitName, str]:
    """Splits that settings name."""
    if settings is None:
        return {}
    given: dict[SplitName, str | None] = {
        "train": settings.train,
        "validation": settings.validation,
        "test": settings.test,
    }
    return {split: name for split, name in given.items() if name is not None}


def assign(
    names: Sequence[str],
    settings: DataSettings | None,
    where: str,
    kind: str,
    named: Mapping[str, SplitName] | None = None,
) -> dict[SplitName, str]:
    """Part of a data set that is each split: those that settings name, then those that names tell.

    Args:
        names: names of the parts.
        settings: may name splits.
        where: the data set, for errors.
        kind: what a part is, for errors.
        named: splits by name of the part; by default read from the names.

    Raises:
        DataError: a requested part does not exist, several parts seem to be the same split, or
            the test split may be a part whose name tells nothing.
    """
    chosen = _requested_parts(names, settings, where, kind)
    told = split_names(names) if named is None else named
    for split, found in _told_parts(told, chosen).items():
        if len(found) > 1:
            raise DataError(
                f"{where} may hold the {split} split in {listed(found)}: name the one to read, "
                f"e.g. 'data.{split}={shortest(found)}'."
            )
        chosen[split] = found[0]
    if not requested(settings):
        _check_others(names, chosen, where)
    return {split: chosen[split] for split in SPLITS if split in chosen}


def _requested_parts(
    names: Sequence[str], settings: DataSettings | None, where: str, kind: str
) -> dict[SplitName, str]:
    """Parts that settings name, in their spelling in the data.

    Raises:
        DataError: a part does not exist, or is two splits.
    """
    chosen: dict[SplitName, str] = {}
    spelled = {nfc(name): name for name in names}
    for split, name in requested(settings).items():
        if nfc(name) not in spelled:
            raise DataError(unknown(kind, name, names, f"'data.{split}' for {where}"))
        chosen[split] = spelled[nfc(name)]
    if len(set(chosen.values())) < len(chosen):
        raise DataError(
            "Settings 'data.train', 'data.validation' and 'data.test' must name different parts "
            f"of {where}."
        )
    return chosen


def _told_parts(
    told: Mapping[str, SplitName], chosen: Mapping[SplitName, str]
) -> dict[SplitName, list[str]]:
    """Parts whose names tell a split that is not chosen yet."""
    by_split: dict[SplitName, list[str]] = {}
    for name, split in told.items():
        if name not in chosen.values() and split not in chosen:
            by_split.setdefault(split, []).append(name)
    return by_split


def _check_others(names: Sequence[str], chosen: Mapping[SplitName, str], where: str) -> None:
    """Refuse parts that are not chosen but may be meant.

    Raises:
        DataError: a name begins like that of a split, or the test split may be a part whose name
            tells nothing.
    """
    others = [name for name in names if name not in chosen.values()]
    similar = {name: found[0] for name in others if (found := split_of(name)) is not None}
    if chosen and similar:
        split = next(iter(similar.values()))
        readings = [name for name in similar if similar[name] == split]
        if split in chosen:
            readings.insert(0, chosen[split])
        remedies = " or ".join(f"'data.{split}={printable(name)}'" for name in readings)
        raise DataError(
            f"{where} holds {listed(list(chosen.values()))} and also {listed(list(similar))}: set "
            f"{remedies}."
        )
    if set(chosen) == {"train"} and others:
        raise DataError(
            f"{where} holds the training split '{chosen['train']}' and {listed(others)}, which may "
            f"be the test split or none: set 'data.test={others[0]}' to test on it, or "
            f"'data.train={chosen['train']}' to leave it out."
        )


def shortest(names: Sequence[str]) -> str:
    """Shortest of some names, the first of several."""
    return min(names, key=len)


def nfc(name: str) -> str:
    """Name in Unicode's composed form, in which the same letters are the same text."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_text(name: str) -> bool:
    """Whether a name of the file system is valid UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def printable(name: str) -> str:
    """Name in which bytes that are not UTF-8 are shown as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_visible(folder: str) -> bool:
    """Whether a folder is neither hidden nor one of the operating system's."""
    return not folder.startswith(".") and folder not in SYSTEM_FOLDERS


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names in quotation marks, the first of many.

    >>> listed(["a", "b", "c"])
    "'a', 'b' and 'c'"
    """
    quoted = [f"'{printable(name)}'" for name in names]
    if len(quoted) > most:
        return f"{', '.join(quoted[:most])} and {len(quoted) - most} more"
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def numbered(names: Sequence[str]) -> bool:
    """Whether names differ in a number or a letter only, as `fold1` and `fold2` do."""
    stems = {re.sub(r"(\d+|(?<![^\W_])[A-Za-z])$", "", name) for name in names}
    return len(names) > 1 and len(stems) == 1
