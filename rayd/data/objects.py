"""Data sets given as Python objects: torch data sets, arrays, tensors, Hugging Face data sets.

They are read once and written as an `.npz` file next to the store, named by its content: a run can
then be continued, evaluated and given to workers like any other.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayd import plugins
from rayd.artifacts import default_root, write_bytes
from rayd.errors import DataError, RaydError

Array = npt.NDArray[Any]
Normalization = tuple[Sequence[float], Sequence[float]]
"""Means and standard deviations by channel, which images were normalised with."""

IMAGES = ("image", "img", "images", "pixels", "x")
"""Columns of images, the first that is there."""
LABELS = ("label", "labels", "fine_label", "target", "y")
"""Columns of labels, the first that is there."""


@dataclass(frozen=True, eq=False)
class Images:
    """One split, read."""

    images: Array
    """uint8 (N, H, W) or (N, H, W, C); or PNG files (N,), where sizes differ."""
    labels: npt.NDArray[np.int64]
    """Class indices (N,)."""
    class_names: tuple[str, ...] | None
    """Names of the classes, where the object has them."""


def save(
    train: Any,
    test: Any = None,
    validation: Any = None,
    *,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    normalization: Normalization | None = None,
    cache: Path | None = None,
) -> Path:
    """Write data sets given as objects to a file that `data=` can name.

    Args:
        train: a pair of images and labels (arrays or tensors), a torch data set with a length, or a
            Hugging Face data set. Images are PIL images, uint8, or floats in [0, 1], of shape
            (H, W), (H, W, C) or (C, H, W).
        test: the same of the test split; absent, a part of `train` is put aside.
        validation: the same of the validation split.
        name: of the data; by default that of the object's class.
        class_names: names of the classes; by default the object's, or numbers.
        normalization: means and standard deviations that images of floats were normalised with.
        cache: root of the store.

    Returns:
        The file; the same content has the same file.

    Raises:
        DataError: labels are missing, there is only one class, or pixels are out of range.
    """
    splits = {"train": train, "test": test, "validation": validation}
    arrays: dict[str, Array] = {}
    names = tuple(class_names) if class_names is not None else None
    for split, given in splits.items():
        if given is None:
            continue
        read = _read(given, f"the data set given as '{split}'", normalization)
        names = read.class_names if names is None else names
        arrays[f"x_{split}"] = read.images
        arrays[f"y_{split}"] = read.labels
    found = np.unique(arrays["y_train"])
    if len(found) < 2:
        raise DataError(
            "The data set given as 'train' must have at least two classes. "
            f"Got label {found.tolist()} on all of {len(arrays['y_train'])} images instead."
        )
    if names is not None:
        if found.max() >= len(names):
            raise DataError(
                f"'class_names' must name every class. Got {len(names)} names and label "
                f"{found.max()} instead."
            )
        arrays["class_names"] = np.array(names)
    digest = hashlib.blake2b(digest_size=8)
    for key, array in arrays.items():
        digest.update(f"{key} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    stem = re.sub(r"[^\w-]+", "-", name or _name_of(train)).lower()
    path = (cache or default_root()) / "given-data" / digest.hexdigest() / f"{stem}.npz"
    if not path.exists():
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())
    return path


SPLITS = ("train", "test", "validation")
"""Keys of data that come from outside the package, beside those of `save`."""
_FILES: dict[tuple[str, Path], tuple[Any, Path]] = {}
"""Files of data from outside the package, by name and store, with the part that gave them."""


def named(name: str) -> Path | None:
    """The file of a data set from outside the package; None if there is none of this name.

    A part is a data set as `save` takes it, a mapping of such from `train`, `test` and `validation`
    (`class_names` and `normalization` may be in it, too), or a function or class without arguments
    that gives either. It is read once in a process.

    Args:
        name: of an entry point of `rayd.datasets`, or `package.module:Name`.

    Raises:
        ConfigError: the part cannot be loaded.
        DataError: it fails, or what it gives is no data set.
    """
    part = plugins.find("datasets", name)
    if part is None:
        return None
    key = (name, default_root())
    known = _FILES.get(key)
    if known is not None and known[0] is part and known[1].exists():
        return known[1]
    given = part
    if isinstance(part, type) or (callable(part) and not hasattr(part, "__getitem__")):
        try:
            given = part()
        except RaydError:
            raise
        except Exception as error:
            raise DataError(
                f"The data set '{name}' cannot be read ({type(error).__name__}: {error})."
            ) from error
    splits = given if isinstance(given, Mapping) else {"train": given}
    unknown_keys = sorted({*splits} - {*SPLITS, "class_names", "normalization"})
    if unknown_keys or "train" not in splits:
        found = ", ".join(map(str, splits)) or "none"
        raise DataError(
            f"The data set '{name}' must be one, or a mapping with 'train' and perhaps 'test', "
            f"'validation', 'class_names' and 'normalization'. Got {found} instead."
        )
    path = save(**splits, name=re.split("[.:]", name)[-1])
    _FILES[key] = (part, path)
    return path


def _name_of(given: Any) -> str:
    kind = type(given).__name__
    return "arrays" if isinstance(given, tuple | list) or kind == "TensorDataset" else kind


def _read(given: Any, where: str, normalization: Normalization | None) -> Images:
    """Read one split."""
    if isinstance(given, tuple | list) and len(given) == 2 and hasattr(given[0], "shape"):
        stack = _array(given[0])
        indices = _array(given[1])
        if len(stack) != len(indices):
            raise DataError(
                f"{_upper(where)} must have a label for each image. Got {len(stack)} images and "
                f"{len(indices)} labels instead."
            )
        return Images(_pixels(stack, where, normalization), _labels(indices, where), None)
    if not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
        raise DataError(
            f"{_upper(where)} must be a pair of images and labels, or a data set with a length "
            f"and an index (map style). Got {type(given).__name__} instead."
        )
    if len(given) == 0:
        raise DataError(f"{_upper(where)} is empty.")
    columns = getattr(given, "column_names", None)
    if columns is not None:
        return _hugging_face(given, columns, where, normalization)
    images: list[Any] = []
    labels: list[Any] = []
    for index in range(len(given)):
        item = given[index]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise DataError(
                f"{_upper(where)} has no labels: an item must be a pair of an image and a label. "
                f"Got {type(item).__name__} instead."
            )
        images.append(item[0])
        labels.append(item[1])
    names = getattr(given, "classes", None)
    named = tuple(map(str, names)) if isinstance(names, list | tuple) else None
    return Images(
        _together(images, where, normalization), _labels(np.array(_numbers(labels)), where), named
    )


def _hugging_face(
    given: Any, columns: Sequence[str], where: str, normalization: Normalization | None
) -> Images:
    """Read a data set of the `datasets` library."""
    image = next((name for name in IMAGES if name in columns), None)
    label = next((name for name in LABELS if name in columns), None)
    if image is None or label is None:
        kind = "images" if image is None else "labels"
        raise DataError(
            f"{_upper(where)} has no column of {kind}: rename one to "
            f"'{IMAGES[0] if image is None else LABELS[0]}'. It has {', '.join(columns)}."
        )
    images: list[Any] = []
    labels: list[Any] = []
    for index in range(len(given)):
        item = given[index]
        images.append(item[image])
        labels.append(item[label])
    names = getattr(getattr(given, "features", {}).get(label), "names", None)
    return Images(
        _together(images, where, normalization),
        _labels(np.array(labels), where),
        tuple(names) if names else None,
    )


def _together(images: Sequence[Any], where: str, normalization: Normalization | None) -> Array:
    """Images one by one as an array, or as PNG files where their sizes differ."""
    arrays = [_array(image) for image in images]
    if len({array.shape for array in arrays}) == 1:
        return _pixels(np.stack(arrays), where, normalization)
    files = []
    for array in arrays:
        pixels = _pixels(array[None], where, normalization)[0]
        buffer = io.BytesIO()
        from PIL import Image

        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return np.array(files)


def _pixels(images: Array, where: str, normalization: Normalization | None) -> Array:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) as uint8 (N, H, W) or (N, H, W, C)."""
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            f"Images of {where} must have shape (H, W), (H, W, C) or (C, H, W) with C of 1 or 3. "
            f"Got {images.shape[1:]} instead."
        )
    return _as_bytes(images, where, normalization)


