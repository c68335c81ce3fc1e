"""What a stage would cost, before anything is done; see `rayd.engine.plan`."""

from __future__ import annotations

from dataclasses import dataclass

from rayd.engine.counting import Count


@dataclass(frozen=True)
class Part:
    """Some of the work of a stage."""

    what: str
    """In words, e.g. `2 students on the whole set`."""
    settings: str
    """The settings that its time is proportional to, e.g. `evaluation.whole_epochs`."""
    count: Count
    """Its operations."""
    parallel: float = 1.0
    """Workers that share it."""
    decoded: float = 0.0
    """Streamed images that it decodes."""


@dataclass(frozen=True)
class StageCost:
    """The work of a stage that is not cached, in operations."""

    name: str
    """The stage."""
    work: str
    """What would be done, in words."""
    cached: str
    """What need not be done, in words."""
    parts: tuple[Part, ...]
    """The work."""
