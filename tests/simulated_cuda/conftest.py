"""Runs on the simulated device, each in a process of its own, as the shim must be loaded before
torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.simulated_cuda import shim

ROOT = Path(__file__).parents[2]
Run = Callable[..., list[dict[str, Any]]]
"""Maps jobs to their reports; see `program`."""


@pytest.fixture(scope="session")
def simulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs jobs of `program`; the shim is compiled once and kept in pytest's cache."""
    cache = getattr(request.config, "cache", None)
    try:
        library = shim.build(
            cache.mkdir("simulated_cuda") if cache is not None else tmp_path_factory.mktemp("shim")
        )
    except shim.CannotBuildError as error:
        pytest.skip(str(error))

    def run(*jobs: dict[str, Any]) -> list[dict[str, Any]]:
        report = tmp_path_factory.mktemp("simulated") / "report.json"
        command = [
            sys.executable,
            "-m",
            "tests.simulated_cuda.program",
            str(library),
            str(report),
            *map(json.dumps, jobs),
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT),
                "RAYD_CACHE": str(report.parent),
                "RAYD_DATA": str(report.parent),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        entries: list[dict[str, Any]] = json.loads(report.read_text())
        return entries

    return run
