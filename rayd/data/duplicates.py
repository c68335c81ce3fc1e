"""Detection of duplicate images within and between splits, by their pixels."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayd.data.arrays import Labels, Pixels, Rows

Keys = npt.NDArray[np.uint64]
"""Hashes of images (N,); equal images have equal hashes."""

STOCK = 3
"""A training image that occurs at least this often is a stock image: a placeholder, or one of a few
images that make up the whole set. Its copies in the test split are not leaks.
"""
SAMPLED = 64
"""Number of values per image in the first, cheap comparison."""
BLOCK = 1024
"""Number of images hashed at a time in that comparison."""
SAMPLED_OF_STREAM = 1024
"""Number of values hashed per streamed image, since streamed images are not kept in memory."""


@dataclass(frozen=True)
class Duplicates:
    """Number of duplicate images in a data set."""

    within: Mapping[str, int]
    """Images of each split that duplicate an earlier image of the same split."""
    tested: int = 0
    """Test images that are copies of training images."""
    validated: int = 0
    """Validation images that are copies of training images."""
    relabelled: int = 0
    """Images that occur with more than one label."""
    example: tuple[int, int] | None = None
    """Positions of a training image and of its copy in the test split."""


def keys_of(images: Pixels, sampled: int = SAMPLED_OF_STREAM) -> Keys:
    """Hash up to `sampled` values of each image (N, C, H, W), spread over the whole image."""
    flat = images.reshape(len(images), -1)
    chosen = _sample_positions(flat.shape[1], sampled)
    rows = np.ascontiguousarray(flat[:, chosen])
    keys = np.empty(len(rows), np.uint64)
    for index, row in enumerate(rows):
        digest = hashlib.blake2b(row.data, digest_size=8).digest()
        keys[index] = int.from_bytes(digest, "little")
    return keys


def exact_keys(splits: Mapping[str, Pixels]) -> dict[str, Keys]:
    """Compute keys that are equal if and only if the images are.

    A sample of the pixels distinguishes most images; only the rest are hashed in full, so this
    takes a small fraction of the decoding time.
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
    """Count duplicates from the keys and labels of the images of each split."""
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
    """Positions of test images that are copies of training images, except stock images.

    >>> leaks(np.array([7, 8, 8, 8], np.uint64), np.array([7, 8, 9], np.uint64))
    array([0])
    """
    values, counts = np.unique(train, return_counts=True)
    found: Rows = np.flatnonzero(np.isin(test, values[counts < STOCK]))
    return found


def is_blank(image: Pixels) -> bool:
    """Whether all pixels of an image (C, H, W) have one colour; such images are not copies."""
    return bool((image == image[:, :1, :1]).all())


def _shared(train: Keys, other: Keys) -> Rows:
    """Positions of images in another split that also occur in the training split."""
    found: Rows = np.flatnonzero(np.isin(other, train))
    return found


def _relabelled(keys: Mapping[str, Keys], labels: Mapping[str, Labels]) -> int:
    """Number of images that occur with more than one label."""
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
    """Randomly weighted sums of sampled pixels; equal images have equal sums."""
    flat = images.reshape(len(images), -1)
    chosen = _sample_positions(flat.shape[1], SAMPLED)
    draws = np.random.default_rng(0)
    weights = draws.integers(1, 2**63, len(chosen), dtype=np.uint64)
    keys = np.empty(len(flat), np.uint64)
    # blocks that fit into the processor's cache
    for start in range(0, len(flat), BLOCK):
        block = slice(start, start + BLOCK)
        keys[block] = (flat[block].take(chosen, axis=1) * weights).sum(axis=1)
    return keys


def _sample_positions(length: int, most: int) -> Rows:
    """Random positions in a flattened image; equally spaced ones could all lie in one column."""
    if length <= most:
        return np.arange(length)
    return np.sort(np.random.default_rng(1).choice(length, most, replace=False))
