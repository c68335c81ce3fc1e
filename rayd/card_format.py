"""Content of a card (`card.json` of a distilled set), and its checks when it is read.

Cards may be edited by hand or written by other versions, so the types of entries are checked, and
entries are compared with the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rayd.artifacts import parse
from rayd.errors import ArtifactError
from rayd.names import inside

FORMAT = 2
"""Version of the files of a set; newer ones are rejected. Sets stored as pixels have version 1."""

HALF_STEP = 0.5 / 255
"""Largest error of a value in [0, 1] that is rounded to 8 bits."""


@dataclass(frozen=True)
class PixelRange:
    """Range of the values of images; real pixels lie in 0 to 1."""

    outside: Annotated[float, Field(ge=0, le=1)]
    """Share of the values that are outside by more than the rounding error of 8 bits."""
    least: float
    """Smallest value."""
    most: float
    """Largest value."""

    @classmethod
    def of(cls, values: Iterable[Tensor]) -> Self:
        """Measure denormalised values, rounded to six digits, as machines round differently.

        Args:
            values: of at least one image, in parts, so that not all are in memory at once.
        """
        count = 0
        outside = 0
        least = math.inf
        most = -math.inf
        for part in values:
            count += part.numel()
            outside += int(((part < -HALF_STEP) | (part > 1 + HALF_STEP)).sum())
            least = min(least, part.min().item())
            most = max(most, part.max().item())
        measured = (outside / count, least, most)
        return cls(*(float(f"{number:.6g}") for number in measured))

    @property
    def fits(self) -> bool:
        """Whether 8-bit images can hold all values, up to rounding."""
        return self.outside == 0

    def text(self) -> str:
        """Describe the range.

        >>> PixelRange(0.831, -1.072, 2.7).text()
        '83 % of the values lie outside 0..1, from -1.07 to 2.7'
        """
        if self.fits:
            return "all values lie in 0..1"
        share = "less than 1" if self.outside < 0.01 else f"{self.outside * 100:.0f}"
        return f"{share} % of the values lie outside 0..1, from {self.least:.3g} to {self.most:.3g}"


_Count = Annotated[int, Field(ge=0)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


class _CardPart(BaseModel):
    """Part of a card; unknown entries are allowed."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class _StorageEntry(_CardPart):
    numbers: dict[str, _Count] = {}
    bytes: dict[str, _Count] = {}


class _DataEntry(_CardPart):
    name: str
    fingerprint: str | None = None


class _ObserverEntry(_CardPart):
    network: str
    train_accuracy: _Fraction
    validation_accuracy: _Fraction | None = None


class _ExpertsEntry(_CardPart):
    network: str
    count: _Count
    epochs: float
    train_accuracy: _Fraction


class _LabelsEntry(_CardPart):
    folder: str
    epochs: _Count


class _Card(_CardPart):
    """Schema of a card: required entries, and the types of others."""

    format: int
    class_names: Annotated[list[str], Field(min_length=1)]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=3, max_length=3)]
    normalization: str
    ipc: _Count = 0
    recipe: str | None = None
    method: str | None = None
    citation: str | None = None
    data: _DataEntry | None = None
    synthesis: str | None = None
    seed: int | None = None
    steps: _Count | None = None
    observers: list[_ObserverEntry] = []
    experts: _ExpertsEntry | None = None
    hardware: dict[str, Any] = {}
    devices: dict[str, list[str]] = {}
    storage: _StorageEntry = _StorageEntry()
    pixel_range: PixelRange | None = None
    versions: dict[str, str] = {}
    config: dict[str, Any] = {}
    synthetic: dict[str, Any] = {}
    step_size: Annotated[float, Field(gt=0)] | None = None
    labels: _LabelsEntry | None = None


class _SavedCard(_Card):
    """The card of a set on disk, next to the file of its tensors."""

    sha256: str


def check_card(card: Any, where: str, is_saved: bool = False) -> dict[str, Any]:
    """Check the types of a card's entries.

    Args:
        card: content of a JSON file.
        where: name of the file, for error messages.
        is_saved: whether it is the card of a set on disk, which has a hash of the tensors.

    Returns:
        The card.

    Raises:
        ArtifactError: an entry is missing, has another type, or leads out of the set's directory,
            or the card has a newer format.
    """
    version = card.get("format", FORMAT) if isinstance(card, dict) else FORMAT
    if isinstance(version, int) and version > FORMAT:
        raise ArtifactError(
            f"{where} must have format {FORMAT} or older. "
            f"Got {version!r} instead; a newer rayd wrote it."
        )
    parse(_SavedCard if is_saved else _Card, card, where)
    folder = (card.get("labels") or {}).get("folder")
    if folder is not None:
        inside(folder, where.strip("'"))
    return dict[str, Any](card)


def contradiction(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    """Describe how a card contradicts its tensors; None if it does not."""
    for name, number in card.get("storage", {}).get("numbers", {}).items():
        if name in tensors and tensors[name].numel() != number:
            return f"it counts {number:,} numbers of '{name}', which has {tensors[name].numel():,}"
    return None


def renamed(card: Mapping[str, Any]) -> str | None:
    """Describe how class names contradict those of the card's data; None if they do not.

    Students are tested by class index, so misplaced names would be silently wrong.
    """
    read = (card.get("data") or {}).get("read")
    known = read.get("class_names") if isinstance(read, dict) else None
    names = card["class_names"]
    if known is None or list(known) == names:
        return None
    pairs = zip(names, known, strict=False)
    different = next((pair for pair in pairs if pair[0] != pair[1]), None)
    if different is None:
        return f"it names {len(names)} classes, and its data {len(known)}"
    return f"it calls a class '{different[0]}' that its data call '{different[1]}'"
