"""Small real files in the layouts that data sets come in."""

import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def some_images(count: int, channels: int = 3, side: int = 4, seed: int = 0) -> np.ndarray:
    """Random pixels uint8 (count, channels, side, side)."""
    return np.random.default_rng(seed).integers(
        0, 256, (count, channels, side, side), dtype=np.uint8
    )


def encode(
    image: np.ndarray, format: str = "PNG", mode: str | None = None, **options: Any
) -> bytes:
    """One image (C, H, W) as the bytes of an image file."""
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    buffer = io.BytesIO()
    (picture if mode is None else picture.convert(mode)).save(buffer, format=format, **options)
    return buffer.getvalue()


def huggingface(names: Sequence[str], image: str = "img", label: str = "label") -> dict[str, str]:
    """Schema metadata as the hub writes it."""
    features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def write_parquet(
    path: Path,
    contents: Sequence[bytes | None],
    labels: Sequence[int | None],
    *,
    names: Sequence[str] | None = None,
    image: str = "img",
    label: str = "label",
    struct: bool = True,
    row_group_size: int = 3,
) -> Path:
    """A Parquet file of encoded images."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    values = (
        [{"bytes": content, "path": None} for content in contents] if struct else list(contents)
    )
    metadata = huggingface(names, image, label) if names is not None else None
    schema = pa.schema([(image, kind), (label, pa.int64())], metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({image: values, label: list(labels)}, schema=schema),
        path,
        row_group_size=row_group_size,
    )
    return path


def write_folder(path: Path, images: Mapping[str, np.ndarray], suffix: str = ".png") -> None:
    """An image folder with one subfolder per class."""
    for name, pixels in images.items():
        (path / name).mkdir(parents=True, exist_ok=True)
        for row, image in enumerate(pixels):
            (path / name / f"{row:03}{suffix}").write_bytes(encode(image))


def idx_bytes(array: np.ndarray) -> bytes:
    """A uint8 array as the bytes of an IDX file."""
    return (
        bytes((0, 0, 8, array.ndim))
        + np.array(array.shape, ">u4").tobytes()
        + array.astype(np.uint8).tobytes()
    )


def write_idx(
    path: Path, split: str, images: np.ndarray, labels: np.ndarray, zipped: bool = True
) -> None:
    """MNIST's two files of a split; images (N, 1, H, W)."""
    path.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
        content = idx_bytes(array)
        file = path / (f"{split}-{name}-ubyte" + (".gz" if zipped else ""))
        file.write_bytes(gzip.compress(content) if zipped else content)


def write_cifar10(path: Path, images: np.ndarray, labels: np.ndarray, per_file: int) -> None:
    """CIFAR-10's binary files: five training batches of `per_file`, the rest for testing."""
    path.mkdir(parents=True, exist_ok=True)
    records = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(len(images), -1)], 1)
    for batch in range(5):
        records[batch * per_file : (batch + 1) * per_file].tofile(
            path / f"data_batch_{batch + 1}.bin"
        )
    records[5 * per_file :].tofile(path / "test_batch.bin")