def _as_bytes(images: Array, where: str, normalization: Normalization | None) -> Array:
    """Pixels in [0, 255] or [0, 1], or normalised ones, as uint8."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind in "iu" and images.min() >= 0 and images.max() <= 255:
        return images.astype(np.uint8)
    if images.dtype.kind != "f":
        raise DataError(
            f"Pixels of {where} must be uint8 or floats in [0, 1]. Got {images.dtype} instead."
        )
    images = images.astype(np.float64)
    if normalization is not None:
        mean, deviation = (np.asarray(part, np.float64) for part in normalization)
        images = images * deviation + mean
        images = np.where(np.abs(images - np.clip(images, 0, 1)) < 1e-4, images.clip(0, 1), images)
    if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise DataError(
            f"Pixels of {where} must lie in [0, 1]. Got {images.min():.3g} to {images.max():.3g} "
            "instead: if the images are normalised, say how with normalization=(means, deviations)."
        )
    pixels: Array = np.rint(images * 255).astype(np.uint8)
    return pixels


def _labels(labels: Array, where: str) -> npt.NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
        raise DataError(
            f"Labels of {where} must be class indices (N,), from 0. "
            f"Got {labels.dtype} {labels.shape} instead."
        )
    return labels.astype(np.int64)


def _numbers(labels: Sequence[Any]) -> list[Any]:
    return [label.item() if hasattr(label, "item") else label for label in labels]


def _array(value: Any) -> Array:
    """A tensor, an array or a PIL image as an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, Mapping):
        raise DataError("An image must be an array, a tensor or a PIL image. Got a mapping.")
    if hasattr(value, "mode") and value.mode not in ("L", "RGB"):
        value = value.convert("L" if value.mode in ("1", "I;16") else "RGB")
    return np.asarray(value)


def _upper(where: str) -> str:
    return where[0].upper() + where[1:]
