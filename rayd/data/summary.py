"""Summary of a data set as read, for users to check: splits, pixels, classes, omissions.

Plans, the start of a run, cards, reports and `rayd data check` all show the same summary.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rayd.data.arrays import ImageShape
from rayd.data.catalog import KNOWN, check_class_order
from rayd.data.decode import DecodeLog
from rayd.data.duplicates import Duplicates
from rayd.data.layout import printable
from rayd.errors import ArtifactError

if TYPE_CHECKING:
    from rayd.config import DataSettings
    from rayd.data.formats.base import SplitSubset

WIDTH = 80
"""Line width in characters."""
LABEL = 11
"""Width of the label column in characters."""
DARK = 64
"""If no pixel value reaches this, images were probably scaled incorrectly or not at all."""
SHOWN_CLASSES = 20
"""Maximum number of classes listed with their counts."""


@dataclass(frozen=True)
class SplitSummary:
    """One split."""

    count: int
    """Number of images."""
    classes: tuple[int, ...]
    """Images per class, in label order."""
    origin: str
    """Origin of the split, as a clause; may be empty."""


@dataclass(frozen=True)
class DataSummary:
    """A data set as read."""

    where: str
    """File or folder."""
    splits: Mapping[str, SplitSummary]
    """Splits by name, train first."""
    class_names: tuple[str, ...]
    """Classes in label order."""
    image: tuple[int, int, int]
    """Channels, height and width of every image."""
    resized: str = ""
    """How images were resized, as a clause; empty if they were not."""
    conversions: Mapping[str, int] = field(default_factory=dict)
    """Number of images by conversion."""
    left_out: tuple[str, ...] = ()
    """Content that was found but not read, as clauses."""
    duplicates: Duplicates | None = None
    """Duplicate images; None if not determined yet."""
    remarks: tuple[str, ...] = ()
    """Possible problems, as sentences."""

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        tree: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return tree

    @classmethod
    def from_json(cls, tree: object) -> DataSummary:
        """Inverse of `to_json`.

        Raises:
            ArtifactError: a field is missing, unknown, or of the wrong type.
        """
        try:
            return _adapter().validate_python(tree)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "whole summary"
            raise ArtifactError(
                f"The stored data summary is damaged ({key}: {first['msg']}); restore the file "
                "that holds it."
            ) from error

    def lines(self, width: int = WIDTH) -> list[str]:
        """Format as lines of at most `width` characters, for a terminal."""
        found = []
        for label, text in self._entries():
            line = f"{label:<{LABEL}}{text}"
            found += textwrap.wrap(line, width, subsequent_indent=" " * LABEL) or [line]
        return found

    def brief(self) -> str:
        """Format as a clause: the number of images per split, and the origin of test images."""
        counts = [f"{split.count:,} {_ADJECTIVES[name]}" for name, split in self.splits.items()]
        test = self.splits.get("test")
        origin = f" (test: {test.origin})" if test is not None and test.origin else ""
        return f"{', '.join(counts)} images{origin}"

    def _entries(self) -> Iterator[tuple[str, str]]:
        """Yield label and text of each entry."""
        for name, split in self.splits.items():
            origin = f": {split.origin}" if split.origin else ""
            yield name, f"{split.count:,} images{origin}"
        channels, height, width = self.image
        mode = "greyscale" if channels == 1 else "RGB"
        resized = f"; {self.resized}" if self.resized else ""
        yield "images", f"{height} x {width}, {mode}{resized}"
        for what, count in self.conversions.items():
            yield "", f"{count:,} {what}"
        yield "classes", _classes(self.class_names, self.splits["train"].classes)
        for clause in self.left_out:
            yield "left out", clause
        if self.duplicates is not None:
            yield "copies", _copies(self.duplicates)
        for remark in self.remarks:
            yield "note", remark


_ADJECTIVES = {"train": "training", "validation": "validation", "test": "test"}


def summarize(
    settings: DataSettings,
    where: str,
    names: Sequence[str],
    chosen: Mapping[str, SplitSubset],
    image: ImageShape,
    left_out: Sequence[str] = (),
    log: DecodeLog | None = None,
    copies: Duplicates | None = None,
    brightest: int | None = None,
    looked_at: int | None = None,
) -> DataSummary:
    """Summarise the selected images.

    Args:
        settings: data settings.
        where: file or folder.
        names: classes in label order.
        chosen: images selected for each split.
        image: shape of an image.
        left_out: content that was found but not read.
        log: conversions; None before images are decoded.
        copies: duplicate images; None if not determined yet.
        brightest: largest value of the training images; None before they are decoded.
        looked_at: number of training images inspected, if all of them are greyscale but others may
            not be.
    """
    splits = {}
    for name in ("train", "validation", "test"):
        if name in chosen:
            subset = chosen[name]
            counts = np.bincount(subset.labels, minlength=len(names)).tolist()
            splits[name] = SplitSummary(len(subset.labels), tuple(counts), subset.described)
    remarks = []
    if settings.classes is None and settings.name in KNOWN:
        order = check_class_order(settings.name, names)
        remarks += [order] if order is not None else []
    if copies is not None and copies.relabelled:
        remarks.append(f"{images(copies.relabelled)} labelled with several classes.")
    if looked_at is not None:
        remarks.append(
            f"The first {looked_at:,} training images are greyscale; if a later one is in colour, "
            "a run reads all in colour ('data.mode')."
        )
    if brightest is not None and brightest < DARK:
        remarks.append(
            f"All training images are nearly black: no value exceeds {brightest} of 255. Scale "
            "them to 0..255 or, for more than 8 bits per channel, lower 'data.white_level'."
        )
    return DataSummary(
        where=printable(where),
        splits=splits,
        class_names=tuple(names),
        image=(image.channels, image.height, image.width),
        resized=_resized(settings, log),
        conversions=dict(sorted(log.conversions.items())) if log is not None else {},
        left_out=tuple(map(printable, left_out)),
        duplicates=copies,
        remarks=tuple(remarks),
    )


def _resized(settings: DataSettings, log: DecodeLog | None) -> str:
    """Describe resizing to `image_size` as a clause, with the share of pixels that was cut off."""
    side = settings.image_size
    if side is None:
        return ""
    how = {
        "crop": "scaled by the short side and cropped to the central square",
        "squash": "squashed to squares",
        "pad": f"scaled by the long side and padded with {settings.background}",
    }[settings.fit]
    clause = f"{how} (data.fit={settings.fit})"
    if log is None or not log.sizes:
        return clause
    sizes = sorted(log.sizes)
    first = " x ".join(map(str, sizes[0]))
    last = " x ".join(map(str, sizes[-1]))
    clause += f", from {first}" if len(sizes) == 1 else f", from {first} to {last}"
    cut = sum(count * (1 - min(size) / max(size)) for size, count in log.sizes.items())
    share = cut / log.sizes.total()
    if settings.fit == "crop" and share >= 0.005:
        clause += f"; {share:.0%} of the pixels are cut off"
    return clause


def _classes(names: Sequence[str], counts: Sequence[int]) -> str:
    """Number of classes, and names in label order with their numbers of training images."""
    pairs = [f"{printable(name)}: {count:,}" for name, count in zip(names, counts, strict=True)]
    more = f", and {len(pairs) - SHOWN_CLASSES} more" if len(pairs) > SHOWN_CLASSES else ""
    return f"{len(names)}, in label order, with training images: {', '.join(pairs[:SHOWN_CLASSES])}{more}"


def images(count: int, kind: str = "") -> str:
    """Subject and verb of a sentence about images.

    >>> images(1), images(1200, "test")
    ('1 image is', '1,200 test images are')
    """
    noun = f"{kind} image".strip()
    return f"1 {noun} is" if count == 1 else f"{count:,} {noun}s are"


def _copies(found: Duplicates) -> str:
    """Number of duplicates within and between splits, as clauses."""
    clauses = [f"{count:,} within {name}" for name, count in found.within.items()]
    if found.tested:
        clauses.append(f"{images(found.tested, 'test')} also in train")
    if found.validated:
        clauses.append(f"{images(found.validated, 'validation')} also in train")
    return "; ".join(clauses) or "none"


@cache
def _adapter() -> TypeAdapter[DataSummary]:
    return TypeAdapter(DataSummary)
