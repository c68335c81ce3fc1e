"""Data sets given as Python objects: torch data sets, arrays, tensors, Hugging Face data sets.

They are read once and written as an `.npz` file next to the store, named by its content: a run can
then be continued, evaluated and given to workers like any other.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayd import plugins, remote
from rayd.artifacts import default_root, write_bytes
from rayd.config.data import GIVEN
from rayd.data.layout import listed
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
        DataError: labels are missing, there is only one class, pixels are out of range, or splits
            number different classes.
        RunError: the store cannot be written.
    """
    splits = {"train": train, "test": test, "validation": validation}
    arrays: dict[str, Array] = {}
    names = tuple(class_names) if class_names is not None else None
    own_names: tuple[str, ...] | None = None
    for split, given in splits.items():
        if given is None:
            continue
        read = _read(given, f"the data set given as '{split}'", normalization)
        if class_names is None:
            _check_same_classes(own_names, read.class_names, split)
        own_names = own_names or read.class_names
        names = read.class_names if names is None else names
        arrays[f"x_{split}"] = read.images
        arrays[f"y_{split}"] = read.labels
    found = np.unique(arrays["y_train"])
    gaps = np.flatnonzero(found != np.arange(len(found)))
    if len(gaps) and names is None:
        raise DataError(
            f"Labels of the data set given as 'train' must count from 0 to {found.max()} without "
            f"gaps. No image has label {gaps[0]}."
        )
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
    root = default_root() if cache is None else remote.local(cache)
    path = root / GIVEN / digest.hexdigest() / f"{stem}.npz"
    if not path.exists():
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_bytes(path, buffer.getvalue())
    return path


def _check_same_classes(
    known: tuple[str, ...] | None, names: tuple[str, ...] | None, split: str
) -> None:
    """Refuse a split whose labels are numbers of other classes than those of the training split.

    Raises:
        DataError: both name their classes, and these or their order differ.
    """
    if known is None or names is None or names == known:
        return
    raise DataError(
        f"The data set given as '{split}' must have the classes of the one given as 'train', in "
        f"the same order: {listed(known)}. Got {listed(names)} instead; if its labels are right "
        "all the same, pass 'class_names'."
    )


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


def _affine(normalization: Normalization, channels: int) -> tuple[Array, Array]:
    """Means and standard deviations (channels,) or (1,) of images that were normalised.

    Raises:
        DataError: they are not as many as channels, or undo nothing.
    """
    if not isinstance(normalization, Iterable):
        raise DataError(
            "'normalization' must be a pair, means and standard deviations. Got "
            f"{type(normalization).__name__} instead."
        )
    parts = [np.atleast_1d(np.asarray(part, np.float64)) for part in normalization]
    if len(parts) != 2 or any(part.shape not in ((1,), (channels,)) for part in parts):
        got = " and ".join(str(part.size) for part in parts)
        raise DataError(
            f"'normalization' must be means and standard deviations, {channels} each. Got {got} "
            "instead."
        )
    mean, deviation = parts
    if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > 0).all()):
        raise DataError(
            "'normalization' must be finite means, and standard deviations above 0. Got "
            f"{mean.tolist()} and {deviation.tolist()} instead."
        )
    return mean, deviation


def _name_of(given: Any) -> str:
    kind = type(given).__name__
    return "arrays" if isinstance(given, tuple | list) or kind == "TensorDataset" else kind


def _read(given: Any, where: str, normalization: Normalization | None) -> Images:
    """Read one split."""
    if isinstance(given, str | Path):
        raise DataError(
            f"{_upper(where)} must be an object. Got '{given}' instead: data are named by "
            f"data={str(given)!r}."
        )
    if isinstance(given, tuple | list) and len(given) == 2 and hasattr(given[0], "shape"):
        stack = _array(given[0])
        indices = _array(given[1])
        if len(stack) != len(indices):
            raise DataError(
                f"{_upper(where)} must have a label for each image. Got {len(stack)} images and "
                f"{len(indices)} labels instead."
            )
        return Images(_stack(stack, where, normalization), _labels(indices, where), None)
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
        item = _item(given, index, where)
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
        _together(images, where, normalization),
        _labels(np.array(_numbers(labels, where)), where),
        named,
    )


def _item(given: Any, index: int, where: str) -> Any:
    """An item of a data set.

    Raises:
        DataError: reading it fails; says which one.
    """
    try:
        return given[index]
    except RaydError:
        raise
    except Exception as error:
        raise DataError(
            f"Item {index} of {where} cannot be read ({type(error).__name__}: {error})."
        ) from error


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
        item = _item(given, index, where)
        images.append(item[image])
        labels.append(item[label])
    names = getattr(getattr(given, "features", {}).get(label), "names", None)
    return Images(
        _together(images, where, normalization),
        _labels(np.array(_numbers(labels, where)), where),
        tuple(names) if names else None,
    )


