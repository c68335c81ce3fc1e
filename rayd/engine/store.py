"""The store that runs share: results of finished work under a hash of their inputs.

    <root>/<stage>/<key>.safetensors | .json

A key is a hash of all inputs that determine the result, except those that only affect rounding
(number of threads, versions of libraries): to compare runs bit for bit across these, give each a
store of its own. Damaged entries are recomputed. The root is `$RAYD_CACHE`, else
`~/.cache/rayd/store`; it may be a URL (`rayd.remote`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rayd import remote
from rayd.artifacts import (
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


class Store:
    """Results by stage and inputs.

    Args:
        root: directory of the store, created on the first write; None uses the default.
    """

    def __init__(self, root: Path | None = None):
        self.root = remote.local(root or default_root()).resolve()

    def path(self, stage: str, inputs: Mapping[str, Any], suffix: str) -> Path:
        """Path of a result, which need not exist."""
        return self.root / stage / f"{content_hash(inputs)}.{suffix}"

    def has(self, stage: str, inputs: Mapping[str, Any], suffix: str) -> bool:
        """Whether a result exists; reading it may still find it damaged."""
        return remote.exists(self.path(stage, inputs, suffix))

    def tensors(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Tensors of a result; None if it is missing or damaged."""
        path = self.path(stage, inputs, "safetensors")
        if not remote.bring(path):
            return None
        try:
            return read_tensors(path)[0]
        except ArtifactError as error:
            log.warning("%s Recomputing it.", error)
            return None

    def put_tensors(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        note: Mapping[str, Any] | None = None,
    ) -> None:
        """Save tensors, with their inputs and further metadata."""
        write_tensors(
            self.path(stage, inputs, "safetensors"), tensors, {**(note or {}), "inputs": inputs}
        )

    def note(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Metadata of tensors.

        Raises:
            ArtifactError: the tensors are missing or damaged.
        """
        metadata: dict[str, Any] = read_metadata(self.path(stage, inputs, "safetensors"))
        return metadata

    def record(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """JSON record of a result; None if it is missing or damaged."""
        path = self.path(stage, inputs, "json")
        if not remote.bring(path):
            return None
        try:
            return dict(read_json(path)["result"])
        except (ArtifactError, KeyError, TypeError, ValueError) as error:
            log.warning("%s Recomputing it.", error)
            return None

    def put_record(self, stage: str, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Save a JSON record, with its inputs."""
        write_json(
            self.path(stage, inputs, "json"), {"inputs": dict(inputs), "result": dict(result)}
        )
