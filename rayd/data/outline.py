"""Outline of a data set for planning a run, without decoding pixels or even having the files.

`load_outline` selects classes, splits and the long tail from the labels, as `rayd.data.load` does,
but uses placeholders for the pixels. It reads only labels and the headers of a few images; for a
known set without files, classes and counts come from the catalogue.

Fingerprints are hashes of all pixels. When a run decodes a set, its fingerprints are stored under
`outlines/`, keyed by the paths, sizes and modification times of the files, so that a plan can look
up results in the store. For a set that was never decoded with this store, they are unknown.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rayd import remote
from rayd.artifacts import content_hash, default_root, read_json, write_json
from rayd.config import DataSettings
from rayd.data import survey
from rayd.data.arrays import ImageShape, Labels, Rows
from rayd.data.catalog import KNOWN, KnownSet
from rayd.data.decode import CHUNK_IMAGES, Decoder, Encoded
from rayd.data.files import DataFile
from rayd.data.formats.base import (
    ArrayPixels,
    EncodedPixels,
    Source,
    Split,
    SplitName,
    SplitSubset,
    read_pixels,
)
from rayd.data.images import ImageData, ImageSet
from rayd.data.normalization import (
    LARGEST_WHITENING,
    Normalization,
    Standardization,
    Whitening,
    fit_normalization,
    streamed_whitening,
)
from rayd.data.summary import summarize
from rayd.errors import ArtifactError, DataError, RunError
from rayd.seeding import generator

log = logging.getLogger(__name__)

STAGE = "outlines"
"""Folder in the store."""
UNKNOWN = "unknown {}"
"""Placeholder for the fingerprint of a split."""
CHANNELS = 3
"""Number of channels assumed for known sets whose images differ in size."""
PHOTOGRAPH = (375, 500)
"""Height and width of a typical ImageNet photograph."""


@dataclass(frozen=True, eq=False)
class Outline:
    """A data set without its pixels."""

    data: ImageData
    """Real splits, labels and class names, with placeholders for pixels and normalisation."""
    found: bool
    """Whether the data set was found; otherwise the outline describes the published set."""
    surveyed: bool
    """Whether the survey of streamed images is stored (`rayd.data.survey`), or none is needed."""


def load_outline(
    settings: DataSettings, root: Path | None = None, cache: Path | None = None
) -> Outline:
    """Outline a data set.

    Args:
        settings: see `rayd.data.load`.
        root: data root, searched before `$RAYD_DATA` and `~/.cache/rayd/data`.
        cache: root of the store shared by runs.

    Raises:
        DataError: the data are damaged, unsuitable for the settings, or neither found nor known.
        ConfigError: the settings do not suit the data.
    """
    from rayd.data.loading import choose, is_streamed
    from rayd.data.sources import locate, open_source

    known = KNOWN.get(settings.name)
    found = known is None or locate(settings.name, root) is not None
    source = (
        open_source(settings.name, root, settings)
        if found or known is None
        else _published(known, settings)
    )
    names, chosen = choose(settings, source)
    store = cache or default_root()
    if is_streamed(settings, chosen, source.where):
        outline = _streamed(settings, chosen, names, store, found)
    else:
        outline = Outline(_in_memory(settings, chosen, names, store, found), found, True)
    data = outline.data
    summary = summarize(
        settings,
        source.where,
        names,
        chosen,
        data.shape,
        left_out=source.left_out,
        looked_at=_inspected_count(settings, chosen["train"], data) if found else None,
    )
    return replace(outline, data=replace(data, summary=summary))


def _in_memory(
    settings: DataSettings,
    chosen: Mapping[str, SplitSubset],
    names: tuple[str, ...],
    store: Path,
    found: bool,
) -> ImageData:
    """Outline a data set that a run would decode into memory."""
    arrays = all(isinstance(subset.split.read, ArrayPixels) for subset in chosen.values())
    decoder = Decoder.of(settings)
    sets: dict[str, ImageSet] = {}
    recalled = _recall(settings, chosen, names, store) if found else _Recalled()
    fingerprints = recalled.fingerprints
    shape = recalled.image
    for split, subset in chosen.items():
        if found and arrays:
            sets[split] = ImageSet(read_pixels(subset, decoder, shape), subset.labels, names)
        else:
            shape = shape or _shape(subset, settings)
            # the operating system allocates no memory for zeros that are never written
            pixels = np.zeros((len(subset.rows), *shape), np.uint8)
            sets[split] = ImageSet(
                pixels, subset.labels, names, fingerprints.get(split, UNKNOWN.format(split))
            )
        shape = sets[split].shape
    if found and arrays and settings.normalization == "standard":
        normalization = fit_normalization(settings.normalization, sets["train"].images)
    else:
        normalization = _stand_in(
            settings, sets["train"].shape, fingerprints.get("normalization", "unknown")
        )
    return ImageData(
        settings.title, sets["train"], sets.get("validation"), sets["test"], normalization
    )


def _streamed(
    settings: DataSettings,
    chosen: Mapping[str, SplitSubset],
    names: tuple[str, ...],
    store: Path,
    found: bool,
) -> Outline:
    """Outline a data set that a run would stream from its files."""
    if settings.normalization != "standard":
        raise streamed_whitening(settings.normalization)
    sets: dict[str, ImageSet] = {}
    surveys: dict[str, survey.Survey | None] = {}
    decoder = Decoder.of(settings)
    shape = _recall(settings, chosen, names, store).image if found else None
    for split, subset in chosen.items():
        assert isinstance(subset.split.read, EncodedPixels)
        shape = shape or subset.split.read.shape(subset.rows, decoder)
        images = subset.split.read.streamed(subset.rows, decoder, shape)
        scan = survey.known(images, subset.labels, names, store) if found else None
        surveys[split] = scan
        fingerprint = scan.fingerprint if scan else UNKNOWN.format(split)
        sets[split] = ImageSet(images, subset.labels, names, fingerprint)
        shape = images.image
    train_scan = surveys["train"]
    if train_scan:
        normalization: Normalization = Standardization.of_histogram(train_scan.histogram)
    else:
        normalization = _stand_in(settings, shape, "unknown")
    data = ImageData(
        settings.title, sets["train"], sets.get("validation"), sets["test"], normalization
    )
    surveyed = all(scan is not None for scan in surveys.values())
    return Outline(data, found, surveyed)


def _inspected_count(settings: DataSettings, train: SplitSubset, data: ImageData) -> int | None:
    """Number of images inspected, if all of them are greyscale but others may be in colour."""
    undecided = (
        settings.mode is None
        and isinstance(train.split.read, EncodedPixels)
        and data.shape.channels == 1
        and len(train.rows) > CHUNK_IMAGES
        and data.train.fingerprint == UNKNOWN.format("train")
    )
    return CHUNK_IMAGES if undecided else None


def _shape(subset: SplitSubset, settings: DataSettings) -> ImageShape:
    decoder = Decoder.of(settings)
    read = subset.split.read
    if isinstance(read, EncodedPixels):
        return read.shape(subset.rows, decoder)
    assert isinstance(read, ArrayPixels)
    channels, height, width = read.images.shape[1:]
    if settings.mode is not None:
        channels = 1 if settings.mode == "grey" else 3
    return ImageShape(channels, *decoder.size(height, width))


@dataclass(frozen=True, eq=False)
class _Standardization(Standardization):
    """Placeholder for the standardisation that a run fits."""

    known: str = ""

    @property
    def fingerprint(self) -> str:
        return self.known


@dataclass(frozen=True, eq=False)
class _Whitening(Whitening):
    """Placeholder for the whitening that a run fits."""

    known: str = ""

    @property
    def fingerprint(self) -> str:
        return self.known


def _stand_in(settings: DataSettings, shape: ImageShape | None, fingerprint: str) -> Normalization:
    assert shape is not None
    if settings.normalization == "standard":
        half = torch.full((shape.channels,), 0.5, dtype=torch.float64)
        return _Standardization(half, half, fingerprint)
    values = shape.channels * shape.height * shape.width
    if values > LARGEST_WHITENING:
        # raises the same error as a run
        fit_normalization(settings.normalization, np.zeros((2, *shape), np.uint8))
    return _Whitening(torch.full(shape, 0.5), torch.empty(values, values), fingerprint)


def remember(
    settings: DataSettings, chosen: Mapping[str, SplitSubset], data: ImageData, store: Path
) -> None:
    """Store shape and fingerprints of a decoded set, if recomputing them would be slow.

    Args:
        settings: data settings.
        chosen: images selected for each split.
        data: decoded data.
        store: root of the store shared by runs.
    """
    key = _key(settings, chosen, data.class_names)
    if key is None:
        return
    path = _path(key, store)
    if _stored(path).image is not None:
        return
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    found = {name: split.fingerprint for name, split in splits.items() if split is not None}
    try:
        found["normalization"] = data.normalization.fingerprint
        write_json(path, {"result": found, "image": list(data.shape)})
    except RunError as error:
        log.warning("%s Plans will not find this run's results in the store.", error)


@dataclass(frozen=True)
class _Recalled:
    """Stored properties of a set that a run has decoded; empty if none has."""

    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of splits and normalisation."""
    image: ImageShape | None = None
    """Shape of an image; whether it is greyscale or colour depends on all images."""