def _together(images: Sequence[Any], where: str, normalization: Normalization | None) -> Array:
    """Images one by one as an array, or as PNG files where their sizes differ."""
    arrays = [_array(image) for image in images]
    if len({array.shape for array in arrays}) == 1:
        return _stack(np.stack(arrays), where, normalization)
    _check_brightness(arrays, where)
    files = []
    for index, array in enumerate(arrays):
        pixels = _pixels(array[None], f"image {index} (from 0) of {where}", normalization)[0]
        buffer = io.BytesIO()
        from PIL import Image

        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return np.array(files)


def _stack(images: Array, where: str, normalization: Normalization | None) -> Array:
    """All images of a split, of one size, as uint8; see `_pixels`."""
    _check_brightness([images], where)
    return _pixels(images, where, normalization)


def _check_brightness(arrays: Sequence[Array], where: str) -> None:
    """Refuse whole numbers that are all 0 or 1, such as masks.

    Raises:
        DataError: they are; says how to give them instead.
    """
    whole = all(array.dtype.kind in "iu" for array in arrays)
    filled = [array for array in arrays if array.size]
    if whole and filled and max(array.max() for array in filled) == 1:
        raise DataError(
            f"Pixels of {where} are whole numbers, all 0 or 1, which would be read as almost black: "
            "whole numbers reach from 0 to 255. Give them as bool, as floats, or multiplied by 255."
        )


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
    if images.dtype == bool:
        return images.astype(np.uint8) * np.uint8(255)
    if images.dtype.kind in "iu" and images.min() >= 0 and images.max() <= 255:
        return images.astype(np.uint8)
    if images.dtype.kind != "f":
        values = f" from {images.min()} to {images.max()}" if images.dtype.kind in "iu" else ""
        raise DataError(
            f"Pixels of {where} must be uint8, bool or floats in [0, 1]. Got {images.dtype}{values} "
            "instead."
        )
    images = images.astype(np.float64)
    finite = np.isfinite(images)
    if not finite.all():
        first = int(np.argwhere(~finite)[0][0])
        at = f", first in image {first} (from 0)" if len(images) > 1 else ""
        raise DataError(f"Pixels of {where} must be finite numbers. Got NaN or infinity{at}.")
    if normalization is not None:
        mean, deviation = _affine(normalization, 1 if images.ndim == 3 else images.shape[3])
        images = images * deviation + mean
        images = np.where(np.abs(images - np.clip(images, 0, 1)) < 1e-4, images.clip(0, 1), images)
    if images.min() < 0 or images.max() > 1:
        if normalization is None and images.min() >= 0 and 2 < images.max() <= 255:
            raise DataError(
                f"Pixels of {where} must be uint8, or floats in [0, 1]. Got floats from "
                f"{images.min():.3g} to {images.max():.3g} instead: divide them by 255."
            )
        raise DataError(
            f"Pixels of {where} must lie in [0, 1]. Got {images.min():.3g} to {images.max():.3g} "
            "instead: if the images are normalised, say how with normalization=(means, deviations)."
        )
    pixels: Array = np.rint(images * 255).astype(np.uint8)
    return pixels


def _labels(labels: Array, where: str) -> npt.NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
        negative = labels.dtype.kind == "i" and labels.size and labels.min() < 0
        least = f", the least {labels.min()}," if negative else ""
        raise DataError(
            f"Labels of {where} must be class indices (N,), from 0. "
            f"Got {labels.dtype} {labels.shape}{least} instead."
        )
    return labels.astype(np.int64)


def _numbers(labels: Sequence[Any], where: str) -> list[Any]:
    """Labels, numbers or what holds one.

    Raises:
        DataError: a label is several numbers.
    """
    numbers = []
    for index, label in enumerate(labels):
        size = np.size(label) if not hasattr(label, "numel") else label.numel()
        if size != 1:
            raise DataError(
                f"A label of {where} must be a class index. Got {size} numbers in item {index} "
                "instead: soft labels, and several labels of an image, are not read."
            )
        numbers.append(label.item() if hasattr(label, "item") else label)
    return numbers


def _array(value: Any) -> Array:
    """A tensor, an array or a PIL image as an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16
        value = (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, Mapping):
        raise DataError("An image must be an array, a tensor or a PIL image. Got a mapping.")
    return np.asarray(_in_colours(value) if hasattr(value, "mode") else value)


def _in_colours(image: Any) -> Any:
    """A PIL image as grey or RGB, transparency on white as in files; of more than 8 bits, as it is:
    its numbers are checked like those of arrays, where a conversion would cut them off at 255.
    """
    from PIL import Image

    if image.mode in ("L", "RGB") or image.mode.startswith(("I", "F")):
        return image
    if image.mode == "1":
        return image.convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    canvas = Image.new("RGBA", seen.size, "white")
    return Image.alpha_composite(canvas, seen).convert("RGB")


def _upper(where: str) -> str:
    return where[0].upper() + where[1:]
