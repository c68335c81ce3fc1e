"""Copies of images within and between splits, by their pixels."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayd.data.arrays import Labels, Pixels, Rows

Keys = npt.NDArray[np.uint64]
"""Hashes of images (N,): equal for equal pixels."""

STOCK = 3
"""Times that a training image must be there for its copies in the test split to be no leak: images
of no content of their own, such as placeholders, or sets that are drawn from a few images.
"""
SAMPLED = 64
"""Pixels of an image that are compared before all of them are."""
BLOCK = 1024
"""Images whose sampled pixels are hashed at a time."""
SAMPLED_OF_STREAM = 1024
"""Pixels of an image that are compared where images are not kept."""


@dataclass(frozen=True)
class Duplicates:
    """Images that are there more than once."""

    within: Mapping[str, int]
    """Images of each split that are copies of an earlier one."""
    tested: int = 0
    """Test images that are copies of training images."""
    validated: int = 0
    """Validation images that are copies of training images."""
    relabelled: int = 0
    """Images that are copies of one of another class."""
    example: tuple[int, int] | None = None
    """Positions of a training and a test image that are the same."""


def keys_of(images: Pixels, sampled: int = SAMPLED_OF_STREAM) -> Keys:
    """Hash some pixels of each image (N, C, H, W), spread over all of it."""
    flat = images.reshape(len(images), -1)
    chosen = _spread(flat.shape[1], sampled)
    rows = np.ascontiguousarray(flat[:, chosen])
    keys = np.empty(len(rows), np.uint64)
    for index, row in enumerate(rows):
        digest = hashlib.blake2b(row.data, digest_size=8).digest()
        keys[index] = int.from_bytes(digest, "little")
    return keys


def exact_keys(splits: Mapping[str, Pixels]) -> dict[str, Keys]:
    """Keys that are equal for equal images alone.

    Most images differ in a few pixels already: only the others are compared whole, so that this
    takes a small part of the time of decoding.
    """
    sampled = {name: _sampled_keys(images) for name, images in splits.items()}
    if not sampled:
        return {}
    everything = np.concatenate(list(sampled.values()))
    _, inverse, counts = np.unique(everything, return_inverse=True, return_counts=True)
    suspects = counts[inverse] > 1
    unique = np.arange(len(everything), dtype=np.uint64)
    found: dict[bytes, int] = {}
    keys: dict[str, Keys] = {}
    start = 0
    for name, images in splits.items():
        own = unique[start : start + len(images)].copy()
        for row in np.flatnonzero(suspects[start : start + len(images)]):
            digest = hashlib.blake2b(images[row].data, digest_size=16).digest()
            own[row] = found.setdefault(digest, start + int(row))
        keys[name] = own
        start += len(images)
    return keys


def duplicates(keys: Mapping[str, Keys], labels: Mapping[str, Labels]) -> Duplicates:
    """Count copies by the keys of each split's images."""
    within = {name: len(own) - len(np.unique(own)) for name, own in keys.items()}
    train = keys["train"]
    shared = {name: _shared(train, own) for name, own in keys.items() if name != "train"}
    example = None
    if "test" in shared and len(shared["test"]):
        position = int(shared["test"][0])
        same = np.flatnonzero(train == keys["test"][position])
        example = (int(same[0]), position)
    return Duplicates(
        within={name: count for name, count in within.items() if count},
        tested=len(shared.get("test", ())),
        validated=len(shared.get("validation", ())),
        relabelled=_relabelled(keys, labels),
        example=example,
    )


def leaks(train: Keys, test: Keys) -> Rows:
    """Positions of test images that are copies of training images, stock images aside.

    >>> leaks(np.array([7, 8, 8, 8], np.uint64), np.array([7, 8, 9], np.uint64))
    array([0])
    """
    values, counts = np.unique(train, return_counts=True)
    found: Rows = np.flatnonzero(np.isin(test, values[counts < STOCK]))
    return found


def is_blank(image: Pixels) -> bool:
    """Whether all pixels of an image (C, H, W) have the same colour: equal ones are no copies."""
    return bool((image == image[:, :1, :1]).all())


def _shared(train: Keys, other: Keys) -> Rows:
    """Positions of the images of another split that are training images, too."""
    found: Rows = np.flatnonzero(np.isin(other, train))
    return found


def _relabelled(keys: Mapping[str, Keys], labels: Mapping[str, Labels]) -> int:
    """Number of images that are there with several labels."""
    everything = np.concatenate(list(keys.values()))
    values, counts = np.unique(everything, return_counts=True)
    repeated = values[counts > 1]
    if not len(repeated):
        return 0
    all_labels = np.concatenate([labels[name] for name in keys])
    seen = defaultdict[int, set[int]](set)
    for row in np.flatnonzero(np.isin(everything, repeated)):
        seen[int(everything[row])].add(int(all_labels[row]))
    return sum(len(of_image) > 1 for of_image in seen.values())


def _sampled_keys(images: Pixels) -> Keys:
    """Sums of some pixels with random weights, equal for equal images."""
    flat = images.reshape(len(images), -1)
    chosen = _spread(flat.shape[1], SAMPLED)
    draws = np.random.default_rng(0)
    weights = draws.integers(1, 2**63, len(chosen), dtype=np.uint64)
    keys = np.empty(len(flat), np.uint64)
    # in blocks that stay in the processor's cache
    for start in range(0, len(flat), BLOCK):
        block = slice(start, start + BLOCK)
        keys[block] = (flat[block].take(chosen, axis=1) * weights).sum(axis=1)
    return keys


def _spread(length: int, most: int) -> Rows:
    """Positions spread over a row; not at equal distances, which would fall into one column."""
    if length <= most:
        return np.arange(length)
    return np.sort(np.random.default_rng(1).choice(length, most, replace=False))
