"""The distilled set: a torch data set in memory, three files on disk, and the picture of it.

A saved set is a directory of

- `data.safetensors`: `images` float32 (n, C, H, W), network input; `labels`, class indices int64
  (n,) or soft labels float32 (n, classes); `normalization.*`, the state of the normalisation. Its
  bytes depend on the content alone. Where images are stored in another form (`synthetic.kind`), the
  tensors are those of that form, and the card says under `synthetic` which.
- `card.json`: what it is and where it comes from, with the SHA-256 of the tensors' file. It is
  written last: no card, no set.
- `grid.png`: the contact sheet.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.data import Dataset

from rayd import remote
from rayd.artifacts import (
    file_hash,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)
from rayd.config import SyntheticSettings, validate
from rayd.data.images import ImageShape
from rayd.data.normalization import Normalization, restore
from rayd.errors import ArtifactError, ConfigError, DataError, OutputError
from rayd.synthetic.base import Storage, SyntheticSet
from rayd.synthetic.kinds import restore as restore_set
from rayd.synthetic.learned_step_size import WithLearnedStepSize

FORMAT = 2
"""Version of the layout above; a newer one is refused. Sets whose images are stored as they are
have version 1.
"""

DIRECTORY = "distilled"
"""Where a run directory keeps its set."""
TENSORS = "data.safetensors"
CARD = "card.json"
GRID = "grid.png"

REQUIRED = ("format", "class_names", "shape", "normalization", "sha256")
"""Keys that a card must have to be read."""

KINDS = {
    "storage": dict, "data": dict, "versions": dict, "config": dict, "normalization": str, "shape": list, "sha256": str,
    "step_size": float,
}  # fmt: skip
"""Types of what else a card may hold."""

_STATE = "normalization."


class Distilled(Dataset[tuple[Tensor, Tensor]]):
    """A small labelled set to train networks on, in their input space.

    Args:
        images: network input, (n, C, H, W); kept as float32 on the CPU.
        labels: class indices (n,), or soft labels (n, classes).
        class_names: one name per class, in label order.
        normalization: how real pixels become network input of the same kind; what it is tested on
            must pass through it.
        card: where the set comes from (recipe, method, citation, data, seed, steps, storage,
            versions, ...), JSON-able. What follows from the other arguments is filled in: `format`,
            `class_names`, `shape`, `normalization`, and `ipc` and `storage` if absent.

    Raises:
        ArtifactError: images are not finite or labels do not fit the class names.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        class_names: Sequence[str],
        normalization: Normalization,
        card: Mapping[str, Any] | None = None,
    ):
        self.images = images.detach().to("cpu", torch.float32).contiguous()
        self.labels = (
            labels.detach()
            .to("cpu", torch.float32 if labels.is_floating_point() else torch.int64)
            .contiguous()
        )
        self.class_names = tuple(class_names)
        self.normalization = normalization
        self._form: tuple[SyntheticSettings, dict[str, Tensor]] | None = None
        self.directory: Path | None = None
        """Where it was loaded from or saved to; stored labels lie there."""
        if fault := _fault(self.images, self.labels, len(self.class_names)):
            raise ArtifactError(f"The distilled set is damaged: {fault}.")
        self.card: dict[str, Any] = {
            "ipc": len(self.images) // len(self.class_names),
            "storage": asdict(self._stored()),
            **(card or {}),
            "format": 1,
            "class_names": list(self.class_names),
            "shape": list(self.shape),
            "normalization": normalization.kind,
        }

    @classmethod
    def of(
        cls,
        learned: SyntheticSet,
        settings: SyntheticSettings,
        class_names: Sequence[str],
        normalization: Normalization,
        card: Mapping[str, Any],
    ) -> Self:
        """The set that was learned, in the form in which it was learned: what is saved is what is
        stored, not its images.

        Args:
            learned: the synthetic set.
            settings: what it was made of.
            class_names: one name per class, in label order.
            normalization: as above.
            card: as above; a step size that was learned with the set is added, as `step_size`.
        """
        with torch.no_grad():
            images, labels = learned.batch()
        if isinstance(learned, WithLearnedStepSize):
            card = {**card, "step_size": float(learned.step_size.detach())}
            learned = learned.learned
        made = cls(images, labels, class_names, normalization, card)
        if settings.kind != "pixels":
            state = {
                name: tensor.detach().cpu().contiguous()
                for name, tensor in learned.state_dict().items()
            }
            made._form = settings, state
            made.card |= {"format": FORMAT, "synthetic": settings.model_dump(mode="json")}
        return made

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def shape(self) -> ImageShape:
        """Shape of one image."""
        return ImageShape(*self.images.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes, with or without images."""
        return len(self.class_names)

    @property
    def hard_labels(self) -> Tensor:
        """Class indices int64 (n,): the labels, or the largest entry of each soft one."""
        return self.labels.argmax(1) if self.labels.is_floating_point() else self.labels

    @property
    def storage(self) -> Storage:
        """What the set costs to keep: as the card says, else every number of its tensors."""
        return Storage(
            self.card["storage"].get("numbers", {}), self.card["storage"].get("bytes", {})
        )

    @property
    def step_size(self) -> float | None:
        """The step size that was learned with the set; None if there is none."""
        learned = self.card.get("step_size")
        return None if learned is None else float(learned)

    def pixels(self) -> Tensor:
        """The images as people see them, uint8 (n, C, H, W): normalisation undone, clamped, rounded
        to the nearest level.
        """
        return self.normalization.inverse(self.images).clamp(0, 1).mul(255).round().to(torch.uint8)

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Write the three files into `directory`. Saving the same set again is allowed.

        Raises:
            OutputError: the directory holds another set and `overwrite` is not given.
            RunError: the place cannot be written.
        """
        directory = remote.local(directory)
        tensors = self._tensors()
        if remote.bring(directory / CARD):
            if not overwrite and not _holds(directory / TENSORS, tensors):
                raise OutputError(
                    f"'{directory}' already holds another distilled set; choose another directory or overwrite it."
                )
            # a crash between two files must not leave new tensors beside an old card
            remote.remove(directory / CARD)
        write_tensors(directory / TENSORS, tensors)
        write_bytes(directory / GRID, picture(self))
        write_json(directory / CARD, self.card | {"sha256": file_hash(directory / TENSORS)})
        self.directory = directory

    def _tensors(self) -> dict[str, Tensor]:
        state = {_STATE + name: value for name, value in self.normalization.state().items()}
        form = (
            self._form[1]
            if self._form is not None
            else {"images": self.images, "labels": self.labels}
        )
        return {**form, **state}

    def _stored(self) -> Storage:
        tensors = self._tensors()
        return Storage(
            {n: t.numel() for n, t in tensors.items()}, {n: t.nbytes for n, t in tensors.items()}
        )


def load(path: str | Path) -> Distilled:
    """The distilled set of a run directory, or of a directory that `Distilled.save` wrote.

    Raises:
        ArtifactError: it is missing, damaged, newer than this version reads, or its tensors are not
            those of its card.
    """
    directory = _locate(remote.local(path))
    card = _read_card(directory / CARD)
    file = directory / TENSORS
    remote.bring(file)
    tensors, _ = read_tensors(file)
    if file_hash(file) != card["sha256"]:
        raise ArtifactError(
            f"'{file}' is not the file that '{CARD}' beside it describes: their SHA-256 differ."
        )
    state = {
        name.removeprefix(_STATE): value
        for name, value in tensors.items()
        if name.startswith(_STATE)
    }
    try:
        normalization = restore(card["normalization"], state)
    except (ConfigError, DataError) as error:
        raise ArtifactError(f"'{file}' holds no normalisation to read: {error}") from error
    own = {name: value for name, value in tensors.items() if not name.startswith(_STATE)}
    distilled = _decoded(file, own, card, normalization)
    if list(distilled.images.shape[1:]) != card["shape"]:
        raise ArtifactError(
            f"'{file}' holds images of shape {list(distilled.images.shape[1:])}; its card says {card['shape']}."
        )
    distilled.directory = directory
    return distilled


def _decoded(
    file: Path, tensors: dict[str, Tensor], card: dict[str, Any], normalization: Normalization
) -> Distilled:
    """The set that the tensors of a file make."""
    for name in ("images", "labels") if "synthetic" not in card else ():
        if name not in tensors:
            raise ArtifactError(f"'{file}' lacks the tensor '{name}'.")
    try:
        settings = validate(
            SyntheticSettings, card.get("synthetic", {}), f"'{file.parent / CARD}'", "synthetic"
        )
        if settings.kind != "pixels":
            learned = restore_set(settings, tensors)
            return Distilled.of(learned, settings, card["class_names"], normalization, card)
    except (ConfigError, KeyError, RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"'{file}' does not hold images of the form that its card names: {error}"
        ) from error
    images = tensors["images"]
    labels = tensors["labels"]
    if fault := _fault(images, labels, len(card["class_names"])):
        raise ArtifactError(f"'{file}' is damaged: {fault}.")
    return Distilled(images, labels, card["class_names"], normalization, card)


def _locate(path: Path) -> Path:
    _ = remote.bring(path / DIRECTORY / CARD) or remote.bring(path / CARD)
    if not path.is_dir():
        raise ArtifactError(
            f"'{path}' must be a run directory or a distilled set. Got {'a file' if path.exists() else 'nothing'}."
        )
    if (path / DIRECTORY).is_dir():
        return path / DIRECTORY
    if not (path / CARD).exists():
        raise ArtifactError(
            f"'{path}' holds no distilled set: neither '{DIRECTORY}/' nor '{CARD}' is there."
        )
    return path


def _read_card(path: Path) -> dict[str, Any]:
    card = read_json(path)
    version = card.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise ArtifactError(
            f"'{path}' must have format {FORMAT} or older. Got {version!r} instead; a newer rayd wrote it."
        )
    if missing := [key for key in REQUIRED if key not in card]:
        raise ArtifactError(f"'{path}' lacks {', '.join(missing)}.")
    for key, kind in KINDS.items():
        if key in card and not isinstance(card[key], kind):
            raise ArtifactError(
                f"'{key}' in '{path}' must be of type {kind.__name__}. Got {card[key]!r} instead."
            )
    if not all(
        isinstance(card.get("storage", {}).get(part, {}), dict) for part in ("numbers", "bytes")
    ):
        raise ArtifactError(
            f"'storage' in '{path}' must hold 'numbers' and 'bytes' by part. Got {card['storage']!r} instead."
        )
    names = card["class_names"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ArtifactError(
            f"'class_names' in '{path}' must be a list of names. Got {names!r} instead."
        )
    return card


def _fault(images: Tensor, labels: Tensor, classes: int) -> str | None:
    """What is wrong with the tensors of a set, or None."""
    if images.dtype != torch.float32 or images.ndim != 4 or not len(images):
        return f"images must be float32 (n, C, H, W), at least one; got {images.dtype} {tuple(images.shape)}"
    if not images.isfinite().all():
        return f"{int((~images.isfinite()).any((1, 2, 3)).sum())} of {len(images)} images hold values that are not finite"
    if labels.dtype == torch.float32 and labels.shape == (len(images), classes):
        return None if labels.isfinite().all() else "soft labels hold values that are not finite"
    if labels.dtype != torch.int64 or labels.shape != (len(images),):
        wanted = f"int64 ({len(images)},) or float32 ({len(images)}, {classes})"
        return f"labels must be {wanted}; got {labels.dtype} {tuple(labels.shape)}"
    least, most = labels.aminmax()
    if least < 0 or most >= classes:
        return (
            f"labels must lie in 0..{classes - 1}, its class names; got {int(least)}..{int(most)}"
        )
    return None


def _holds(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    try:
        there, _ = read_tensors(path)
    except ArtifactError:
        return False
    return there.keys() == tensors.keys() and all(
        torch.equal(there[name], tensors[name].cpu()) for name in tensors
    )


CELL = 48
COLUMNS = 10
ROWS = 20
GAP = 2
"""Contact sheet: least side of an image, most images of a class, most classes, and the space
between them (pixels).
"""
LONGEST_NAME = 24
"""Characters of a class name that a contact sheet shows."""


def contact_sheet(distilled: Distilled) -> Image.Image:
    """The set at a glance: a row for each of the first `ROWS` classes, its name, and its first
    `COLUMNS` images.
    """
    from torchvision.utils import make_grid

    pixels = _visible(distilled.pixels())
    groups = [
        (distilled.hard_labels == label).nonzero().squeeze(1)[:COLUMNS]
        for label in range(min(distilled.classes, ROWS))
    ]
    columns = max(1, *map(len, groups))
    tiles = pixels.new_full((len(groups) * columns, 3, *pixels.shape[2:]), 255)
    for row, group in enumerate(groups):
        tiles[row * columns : row * columns + len(group)] = pixels[group]
    grid = make_grid(tiles, nrow=columns, padding=GAP, pad_value=255)
    return _with_names(grid, [_short(name) for name in distilled.class_names[: len(groups)]])


def picture(distilled: Distilled) -> bytes:
    """The contact sheet as a PNG file."""
    return as_png(contact_sheet(distilled))


def as_png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    return as_file(image, "PNG")


def as_file(image: Image.Image, format: str) -> bytes:
    """An image as a file of one of the formats in `PICTURE_FORMATS`."""
    buffer = io.BytesIO()
    image.save(buffer, format=format, quality=95)
    return buffer.getvalue()


PICTURE_FORMATS = {"": "PNG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Formats in which pictures are written, by the suffix of the file."""


def picture_format(path: Path) -> str:
    """The format of a picture by its file's suffix.

    Raises:
        OutputError: pictures are not written in this format.
    """
    suffix = path.suffix.lower()
    if suffix not in PICTURE_FORMATS:
        known = ", ".join(name for name in PICTURE_FORMATS if name)
        raise OutputError(
            f"A picture's file must end in one of {known}. Got '{path.name}' instead."
        )
    return PICTURE_FORMATS[suffix]


def _visible(pixels: Tensor) -> Tensor:
    """uint8 RGB (n, 3, H, W), enlarged by whole factors so that the shorter side has at least
    `CELL` pixels.
    """
    if pixels.shape[1] != 3:
        pixels = pixels.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1)
    factor = -(-CELL // min(pixels.shape[2:]))
    return pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def _with_names(grid: Tensor, names: Sequence[str]) -> Image.Image:
    font = ImageFont.load_default()
    margin = 3 * GAP + int(max(font.getlength(name) for name in names)) + 1
    _, height, width = grid.shape
    sheet = Image.new("RGB", (margin + width, height), "white")
    sheet.paste(Image.fromarray(np.ascontiguousarray(grid.permute(1, 2, 0).numpy())), (margin, 0))
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        draw.text(
            (2 * GAP, height * (row + 0.5) / len(names)), name, fill="black", font=font, anchor="lm"
        )
    return sheet


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…"
