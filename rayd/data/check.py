"""Full check of a data set for `rayd data check`: inspects every image and lists all problems.

A run, in contrast, stops at the first problem.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rayd.config import DataSettings
from rayd.data.arrays import ImageShape
from rayd.data.decode import (
    CHUNK_IMAGES,
    DAMAGE,
    DecodeLog,
    Decoder,
    Encoded,
    cores,
    damaged,
)
from rayd.data.duplicates import Keys, duplicates, is_blank
from rayd.data.formats.base import EncodedPixels, Source, Split, SplitSubset, read_pixels
from rayd.data.layout import printable
from rayd.data.loading import choose, suspects
from rayd.data.sources import open_source
from rayd.data.summary import LABEL, WIDTH, DataSummary, images, summarize
from rayd.errors import DataError, RaydError

LISTED = 10
"""Maximum number of images listed per problem in a terminal; the JSON output lists all."""


@dataclass(frozen=True)
class Problem:
    """An error in a data set, or a note about it."""

    kind: Literal["error", "note"]
    """An error prevents the data from being read; a note does not."""
    what: str
    """The problem, as a sentence."""
    where: tuple[str, ...] = ()
    """Affected images; empty if the problem does not concern individual images."""

    def lines(self) -> list[str]:
        """Lines for a terminal."""
        more = len(self.where) - LISTED
        sentence = f"{self.kind:<{LABEL}}{self.what}"
        indent = " " * LABEL
        lines = textwrap.wrap(sentence, WIDTH, subsequent_indent=indent, break_long_words=False)
        lines += [indent + place for place in self.where[:LISTED]]
        return [*lines, f"{indent}and {more:,} more"] if more > 0 else lines


@dataclass(frozen=True)
class Check:
    """Result of a check."""

    name: str
    """Name or path of the data."""
    summary: DataSummary | None
    """Summary of the readable data; None if nothing is readable."""
    problems: tuple[Problem, ...]
    """All problems, errors first."""

    @property
    def good(self) -> bool:
        """Whether the data can be read."""
        return not any(problem.kind == "error" for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return {
            "name": self.name,
            "good": self.good,
            "summary": None if self.summary is None else self.summary.to_json(),
            "problems": [asdict(problem) for problem in self.problems],
        }

    def text(self) -> str:
        """Lines for a terminal."""
        lines = [self.name, ""]
        if self.summary is not None:
            lines += [*self.summary.lines(), ""]
        for problem in self.problems:
            lines += problem.lines()
        return "\n".join(lines if self.problems else [*lines, "no problems"])


@dataclass
class _Findings:
    """Findings on the images of one split."""

    keys: Keys
    """Hash of the pixels of each image; unique for each unreadable image."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Number of images by height and width."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Location of each unreadable image, and the reason."""
    blank: set[int] = field(default_factory=set)
    """Keys of single-colour images."""
    brightest: int = 0
    """Largest pixel value."""
    coloured: int = 0
    """Number of colour images."""
    log: DecodeLog = field(default_factory=DecodeLog)


def check(settings: DataSettings, root: Path | None = None) -> Check:
    """Check every image of a data set.

    Args:
        settings: data set, and how it is read.
        root: data root, searched before `$RAYD_DATA` and `~/.cache/rayd/data`.

    Returns:
        The result, with all problems found.
    """
    try:
        source = open_source(settings.name, root, settings)
    except RaydError as error:
        return Check(settings.name, None, (Problem("error", str(error)),))
    findings: dict[str, _Findings] = {}
    for name, split in source.splits.items():
        findings[name] = _scan(split, settings)
    problems = [*_unreadable(findings), *_shapes(settings, findings)]
    summary = None
    try:
        names, chosen = choose(settings, source)
    except RaydError as error:
        problems.append(Problem("error", str(error)))
        problems += [Problem("note", f"left out: {clause}.") for clause in source.left_out]
    else:
        summary, others = _summary(settings, source, names, chosen, findings)
        problems += others
    problems.sort(key=lambda problem: problem.kind != "error")
    return Check(settings.name, summary, tuple(problems))


def _scan(split: Split, settings: DataSettings) -> _Findings:
    """Decode every image of a split at its original size."""
    rows = np.arange(len(split.labels))
    found = _Findings(np.arange(len(rows)).astype(np.uint64))
    decoder = replace(Decoder.of(settings), side=None, mode="rgb")
    read = split.read
    if not isinstance(read, EncodedPixels):
        try:
            pixels = read_pixels(SplitSubset(split, rows, split.labels), Decoder())
        except DataError as error:
            found.unreadable.append((split.where, str(error)))
            return found
        found.sizes[pixels.shape[2], pixels.shape[3]] = len(pixels)
        for row, image in enumerate(pixels):
            found.keys[row] = _key(image.shape, image.tobytes())
            found.coloured += bool((image != image[:1]).any())
            if is_blank(image):
                found.blank.add(int(found.keys[row]))
        found.brightest = int(pixels.max(initial=0))
        return found
    with ThreadPoolExecutor(cores(), "rayd-check") as pool:
        start = 0
        for chunk in _chunks(_readable(read.encoded.read(rows), split, found)):
            for offset, image in enumerate(pool.map(lambda one: _inspect(one, decoder), chunk)):
                row = start + offset
                if isinstance(image, str):
                    found.unreadable.append((printable(chunk[offset].where), image))
                    # a unique key, so that unreadable images never count as copies
                    found.keys[row] = _key((row,), chunk[offset].where.encode("utf-8", "replace"))
                else:
                    found.keys[row] = image.key
                    found.sizes[image.size] += 1
                    found.brightest = max(found.brightest, image.brightest)
                    if image.blank:
                        found.blank.add(image.key)
                    found.coloured += image.coloured
                    found.log.add(image.log)
            start += len(chunk)
    for row in range(start, len(rows)):
        # likewise unique
        found.keys[row] = _key((row,), split.where.encode("utf-8", "replace"))
    return found


def _readable(encoded: Iterable[Encoded], split: Split, found: _Findings) -> Iterator[Encoded]:
    """Yield images until one cannot be extracted from its file.

    A Parquet file is read sequentially, so a null image or a damaged page ends the scan of the
    split.
    """
    try:
        yield from encoded
    except DataError as error:
        found.unreadable.append((split.where, f"{error} The images after it were not checked."))


@dataclass(frozen=True)
class _Inspected:
    """Properties of one decoded image."""

    key: int
    size: tuple[int, int]
    coloured: bool
    blank: bool
    brightest: int
    log: DecodeLog


def _inspect(encoded: Encoded, decoder: Decoder) -> _Inspected | str:
    """Decode an image and return its properties, or an error message if decoding fails."""
    log = DecodeLog()
    try:
        image = decoder.decode(encoded, 3, log)
        pixels = np.asarray(image)
    except DataError as error:
        return str(error)
    except DAMAGE as error:
        return str(damaged(encoded, error))
    coloured = bool((pixels != pixels[..., :1]).any())
    # the check itself decodes greyscale images to RGB; a run may not
    log.conversions.pop("greyscale repeated in three channels", None)
    return _Inspected(
        key=_key(pixels.shape, pixels.tobytes()),
        size=pixels.shape[:2],
        coloured=coloured,
        blank=is_blank(pixels.transpose(2, 0, 1)),
        brightest=int(pixels.max()),
        log=log,
    )


def _key(shape: tuple[int, ...], content: bytes) -> int:
    digest = hashlib.blake2b(content, digest_size=8, person=repr(shape).encode()[:16])
    return int.from_bytes(digest.digest(), "little")


def _chunks(encoded: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    images = iter(encoded)
    while chunk := list(islice(images, CHUNK_IMAGES)):
        yield chunk


def _unreadable(findings: Mapping[str, _Findings]) -> list[Problem]:
    """Create one problem for each reason why images are unreadable, ignoring numbers in it."""
    places = defaultdict[str, list[str]](list)
    reasons: dict[str, str] = {}
    for found in findings.values():
        for place, reason in found.unreadable:
            sentence = printable(reason).replace(f" at {place}", "").replace(place, "...")
            kind = re.sub(r"[\d.]+", "", sentence)
            reasons.setdefault(kind, sentence)
            places[kind].append(place)
    return [Problem("error", reasons[kind], tuple(where)) for kind, where in places.items()]


def _shapes(settings: DataSettings, findings: Mapping[str, _Findings]) -> list[Problem]:
    """Problems with image sizes and with colour."""
    sizes = Counter[tuple[int, int]]()
    for found in findings.values():
        sizes.update(found.sizes)
    problems = []
    if len(sizes) > 1 and settings.image_size is None:
        most = ", ".join(f"{h} x {w} ({n:,})" for (h, w), n in sizes.most_common(3))
        problems.append(
            Problem(
                "error",
                f"Images have {len(sizes):,} different sizes, most often {most}: set "
                "'data.image_size'.",
            )
        )
    train = findings["train"]
    total = sum(train.sizes.values())
    if 0 < train.coloured < total and settings.mode is None:
        problems.append(
            Problem(
                "note",
                f"{train.coloured:,} of {total:,} training images are in colour, so all are read "
                "in colour ('data.mode').",
            )
        )
    for name, found in findings.items():
        refused = settings.mode is None and not train.coloured and found.coloured
        if name != "train" and total and refused:
            problems.append(
                Problem(
                    "error",
                    f"{found.coloured:,} {name} images are in colour, but the training images are "
                    "greyscale: set 'data.mode' to rgb or grey.",
                )
            )
    return problems


def _summary(
    settings: DataSettings,
    source: Source,
    names: tuple[str, ...],
    chosen: Mapping[str, SplitSubset],
    findings: Mapping[str, _Findings],
) -> tuple[DataSummary, list[Problem]]:
    """Summarise the data that a run would read, and list problems of the selected images."""
    of_split = {id(split): findings[name] for name, split in source.splits.items()}
    keys = {name: of_split[id(subset.split)].keys[subset.rows] for name, subset in chosen.items()}
    labels = {name: subset.labels for name, subset in chosen.items()}
    copies = duplicates(keys, labels)
    blank = set[int]().union(*(found.blank for found in findings.values()))
    problems = list(_copies(settings, chosen, keys, blank))
    log = DecodeLog()
    for found in findings.values():
        log.conversions.update(found.log.conversions)
    train = findings["train"]
    if settings.image_size is not None:
        for found in findings.values():
            log.sizes.update(found.sizes)
    height, width = train.sizes.most_common(1)[0][0] if train.sizes else (0, 0)
    channels = 3 if train.coloured else 1
    if settings.mode is not None:
        channels = 1 if settings.mode == "grey" else 3
    image = ImageShape(channels, *Decoder.of(settings).size(height, width))
    summary = summarize(
        settings,
        source.where,
        names,
        chosen,
        image,
        left_out=source.left_out,
        log=log,
        copies=copies,
        brightest=train.brightest,
    )
    return summary, problems


def _copies(
    settings: DataSettings,
    chosen: Mapping[str, SplitSubset],
    keys: Mapping[str, Keys],
    blank: Set[int],
) -> Iterator[Problem]:
    """Yield a problem for each pair of splits that share images, with the images' locations."""
    first: dict[int, tuple[str, int]] = {}
    pairs = defaultdict[tuple[str, str], list[str]](list)
    for name, own in keys.items():
        for position, key in enumerate(own.tolist()):
            if key not in first:
                first[key] = (name, position)
                continue
            other, earlier = first[key]
            same = f"{chosen[name].place(position)} is {chosen[other].place(earlier)}"
            pairs[other, name].append(same)
    leaked = keys["test"][suspects(settings, chosen, keys)].tolist()
    refused = not set(leaked) <= blank
    for (one, other), places in pairs.items():
        error = refused and {one, other} == {"train", "test"}
        where = f"within {one}" if one == other else f"in {one} and {other}"
        remedy = ": remove them, or set 'data.copies=keep'" if error else ""
        what = f"{images(len(places))} duplicated {where}{remedy}."
        yield Problem("error" if error else "note", what, tuple(places))
