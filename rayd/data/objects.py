"""Data sets given as Python objects: torch data sets, arrays, tensors, Hugging Face data sets.

They are read once and saved in the store as an `.npz` file named by a hash of its content, so that
a run on them can be resumed, evaluated and distributed like any other.
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
"""Means and standard deviations per channel with which images were normalised."""

IMAGES = ("image", "img", "images", "pixels", "x")
"""Names of image columns, in order of preference."""
LABELS = ("label", "labels", "fine_label", "target", "y")
"""Names of label columns, in order of preference."""


@dataclass(frozen=True, eq=False)
class Images:
    """Content of one split."""

    images: Array
    """uint8 (N, H, W) or (N, H, W, C); encoded PNG files (N,) if sizes differ."""
    labels: npt.NDArray[np.int64]
    """Class indices (N,)."""
    class_names: tuple[str, ...] | None
    """Class names, if the object has them."""


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
    """Save data sets given as objects to a file that can be passed as `data=`.

    Args:
        train: training split: a pair of images and labels (arrays or tensors), a torch data set
            with a length, or a Hugging Face data set. Images are PIL images, uint8, or floats in
            [0, 1], of shape (H, W), (H, W, C) or (C, H, W).
        test: test split; by default, a part of `train` is set aside.
        validation: validation split.
        name: name of the data; by default that of the object's class.
        class_names: class names; by default those of the object, or numbers.
        normalization: means and standard deviations with which float images were normalised.
        cache: root of the store.

    Returns:
        Path of the file; equal content has the same path.

    Raises:
        DataError: labels are missing, there is only one class, pixels are out of range, or splits
            have different classes.
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
            f"Labels of the data set given as 'train' must cover 0..{found.max()}. "
            f"No image has label {gaps[0]}."
        )
    if len(found) < 2:
        raise DataError(
            "The data set given as 'train' must have at least two classes. "
            f"Got label {found.tolist()} for all {len(arrays['y_train'])} images instead."
        )
    if names is not None:
        if found.max() >= len(names):
            raise DataError(
                f"'class_names' must name every class. Got {len(names)} names, but label "
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
    """Check that a split has the classes of the training split, if both name their classes.

    Raises:
        DataError: the classes or their order differ.
    """
    if known is None or names is None or names == known:
        return
    raise DataError(
        f"The data set given as '{split}' must have the same classes as 'train', in the same "
        f"order: {listed(known)}. Got {listed(names)} instead; if its labels are correct anyway, "
        "pass 'class_names'."
    )


SPLITS = ("train", "test", "validation")
"""Splits that a data set from an installed package may have."""
_FILES: dict[tuple[str, Path], tuple[Any, Path]] = {}
"""Saved data sets from installed packages, by name and store: the object and its file."""


def named(name: str) -> Path | None:
    """Save a data set from an installed package, once per process; None if the name is unknown.

    The named object is a data set that `save` accepts; a mapping with `train` and optionally
    `test`, `validation`, `class_names` and `normalization`; or a function or class that returns
    either when called without arguments.

    Args:
        name: name of an entry point in `rayd.datasets`, or `package.module:Name`.

    Returns:
        Path of the file.

    Raises:
        ConfigError: the object cannot be loaded.
        DataError: calling it fails, or it is not a data set.
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
            f"'{name}' must be a data set, or a mapping with 'train' and optionally 'test', "
            f"'validation', 'class_names' and 'normalization'. Got {found} instead."
        )
    path = save(**splits, name=re.split("[.:]", name)[-1])
    _FILES[key] = (part, path)
    return path


def _affine(normalization: Normalization, channels: int) -> tuple[Array, Array]:
    """Validate a normalisation; returns means and standard deviations, (channels,) or (1,).

    Raises:
        DataError: the number of values is neither 1 nor `channels`, or a value is invalid.
    """
    if not isinstance(normalization, Iterable):
        raise DataError(
            "'normalization' must be a pair of means and standard deviations. Got "
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
            "'normalization' must have finite means and positive standard deviations. Got "
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
            f"{_capitalized(where)} must be an object. Got '{given}' instead: pass a name or path "
            f"as data={str(given)!r}."
        )
    if isinstance(given, tuple | list) and len(given) == 2 and hasattr(given[0], "shape"):
        stack = _array(given[0])
        indices = _array(given[1])
        if len(stack) != len(indices):
            raise DataError(
                f"{_capitalized(where)} must have one label per image. Got {len(stack)} images and "
                f"{len(indices)} labels instead."
            )
        return Images(_stack(stack, where, normalization), _labels(indices, where), None)
    if not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
        raise DataError(
            f"{_capitalized(where)} must be a pair of images and labels, or a map-style data set "
            f"with a length. Got {type(given).__name__} instead."
        )
    if len(given) == 0:
        raise DataError(f"{_capitalized(where)} is empty.")
    columns = getattr(given, "column_names", None)
    if columns is not None:
        return _hugging_face(given, columns, where, normalization)
    images: list[Any] = []
    labels: list[Any] = []
    for index in range(len(given)):
        item = _item(given, index, where)
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise DataError(
                f"{_capitalized(where)} must have items that are pairs of an image and a label. "
                f"Got {type(item).__name__} instead."
            )
        images.append(item[0])
        labels.append(item[1])
    names = getattr(given, "classes", None)
    named = tuple(map(str, names)) if isinstance(names, list | tuple) else None
    return Images(
        _combine(images, where, normalization),
        _labels(np.array(_numbers(labels, where)), where),
        named,
    )


def _item(given: Any, index: int, where: str) -> Any:
    """Get an item of a data set.

    Raises:
        DataError: the item cannot be read; the message names its index.
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
            f"{_capitalized(where)} has no column of {kind}: rename one of {', '.join(columns)} to "
            f"'{IMAGES[0] if image is None else LABELS[0]}'."
        )
    images: list[Any] = []
    labels: list[Any] = []
    for index in range(len(given)):
        item = _item(given, index, where)
        images.append(item[image])
        labels.append(item[label])
    names = getattr(getattr(given, "features", {}).get(label), "names", None)
    return Images(
        _combine(images, where, normalization),
        _labels(np.array(_numbers(labels, where)), where),
        tuple(names) if names else None,
    )


