"""One cached pass over streamed images, for the statistics of all pixels that a run needs.

A pass over ImageNet takes minutes of decoding, so results are stored under `survey/`, keyed by the
paths, sizes and modification times of the files when they were opened, and by the selected rows and
decoding settings. A changed file with the same size and modification time is not detected.

The fingerprint is a hash of all pixels in order, so a single process makes the pass, with one
decoding thread per core; it fetches every remote file once.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayd import remote
from rayd.artifacts import content_hash, read_json, write_json
from rayd.data.decode import DecodeLog
from rayd.data.duplicates import SAMPLED_OF_STREAM, Keys, keys_of
from rayd.data.images import Labels, content_digest
from rayd.data.normalization import channel_histogram
from rayd.data.streaming import StreamedPixels, ahead, batches, decoding_threads
from rayd.errors import ArtifactError, RunError

log = logging.getLogger(__name__)

STAGE = "survey"
"""Folder in the store."""

CHUNK_BYTES = 2**24
"""Number of pixel bytes processed at a time."""

CHECKED = 2**14
"""Maximum number of suspected copies that are decoded again at the start of a run."""

OnProgress = Callable[[int, int], None]
"""Called with the number of images processed and their total number."""


@dataclass(frozen=True, eq=False)
class Survey:
    """Result of one pass."""

    fingerprint: str
    """See `ImageSet.fingerprint`."""
    histogram: npt.NDArray[np.int64]
    """Count of each value in each channel, (C, 256)."""
    keys: Keys
    """Hashes of the images, for finding copies."""
    log: DecodeLog
    """Conversions made while decoding."""

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return {
            "fingerprint": self.fingerprint,
            "histogram": self.histogram.tolist(),
            "keys": base64.b64encode(self.keys.astype("<u8").tobytes()).decode(),
            "conversions": dict(self.log.conversions),
            "sizes": [[*size, count] for size, count in sorted(self.log.sizes.items())],
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Survey:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or damaged.
        """
        histogram = np.array(tree["histogram"], np.int64)
        if histogram.ndim != 2 or histogram.shape[1] != 256:
            raise ValueError("the histogram has the wrong shape")
        keys = np.frombuffer(base64.b64decode(tree["keys"], validate=True), "<u8")
        log = DecodeLog()
        log.conversions.update({str(what): int(n) for what, n in tree["conversions"].items()})
        log.sizes.update({(int(h), int(w)): int(count) for h, w, count in tree["sizes"]})
        return cls(str(tree["fingerprint"]), histogram, keys.astype(np.uint64), log)


def survey(
    images: StreamedPixels,
    labels: Labels,
    class_names: tuple[str, ...],
    store: Path,
    on_progress: OnProgress,
) -> Survey:
    """Load the stored result, or make a pass over the images.

    Args:
        images: a split, or part of one.
        labels: labels of the images.
        class_names: one name per class.
        store: root of the store.
        on_progress: called after every chunk of images.

    Raises:
        DataError: a file is missing, or an image is damaged.
    """
    inputs = _inputs(images, labels, class_names)
    path = remote.local(store) / STAGE / f"{content_hash(inputs)}.json"
    found = _stored(path)
    if found is None:
        found = _scan(images, labels, class_names, on_progress)
        try:
            write_json(path, {"inputs": inputs, "result": found.to_json()})
        except RunError as error:
            log.warning("%s The next run will scan all images again.", error)
    return found


def exact_keys(splits: Mapping[str, StreamedPixels], keys: Mapping[str, Keys]) -> dict[str, Keys]:
    """Refine keys so that images of different splits have equal keys only if they are equal.

    A survey hashes only a sample of the pixels of large images, which may not distinguish drawings
    on white, for example. The few suspected copies across splits are therefore decoded again and
    hashed in full. More than `CHECKED` suspects mean that images were copied on purpose; the keys
    are then returned unchanged.

    Args:
        splits: images of each split, all of the same shape.
        keys: keys of each split from its survey.
    """
    values, splits_with = np.unique(
        np.concatenate([np.unique(own) for own in keys.values()]), return_counts=True
    )
    repeated = values[splits_with > 1]
    if sum(int(np.isin(own, repeated).sum()) for own in keys.values()) > CHECKED:
        return dict(keys)
    found: dict[str, Keys] = {}
    for split, images in splits.items():
        own = keys[split].copy()
        size = math.prod(images.image)
        suspects = np.flatnonzero(np.isin(own, repeated))
        # the survey hashed smaller images in full
        if size > SAMPLED_OF_STREAM:
            step = max(1, CHUNK_BYTES // size)
            chunks = [suspects[start : start + step] for start in range(0, len(suspects), step)]
            for rows, pixels in batches(images, chunks):
                own[rows] = keys_of(pixels, size)
        found[split] = own
    return found


def known(
    images: StreamedPixels, labels: Labels, class_names: tuple[str, ...], store: Path
) -> Survey | None:
    """Load the stored result, or return None if there is none; see `survey`."""
    return _stored(
        remote.local(store) / STAGE / f"{content_hash(_inputs(images, labels, class_names))}.json"
    )


def identity(images: StreamedPixels, labels: Labels, class_names: tuple[str, ...]) -> str:
    """Hash of files, selected rows, decoding settings and labels, computed without decoding."""
    return content_hash(_inputs(images, labels, class_names))


def _scan(
    images: StreamedPixels, labels: Labels, class_names: tuple[str, ...], on_progress: OnProgress
) -> Survey:
    digest = content_digest(images.shape, labels, class_names)
    histogram = np.zeros((images.image.channels, 256), np.int64)
    step = max(1, CHUNK_BYTES // max(1, images.nbytes // max(1, len(images))))
    log = DecodeLog()
    keys = np.empty(len(images), np.uint64)
    threads = decoding_threads()
    on_progress(0, len(images))
    chunks = (slice(start, start + step) for start in range(0, len(images), step))
    for rows, pixels in ahead(chunks, lambda chunk: images.decode(chunk, threads, log)):
        digest.update(pixels.data)
        histogram += channel_histogram(pixels)
        keys[rows] = keys_of(pixels)
        on_progress(min(rows.stop, len(images)), len(images))
    return Survey(digest.hexdigest(), histogram, keys, log)


def _inputs(images: StreamedPixels, labels: Labels, class_names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "version": 2,
        "files": _hash_of_files(images),
        "rows": hashlib.blake2b(np.ascontiguousarray(images.rows).data).hexdigest(),
        "labels": hashlib.blake2b(np.ascontiguousarray(labels).data).hexdigest(),
        "class_names": list(class_names),
        "image": list(images.image),
        "side": images.decoder.side,
        "decoder": images.decoder.key(),
    }


def _hash_of_files(images: StreamedPixels) -> str:
    """Hash of the files' URLs or absolute paths, sizes and modification times."""
    digest = hashlib.blake2b(digest_size=16)
    for file in images.files():
        location = remote.url(file.path) or os.path.abspath(file.path)
        stamp = f"{location}\0{file.size}\0{file.modified}\n"
        # file names need not be valid UTF-8
        digest.update(stamp.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stored(path: Path) -> Survey | None:
    if not remote.bring(path):
        return None
    try:
        return Survey.from_json(read_json(path)["result"])
    except (ArtifactError, KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning("'%s' is damaged (%s). Recomputing it.", path, error)
        return None
