"""Loading a data set as a run wants it: classes, splits and long tail are chosen on the labels,
then those images decoded.

Images that would fill the memory are left in their files and streamed (`rayd.data.streaming`);
nobody downstream can tell by the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from rayd.artifacts import default_root
from rayd.config import DataSettings
from rayd.data import outline
from rayd.data.formats.base import Choice, EncodedPixels, Source
from rayd.data.images import ImageData, ImageSet
from rayd.data.memory import available_memory
from rayd.data.normalization import STREAMED_WHITENING, Standardization, fit_normalization
from rayd.data.sources import open_source
from rayd.data.splits import check_labels, choose_classes, long_tailed, stratified
from rayd.data.survey import Survey, survey
from rayd.errors import ConfigError, DataError, unknown

TEST_FRACTION = 0.2
"""Share of each class that is tested on where the source has but one split."""

MEMORY_SHARE = 0.5
"""Share of the available memory that decoded images may take before they are streamed."""

Progress = Callable[[str, int, int], None]
"""Told the split, how many of its images were looked at, and how many there are."""


def load(
    settings: DataSettings,
    root: Path | None = None,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> ImageData:
    """Find, choose, decode and normalise a data set.

    In this order:

    1. The classes are chosen.
    2. A source without a test split has its validation split taken for one, as is done with
       ImageNet and Imagenette; without either, 20 % of each class are carved from the training
       split.
    3. `validation_fraction` is carved from the training split; where it is 0, the source's own
       validation split, if it has one beside a test split, is the validation split.
    4. The long tail is cut from the remaining training images; test and validation stay as they
    are. 5. Exactly these images are decoded, and the normalisation is fitted on the training split.
    Where they are streamed, they
       are decoded once for that and for their fingerprints, unless the store knows what was found
       the last time.

    All draws come from `split_seed`.

    Args:
        settings: which images, and which of them.
        root: data root, before `$RAYD_DATA` and `~/.cache/rayd/data`.
        cache: root of the store that runs share; see `rayd.data.survey`.
        progress: told how looking at streamed images goes on.

    Raises:
        DataError: the data are missing, damaged, or unfit for the settings.
        ConfigError: the normalisation does not suit images of this size, or images cannot be
            streamed that should be.
    """
    source = open_source(settings.name, root)
    names, chosen = choose(settings, source)
    if is_streamed(settings, chosen, source.where):
        return _stream(settings, chosen, names, cache or default_root(), progress)
    data = _decode(settings, chosen, names)
    outline.remember(settings, chosen, data, cache or default_root())
    return data


def choose(settings: DataSettings, source: Source) -> tuple[tuple[str, ...], dict[str, Choice]]:
    """Class names, and the images of each split: steps 1 to 4 of `load`, for which no image is
    decoded.

    Raises:
        DataError: the labels are unfit for the settings.
    """
    names, choices = _choose_classes(source, settings.classes)
    train = choices["train"]
    test = choices.get("test")
    validation = choices.get("validation")
    check_labels(train.labels, names, train.split.where)
    if test is None and validation is not None:
        test = validation
        validation = None
    if test is None:
        train, test = _carve(train, TEST_FRACTION, names, settings.split_seed, "test")
    if settings.validation_fraction > 0:
        train, validation = _carve(
            train, settings.validation_fraction, names, settings.split_seed, "validation"
        )
    if settings.imbalance > 1:
        train = train.at(long_tailed(train.labels, settings.imbalance, names, settings.split_seed))
    check_labels(test.labels, names, test.split.where)
    splits = {"train": train, "validation": validation, "test": test}
    return names, {name: choice for name, choice in splits.items() if choice is not None}


def _choose_classes(
    source: Source, wanted: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, Choice]]:
    names = source.class_names if wanted is None else tuple(wanted)
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
        name: Choice(split, *choose_classes(split.labels, chosen))
        for name, split in source.splits.items()
    }


def _carve(
    train: Choice, fraction: float, names: Sequence[str], seed: int, purpose: str
) -> tuple[Choice, Choice]:
    kept, carved = stratified(train.labels, fraction, names, seed, purpose)
    if not len(carved):
        raise DataError(
            f"A {purpose} split cannot be carved from {train.split.where}: no class has more than one image."
        )
    return train.at(kept), train.at(carved)


def _decode(
    settings: DataSettings, chosen: Mapping[str, Choice], names: tuple[str, ...]
) -> ImageData:
    sets = dict[str, ImageSet]()
    shape = None
    for split, choice in chosen.items():
        sets[split] = ImageSet(
            choice.split.read(choice.rows, settings.image_size, shape), choice.labels, names
        )
        shape = sets[split].shape
    normalization = fit_normalization(settings.normalization, sets["train"].images)
    return ImageData(
        settings.name, sets["train"], sets.get("validation"), sets["test"], normalization
    )


def is_streamed(settings: DataSettings, chosen: Mapping[str, Choice], where: str) -> bool:
    """Whether images are left in their files."""
    encoded = [
        choice.split.read
        for choice in chosen.values()
        if isinstance(choice.split.read, EncodedPixels)
    ]
    if settings.stream and len(encoded) < len(chosen):
        raise ConfigError(
            f"Setting 'data.stream' needs Parquet files or an image folder; {where} is read as arrays, whole."
        )
    if settings.stream is not None or len(encoded) < len(chosen):
        return bool(settings.stream)
    shape = encoded[0].shape(chosen["train"].rows, settings.image_size)
    available = available_memory()
    needed = sum(len(choice.rows) for choice in chosen.values()) * math.prod(shape)
    return available is not None and needed > MEMORY_SHARE * available


def _stream(
    settings: DataSettings,
    chosen: Mapping[str, Choice],
    names: tuple[str, ...],
    cache: Path,
    progress: Progress,
) -> ImageData:
    if settings.normalization == "zca":
        raise ConfigError(STREAMED_WHITENING)
    sets = dict[str, ImageSet]()
    found = dict[str, Survey]()
    shape = None
    for split, choice in chosen.items():
        assert isinstance(choice.split.read, EncodedPixels)
        images = choice.split.read.streamed(choice.rows, settings.image_size, shape)
        found[split] = survey(images, choice.labels, names, cache, partial(progress, split))
        sets[split] = ImageSet(images, choice.labels, names, found[split].fingerprint)
        shape = images.image
    normalization = Standardization.of_histogram(found["train"].histogram)
    return ImageData(
        settings.name, sets["train"], sets.get("validation"), sets["test"], normalization
    )
