"""Loading a data set for a run: select classes, splits and long tail by labels, then decode.

Images that would take too much memory stay in their files and are streamed
(`rayd.data.streaming`), with the same results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from rayd.artifacts import default_root
from rayd.config import DataSettings
from rayd.config.data import as_name
from rayd.data import outline
from rayd.data.arrays import Pixels, Rows
from rayd.data.available_memory import available_memory
from rayd.data.catalog import KNOWN
from rayd.data.decode import DecodeLog, Decoder
from rayd.data.duplicates import Keys, duplicates, exact_keys, is_blank, leaks
from rayd.data.formats.base import EncodedPixels, Source, SplitSubset, read_pixels
from rayd.data.images import ImageData, ImageSet
from rayd.data.layout import nfc
from rayd.data.normalization import (
    Normalization,
    Standardization,
    fit_normalization,
    streamed_whitening,
)
from rayd.data.sources import open_source
from rayd.data.splits import check_labels, choose_classes, long_tailed, stratified
from rayd.data.streaming import StreamedPixels
from rayd.data.summary import DataSummary, summarize
from rayd.data.survey import Survey, survey
from rayd.data.survey import exact_keys as exact_keys_of_streams
from rayd.errors import ConfigError, DataError, unknown

TEST_FRACTION = 0.2
"""Fraction of each class used as test split if the source has only one split."""

MEMORY_SHARE = 0.5
"""Images are streamed if, decoded, they would take more than this share of the available memory."""

HANDFUL = 8
"""Minimum size of a carved test split for deciding whether the data hold images in duplicate."""

ODD = 0x9E3779B97F4A7C15
"""Large odd number that spreads labels over hashes."""

OnProgress = Callable[[str, int, int], None]
"""Called with the split, the number of its images processed, and their total number."""


def load(
    settings: DataSettings,
    root: Path | None = None,
    cache: Path | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> ImageData:
    """Load a data set.

    The steps are:

    1. Select the classes.
    2. If the source has no test split, use its validation split for testing, as is customary for
       ImageNet and Imagenette. If it has neither, carve 20 % of each class from the training split.
    3. Carve `validation_fraction` from the training split; if it is 0, use the source's own
       validation split, unless it serves as test split.
    4. Subsample the remaining training images to the long tail; test and validation splits stay
       unchanged.
    5. Decode exactly these images and fit the normalisation on the training split. Streamed images
       are decoded once, for the normalisation and the fingerprints, unless the store has both.

    All draws use `split_seed`.

    Args:
        settings: data set, and images selected from it.
        root: data root, searched before `$RAYD_DATA` and `~/.cache/rayd/data`.
        cache: root of the store shared by runs; see `rayd.data.survey`.
        on_progress: called while streamed images are processed.

    Raises:
        DataError: the data are missing, damaged, or unsuitable for the settings.
        ConfigError: the normalisation does not support images of this size, or the data cannot be
            streamed although the settings require it.
    """
    source = open_source(settings.name, root, settings)
    names, chosen = choose(settings, source)
    if is_streamed(settings, chosen, source.where):
        data = _stream(settings, source, chosen, names, cache or default_root(), on_progress)
    else:
        data = _decode(settings, source, chosen, names)
    outline.remember(settings, chosen, data, cache or default_root())
    return data


def choose(
    settings: DataSettings, source: Source
) -> tuple[tuple[str, ...], dict[str, SplitSubset]]:
    """Select classes and the images of each split: steps 1 to 4 of `load`, without decoding.

    Returns:
        Class names, and the selected images of each split.

    Raises:
        DataError: the labels are unsuitable for the settings.
    """
    names, subsets = _choose_classes(source, settings.classes)
    train = subsets["train"]
    test = subsets.get("test")
    validation = subsets.get("validation")
    check_labels(train.labels, names, train.split.where)
    if test is None and validation is not None:
        origin = f"the validation split ({validation.described})".replace(" ()", "")
        test = replace(validation, origin=f"{origin}, as there is no test split")
        validation = None
    if test is None:
        counts = np.bincount(train.labels, minlength=len(names))
        single = [name for name, count in zip(names, counts, strict=True) if count == 1]
        if single and counts.max() > 1:
            raise DataError(
                f"A test split cannot be carved from {train.split.where}: class '{single[0]}' has "
                "only one image. Add images, provide a test split ('data.test'), or select other "
                "classes ('data.classes')."
            )
        train, test = _carve(train, TEST_FRACTION, names, settings.split_seed, "test")
        test = replace(test, origin=f"{test.origin}: no test split in {source.where}")
    if settings.validation_fraction > 0:
        train, validation = _carve(
            train, settings.validation_fraction, names, settings.split_seed, "validation"
        )
    if settings.imbalance > 1:
        train = train.at(long_tailed(train.labels, settings.imbalance, names, settings.split_seed))
        tail = f"long tail of factor {settings.imbalance:g}"
        train = replace(train, origin=", ".join(filter(None, (train.described, tail))))
    check_labels(test.labels, names, test.split.where)
    splits = {"train": train, "validation": validation, "test": test}
    return names, {name: subset for name, subset in splits.items() if subset is not None}


def _choose_classes(
    source: Source, requested: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, SplitSubset]]:
    names = source.class_names
    if requested is not None:
        names = tuple(_matching_class(name, source.class_names) for name in requested)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"Classes must have different names. Got '{twice}' twice in {source.where} instead."
        )
    for name in names:
        if name not in source.class_names:
            raise DataError(
                unknown("class", name, source.class_names, f"'data.classes' for {source.where}")
            )
    chosen = [source.class_names.index(name) for name in names]
    return names, {
        name: SplitSubset(split, *choose_classes(split.labels, chosen))
        for name, split in source.splits.items()
    }


def _matching_class(requested: str, names: Sequence[str]) -> str:
    """Find the class that a setting means, as YAML does not read `no`, `010` or dates as text.

    >>> _matching_class("false", ["no", "yes"]), _matching_class("8", ["007", "010"])
    ('no', '010')
    """
    if nfc(requested) in names:
        return nfc(requested)
    # class names in files may be in any Unicode form
    meant = [name for name in names if nfc(name) == nfc(requested)]
    meant = meant or [name for name in names if _as_yaml(name) == requested]
    return meant[0] if len(meant) == 1 else requested


def _as_yaml(name: str) -> str:
    """Read a name as YAML and convert the value back to text."""
    try:
        value = as_name(yaml.safe_load(name))
    except (yaml.YAMLError, ValueError):
        return name
    return "null" if value is None else str(value)


def _carve(
    train: SplitSubset, fraction: float, names: Sequence[str], seed: int, purpose: str
) -> tuple[SplitSubset, SplitSubset]:
    kept, carved = stratified(train.labels, fraction, names, seed, purpose)
    if not len(carved):
        raise DataError(
            f"A {purpose} split cannot be carved from {train.split.where}: "
            "no class has more than one image."
        )
    origin = f"{100 * fraction:g}% of each class, carved from train (seed {seed})"
    return train.at(kept), replace(train.at(carved), origin=origin)


def _decode(
    settings: DataSettings,
    source: Source,
    chosen: Mapping[str, SplitSubset],
    names: tuple[str, ...],
) -> ImageData:
    log = DecodeLog()
    pixels = dict[str, Pixels]()
    decoder = Decoder.of(settings)
    sets = dict[str, ImageSet]()
    shape = None
    for split, subset in chosen.items():
        pixels[split] = read_pixels(subset, decoder, shape, log)
        sets[split] = ImageSet(pixels[split], subset.labels, names)
        shape = sets[split].shape
    summary = _summary(
        settings,
        source,
        chosen,
        sets,
        keys=exact_keys(pixels),
        log=log,
        brightest=int(pixels["train"].max(initial=0)),
    )
    normalization = fit_normalization(settings.normalization, pixels["train"])
    return _data(settings, sets, normalization, summary)


def _summary(
    settings: DataSettings,
    source: Source,
    chosen: Mapping[str, SplitSubset],
    sets: Mapping[str, ImageSet],
    keys: Mapping[str, Keys],
    log: DecodeLog,
    brightest: int,
) -> DataSummary:
    """Summarise the data as read.

    Args:
        settings: data settings.
        source: opened data set.
        chosen: images selected for each split.
        sets: the same images as sets.
        keys: hashes of the images of each split.
        log: conversions made while decoding.
        brightest: largest value of the training images.

    Raises:
        DataError: test images are copies of training images.
    """
    found = duplicates(keys, {name: subset.labels for name, subset in chosen.items()})
    for position in suspects(settings, chosen, keys):
        test = int(position)
        if is_blank(sets["test"].images[test : test + 1][0]):
            continue
        train = int(np.flatnonzero(keys["train"] == keys["test"][test])[0])
        carved = ", carved from train," if not _has_own_test(chosen) else ""
        raise DataError(
            f"{found.tested:,} of {len(chosen['test'].labels):,} test images{carved} are copies of "
            f"training images, e.g. {chosen['test'].place(test)}, a copy of "
            f"{chosen['train'].place(train)}: remove them, or set 'data.copies=keep' to test on "
            "them anyway."
        )
    return summarize(
        settings,
        source.where,
        sets["train"].class_names,
        chosen,
        sets["train"].shape,
        left_out=source.left_out,
        log=log,
        copies=found,
        brightest=brightest,
    )


def suspects(
    settings: DataSettings, chosen: Mapping[str, SplitSubset], keys: Mapping[str, Keys]
) -> Rows:
    """Positions of test images that make the data unusable, unless they are blank.

    If the data have a test split of their own, these are its copies of training images. If it is
    carved from the training split, copies are only reported, as there is no better test split to
    ask for. The exception is a carved test split of at least `HANDFUL` images, half or more of them
    copies of training images with the same label: the data then hold images in duplicate.
    """
    if settings.copies == "keep" or settings.name in KNOWN:
        return np.empty(0, np.int64)
    found = leaks(keys["train"], keys["test"])
    if _has_own_test(chosen):
        return found
    # equal for equal images of the same class
    by_class = {
        name: keys[name] + chosen[name].labels.astype(np.uint64) * np.uint64(ODD)
        for name in ("train", "test")
    }
    found = np.intersect1d(found, leaks(by_class["train"], by_class["test"]))
    doubled = len(keys["test"]) >= HANDFUL and 2 * len(found) >= len(keys["test"])
    return found if doubled else found[:0]


def _has_own_test(chosen: Mapping[str, SplitSubset]) -> bool:
    """Whether the test split is not carved from the training split."""
    return chosen["test"].split is not chosen["train"].split


def _data(
    settings: DataSettings,
    sets: Mapping[str, ImageSet],
    normalization: Normalization,
    summary: DataSummary | None,
) -> ImageData:
    return ImageData(
        name=settings.title,
        train=sets["train"],
        validation=sets.get("validation"),
        test=sets["test"],
        normalization=normalization,
        summary=summary,
    )


def is_streamed(settings: DataSettings, chosen: Mapping[str, SplitSubset], where: str) -> bool:
    """Whether images are streamed from their files.

    Raises:
        ConfigError: the settings require streaming, but a split is an array.
    """
    encoded = [
        subset.split.read
        for subset in chosen.values()
        if isinstance(subset.split.read, EncodedPixels)
    ]
    if settings.stream and len(encoded) < len(chosen):
        raise ConfigError(
            f"Setting 'data.stream' needs Parquet files or an image folder; {where} is read as "
            "arrays, so set it to false."
        )
    if settings.stream is not None or len(encoded) < len(chosen):
        return bool(settings.stream)
    shape = encoded[0].shape(chosen["train"].rows, Decoder.of(settings))
    available = available_memory()
    needed = sum(len(subset.rows) for subset in chosen.values()) * math.prod(shape)
    return available is not None and needed > MEMORY_SHARE * available


def _stream(
    settings: DataSettings,
    source: Source,
    chosen: Mapping[str, SplitSubset],
    names: tuple[str, ...],
    cache: Path,
    on_progress: OnProgress,
) -> ImageData:
    if settings.normalization != "standard":
        raise streamed_whitening(settings.normalization)
    sets = dict[str, ImageSet]()
    found = dict[str, Survey]()
    streamed = dict[str, StreamedPixels]()
    decoder = Decoder.of(settings)
    shape = None
    for split, subset in chosen.items():
        assert isinstance(subset.split.read, EncodedPixels)
        images = subset.split.read.streamed(subset.rows, decoder, shape)
        found[split] = survey(images, subset.labels, names, cache, partial(on_progress, split))
        streamed[split] = images
        sets[split] = ImageSet(images, subset.labels, names, found[split].fingerprint)
        shape = images.image
    log = DecodeLog()
    for scan in found.values():
        log.add(scan.log)
    histogram = found["train"].histogram
    summary = _summary(
        settings,
        source,
        chosen,
        sets,
        keys=exact_keys_of_streams(streamed, {split: scan.keys for split, scan in found.items()}),
        log=log,
        brightest=int(np.flatnonzero(histogram.any(axis=0)).max(initial=0)),
    )
    return _data(settings, sets, Standardization.of_histogram(histogram), summary)
