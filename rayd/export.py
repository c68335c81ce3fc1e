"""Export of a distilled set for other tools, and reading of exports.

| format | images | labels | for |
|---|---|---|---|
| `safetensors` | network input, float32 | hard or soft | everything, bit by bit |
| `npz` | 8 bits, and network input where these are not enough | hard, and soft | NumPy |
| `parquet` | 8 bits, and network input where these are not enough | hard, and soft | `datasets` |
| `hub` | the same, in the layout of the Hugging Face Hub with a data set card | | `rayd push` |
| `imagefolder` | 8 bits | hard | `ImageFolder`, looking at them |

All contain the set's card, including its recipe, and its normalisation, so that `rayd evaluate`
works on an export as on the set. Images of 8 bits are those of `Distilled.pixels`: values are
rounded to the nearest of 256 between 0 and 1, and those outside are clamped. A set that a format
cannot hold is refused, unless `lossy` is set; losses are measured and reported.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from rayd import remote
from rayd.artifacts import (
    content_hash,
    read_json,
    read_tensors,
    tensor_hash,
    text_hash,
    write_tensors,
)
from rayd.card_format import check_card
from rayd.data.normalization import Normalization, restore
from rayd.distilled import Distilled
from rayd.errors import ArtifactError, ConfigError, OutputError, RunError, unknown

Format = Literal["parquet", "hub", "imagefolder", "npz", "safetensors"]

SHARD = "train-00000-of-00001.parquet"
"""File of a Parquet folder, with Hugging Face's name for a single shard of the training split."""
SIDE_FILE = "rayd.json"
"""File of an image folder with the set's card and normalisation."""
KEY = b"rayd"
"""Key of the card and normalisation in the metadata of a Parquet file."""
DATA = "data"
"""Folder of the Parquet file of a repository of the Hub; see `rayd.hub`."""
LARGEST_STATE = 2**18
"""Maximum numbers of a normalisation that are written as JSON; a whitening of 22 x 22 pixels."""

_NORMALIZATION = "normalization."


def export(
    distilled: Distilled,
    format: Format | str,
    destination: str | Path,
    overwrite: bool = False,
    lossy: bool = False,
) -> list[str]:
    """Write the set to `destination`, atomically.

    - `parquet`: rows of `image`, a struct of PNG `bytes` and `path`, and `label`, int64, with the
      class names in the metadata used by Hugging Face `datasets`; `soft_label`, float32 (classes,),
      if labels are soft; `inputs`, network input float32 (C H W,), if 8 bits do not hold the
      images. A destination that ends in `.parquet` is a file, any other a folder with one file.
    - `hub`: a folder with such a file, a data set card and the contact sheet; see `rayd.hub`.
    - `imagefolder`: `<class name>/<number>.png`. Names are sanitised, and prefixed by the class
      index if they would not sort in label order, so that torchvision's `ImageFolder` assigns the
      same labels. A class without images is an empty folder. `rayd.json` holds the card.
    - `npz`: `images` uint8 (n, H, W, C), `labels` int64 (n,), `class_names`; `soft_labels` float32
      (n, classes) and `inputs` float32 (n, C, H, W) as above. No array needs pickle.
    - `safetensors`: `images`, network input float32 (n, C, H, W); `labels`, int64 (n,) or soft ones
      float32 (n, classes); `normalization.*`.

    Args:
        distilled: the set.
        format: one of the five.
        destination: file or folder to create.
        overwrite: replace an existing file, or a folder of nothing but images or Parquet files.
        lossy: write as much of the set as the format can hold.

    Returns:
        Sentences on differences from the set, and on anything needed to use the export.

    Raises:
        ConfigError: the format is unknown.
        OutputError: the destination exists or is not writable, or the format cannot hold the set:
            soft labels or values outside 0..1 in an image folder, more channels than PNG supports,
            a large whitening matrix in JSON.

    Example:
        >>> export(rayd.load("runs/digits"), "safetensors", "digits.safetensors")  # doctest: +SKIP
        []
    """
    if format not in WRITERS:
        raise ConfigError(unknown("format", format, WRITERS))
    destination = remote.local(destination)
    lost = _check(distilled, format, destination, overwrite=overwrite, lossy=lossy)
    # resolved, to replace the target of a link instead of the link, and to give '.' a name
    target = destination.resolve()
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[cast(Format, format)](distilled, temporary, destination)
        _replace(temporary, target)
    except RunError as error:
        # the message names the temporary file, which the user does not know
        message = str(error).replace(str(temporary), str(destination))
        raise OutputError(message) from error
    except OSError as error:
        raise OutputError(f"Cannot write '{destination}': {error.strerror or error}.") from error
    finally:
        _remove(temporary)
    return [*(f"Lost in this export: {sentence}." for sentence in lost), *_notes(distilled, format)]