def _recall(
    settings: DataSettings, chosen: Mapping[str, SplitSubset], names: tuple[str, ...], store: Path
) -> _Recalled:
    """Look up the stored properties of a set."""
    key = _key(settings, chosen, names)
    return _Recalled() if key is None else _stored(_path(key, store))


def _stored(path: Path) -> _Recalled:
    try:
        if not remote.bring(path):
            return _Recalled()
        tree = read_json(path)
        found = {str(name): str(value) for name, value in tree["result"].items()}
        # earlier versions did not store the shape
        image = ImageShape(*map(int, tree["image"])) if "image" in tree else None
        return _Recalled(found, image)
    except (ArtifactError, KeyError, AttributeError, TypeError, ValueError):
        return _Recalled()


def _path(key: str, store: Path) -> Path:
    return remote.local(store) / STAGE / f"{key}.json"


def _key(
    settings: DataSettings, chosen: Mapping[str, SplitSubset], names: tuple[str, ...]
) -> str | None:
    """Hash of everything that the fingerprints depend on; None if computing them is fast."""
    parts: dict[str, Any] = {}
    decoder = Decoder.of(settings)
    shape: ImageShape | None = None
    for split, subset in chosen.items():
        read = subset.split.read
        if isinstance(read, EncodedPixels):
            shape = shape or read.shape(subset.rows, decoder)
            images = read.streamed(subset.rows, decoder, shape)
            shape = images.image
            parts[split] = survey.identity(images, subset.labels, names)
        elif settings.normalization != "standard" and isinstance(read, ArrayPixels):
            pixels = read_pixels(subset, decoder, shape)
            parts[split] = ImageSet(pixels, subset.labels, names).fingerprint
        else:
            return None
    return content_hash({"version": 1, "splits": parts, "normalization": settings.normalization})


