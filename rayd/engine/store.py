"""The cache that runs share: results of finished work under a hash of their inputs.

    <root>/<stage>/<key>.safetensors | .json

A key is a hash of everything that decides the result. It leaves out what only rounds differently
(number of threads, versions of libraries): whoever compares runs bit for bit across those gives
each a store of its own. A damaged entry is made again. The root is `$RAYD_CACHE`, else
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
    """Finished work by stage and inputs."""

    def __init__(self, root: Path | None = None):
        """A store under `root`; it is made when first written to."""
        self.root = remote.local(root or default_root()).resolve()

    def path(self, stage: str, inputs: Mapping[str, Any], suffix: str) -> Path:
        """Where a result lies or would lie."""
        return self.root / stage / f"{content_hash(inputs)}.{suffix}"

    def has(self, stage: str, inputs: Mapping[str, Any], suffix: str) -> bool:
        """Whether a result is there (it may still prove damaged when read)."""
        return remote.exists(self.path(stage, inputs, suffix))

    def tensors(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Tensors of finished work, or None."""
        path = self.path(stage, inputs, "safetensors")
        if not remote.bring(path):
            return None
        try:
            return read_tensors(path)[0]
        except ArtifactError as error:
            log.warning("%s It will be made again.", error)
            return None

    def put_tensors(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        note: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep tensors, with the inputs that they came from and what else is known of them."""
        write_tensors(
            self.path(stage, inputs, "safetensors"), tensors, {**(note or {}), "inputs": inputs}
        )

    def note(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What was noted with tensors that are there.

        Raises:
            ArtifactError: they are not there, or damaged.
        """
        found: dict[str, Any] = read_metadata(self.path(stage, inputs, "safetensors"))
        return found

    def record(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """A JSON record of finished work, or None."""
        path = self.path(stage, inputs, "json")
        if not remote.bring(path):
            return None
        try:
            return dict(read_json(path)["result"])
        except (ArtifactError, KeyError, TypeError, ValueError) as error:
            log.warning("%s It will be made again.", error)
            return None

    def put_record(self, stage: str, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Keep a JSON record, with the inputs that it came from."""
        write_json(
            self.path(stage, inputs, "json"), {"inputs": dict(inputs), "result": dict(result)}
        )
