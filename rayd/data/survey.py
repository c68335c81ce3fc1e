"""What must be known of all pixels of streamed images before a run: found in one pass, and kept for
the next run.

A pass over ImageNet is minutes of decoding, so what it finds lies in the store that runs share,
under `survey/`, keyed by the files' paths, sizes and times of modification when they were opened,
and by which of their images are read how. Whoever changes a file and gives it its old size and time
back deceives it.

The fingerprint is a hash of all pixels in order, so that one process makes the pass, with as many
decoding threads as it has cores, and of data at a URL fetches every file once.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayd import remote
from rayd.artifacts import content_hash, read_json, write_json
from rayd.data.images import Labels, content_digest
from rayd.data.normalization import channel_histogram
from rayd.data.streaming import StreamedPixels, batches
from rayd.errors import ArtifactError, RunError

log = logging.getLogger(__name__)

STAGE = "survey"
"""Folder of the store."""

CHUNK_BYTES = 2**24
"""Pixels that are looked at at a time."""

Callback = Callable[[int, int], None]
"""Told how many images were looked at, and how many there are."""


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass finds."""

    fingerprint: str
    """That of the set, see `ImageSet.fingerprint`."""
    histogram: npt.NDArray[np.int64]
    """How often each channel has each value, (C, 256)."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"fingerprint": self.fingerprint, "histogram": self.histogram.tolist()}


def survey(
    images: StreamedPixels,
    labels: Labels,
    class_names: tuple[str, ...],
    store: Path,
    watch: Callback,
) -> Survey:
    """What was found before, else what a pass over the images finds.

    Args:
        images: a split, or a part of it.
        labels: theirs.
        class_names: one name per class.
        store: root of the store.
        watch: told how the pass goes on.

    Raises:
        DataError: a file is gone, or an image is damaged.
    """
    inputs = _inputs(images, labels, class_names)
    path = remote.local(store) / STAGE / f"{content_hash(inputs)}.json"
    found = _kept(path)
    if found is None:
        found = _look(images, labels, class_names, watch)
        try:
            write_json(path, {"inputs": inputs, "result": found.to_json()})
        except RunError as error:
            log.warning("%s The next run will look at all images again.", error)
    return found


def known(
    images: StreamedPixels, labels: Labels, class_names: tuple[str, ...], store: Path
) -> Survey | None:
    """What was found before; None where nothing was. The arguments are those of `survey`."""
    return _kept(
        remote.local(store) / STAGE / f"{content_hash(_inputs(images, labels, class_names))}.json"
    )


def identity(images: StreamedPixels, labels: Labels, class_names: tuple[str, ...]) -> str:
    """A hash of the files, of which of their images are read how, and of their labels: no image is
    decoded for it.
    """
    return content_hash(_inputs(images, labels, class_names))


def _look(
    images: StreamedPixels, labels: Labels, class_names: tuple[str, ...], watch: Callback
) -> Survey:
    digest = content_digest(images.shape, labels, class_names)
    histogram = np.zeros((images.image.channels, 256), np.int64)
    step = max(1, CHUNK_BYTES // max(1, images.nbytes // max(1, len(images))))
    watch(0, len(images))
    for rows, pixels in batches(
        images, (slice(start, start + step) for start in range(0, len(images), step))
    ):
        digest.update(pixels.data)
        histogram += channel_histogram(pixels)
        watch(min(rows.stop, len(images)), len(images))
    return Survey(digest.hexdigest(), histogram)


def _inputs(images: StreamedPixels, labels: Labels, class_names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "version": 1,
        "files": _stamps(images),
        "rows": hashlib.blake2b(np.ascontiguousarray(images.rows).data).hexdigest(),
        "labels": hashlib.blake2b(np.ascontiguousarray(labels).data).hexdigest(),
        "class_names": list(class_names),
        "image": list(images.image),
        "side": images.side,
    }


def _stamps(images: StreamedPixels) -> str:
    """Hash of the files' URLs or absolute paths, sizes and times of modification."""
    digest = hashlib.blake2b(digest_size=16)
    for file in images.files():
        place = remote.url(file.path) or os.path.abspath(file.path)
        digest.update(f"{place}\0{file.size}\0{file.modified}\n".encode())
    return digest.hexdigest()


def _kept(path: Path) -> Survey | None:
    if not remote.bring(path):
        return None
    try:
        result = read_json(path)["result"]
        histogram = np.array(result["histogram"], np.int64)
        if histogram.ndim != 2 or histogram.shape[1] != 256:
            raise ValueError("the histogram has another shape")
        return Survey(str(result["fingerprint"]), histogram)
    except (ArtifactError, KeyError, TypeError, ValueError) as error:
        log.warning("'%s' is damaged (%s) and will be made again.", path, error)
        return None