def _published(known: KnownSet, settings: DataSettings) -> Source:
    """Placeholder source for a known set without files, with the published numbers of images.

    Raises:
        DataError: the published images differ in size, and 'data.image_size' is not set.
    """
    if known.shape is None and settings.image_size is None:
        raise DataError(f"The images of '{known.name}' differ in size: set 'data.image_size'.")
    shape = known.shape or ImageShape(CHANNELS, *PHOTOGRAPH)
    names = known.class_names or _names(known.classes, settings.classes or ())
    splits: dict[SplitName, Split] = {
        "train": _split(known, "train", known.train, known.train_counts, shape)
    }
    if known.test:
        name: SplitName = "validation" if known.test_is_validation else "test"
        splits[name] = _split(known, name, known.test, known.test_counts, shape)
    return Source(f"'{known.name}', as it is published", names, splits)


def _names(count: int, requested: Sequence[str]) -> tuple[str, ...]:
    """Class names if copies of a set spell them differently: requested names, then numbers."""
    numbered = (f"class {label}" for label in range(len(requested), count))
    return (*requested[:count], *numbered)


def _split(
    known: KnownSet, split: SplitName, total: int, counts: Sequence[int] | None, shape: ImageShape
) -> Split:
    labels: Labels = (
        np.repeat(np.arange(known.classes), counts)
        if counts
        else np.sort(np.arange(total) % known.classes)
    )
    if known.shape is not None:
        # sets of small images are published in random order, others sorted by class
        labels = labels[torch.randperm(total, generator=generator(0, "published order")).numpy()]
    return Split(
        f"the {split} split of '{known.name}'",
        labels.astype(np.int64),
        EncodedPixels(_Photographs(shape, total)),
    )


@dataclass(frozen=True)
class _Photographs:
    """Placeholder for encoded images: every row holds the same image of a typical size."""

    shape: ImageShape
    count: int

    def read(self, rows: Rows) -> Iterable[Encoded]:
        """See `EncodedImages`."""
        return self.at(rows)

    def at(self, rows: Rows) -> Iterator[Encoded]:
        """See `EncodedImages`."""
        content = _photograph(self.shape)
        return (Encoded(content, f"row {row}") for row in rows)

    def narrowed(self, rows: Rows) -> tuple[_Photographs, Rows]:
        """See `EncodedImages`."""
        return self, rows

    def files(self) -> Iterable[DataFile]:
        """See `EncodedImages`."""
        return ()


def _photograph(shape: ImageShape) -> bytes:
    """Encode a JPEG with detail everywhere, like a photograph."""
    rows, columns = np.indices((shape.height, shape.width))
    waves = 127 + 60 * np.sin(rows / 3) + 60 * np.sin(columns / 5)
    image = Image.fromarray(waves.astype(np.uint8))
    content = io.BytesIO()
    if shape.channels == 3:
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = Image.merge("RGB", (image, mirrored, image))
    image.save(content, "JPEG", quality=90)
    return content.getvalue()
