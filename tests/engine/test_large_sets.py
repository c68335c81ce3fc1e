"""A large set is hashed once, placed for workers once, and written beside other work."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayd.config import DataSettings
from rayd.data import load
from rayd.data.normalization import Standardization
from rayd.distilled import Distilled
from rayd.engine import driver, set_writer
from rayd.engine.distill import distill
from rayd.engine.pool import LocalPool, LocalRef
from rayd.engine.stages import student_tasks
from rayd.engine.stages.student_tasks import TrainingSets
from rayd.engine.store import Store
from rayd.errors import RunError
from rayd.locks import is_locked
from tests.conftest import tiny
from tests.engine.test_decoupled import edc
from tests.runs import NO_STUDENTS, QUIET

DATA = load(DataSettings(name="digits"))


class Recording(LocalPool):
    """Knows what was shared."""

    def __init__(self) -> None:
        self.shared: list[Any] = []

    def share(self, value: Any) -> LocalRef:
        self.shared.append(value)
        return super().share(value)


@pytest.fixture
def soft() -> Distilled:
    """A set with soft labels."""
    return Distilled(
        images=torch.randn(20, 1, 8, 8),
        labels=torch.rand(20, 10),
        class_names=DATA.class_names,
        normalization=Standardization(torch.zeros(1), torch.ones(1)),
    )


def test_students_of_soft_and_of_hard_labels_share_the_images(soft: Distilled) -> None:
    pool = Recording()
    sets = TrainingSets(DATA, soft, 2)
    pairs = [sets.share(pool, "distilled", seed, hard) for seed in (0, 1) for hard in (False, True)]
    assert [np.ndim(value) for value in pool.shared] == [4, 2, 1]
    assert len({pair.key for pair in pairs}) == 2
    for pair, labels in zip(pairs, [soft.labels, soft.hard_labels] * 2, strict=True):
        images, found = pair.get()
        assert np.shares_memory(images, soft.images.numpy())
        assert np.array_equal(found, labels.numpy())


def test_images_that_were_placed_before_are_not_placed_again(soft: Distilled) -> None:
    pool = Recording()
    before = LocalRef(soft.images.numpy())
    images, _ = TrainingSets(DATA, soft, 2, images=before).share(pool, "distilled", 0).get()
    assert images is before.get()
    assert [np.ndim(value) for value in pool.shared] == [2]


def test_images_are_hashed_once_for_both_kinds_of_labels(
    soft: Distilled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of students depend on these hashes."""
    wanted = []
    for labels in (soft.labels, soft.hard_labels):
        content = soft.images.numpy().tobytes() + labels.numpy().tobytes()
        wanted.append(hashlib.blake2b(content, digest_size=16).hexdigest())
    hashed = []

    class Counted:
        """The module `hashlib` as far as sets use it."""

        @staticmethod
        def blake2b(data: Any, **settings: Any) -> Any:
            hashed.append(len(data))
            return hashlib.blake2b(data, **settings)

    monkeypatch.setattr(student_tasks, "hashlib", Counted)
    sets = TrainingSets(DATA, soft, 2)
    assert [sets.fingerprint("distilled", 0, hard) for hard in (False, True)] == wanted
    assert hashed == [20]


def test_labels_and_students_of_a_run_share_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the workers that label them; a single process needs no second reference."""
    given = []
    judge = driver.judge

    def judged(*arguments: Any, **more: Any) -> Any:
        given.append(more["images"])
        return judge(*arguments, **more)

    monkeypatch.setattr(driver, "judge", judged)
    for workers in (0, 1):
        resources = {"workers": workers, "threads": 1, "cpus_per_worker": 0.5}
        recipe = edc(labels={"kind": "stored"}, resources=resources, **NO_STUDENTS)
        run = distill(recipe, tmp_path / f"{workers}", progress=QUIET)
    assert given[0] is None
    assert torch.equal(torch.tensor(given[1].get()), run.distilled.images)


@pytest.mark.shared_synthesis
def test_the_store_gets_a_set_while_students_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays claimed until it is there, so that no other run makes it again."""
    put = Store.put_tensors
    judge = driver.judge
    evaluating = threading.Event()
    claimed = []

    def put_late(self: Store, stage: str, *arguments: Any, **more: Any) -> None:
        if stage == "synthesis":
            assert evaluating.wait(60)
        put(self, stage, *arguments, **more)

    def judged(*arguments: Any, **more: Any) -> Any:
        claimed.extend((tmp_path / "cache" / "synthesis").iterdir())
        evaluating.set()
        return judge(*arguments, **more)

    monkeypatch.setattr(set_writer, "AT_ONCE", 0.0)
    monkeypatch.setattr(Store, "put_tensors", put_late)
    monkeypatch.setattr(driver, "judge", judged)
    distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    assert [path.suffix for path in claimed] == [".lock"]
    (entry,) = (tmp_path / "cache" / "synthesis").iterdir()
    assert entry.suffix == ".safetensors"


def test_a_set_that_the_store_could_not_take_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put_tensors

    def full(self: Store, stage: str, *arguments: Any, **more: Any) -> None:
        if stage == "synthesis":
            raise RunError("Cannot write 'the store': No space left on device.")
        put(self, stage, *arguments, **more)

    monkeypatch.setattr(Store, "put_tensors", full)
    with pytest.raises(RunError, match="No space left"):
        distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    assert not is_locked(tmp_path / "run")
    assert not list((tmp_path / "cache" / "synthesis").glob("*.lock"))
