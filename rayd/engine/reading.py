"""Loading of a run's data, with progress where it takes long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayd.config import DataSettings, lookup
from rayd.data import ImageData, load
from rayd.distilled import Distilled
from rayd.engine.progress import Progress
from rayd.errors import DataError, ImageSizeError


def read(
    settings: DataSettings,
    data_root: Path | None,
    cache: Path | None,
    progress: Progress,
    image_size: int | None = None,
) -> ImageData:
    """Load the data, and show the progress of a first pass over streamed images.

    Args:
        settings: which images.
        data_root: where named data are searched first.
        cache: root of the store that runs share.
        progress: where progress is shown.
        image_size: proposed for `data.image_size` if images have different sizes.

    Raises:
        DataError, ConfigError: as `rayd.data.load` does.
    """
    shown: dict[str, Any] = {}
    with ExitStack() as stage:

        def on_progress(split: str, done: int, total: int) -> None:
            if split not in shown:
                stage.close()
                shown[split] = stage.enter_context(
                    progress.stage(f"read ({split})", total, "images")
                )
            shown[split].update(done)

        with proposing(image_size):
            return load(settings, data_root, cache, on_progress)


def normalized_as(distilled: Distilled, data: ImageData) -> ImageData:
    """The data from which a set was distilled, normalised as they were then.

    Other machines or numbers of threads may round a whitening matrix differently.

    Raises:
        DataError: the set was distilled from other images.
    """
    known = lookup(distilled.card, "data.fingerprint")
    if known in (None, data.fingerprint):
        return data
    if data.normalization.kind == distilled.normalization.kind:
        as_then = replace(data, normalization=distilled.normalization)
        if as_then.fingerprint == known:
            return as_then
    raise DataError(
        f"The set was distilled from other data than '{data.name}' holds now: "
        f"fingerprint {known[:12]} wanted, {data.fingerprint[:12]} found."
    )


@contextmanager
def proposing(image_size: int | None) -> Iterator[None]:
    """Add a value for `data.image_size` to an error about images of different sizes; None: none."""
    try:
        yield
    except ImageSizeError as error:
        raise _with_proposal(error, image_size) from error


def _with_proposal(error: ImageSizeError, image_size: int | None) -> ImageSizeError:
    """Extend an error by the setting that fixes it."""
    if image_size is None:
        return error
    setting = f"data.image_size={image_size}"
    proposal = f"{setting} scales each to {image_size} x {image_size} and keeps the middle square"
    proposed = ImageSizeError(f"{str(error).removesuffix('.')}; {proposal}.")
    proposed.setting = setting
    return proposed
