"""The store that runs share: results of finished work under a hash of their inputs.

    <root>/<stage>/<key>.safetensors | .json

Stages define the keys (`Stage.key`; for students, `Task.inputs` of
`rayd.engine.stages.student_tasks`), from settings (`Recipe.identity`), the data's fingerprint, keys
of the results that they build on, and the method's version (`Method.version`).

A key is a hash of all inputs that determine the result, except those that only affect rounding
(number of threads, versions of libraries): to compare runs bit for bit across these, use separate
stores. The kind of device (`cpu`, `cuda` or `mps`) is in the key as "device", so that an entry
shows where it was computed, and the same device always finds the same bits. A result that only
another kind of device has computed is used instead of computing it again, as it is equal up to
rounding. Damaged entries are recomputed. The root is `$RAYD_CACHE`, else `~/.cache/rayd/store`; it
may be a URL (`rayd.remote`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rayd import remote
from rayd.artifacts import (
    check_tensors,
    content_hash,
    default_root,
    read_json,
    read_metadata,
    read_tensors,
    write_json,
    write_tensors,
)
from rayd.errors import ArtifactError

log = logging.getLogger(__name__)

__all__ = ["Store", "default_root"]

DEVICES = ("cuda", "cpu", "mps")
"""Kinds of device whose results are searched, in this order, if this device has none."""


class Store:
    """Results by stage and inputs.

    Args:
        root: directory of the store, created on the first write; None uses the default.
    """

    def __init__(self, root: Path | None = None):
        self.root = remote.local(root or default_root()).resolve()
        self._resolved: dict[Path, Mapping[str, Any]] = {}

    def path(self, stage: str, inputs: Mapping[str, Any], suffix: str) -> Path:
        """Path where a result of this device is written; it need not exist."""
        return self.root / stage / f"{content_hash(inputs)}.{suffix}"

    def resolve(self, stage: str, inputs: Mapping[str, Any], suffix: str) -> Mapping[str, Any]:
        """The inputs of the result in the store.

        They are the given ones, or the same with another "device" if only that has computed the
        result. The choice is fixed for the lifetime of this object: results that were computed from
        one entry must not be stored as depending on another one that a concurrent run adds.

        Args:
            stage: folder of the store.
            inputs: as this run would compute the result.
            suffix: of the file.

        Returns:
            The inputs of the stored result; `inputs` if no device has computed it.
        """
        own = self.path(stage, inputs, suffix)
        if own in self._resolved:
            return self._resolved[own]
        if remote.exists(own):
            self._resolved[own] = inputs
            return inputs
        # results that do not depend on rounding have no device in their key
        if "device" in inputs:
            for device in DEVICES:
                other = {**inputs, "device": device}
                if device != inputs["device"] and remote.exists(self.path(stage, other, suffix)):
                    self._resolved[own] = other
                    return other
        return inputs

    def found(self, stage: str, inputs: Mapping[str, Any], suffix: str) -> Path:
        """Path of a result of any device; that of `path` if there is none."""
        return self.path(stage, self.resolve(stage, inputs, suffix), suffix)

    def replace(self, stage: str, inputs: Mapping[str, Any], suffix: str) -> None:
        """Use the result of this device from now on, as that of another one is damaged or was
        recomputed.
        """
        self._resolved[self.path(stage, inputs, suffix)] = inputs

    def has(self, stage: str, inputs: Mapping[str, Any], suffix: str) -> bool:
        """Whether a result exists; it may still turn out to be damaged."""
        return remote.exists(self.found(stage, inputs, suffix))

    def tensors(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Tensors of a result; None if it is missing or damaged."""
        path = self.found(stage, inputs, "safetensors")
        if not remote.bring(path):
            return None
        try:
            return read_tensors(path)[0]
        except ArtifactError as error:
            log.warning("%s Recomputing it.", error)
            self.replace(stage, inputs, "safetensors")
            return None

    def is_sound(self, stage: str, inputs: Mapping[str, Any], own: bool = False) -> bool:
        """Whether the tensors of a result exist and are undamaged. They are read piece by piece,
        without keeping them in memory.

        Args:
            stage: folder of the store.
            inputs: as this run would compute the result.
            own: only accept a result of this device.
        """
        path = self.path(stage, inputs, "safetensors")
        if not own:
            path = self.found(stage, inputs, "safetensors")
        if not remote.bring(path):
            return False
        try:
            check_tensors(path)
        except ArtifactError as error:
            log.warning("%s Recomputing it.", error)
            self.replace(stage, inputs, "safetensors")
            return False
        return True

    def put_tensors(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        note: Mapping[str, Any] | None = None,
    ) -> None:
        """Save tensors, with their inputs and further metadata."""
        self.replace(stage, inputs, "safetensors")
        write_tensors(
            self.path(stage, inputs, "safetensors"), tensors, {**(note or {}), "inputs": inputs}
        )

    def note(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Metadata of a result's tensors.

        Raises:
            ArtifactError: the tensors are missing or damaged.
        """
        metadata: dict[str, Any] = read_metadata(self.found(stage, inputs, "safetensors"))
        return metadata

    def record(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """JSON record of a result; None if it is missing or damaged."""
        path = self.found(stage, inputs, "json")
        if not remote.bring(path):
            return None
        try:
            return dict(read_json(path)["result"])
        except (ArtifactError, KeyError, TypeError, ValueError) as error:
            log.warning("%s Recomputing it.", error)
            self.replace(stage, inputs, "json")
            return None

    def put_record(self, stage: str, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Save a JSON record, with its inputs."""
        self.replace(stage, inputs, "json")
        write_json(
            self.path(stage, inputs, "json"), {"inputs": dict(inputs), "result": dict(result)}
        )
