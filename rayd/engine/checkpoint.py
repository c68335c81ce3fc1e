"""Checkpoints of a block of the synthetic set: one file each; the newest two are kept.

`Synthesizer` determines the content of a checkpoint (`_save` and `_load` in
`rayd.engine.synthesizer`):

    set.*           parameters and labels of the block
    average.*       their moving average, where a term needs it
    optimizer.I.*   state of the optimizer for parameter I
    the rest        state of the gradient sources, under names of their own: of terms and of the
                    model pool

and as metadata `key`, the hash of everything that the synthesis depends on, and `step`.

Checkpoints of networks in training are another format: `rayd.training.training_run`.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from torch import Tensor

from rayd import remote
from rayd.artifacts import read_metadata, read_tensors, write_tensors
from rayd.errors import ArtifactError

log = logging.getLogger(__name__)

# the previous one is kept in case the newest is damaged, for example by a full disk
KEPT_CHECKPOINTS = 2


def save_checkpoint(directory: Path, key: str, step: int, tensors: dict[str, Tensor]) -> None:
    """Write `step-<step>.safetensors` and remove all but the newest `KEPT_CHECKPOINTS`."""
    write_tensors(directory / f"step-{step:08d}.safetensors", tensors, {"key": key, "step": step})
    for path in _by_step(directory):
        # a later one must be damaged, or the run would have resumed from it
        if _step_of(path) > step:
            remote.remove(path)
    for path in _by_step(directory)[:-KEPT_CHECKPOINTS]:
        remote.remove(path)


def newest(directory: Path, key: str, at_most: int | None = None) -> Path:
    """The newest undamaged checkpoint of the run `key`, up to step `at_most`.

    Raises:
        ArtifactError: there is none.
    """
    for path in reversed(_by_step(directory)):
        if at_most is not None and _step_of(path) > at_most:
            continue
        try:
            # the whole file is read, as a truncated one may have an intact header
            if remote.bring(path) and read_tensors(path)[1].get("key") == key:
                return path
        except ArtifactError as error:
            log.warning("%s An older checkpoint is used.", error)
    raise ArtifactError(f"'{directory}' holds no checkpoint of this run.")


def resumable(directory: Path, key: str) -> int:
    """The step of the newest readable checkpoint of the run `key`, or 0."""
    try:
        return int(read_metadata(newest(directory, key))["step"])
    except ArtifactError:
        return 0


def block_folder(block: int, blocks: int) -> str:
    """Name of a block's folder below the directory of checkpoints."""
    return f"block-{block:05d}" if blocks > 1 else "."


def adopt(source: Path, directory: Path, key: str) -> None:
    """Copy the newest checkpoint of another run's block, unless the block has a readable one of its
    own. If all of its own are damaged, it would otherwise start from the initial set.

    Raises:
        ArtifactError: that checkpoint is damaged.
    """
    paths = _by_step(source)
    if paths and not resumable(directory, key):
        # rewritten rather than copied, as checkpoints carry the hash of their own synthesis
        tensors, metadata = read_tensors(paths[-1])
        save_checkpoint(directory, key, int(metadata["step"]), tensors)


def foreign(directory: Path, key: str) -> bool:
    """Whether the directory holds a readable checkpoint of another run."""
    for path in _by_step(directory):
        try:
            if remote.bring(path) and read_metadata(path).get("key") != key:
                return True
        except ArtifactError:
            continue
    return False


def _by_step(directory: Path) -> list[Path]:
    return sorted(remote.listed(directory, "step-*.safetensors"), key=_step_of)


def _step_of(path: Path) -> int:
    found = re.fullmatch(r"step-(\d+)\.safetensors", path.name)
    return int(found.group(1)) if found else -1
