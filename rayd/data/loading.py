"""Loading a data set for a run: choose classes, splits and long tail by labels, then decode.

Images that would fill the memory stay in their files and are streamed (`rayd.data.streaming`),
with the same results.
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
from rayd.data.arrays import Pixels
from rayd.data.catalog import KNOWN
from rayd.data.decode import DecodeLog, Decoder
from rayd.data.duplicates import Duplicates, Keys, duplicates, exact_keys
from rayd.data.formats.base import EncodedPixels, Source, SplitSubset, read_pixels
from rayd.data.images import ImageData, ImageSet
from rayd.data.layout import nfc
from rayd.data.memory import available_memory
from rayd.data.normalization import Standardization, fit_normalization, streamed_whitening
from rayd.data.sources import open_source
from rayd.data.splits import check_labels, choose_classes, long_tailed, stratified
from rayd.data.summary import summarize
from rayd.data.survey import Survey, survey
from rayd.errors import ConfigError, DataError, unknown

TEST_FRACTION = 0.2
"""Fraction of each class used as test split where the source has only one split."""

MEMORY_SHARE = 0.5
"""Share of the available memory that decoded images may take before they are streamed."""

OnProgress = Callable[[str, int, int], None]
"""Called with the split, the number of its images processed and their total number."""


def load(
    settings: DataSettings,
    root: Path | None = None,
    cache: Path | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> ImageData:
    """Load a data set.

    The steps are:

    1. Choose the classes.
    2. Use the validation split as test split if the source has no test split, as is customary for
       ImageNet and Imagenette; with neither, carve 20 % of each class from the training split.
    3. Carve `validation_fraction` from the training split; if it is 0, the source's own validation
       split is used, provided that it is not the test split.
    4. Cut the long tail from the remaining training images; test and validation stay as they are.
    5. Decode exactly these images and fit the normalisation on the training split. Streamed images
       are decoded once for that and for their fingerprints, unless the result is in the store.

    All draws use `split_seed`.

    Args:
        settings: data set, and images selected from it.
        root: data root, before `$RAYD_DATA` and `~/.cache/rayd/data`.
        cache: root of the store shared by runs; see `rayd.data.survey`.
        on_progress: called while streamed images are processed.

    Raises:
        DataError: the data are missing, damaged, or unfit for the settings.
        ConfigError: the normalisation does not suit images of this size, or images that should be
            streamed cannot be.
    """
    source = open_source(settings.name, root, settings)
    names, chosen = choose(settings, source)
    if is_streamed(settings, chosen, source.where):
        return _stream(settings, source, chosen, names, cache or default_root(), on_progress)
    data = _decode(settings, source, chosen, names)
    outline.remember(settings, chosen, data, cache or default_root())
    return data


def choose(
    settings: DataSettings, source: Source
) -> tuple[tuple[str, ...], dict[str, SplitSubset]]:
    """Choose classes and the images of each split: steps 1 to 4 of `load`, without decoding.

    Returns:
        Class names, and the chosen images of each split.

    Raises:
        DataError: the labels are unfit for the settings.
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
                "only one image. Add images, give a test split ('data.test'), or choose others "
                "('data.classes')."
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
        names = tuple(_spelled(name, source.class_names) for name in requested)
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


def _spelled(requested: str, names: Sequence[str]) -> str:
    """Class that a request means: YAML reads `no`, `010` and dates as other types than text.

    >>> _spelled("false", ["no", "yes"]), _spelled("8", ["007", "010"])
    ('no', '010')
    """
    if nfc(requested) in names:
        return nfc(requested)
    meant = [name for name in names if _as_yaml(name) == requested]
    return meant[0] if len(meant) == 1 else requested


def _as_yaml(name: str) -> str:
    """Text of what YAML reads a name as."""
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
    origin = f"{fraction:.0%} of each class, carved from train (seed {seed})"
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
    copies = _duplicates(settings, chosen, exact_keys(pixels))
    summary = summarize(
        settings,
        source.where,
        names,
        chosen,
        sets["train"].shape,
        left_out=source.left_out,
        log=log,
        copies=copies,
    )
    normalization = fit_normalization(settings.normalization, sets["train"].images)
    return ImageData(
        name=settings.name,
        train=sets["train"],
        validation=sets.get("validation"),
        test=sets["test"],
        normalization=normalization,
        summary=summary,
    )


def _duplicates(
    settings: DataSettings, chosen: Mapping[str, SplitSubset], keys: Mapping[str, Keys]
) -> Duplicates:
    """Count copies of images.

    Raises:
        DataError: the data's own test split holds training images.
    """
    found = duplicates(keys, {name: subset.labels for name, subset in chosen.items()})
    own = chosen["test"].split is not chosen["train"].split
    refused = own and settings.copies == "refuse" and settings.name not in KNOWN
    if refused and found.example is not None:
        train, test = found.example
        raise DataError(
            f"{found.tested:,} of {len(chosen['test'].labels):,} test images are copies of "
            f"training images, e.g. {chosen['test'].place(test)}, a copy of "
            f"{chosen['train'].place(train)}: remove them, or set 'data.copies=keep' to test on "
            "them all the same."
        )
    return found


def is_streamed(settings: DataSettings, chosen: Mapping[str, SplitSubset], where: str) -> bool:
    """Whether images are streamed from their files."""
    encoded = [
        subset.split.read
        for subset in chosen.values()
        if isinstance(subset.split.read, EncodedPixels)
    ]
    if settings.stream and len(encoded) < len(chosen):
        raise ConfigError(
            f"Setting 'data.stream' needs Parquet files or an image folder; {where} is read "
            "as arrays, whole."
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
    decoder = Decoder.of(settings)
    shape = None
    for split, subset in chosen.items():
        assert isinstance(subset.split.read, EncodedPixels)
        images = subset.split.read.streamed(subset.rows, decoder, shape)
        found[split] = survey(images, subset.labels, names, cache, partial(on_progress, split))
        sets[split] = ImageSet(images, subset.labels, names, found[split].fingerprint)
        shape = images.image
    log = DecodeLog()
    for scan in found.values():
        log.add(scan.log)
    copies = _duplicates(settings, chosen, {split: scan.keys for split, scan in found.items()})
    summary = summarize(
        settings,
        source.where,
        names,
        chosen,
        sets["train"].shape,
        left_out=source.left_out,
        log=log,
        copies=copies,
    )
    normalization = Standardization.of_histogram(found["train"].histogram)
    return ImageData(
        name=settings.name,
        train=sets["train"],
        validation=sets.get("validation"),
        test=sets["test"],
        normalization=normalization,
        summary=summary,
    )
