"""Export of a distilled set for other tools: Parquet, an image folder, or an `.npz` file.

All formats hold the pixels of `Distilled.pixels`, losslessly, and hard labels; only `npz` holds
soft labels, too.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rayd import remote
from rayd.distilled import Distilled
from rayd.errors import ConfigError, OutputError, unknown

Format = Literal["parquet", "imagefolder", "npz"]

SHARD = "train-00000-of-00001.parquet"
"""File of a Parquet folder, with Hugging Face's name for a single shard of the training split."""


def export(
    distilled: Distilled, format: Format | str, destination: str | Path, overwrite: bool = False
) -> None:
    """Write the set to `destination`, atomically.

    - `parquet`: rows of `image`, a struct of PNG `bytes` and `path`, and `label`, int64, with the
      class names in the metadata used by Hugging Face `datasets`. A destination that ends in
      `.parquet` is a file, any other a folder with one file.
    - `imagefolder`: `<class name>/<number>.png`. Names are sanitised, and prefixed by the class
      index if they would not sort in label order, so that torchvision's `ImageFolder` assigns the
      same labels. A class without images is an empty folder.
    - `npz`: `images` uint8 (n, H, W, C), `labels` int64 (n,), `class_names`, and `soft_labels`
      float32 (n, classes) if there are any. No array needs pickle.

    Args:
        distilled: the set.
        format: one of the three.
        destination: file or folder to create.
        overwrite: replace an existing file, or a folder of nothing but images or Parquet files.

    Raises:
        ConfigError: the format is unknown.
        OutputError: the destination exists, is not writable, or the images have more channels than
            PNG supports.
    """
    if format not in WRITERS:
        raise ConfigError(unknown("format", format, WRITERS))
    destination = remote.local(destination)
    if remote.url(destination) is not None:
        raise OutputError(
            f"An export is written to a path, not to '{remote.shown(destination)}'; "
            "copy it there afterwards."
        )
    if destination.exists() and not overwrite:
        raise OutputError(
            f"'{destination}' exists already; choose another destination or overwrite it."
        )
    if format != "npz" and distilled.shape.channels > 4:
        raise OutputError(
            f"A PNG holds at most 4 channels. Got {distilled.shape.channels} instead; "
            "export to 'npz'."
        )
    if destination.is_dir() and (other := _not_ours(destination)):
        raise OutputError(
            f"'{destination}' holds what no export writes ('{other}'), so it is not overwritten; "
            "remove it yourself."
        )
    temporary = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[cast(Format, format)](distilled, temporary, destination)
        _replace(temporary, destination)
    except OSError as error:
        raise OutputError(f"Cannot write '{destination}': {error.strerror or error}.") from error
    finally:
        _remove(temporary)


def _parquet(distilled: Distilled, path: Path, destination: Path) -> None:
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(distilled.class_names)},
    }
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    images = [
        {"bytes": _png(image), "path": f"{index:06d}.png"}
        for index, image in enumerate(_channels_last(distilled))
    ]
    table = pa.table({"image": images, "label": distilled.hard_labels.tolist()}, schema=schema)
    if destination.suffix != ".parquet":
        path.mkdir()
        path = path / SHARD
    pq.write_table(table, path)


def _imagefolder(distilled: Distilled, path: Path, destination: Path) -> None:
    images = _channels_last(distilled)
    for label, folder in enumerate(folders(distilled.class_names)):
        (path / folder).mkdir(parents=True)
        rows = (distilled.hard_labels == label).nonzero().squeeze(1).tolist()
        for number, row in enumerate(rows):
            (path / folder / f"{number:05d}.png").write_bytes(_png(images[row]))


def _npz(distilled: Distilled, path: Path, destination: Path) -> None:
    arrays: dict[str, Any] = {
        "images": _channels_last(distilled),
        "labels": distilled.hard_labels.numpy(),
        "class_names": np.array(distilled.class_names, dtype=np.str_),
    }
    if distilled.labels.is_floating_point():
        arrays["soft_labels"] = distilled.labels.numpy()
    # an open file, as numpy would add .npz to a name without it
    with path.open("wb") as file:
        np.savez(file, **arrays)


WRITERS: Mapping[Format, Callable[[Distilled, Path, Path], None]] = {
    "parquet": _parquet,
    "imagefolder": _imagefolder,
    "npz": _npz,
}
"""Writers by format; each creates a temporary file or folder that is then renamed."""


def folders(class_names: Sequence[str]) -> list[str]:
    """Folder names of the classes, which sort in label order.

    >>> folders(["cat", "dog"]), folders(["dog", "cat"]), folders(["n/a", "n?a"])
    (['cat', 'dog'], ['0_dog', '1_cat'], ['0_n_a', '1_n_a'])
    """
    safe = [re.sub(r"[^\w.-]+", "_", name)[:80].strip("._ ") for name in class_names]
    folded = [name.casefold() for name in safe]
    # compared with case folded, as some file systems do not distinguish 'Cat' and 'cat'
    if safe == sorted(safe) and len(set(folded)) == len(safe) and all(safe):
        return safe
    digits = len(str(len(safe) - 1))
    return [f"{label:0{digits}d}_{name}" for label, name in enumerate(safe)]


def _channels_last(distilled: Distilled) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(distilled.pixels().permute(0, 2, 3, 1).numpy())


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode an image (H, W, C) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def _not_ours(directory: Path) -> str | None:
    """Path of a file in the directory that no export writes; None if there is none."""
    for path in directory.rglob("*"):
        if not path.is_dir() and path.suffix not in (".png", ".parquet"):
            return str(path.relative_to(directory))
    return None


def _replace(temporary: Path, destination: Path) -> None:
    if not destination.is_dir():
        os.replace(temporary, destination)
        return
    old = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}.old")
    os.replace(destination, old)
    os.replace(temporary, destination)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
