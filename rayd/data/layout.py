"""Assignment of the parts of a data set to splits, by their names or by settings.

Folders, Parquet files and keys of npz files follow many naming schemes: `seg_train`, `train2017`,
`x_eval`. `split_names` interprets such names; if they are ambiguous, an error names the candidates
and the setting that decides.
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
"""Words without meaning in names of splits such as `test_images`; numbers are ignored as well."""

# fmt: off
OTHER_PARTS = frozenset({
    "background", "extra", "unlabeled", "unlabelled", "unseen", "gallery", "query", "probe",
    "support", "novel", "base", "public", "private", "pool", "labeled", "labelled", "source",
    "target", "raw", "processed", "original", "augmented", "fold", "part", "batch", "split",
})
# fmt: on
"""Words in names of folders that are parts of a data set, but neither classes nor known splits."""

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
"""Folders created by operating systems and storage devices."""


def words(name: str, numbers: bool = False) -> list[str]:
    """Split a name into lower-case words.

    Args:
        name: a name in any style, such as snake case or camel case.
        numbers: whether numbers count as words; otherwise they are dropped.

    >>> words("seg_train"), words("TestImages2017")
    (['seg', 'train'], ['test', 'images'])
    """
    word = r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+"
    found = re.findall(rf"{word}|\d+" if numbers else word, name)
    return [word.lower() for word in found]


def split_of(name: str) -> tuple[SplitName, tuple[str, ...]] | None:
    """Split that a name denotes, and its other words except `DECORATIONS`; None if it denotes none.

    >>> split_of("test_images"), split_of("seg_train"), split_of("cats")
    (('test', ()), ('train', ('seg',)), None)
    """
    found = words(name)
    if (joined := "".join(found)) in WORDS:
        return WORDS[joined], ()
    named = {WORDS[word] for word in found if word in WORDS}
    if len(named) != 1:
        return None
    other_words = [word for word in found if word not in WORDS and word not in DECORATIONS]
    return named.pop(), tuple(other_words)


def split_names(names: Iterable[str]) -> dict[str, SplitName]:
    """Map names to the splits that they denote, omitting all other names.

    The other words of a name must be in `DECORATIONS` or shared with another name: `seg_train` and
    `seg_test` are splits, `train_station` is not.

    >>> split_names(["seg_train", "seg_test", "train_station"])
    {'seg_train': 'train', 'seg_test': 'test'}
    """
    read = {name: found for name in names if (found := split_of(name)) is not None}
    common = Counter(other_words for _, other_words in read.values())
    return {
        name: split
        for name, (split, other_words) in read.items()
        if not other_words or common[other_words] > 1
    }


def requested(settings: DataSettings | None) -> dict[SplitName, str]:
    """Names of the parts to use as splits, as given by settings."""
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
    """Assign parts of a data set to splits, from settings and otherwise from the parts' names.

    Args:
        names: names of the parts.
        settings: may name parts to use as splits.
        where: the data set, for error messages.
        kind: kind of part, for error messages.
        named: splits by name of the part; by default derived from the names.

    Returns:
        Name of the part for each split that was found.

    Raises:
        DataError: a requested part does not exist, several parts may be the same split, or a part
            that denotes no split may be the test split.
    """
    chosen = _requested_parts(names, settings, where, kind)
    denoted = split_names(names) if named is None else named
    for split, found in _candidates(denoted, chosen).items():
        if len(found) > 1:
            raise DataError(
                f"The {split} split of {where} may be any of {listed(found)}: select one, "
                f"e.g. 'data.{split}={shortest(found)}'."
            )
        chosen[split] = found[0]
    if not requested(settings):
        _check_remaining(names, chosen, where)
    return {split: chosen[split] for split in SPLITS if split in chosen}


def _requested_parts(
    names: Sequence[str], settings: DataSettings | None, where: str, kind: str
) -> dict[SplitName, str]:
    """Parts named by settings, as spelled in the data.

    Raises:
        DataError: a part does not exist, or is named for two splits.
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


def _candidates(
    denoted: Mapping[str, SplitName], chosen: Mapping[SplitName, str]
) -> dict[SplitName, list[str]]:
    """Parts that denote a split for which none is chosen yet."""
    by_split: dict[SplitName, list[str]] = {}
    for name, split in denoted.items():
        if name not in chosen.values() and split not in chosen:
            by_split.setdefault(split, []).append(name)
    return by_split


def _check_remaining(names: Sequence[str], chosen: Mapping[SplitName, str], where: str) -> None:
    """Reject remaining parts that may be splits.

    Raises:
        DataError: a remaining name contains that of a split, or only the training split was found
            and a remaining part may be the test split.
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
            f"{where} holds {listed(list(chosen.values()))}, and {listed(list(similar))} may also "
            f"be splits: set {remedies}."
        )
    if set(chosen) == {"train"} and others:
        raise DataError(
            f"{where} holds the training split '{chosen['train']}' and {listed(others)}, which may "
            f"or may not be the test split: set 'data.test={others[0]}' to test on it, or "
            f"'data.train={chosen['train']}' to leave it out."
        )


def shortest(names: Sequence[str]) -> str:
    """Shortest of some names; the first one wins ties."""
    return min(names, key=len)


def nfc(name: str) -> str:
    """Normalise a name to Unicode's composed form (NFC), so that equal names compare equal."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_text(name: str) -> bool:
    """Whether a file name is valid UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def printable(name: str) -> str:
    """Show bytes of a file name that are not UTF-8 as escape sequences."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_visible(folder: str) -> bool:
    """Whether a folder is neither hidden nor in `SYSTEM_FOLDERS`."""
    return not folder.startswith(".") and folder not in SYSTEM_FOLDERS


def listed(names: Sequence[str], most: int = 5) -> str:
    """Quote and join names for a message, shortened to the first `most`.

    >>> listed(["a", "b", "c"])
    "'a', 'b' and 'c'"
    """
    quoted = [f"'{printable(name)}'" for name in names]
    if len(quoted) > most:
        return f"{', '.join(quoted[:most])} and {len(quoted) - most} more"
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def numbered(names: Sequence[str]) -> bool:
    """Whether names differ only in a final number or letter, like `fold1` and `fold2`."""
    stems = {re.sub(r"(\d+|(?<![^\W_])[A-Za-z])$", "", name) for name in names}
    return len(names) > 1 and len(stems) == 1
