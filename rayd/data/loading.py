"""Loading a data set as a run wants it: classes, splits and long tail are chosen on the labels, then those images decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayd.config import DataSettings
from rayd.data.formats.base import Source, Split
from rayd.data.images import ImageData, ImageSet, ImageShape, Labels, Rows
from rayd.data.normalization import fit_normalization
from rayd.data.sources import open_source
from rayd.data.splits import check_labels, choose_classes, long_tailed, stratified
from rayd.errors import DataError, unknown

TEST_FRACTION = 0.2
"""Share of each class that is tested on where the source has but one split."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Images of a split that are to be decoded."""

    split: Split
    rows: Rows
    """Ascending rows of the split."""
    labels: Labels
    """Their labels, int64 (len(rows),)."""

    def at(self, positions: Rows) -> Choice:
        """The images at these positions of this choice."""
        return Choice(self.split, self.rows[positions], self.labels[positions])


def load(settings: DataSettings, root: Path | None = None) -> ImageData:
    """Find, choose, decode and normalise a data set.

    In this order:

    1. The classes are chosen.
    2. A source without a test split has its validation split taken for one, as is done with ImageNet and Imagenette; without
       either, 20 % of each class are carved from the training split.
    3. `validation_fraction` is carved from the training split; where it is 0, the source's own validation split, if it has one
       beside a test split, is the validation split.
    4. The long tail is cut from the remaining training images; test and validation stay as they are.
    5. Exactly these images are decoded, and the normalisation is fitted on the training split.

    All draws come from `split_seed`.

    Args:
        settings: which images, and which of them.
        root: data root, before `$RAYD_DATA` and `~/.cache/rayd/data`.

    Raises:
        DataError: the data are missing, damaged, or unfit for the settings.
        ConfigError: the normalisation does not suit images of this size.
    """
    source = open_source(settings.name, root)
    names, choices = _choose_classes(source, settings.classes)
    train, test = choices["train"], choices.get("test")
    validation = choices.get("validation")
    check_labels(train.labels, names, train.split.where)
    if test is None and validation is not None:
        test, validation = validation, None
    if test is None:
        train, test = _carve(train, TEST_FRACTION, names, settings.split_seed, "test")
    if settings.validation_fraction > 0:
        train, validation = _carve(train, settings.validation_fraction, names, settings.split_seed, "validation")
    if settings.imbalance > 1:
        train = train.at(long_tailed(train.labels, settings.imbalance, names, settings.split_seed))
    check_labels(test.labels, names, test.split.where)
    train_set = _decode(train, names, settings.image_size)
    normalization = fit_normalization(settings.normalization, train_set.images)
    return ImageData(
        settings.name,
        train_set,
        None if validation is None else _decode(validation, names, settings.image_size, train_set.shape),
        _decode(test, names, settings.image_size, train_set.shape),
        normalization,
    )


def _choose_classes(source: Source, wanted: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, Choice]]:
    names = source.class_names if wanted is None else tuple(wanted)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"Classes must have different names. Got '{twice}' twice in {source.where} instead.")
    for name in names:
        if name not in source.class_names:
            raise DataError(unknown("class", name, source.class_names, f"'data.classes' for {source.where}"))
    chosen = [source.class_names.index(name) for name in names]
    return names, {name: Choice(split, *choose_classes(split.labels, chosen)) for name, split in source.splits.items()}


def _carve(train: Choice, fraction: float, names: Sequence[str], seed: int, purpose: str) -> tuple[Choice, Choice]:
    kept, carved = stratified(train.labels, fraction, names, seed, purpose)
    if not len(carved):
        raise DataError(f"A {purpose} split cannot be carved from {train.split.where}: no class has more than one image.")
    return train.at(kept), train.at(carved)


def _decode(choice: Choice, names: tuple[str, ...], side: int | None, shape: ImageShape | None = None) -> ImageSet:
    return ImageSet(choice.split.read(choice.rows, side, shape), choice.labels, names)