def _check(
    distilled: Distilled, format: str, destination: Path, *, overwrite: bool, lossy: bool
) -> list[str]:
    """Refuse an export that cannot or must not be written; return what it loses."""
    if remote.url(destination) is not None:
        raise OutputError(
            f"An export is written to a path, not to '{remote.shown(destination)}'; "
            "copy it there afterwards."
        )
    if destination.exists() and not overwrite:
        raise OutputError(
            f"'{destination}' exists already; replace it with --overwrite, "
            "or choose another destination."
        )
    if format in ("parquet", "hub", "imagefolder") and distilled.shape.channels > 4:
        raise OutputError(
            f"A PNG holds at most 4 channels. Got {distilled.shape.channels} instead; "
            "export to 'npz' or 'safetensors'."
        )
    lost = _lost(distilled, format)
    if lost and not lossy:
        raise OutputError(
            f"'{format}' cannot hold this set: {'; '.join(lost)}. Export to "
            "--format safetensors or npz, which hold it, or add --lossy."
        )
    if not destination.is_dir():
        return lost
    if other := _not_ours(destination):
        raise OutputError(
            f"'{destination}' holds what no export writes ('{other}'), so it is not overwritten; "
            "remove it yourself."
        )
    if any(destination.iterdir()) and not is_export(destination):
        raise OutputError(
            f"'{destination}' is not an export, so it is not overwritten; remove it yourself."
        )
    return lost


def _lost(distilled: Distilled, format: str) -> list[str]:
    """Describe what a format loses of a set."""
    lost: list[str] = []
    if format == "imagefolder":
        if not distilled.pixel_range.fits:
            lost.append(f"{distilled.pixel_range.text()}, and images of 8 bits end at 0 and 1")
        if distilled.labels.is_floating_point():
            lost.append(f"its labels are soft{_without_images(distilled)}")
    if format in ("parquet", "hub", "imagefolder") and not _state_fits(distilled):
        lost.append("its whitening matrix is too large for JSON, so it could not be evaluated")
    return lost


def _notes(distilled: Distilled, format: str) -> list[str]:
    """Notes for users of an export."""
    notes: list[str] = []
    soft = {"parquet": "soft_label", "hub": "soft_label", "npz": "soft_labels"}
    if distilled.labels.is_floating_point() and format in soft:
        notes.append(
            f"Labels are soft, in '{soft[format]}': '{soft[format][5:]}' is only the largest entry "
            f"of each{_without_images(distilled)}."
        )
    if not distilled.pixel_range.fits and format in soft:
        name = "images" if format == "npz" else "image"
        notes.append(
            f"The values are in 'inputs', normalised: {distilled.pixel_range.text()}, and are "
            f"clamped in '{name}'."
        )
    if "labels" in distilled.card:
        notes.append(
            "The teachers' labels for each epoch stay with the set: evaluate the export with "
            "labels.kind=online."
        )
    return notes


def _without_images(distilled: Distilled) -> str:
    """End of a sentence on classes that are not the hard label of any image."""
    counts = distilled.hard_labels.bincount(minlength=distilled.classes)
    empty = int((counts == 0).sum())
    return f" (no image has its largest entry for {empty} of {len(counts)} classes)" * (empty > 0)


def _description(distilled: Distilled) -> dict[str, Any]:
    """The card of an exported set, which consists of pixels and has no stored labels."""
    left = ("sha256", "synthetic", "labels")
    return {key: value for key, value in distilled.card.items() if key not in left}


def _digest(
    card: Mapping[str, Any], normalization: Normalization, labels: Tensor, images: Tensor
) -> str:
    """A hash of all parts of a set, to verify exports when they are read.

    It does not depend on the source of own methods and data that the card names: an export is read
    where they are not, and after they were edited.

    Args:
        card: of the export.
        normalization: of the set.
        labels: of the export.
        images: network input, or uint8 images where they are enough.
    """
    return text_hash(_content(card, normalization, labels, images))


