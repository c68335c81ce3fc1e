"""What many tests of runs need: settings, and what a run has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rayd.engine.progress import Progress

QUIET = Progress(quiet=True)
NO_STUDENTS = {"evaluation": {"seeds": 1, "epochs": 1, "baselines": []}}
"""Hardly any evaluation, for tests of what comes before it."""


def log_of(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's log."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log about steps of the synthesis."""
    return [line for line in log_of(run) if line["stage"] == "synthesize" and "step" in line]


def losses_by_step(run: Path) -> list[tuple[int, float]]:
    """Steps of the synthesis and their losses; parallel blocks log them in another order."""
    return sorted((line["step"], line["loss"]) for line in steps_of(run))


def bytes_of(run: Path) -> bytes:
    """The file of a run's synthetic set."""
    return (run / "distilled" / "data.safetensors").read_bytes()