def _combine(images: Sequence[Any], where: str, normalization: Normalization | None) -> Array:
    """Combine images into an array; if their sizes differ, into an array of PNG files."""
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
    """Convert all images of a split, of equal size, to uint8; see `_pixels`."""
    _check_brightness([images], where)
    return _pixels(images, where, normalization)


def _check_brightness(arrays: Sequence[Array], where: str) -> None:
    """Reject integer images with no values other than 0 and 1, such as masks.

    Raises:
        DataError: all values are 0 or 1.
    """
    whole = all(array.dtype.kind in "iu" for array in arrays)
    filled = [array for array in arrays if array.size]
    if whole and filled and max(array.max() for array in filled) == 1:
        raise DataError(
            f"Pixels of {where} are integers that are all 0 or 1, which would be almost black on "
            "the scale of 0 to 255: pass them as bool or as floats, or multiply them by 255."
        )


def _pixels(images: Array, where: str, normalization: Normalization | None) -> Array:
    """Convert images (N, H, W), (N, H, W, C) or (N, C, H, W) to uint8, with channels last."""
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            f"Images of {where} must have shape (H, W), (H, W, C) or (C, H, W) with C of 1 or 3. "
            f"Got {images.shape[1:]} instead."
        )
    return _as_bytes(images, where, normalization)


def _as_bytes(images: Array, where: str, normalization: Normalization | None) -> Array:
    """Convert pixels in [0, 255] or [0, 1], or normalised pixels, to uint8."""
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
            "instead: if the images are normalised, pass normalization=(means, deviations)."
        )
    pixels: Array = np.rint(images * 255).astype(np.uint8)
    return pixels


def _labels(labels: Array, where: str) -> npt.NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
        negative = labels.dtype.kind == "i" and labels.size and labels.min() < 0
        least = f", minimum {labels.min()}," if negative else ""
        raise DataError(
            f"Labels of {where} must be class indices (N,), starting at 0. "
            f"Got {labels.dtype} {labels.shape}{least} instead."
        )
    return labels.astype(np.int64)


def _numbers(labels: Sequence[Any], where: str) -> list[Any]:
    """Convert labels to numbers, from numbers or arrays with a single value.

    Raises:
        DataError: a label has several values.
    """
    numbers = []
    for index, label in enumerate(labels):
        size = np.size(label) if not hasattr(label, "numel") else label.numel()
        if size != 1:
            raise DataError(
                f"A label of {where} must be a class index. Got {size} numbers in item {index} "
                "instead: soft labels and multiple labels per image are not supported."
            )
        numbers.append(label.item() if hasattr(label, "item") else label)
    return numbers


def _array(value: Any) -> Array:
    """Convert a tensor, an array or a PIL image to an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16
        value = (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, Mapping):
        raise DataError("An image must be an array, a tensor or a PIL image. Got a mapping.")
    return np.asarray(_grey_or_rgb(value) if hasattr(value, "mode") else value)


def _grey_or_rgb(image: Any) -> Any:
    """Convert a PIL image to greyscale or RGB, compositing transparency on white as for files.

    Images with more than 8 bits per channel are returned unchanged: a conversion would clip them at
    255, whereas their values are checked like those of arrays.
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


def _capitalized(where: str) -> str:
    return where[0].upper() + where[1:]
