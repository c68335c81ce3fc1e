"""Loading of a run's data, with progress where it takes long."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rayd.config import DataSettings
from rayd.data import ImageData, load
from rayd.engine.progress import Progress
from rayd.errors import ImageSizeError


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
        image_size: proposed for `data.image_size` where images have different sizes.

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

        try:
            return load(settings, data_root, cache, on_progress)
        except ImageSizeError as error:
            raise _with_proposal(error, image_size) from error


def _with_proposal(error: ImageSizeError, image_size: int | None) -> ImageSizeError:
    """The error with the setting that fixes it."""
    if image_size is None:
        return error
    setting = f"data.image_size={image_size}"
    proposal = f"{setting} scales each to {image_size} x {image_size} and keeps the middle square"
    proposed = ImageSizeError(f"{str(error).removesuffix('.')}; {proposal}.")
    proposed.setting = setting
    return proposed
