"""Predicted cost of a stage; see `rayd.engine.plan`."""

from __future__ import annotations

from dataclasses import dataclass

from rayd.engine.counting import Count


@dataclass(frozen=True)
class Part:
    """A part of the work of a stage."""

    what: str
    """Description, e.g. `2 students on the whole set`."""
    settings: str
    """The settings that its time is proportional to, e.g. `evaluation.whole_epochs`."""
    count: Count
    """Its operations."""
    parallel: float = 1.0
    """Number of workers that share it."""
    decoded: float = 0.0
    """Number of streamed images that it decodes."""


@dataclass(frozen=True)
class StageCost:
    """The work of a stage that is not cached, in operations."""

    name: str
    """Name of the stage."""
    work: str
    """Description of the work."""
    cached: str
    """Description of the cached part."""
    parts: tuple[Part, ...]
    """Parts of the work."""
