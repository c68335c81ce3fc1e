"""Fixtures that many tests share."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from rayd.config import Recipe
from rayd.engine.progress import StageDisplay, StageProgress
from rayd.engine.stages.synthesis import Synthesis
from rayd.recipes import assemble

# Ray raises the niceness of its workers, so that they would hardly run on a busy machine
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache or data."""
    monkeypatch.setenv("RAYD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAYD_DATA", str(tmp_path / "data"))


@pytest.fixture(autouse=True, scope="session")
def _own_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Properties of the machine are measured once for all tests, so that all of them compute in the
    same way.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYD_MACHINE", str(tmp_path_factory.mktemp("machine")))
        yield


@pytest.fixture(autouse=True)
def _own_syntheses(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests compare runs with each other, so each run computes its own set, unless the test is
    about runs that share it.
    """
    if request.node.get_closest_marker("shared_synthesis") is None:
        key = Synthesis.key

        def own_key(self: Synthesis, item: str) -> dict[str, object]:
            run = self.__dict__.setdefault("run_of_test", uuid.uuid4().hex)
            return {**key(self, item), "run": run}

        monkeypatch.setattr(Synthesis, "key", own_key)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread, as more only cause overhead for small tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Recorded(StageDisplay):
    """Progress of a stage that is passed on to a function."""

    def __init__(self, on_update: Callable[[float], None]):
        super().__init__(StageProgress("stage", 0, "units"))
        self._on_update = on_update

    def update(self, done: float, *_: object, **__: object) -> None:
        self._on_update(done)


def tiny(**overrides: object) -> Recipe:
    """A recipe that ends in a second or two."""
    return assemble(
        {
            "name": "tiny",
            "method": "dm",
            "data": {"name": "digits"},
            "observers": {
                "networks": {"name": "convnet", "width": 8, "depth": 2},
                "pool": 3,
                "per_step": 2,
            },
            "synthesis": {"steps": 12, "log_every": 4, "checkpoint_every": 5},
            "evaluation": {
                "networks": [{"name": "convnet", "width": 8, "depth": 2}],
                "seeds": 2,
                "epochs": 4,
                "whole_epochs": 1,
                "baselines": ["random", "whole"],
                "comparisons": [],
                "augmentation": "color_crop_cutout_scale_rotate",
            },
            "resources": {"threads": 1},
        },
        overrides,
    )