def _is_digest(
    digest: object,
    card: Mapping[str, Any],
    normalization: Normalization,
    labels: Tensor,
    images: Tensor,
) -> bool:
    """Whether an export of this or an older version has a digest of what it holds; see `_digest`."""
    content = _content(card, normalization, labels, images)
    # older versions hashed the source of own parts as well
    return digest == text_hash(content) or digest == content_hash(content)


def _content(
    card: Mapping[str, Any], normalization: Normalization, labels: Tensor, images: Tensor
) -> dict[str, Any]:
    """What a digest is of."""
    tensors = tensor_hash({"images": images, "labels": labels})
    return {"card": card, "normalization": normalization.fingerprint, "tensors": tensors}


def _side(distilled: Distilled, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Card and normalisation as JSON, with a hash; without the latter if it is too large."""
    card = _description(distilled)
    content: dict[str, Any] = {
        "card": card,
        "digest": _digest(card, distilled.normalization, labels, images),
    }
    if _state_fits(distilled):
        state = distilled.normalization.state().items()
        content["normalization"] = {name: tensor.tolist() for name, tensor in state}
    return content


def _state_fits(distilled: Distilled) -> bool:
    state = distilled.normalization.state().values()
    return sum(tensor.numel() for tensor in state) <= LARGEST_STATE


def _parquet(distilled: Distilled, path: Path, destination: Path) -> None:
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(distilled.class_names)},
    }
    columns: dict[str, Any] = {
        "image": pa.array(
            [
                {"bytes": _png(image), "path": f"{index:06d}.png"}
                for index, image in enumerate(_channels_last(distilled))
            ],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        ),
        "label": pa.array(distilled.hard_labels.tolist(), pa.int64()),
    }
    for name, values in _floats(distilled, "soft_label").items():
        columns[name] = pa.FixedSizeListArray.from_arrays(
            pa.array(values.ravel()), int(np.prod(values.shape[1:]))
        )
        features[name] = {
            "_type": "Sequence",
            "feature": {"dtype": "float32", "_type": "Value"},
            "length": int(np.prod(values.shape[1:])),
        }
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        KEY: json.dumps(_side(distilled, _images(distilled), distilled.labels)),
    }
    if destination.suffix != ".parquet":
        path.mkdir()
        path = path / SHARD
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def _hub(distilled: Distilled, path: Path, destination: Path) -> None:
    from rayd.hub import write_texts

    path.mkdir()
    _parquet(distilled, path / DATA, destination / DATA)
    write_texts(distilled, path)


def _images(distilled: Distilled) -> Tensor:
    """Arrays that hold the images exactly: 8 bits, or network input."""
    return distilled.pixels() if distilled.pixel_range.fits else distilled.images


def _floats(distilled: Distilled, soft: str) -> dict[str, npt.NDArray[np.float32]]:
    """Arrays of everything that hard labels and 8-bit images cannot hold, by name."""
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    if distilled.labels.is_floating_point():
        arrays[soft] = distilled.labels.numpy()
    if not distilled.pixel_range.fits:
        arrays["inputs"] = distilled.images.numpy()
    return arrays


def _imagefolder(distilled: Distilled, path: Path, destination: Path) -> None:
    images = _channels_last(distilled)
    order: list[int] = []
    for label, folder in enumerate(folders(distilled.class_names)):
        (path / folder).mkdir(parents=True)
        rows = (distilled.hard_labels == label).nonzero().squeeze(1).tolist()
        order += rows
        for number, row in enumerate(rows):
            (path / folder / f"{number:05d}.png").write_bytes(_png(images[row]))
    side = _side(distilled, distilled.pixels()[order], distilled.hard_labels[order])
    (path / SIDE_FILE).write_text(json.dumps(side, indent=1), encoding="utf-8")


def _npz(distilled: Distilled, path: Path, destination: Path) -> None:
    arrays: dict[str, Any] = {
        "images": _channels_last(distilled),
        "labels": distilled.hard_labels.numpy(),
        "class_names": np.array(distilled.class_names, dtype=np.str_),
        **_floats(distilled, "soft_labels"),
    }
    card = _description(distilled)
    digest = _digest(card, distilled.normalization, distilled.labels, _images(distilled))
    arrays["card"] = np.array(json.dumps({"card": card, "digest": digest}))
    for name, tensor in distilled.normalization.state().items():
        arrays[_NORMALIZATION + name] = tensor.numpy()
    # an open file, as numpy would append .npz to a path without it
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _safetensors(distilled: Distilled, path: Path, destination: Path) -> None:
    state = distilled.normalization.state().items()
    tensors = {_NORMALIZATION + name: tensor for name, tensor in state}
    tensors |= {"images": distilled.images, "labels": distilled.labels}
    card = _description(distilled)
    digest = _digest(card, distilled.normalization, distilled.labels, distilled.images)
    write_tensors(path, tensors, {"card": card, "digest": digest})


WRITERS: Mapping[Format, Callable[[Distilled, Path, Path], None]] = {
    "parquet": _parquet,
    "hub": _hub,
    "imagefolder": _imagefolder,
    "npz": _npz,
    "safetensors": _safetensors,
}
"""Writers by format; each creates a temporary file or folder that is then renamed."""


def folders(class_names: Sequence[str]) -> list[str]:
    """Folder names of the classes, which sort in label order.

    >>> folders(["cat", "dog"]), folders(["dog", "cat"]), folders(["n/a", "n?a"])
    (['cat', 'dog'], ['0_dog', '1_cat'], ['0_n_a', '1_n_a'])
    """
    safe = [re.sub(r"[^\w.-]+", "_", name)[:80].strip("._ ") for name in class_names]
    folded = [name.casefold() for name in safe]
    # compared without case, as some file systems do not distinguish 'Cat' from 'cat'
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
    from rayd.hub import FILES

    texts = {directory / name for name in (SIDE_FILE, *FILES)}
    for path in directory.rglob("*"):
        ours = path.suffix in (".png", ".parquet") or path in texts
        if not path.is_dir() and not ours:
            return str(path.relative_to(directory))
    return None


def _replace(temporary: Path, destination: Path) -> None:
    # a file replaces a file in one step; a folder must first make way, or be made way for
    in_the_way = destination.is_dir() or (temporary.is_dir() and destination.exists())
    if not in_the_way:
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


@dataclass(frozen=True)
class _Contents:
    """Content of an export."""

    side: Mapping[str, Any]
    """The card and the hash."""
    state: Mapping[str, Tensor]
    """State of the normalisation."""
    labels: Tensor
    """Hard or soft labels."""
    inputs: Tensor | None = None
    """Network input float32 (n, C, H, W)."""
    pixels: Tensor | None = None
    """Images uint8 (n, C, H, W), if there is no network input."""


def load_export(path: Path) -> Distilled:
    """Load a set from a file or folder that `export` wrote.

    Raises:
        ArtifactError: it is damaged, or no export.

    Example:
        >>> load_export(Path("digits.parquet")).class_names[:2]  # doctest: +SKIP
        ('0', '1')
    """
    try:
        return _restored(path, _reader(path)(path))
    except ArtifactError:
        raise
    # for damaged files, numpy, pyarrow and PIL may raise almost anything
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ArtifactError(
            f"'{path}' must hold what 'rayd export' writes, and is damaged: {reason}."
        ) from error


def is_repository_of(folder: Path, distilled: Distilled) -> bool:
    """Whether a folder is an export of this set in the format `hub`, with no other files in it.

    Its texts may have been edited since.

    Raises:
        ArtifactError: its data are damaged.
    """
    if not (folder / DATA / SHARD).is_file() or _not_ours(folder):
        return False
    load_export(folder)  # refuses damaged data
    written = json.loads(pq.read_schema(folder / DATA / SHARD).metadata[KEY])["digest"]
    card = _description(distilled)
    images = _images(distilled)
    return _is_digest(written, card, distilled.normalization, distilled.labels, images)


def is_export(path: Path) -> bool:
    """Whether a path may be an export: a file of a known format, or a folder that holds one.

    Raises:
        ArtifactError: the file cannot be read.
    """
    if path.is_dir():
        files = (path / SIDE_FILE, path / SHARD, path / DATA / SHARD)
        return any(file.is_file() for file in files)
    try:
        return path.is_file() and _magic(path) is not None
    except OSError as error:
        raise ArtifactError(f"Cannot read '{path}': {error.strerror}.") from error


def _magic(path: Path) -> Callable[[Path], _Contents] | None:
    """Reader of a file by its first bytes, as an export may have any name."""
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"PAR1"):
        return _read_parquet
    if head.startswith(b"PK"):
        return _read_npz
    return _read_safetensors if head[8:] == b"{" else None


def _reader(path: Path) -> Callable[[Path], _Contents]:
    if (path / SIDE_FILE).is_file():
        return _read_imagefolder
    if path.is_dir():
        shard = path / SHARD if (path / SHARD).is_file() else path / DATA / SHARD
        return lambda _: _read_parquet(shard)
    return _magic(path) or _read_safetensors


def _read_parquet(path: Path) -> _Contents:
    table = pq.read_table(path)
    side = json.loads((table.schema.metadata or {}).get(KEY, b"null"))
    if side is None:
        raise ArtifactError(_no_card(path))
    names = set(table.column_names)
    soft = "soft_label" in names
    labels = _column(table, "soft_label") if soft else np.array(table["label"].to_pylist())
    inputs = None
    pixels = None
    if "inputs" in names:
        inputs = torch.from_numpy(_column(table, "inputs")).reshape(-1, *side["card"]["shape"])
    else:
        pixels = _decoded([io.BytesIO(row["bytes"]) for row in table["image"].to_pylist()])
    return _Contents(
        side=side,
        state=_state(path, side),
        labels=torch.from_numpy(labels),
        inputs=inputs,
        pixels=pixels,
    )


def _column(table: pa.Table, name: str) -> npt.NDArray[np.float32]:
    """A column of lists of equal length as an array (n, length)."""
    return np.array(table[name].to_pylist(), np.float32)


def _read_imagefolder(path: Path) -> _Contents:
    side = read_json(path / SIDE_FILE)
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders(side["card"]["class_names"])):
        found = sorted((path / folder).glob("*.png"))
        files += found
        labels += [label] * len(found)
    return _Contents(
        side=side,
        state=_state(path, side),
        labels=torch.tensor(labels, dtype=torch.int64),
        pixels=_decoded(files),
    )


def _read_npz(path: Path) -> _Contents:
    with np.load(path, allow_pickle=False) as archive:
        if "card" not in archive.files:
            raise ArtifactError(_no_card(path))
        arrays = {name: archive[name] for name in archive.files}
    labels = arrays.get("soft_labels", arrays["labels"])
    pixels = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    return _Contents(
        side=json.loads(str(arrays["card"])),
        state={
            name.removeprefix(_NORMALIZATION): torch.from_numpy(values)
            for name, values in arrays.items()
            if name.startswith(_NORMALIZATION)
        },
        labels=torch.from_numpy(labels),
        inputs=torch.from_numpy(arrays["inputs"]) if "inputs" in arrays else None,
        pixels=pixels,
    )


def _read_safetensors(path: Path) -> _Contents:
    tensors, note = read_tensors(path)
    if "card" not in note:
        raise ArtifactError(_no_card(path))
    return _Contents(
        side=note,
        state={
            name.removeprefix(_NORMALIZATION): tensor
            for name, tensor in tensors.items()
            if name.startswith(_NORMALIZATION)
        },
        labels=tensors["labels"],
        inputs=tensors["images"],
    )


def _state(path: Path, side: Mapping[str, Any]) -> dict[str, Tensor]:
    """The normalisation of JSON: float64, which holds float32 exactly."""
    if "normalization" not in side:
        raise ArtifactError(
            f"'{path}' was exported with --lossy, without its whitening matrix; export the set to "
            "npz or safetensors."
        )
    state = side["normalization"].items()
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in state}


def _decoded(files: Sequence[Any]) -> Tensor:
    """Decode PNG files to uint8 (n, C, H, W)."""
    images = []
    for file in files:
        with Image.open(file, formats=["PNG"]) as image:
            array = np.asarray(image)
        images.append(array[:, :, None] if array.ndim == 2 else array)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _no_card(path: Path) -> str:
    return (
        f"'{path}' holds no card of a distilled set, as exports of this version do; export the set "
        f"again{_as_data(path)}."
    )


def _as_data(path: Path) -> str:
    """End of a sentence on a path that is not a set, but can be read as a data set.

    Single Parquet files and files of tensors cannot.
    """
    is_data = path.is_dir() or path.suffix == ".npz"
    return f", or use its images as data with data={path}" if is_data else ""


def _restored(path: Path, contents: _Contents) -> Distilled:
    card = check_card(contents.side["card"], f"the card in '{path}'")
    images = contents.pixels if contents.inputs is None else contents.inputs
    assert images is not None
    normalization = restore(card["normalization"], contents.state)
    if not _is_digest(contents.side["digest"], card, normalization, contents.labels, images):
        raise ArtifactError(
            f"'{path}' does not hold the set that was exported; export it again{_as_data(path)}."
        )
    if contents.inputs is None:
        images = normalization(images.contiguous())
    return Distilled(images, contents.labels, card["class_names"], normalization, card)
