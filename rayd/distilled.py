"""The distilled set: a torch data set in memory, and a directory of three files on disk.

- `data.safetensors`: `images` float32 (n, C, H, W), network input; `labels`, class indices int64
  (n,) or soft labels float32 (n, classes); `normalization.*`, the state of the normalisation. Its
  bytes depend on the content only. For other parameterisations (`synthetic.kind`), the tensors are
  their parameters, and the card specifies them under `synthetic`.
- `card.json`: description and origin, with the SHA-256 of the tensors' file. It is written last, so
  a directory without a card holds no set.
- `grid.png`: contact sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from rayd import remote, shown
from rayd.artifacts import (
    file_hash,
    read_hash,
    read_json,
    read_tensors,
    tensor_hash,
    write_bytes,
    write_json,
    write_tensors,
)
from rayd.card_format import FORMAT, PixelRange, check_card, contradiction, renamed
from rayd.config import SyntheticSettings, lookup, validate
from rayd.data.images import ImageShape
from rayd.data.normalization import Normalization, restore
from rayd.errors import ArtifactError, ConfigError, DataError, OutputError
from rayd.pictures import contact_sheet, picture
from rayd.synthetic.base import Storage, SyntheticSet
from rayd.synthetic.kinds import restore as restore_set
from rayd.synthetic.learned_step_size import WithLearnedStepSize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CARD",
    "DIRECTORY",
    "GRID",
    "TENSORS",
    "Distilled",
    "PixelRange",
    "contact_sheet",
    "load",
]

DIRECTORY = "distilled"
"""Folder of the set in a run directory."""
TENSORS = "data.safetensors"
CARD = "card.json"
GRID = "grid.png"

_STATE = "normalization."

DENORMALIZED_BYTES = 2**25
"""Bytes of the images that are denormalised at a time."""


class Distilled(Dataset[tuple[Tensor, Tensor]]):
    """A small labelled set for training networks, in their input space.

    Args:
        images: network input, (n, C, H, W); stored as float32 on the CPU.
        labels: class indices (n,), or soft labels (n, classes).
        class_names: one name per class, in label order.
        normalization: map from real pixels to network input, which must also be applied to test
            images.
        card: origin of the set (recipe, method, citation, data, seed, steps, storage, versions,
            ...), JSON-able. Entries implied by the other arguments are added: `format`,
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
        label_type = torch.float32 if labels.is_floating_point() else torch.int64
        self.labels = labels.detach().to("cpu", label_type).contiguous()
        self.class_names = tuple(class_names)
        self.normalization = normalization
        # settings and tensors of a set that is not parameterised by pixels
        self._parameterisation: tuple[SyntheticSettings, dict[str, Tensor]] | None = None
        self.directory: Path | None = None
        """Directory that it was loaded from or saved to, which also holds stored labels."""
        if fault := _fault(self.images, self.labels, len(self.class_names)):
            raise ArtifactError(f"The distilled set is damaged: {fault}.")
        self.card: dict[str, Any] = {
            "ipc": len(self.images) // len(self.class_names),
            "storage": asdict(self._stored()),
            **(card or {}),
            # pixels are saved as in versions that had no other parameterisations
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
        """Create a distilled set from a synthetic set, to be saved in its own parameterisation.

        Args:
            learned: the synthetic set.
            settings: its parameterisation.
            class_names: one name per class, in label order.
            normalization: see `Distilled`.
            card: see `Distilled`; a learned step size is added as `step_size`.
        """
        with torch.no_grad():
            images, labels = learned.batch()
        if isinstance(learned, WithLearnedStepSize):
            card = {**card, "step_size": float(learned.step_size.detach())}
            learned = learned.learned
        card = {"storage": asdict(learned.storage()), **card}
        distilled = cls(images, labels, class_names, normalization, card)
        if settings.kind != "pixels":
            state = {
                name: tensor.detach().cpu().contiguous()
                for name, tensor in learned.state_dict().items()
            }
            distilled._parameterisation = settings, state
            distilled.card |= {"format": FORMAT, "synthetic": settings.model_dump(mode="json")}
        return distilled

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return shown.short("Distilled", images=len(self), shape=shape, classes=self.classes)

    def _repr_html_(self) -> str:
        """The images, in a notebook."""
        return shown.distilled_html(self)

    def plot(self) -> Figure:
        """Draw the contact sheet as a matplotlib `Figure`: a row for each class."""
        return shown.distilled_figure(self)

    def dataloader(self, batch_size: int = 256, *, shuffle: bool = True, **options: Any) -> Any:
        """A torch `DataLoader` of network inputs (n, C, H, W) and labels.

        Test images must be normalised by `normalization`.

        Args:
            batch_size: number of images per batch.
            shuffle: whether to reorder the images in every epoch.
            options: further arguments of `DataLoader`.
        """
        from torch.utils.data import DataLoader

        return DataLoader(self, batch_size=batch_size, shuffle=shuffle, **options)

    def to_hf_dataset(self) -> Any:
        """A Hugging Face `Dataset` with columns `image` (PIL, clipped to 8 bits) and `label`.

        Soft labels are a third column, `soft_label`.

        Raises:
            ConfigError: the library `datasets` is not installed.
        """
        try:
            import datasets
        except ImportError as error:
            raise ConfigError("This needs 'datasets': pip install datasets.") from error
        pixels = self.pixels().permute(0, 2, 3, 1).numpy()
        images = [Image.fromarray(one.squeeze(2) if one.shape[2] == 1 else one) for one in pixels]
        columns: dict[str, Any] = {"image": images, "label": self.hard_labels.tolist()}
        features: dict[str, Any] = {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(self.class_names)),
        }
        if self.labels.is_floating_point():
            columns["soft_label"] = self.labels.tolist()
            features["soft_label"] = datasets.Sequence(datasets.Value("float32"))
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

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
        """Class indices int64 (n,): the labels, or the largest entry of each soft label."""
        return self.labels.argmax(1) if self.labels.is_floating_point() else self.labels

    @property
    def storage(self) -> Storage:
        """Storage cost according to the card, else of all tensors."""
        return Storage(
            self.card["storage"].get("numbers", {}), self.card["storage"].get("bytes", {})
        )

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Tensors of the parameterisation by name, such as `left`, `right` and `bases` of low-rank
        images; images and labels of others.
        """
        if self._parameterisation is not None:
            return dict(self._parameterisation[1])
        return {"images": self.images, "labels": self.labels}

    @property
    def step_size(self) -> float | None:
        """Learned step size; None if there is none."""
        learned = self.card.get("step_size")
        return None if learned is None else float(learned)

    @property
    def needs_teachers(self) -> bool:
        """Whether students of its recipe learn from teachers' labels, which are not `labels`."""
        return lookup(self.card, "config.labels.kind") in ("online", "stored")

    @property
    def needs(self) -> tuple[str, ...]:
        """Sentences on what training on the set requires beyond its images and labels."""
        requirements = [
            f"images are network input ({self.normalization.kind} normalisation): normalise test "
            "images with `normalization` too"
        ]
        if self.step_size is not None:
            requirements.append(f"images were learned for a step size of {self.step_size:.4g}")
        if self.needs_teachers:
            where = lookup(self.card, "labels.folder")
            stored = f"stored in '{where}'" if where else "computed while students train"
            requirements.append(
                f"students of its recipe learn from teachers' soft labels, {stored}; `labels` "
                "gives others, with which accuracies are lower"
            )
        return tuple(requirements)

    def pixels(self) -> Tensor:
        """Images for viewing, uint8 (n, C, H, W): denormalised, clamped and rounded."""
        return torch.cat([_as_bytes(part) for part in self.denormalized()])

    def pixels_of(self, rows: Tensor) -> Tensor:
        """The images at rows int64 (k,) for viewing, uint8 (k, C, H, W)."""
        return _as_bytes(self.normalization.inverse(self.images[rows]))

    def denormalized(self) -> Iterator[Tensor]:
        """Yield all images in [0, 1] units, in parts, as a set may be too large for a copy."""
        count = max(1, DENORMALIZED_BYTES // (4 * math.prod(self.shape)))
        for part in torch.split(self.images, count):
            yield self.normalization.inverse(part)

    @cached_property
    def pixel_range(self) -> PixelRange:
        """Range of the denormalised values of the images."""
        return PixelRange.of(self.denormalized())

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Write `data.safetensors`, `grid.png` and `card.json` into `directory`.

        Saving the same set again is allowed.

        Raises:
            OutputError: the directory contains another set and `overwrite` is False.
            RunError: the directory is not writable.
        """
        directory = remote.local(directory)
        tensors = self._tensors()
        if remote.bring(directory / CARD):
            if not overwrite and not _holds(directory / TENSORS, tensors):
                raise OutputError(
                    f"'{directory}' already holds another distilled set; "
                    "choose another directory or overwrite it."
                )
            # a crash between two files must not leave new tensors with an old card
            remote.remove(directory / CARD)
        write_tensors(directory / TENSORS, tensors)
        write_bytes(directory / GRID, picture(self))
        write_json(directory / CARD, self.card | {"sha256": file_hash(directory / TENSORS)})
        self.directory = directory

    def save_card(self) -> None:
        """Write the card again, after entries of it changed; the images in `directory` are neither
        read nor written.

        Raises:
            ArtifactError: there is no directory that holds the set.
        """
        if self.directory is None:
            raise ArtifactError("The card of a set that was not saved cannot be written: save it.")
        before = _read_card(self.directory / CARD)
        write_json(self.directory / CARD, self.card | {"sha256": before["sha256"]})

    def _tensors(self) -> dict[str, Tensor]:
        state = {_STATE + name: value for name, value in self.normalization.state().items()}
        return {**self.parameters, **state}

    def _stored(self) -> Storage:
        tensors = self._tensors()
        return Storage(
            {n: t.numel() for n, t in tensors.items()}, {n: t.nbytes for n, t in tensors.items()}
        )


def load(path: str | Path) -> Distilled:
    """Load the distilled set of a run directory, of a directory written by `Distilled.save`, or of
    an export.

    Raises:
        ArtifactError: it is missing, damaged, of a newer version, or its tensors do not match its
            card.
    """
    place = remote.local(path)
    # an image folder may have a class with the name of either
    is_set = (place / CARD).is_file() or (place / DIRECTORY / CARD).is_file()
    if not is_set and place.exists():
        # pyarrow and numpy's archives are only needed for exports
        from rayd.export import is_export, load_export

        if is_export(place):
            return load_export(place)
    directory = _locate(place)
    card = _read_card(directory / CARD)
    file = directory / TENSORS
    remote.bring(file)
    tensors, _ = read_tensors(file)
    if file_hash(file) != card["sha256"]:
        raise ArtifactError(
            f"'{file}' is not the file that '{CARD}' next to it describes: their SHA-256 differ."
        )
    state = dict[str, Tensor]()
    own = dict[str, Tensor]()
    for name, value in tensors.items():
        if name.startswith(_STATE):
            state[name.removeprefix(_STATE)] = value
        else:
            own[name] = value
    try:
        normalization = restore(card["normalization"], state)
    except (ConfigError, DataError) as error:
        raise ArtifactError(f"'{file}' holds no normalisation to read: {error}") from error
    distilled = _decoded(file, own, card, normalization)
    if list(distilled.images.shape[1:]) != card["shape"]:
        raise ArtifactError(
            f"'{file}' holds images of shape {list(distilled.images.shape[1:])}; "
            f"its card says {card['shape']}."
        )
    if fault := contradiction(card, own):
        raise ArtifactError(f"'{directory / CARD}' contradicts '{TENSORS}' next to it: {fault}.")
    if fault := renamed(card):
        raise ArtifactError(
            f"'{directory / CARD}' contradicts itself: {fault}; restore 'class_names'."
        )
    distilled.directory = directory
    return distilled


def _decoded(
    file: Path, tensors: dict[str, Tensor], card: dict[str, Any], normalization: Normalization
) -> Distilled:
    """Create the set from the tensors of a file."""
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
            f"'{file}' does not hold images of the parameterisation that its card names: {error}"
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
            f"'{path}' must be a run directory or a distilled set. "
            f"Got {'a file' if path.exists() else 'nothing'}."
        )
    if (path / DIRECTORY).is_dir():
        return path / DIRECTORY
    if not (path / CARD).exists():
        raise ArtifactError(
            f"'{path}' holds no distilled set: neither '{DIRECTORY}/' nor '{CARD}' is present."
        )
    return path


def _read_card(path: Path) -> dict[str, Any]:
    return check_card(read_json(path), f"'{path}'", is_saved=True)


def _fault(images: Tensor, labels: Tensor, classes: int) -> str | None:
    """Describe what is wrong with the tensors of a set; None if nothing is."""
    if images.dtype != torch.float32 or images.ndim != 4 or not len(images):
        got = f"{images.dtype} {tuple(images.shape)}"
        return f"images must be float32 (n, C, H, W), at least one; got {got}"
    if not images.isfinite().all():
        damaged = int((~images.isfinite()).any((1, 2, 3)).sum())
        return f"{damaged} of {len(images)} images hold values that are not finite"
    if labels.dtype == torch.float32 and labels.shape == (len(images), classes):
        return None if labels.isfinite().all() else "soft labels hold values that are not finite"
    if labels.dtype != torch.int64 or labels.shape != (len(images),):
        expected = f"int64 ({len(images)},) or float32 ({len(images)}, {classes})"
        return f"labels must be {expected}; got {labels.dtype} {tuple(labels.shape)}"
    least, most = labels.aminmax()
    if least < 0 or most >= classes:
        return (
            f"labels must lie in 0..{classes - 1}, its class names; got {int(least)}..{int(most)}"
        )
    return None


def _as_bytes(images: Tensor) -> Tensor:
    """Clamp and round images in [0, 1] units to uint8."""
    return images.clamp(0, 1).mul(255).round().to(torch.uint8)


def _holds(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file holds these tensors, by its stored hash."""
    try:
        stored = read_hash(path)
    except ArtifactError:
        return False
    return stored == tensor_hash(tensors)
