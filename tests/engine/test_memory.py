"""Memory that runs out is one sentence with what to lower; memory of the synthesis is given back
before students train.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rayd.cli import main
from rayd.data import load
from rayd.distilled import Distilled
from rayd.distilled import load as load_distilled
from rayd.engine import driver, set_writer
from rayd.engine.distill import distill
from rayd.engine.job import Job
from rayd.engine.memory import explained, out_of_memory
from rayd.engine.observer import DatasetInfo
from rayd.engine.pool import LocalPool
from rayd.engine.stages.measure import Measure
from rayd.engine.store import Store
from rayd.engine.student_trainer import StudentTrainer
from rayd.engine.worker import Worker
from rayd.errors import OutOfMemoryError, RunError
from tests.conftest import tiny
from tests.engine.test_decoupled import edc
from tests.engine.test_trajectory_matching import following
from tests.runs import NO_STUDENTS, QUIET
from tests.test_cli import run

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.20 GiB is free. See "
    "documentation for Memory Management\n(https://pytorch.org/docs/stable/notes/cuda.html)"
)


def full_gpu(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError(CUDA)


def full_machine(*_: Any, **__: Any) -> None:
    torch.empty(2**50)


@pytest.mark.parametrize(
    ("stage", "method", "recipe", "setting"),
    [
        ("squeeze", "squeeze", edc, "'squeeze.batch_size' (64 now)"),
        ("measure", "measure", edc, "'observers.batch_size' (64 now)"),
        ("score", "score", lambda: edc(synthetic={"init": "rded"}), "'synthetic.crops' (5 now)"),
        (
            "synthesize",
            "compute",
            edc,
            "'synthesis.block' (100 now) or 'ipc' (2 now), or raise 'synthesis.split' (1 now)",
        ),
        (
            "synthesize",
            "synthesize",
            lambda: edc(synthesis={"block": 7}),
            "'synthesis.block' (7 now)",
        ),
        (
            "synthesize",
            "compute",
            lambda: tiny(real="sampled"),
            "'observers.real_batch' (256 now), 'synthesis.block' (not set, so all at once)",
        ),
        (
            "relabel",
            "label",
            lambda: edc(labels={"kind": "stored"}),
            "'evaluation.batch_size' (8 now)",
        ),
        ("experts", "expert", following, "'experts.batch_size' (128 now)"),
        (
            "synthesize",
            "compute",
            lambda: following(objective={"batch_size": 4}),
            "'objective.batch_size'",
        ),
    ],
)
def test_a_stage_that_runs_out_says_so_and_what_to_lower(
    tmp_path, monkeypatch, stage, method, recipe, setting
):
    monkeypatch.setattr(Worker, method, full_gpu)
    with pytest.raises(OutOfMemoryError) as caught:
        distill(recipe(), tmp_path / "run", progress=QUIET)
    sentence = str(caught.value)
    assert sentence.startswith(
        f"The GPU ran out of memory (another 2.00 GiB were needed) in stage '{stage}': lower "
    )
    assert setting in sentence
    assert "\n" not in sentence
    assert isinstance(caught.value, RunError)


@pytest.mark.parametrize("command", ["distill", "evaluate"])
def test_the_command_line_prints_one_sentence(capsys, tmp_path, monkeypatch, command):
    path = tmp_path / "recipe.yaml"
    path.write_text(tiny(**NO_STUDENTS).to_yaml())
    arguments = ["distill", str(path), "--out", str(tmp_path / "run"), "--quiet"]
    if command == "evaluate":
        assert run(capsys, *arguments)[0] == 0
        arguments = ["evaluate", str(tmp_path / "run"), "--seeds", "2", "--quiet"]
    monkeypatch.setattr(StudentTrainer, "train", full_machine)
    code, _, error = run(capsys, *arguments)
    assert code == 1
    (sentence,) = error.splitlines()
    assert sentence.startswith("rayd: This machine ran out of memory")
    assert sentence.endswith("in stage 'evaluate': lower 'evaluation.batch_size' (256 now).")
    again = ["--debug", "--overwrite"] if command == "distill" else ["--debug"]
    with pytest.raises(OutOfMemoryError):
        main([*arguments, *again])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(CUDA), "The GPU ran out of memory (another 2.00 GiB were needed)"),
        (
            RuntimeError(
                "MPS backend out of memory (MPS allocated: 1 GB). Tried to allocate 24.00 MB"
            ),
            "The GPU ran out of memory",
        ),
        (MemoryError("Unable to allocate 7 GiB for an array"), "This machine ran out of memory"),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            "The GPU ran out of memory",
        ),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            "The GPU ran out of memory",
        ),
        (
            getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: out of memory"),
            "The GPU ran out of memory",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_errors_of_memory_are_known_from_others(error, said):
    found = out_of_memory(error)
    assert found is None if said is None else found is not None and found.startswith(said)


def test_other_errors_stay_what_they_are():
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        explained("measure", tiny()),
    ):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_worker_of_ray_that_runs_out_is_told_by_its_stage(tmp_path):
    from ray.exceptions import RayTaskError

    from rayd.engine.on_ray.actors import translated

    error = RayTaskError("measure", "traceback", torch.OutOfMemoryError(CUDA))
    with (
        pytest.raises(OutOfMemoryError, match=r"in stage 'measure': lower 'observers.batch_size'"),
        explained("measure", tiny()),
    ):
        raise translated(error)


def test_what_the_synthesis_held_is_given_back_before_students_train(tmp_path, monkeypatch):
    made: list[weakref.ref[Worker]] = []
    begin: Callable[..., None] = Worker.__init__
    judge = driver.judge

    def known(self: Worker, *arguments: Any) -> None:
        made.append(weakref.ref(self))
        begin(self, *arguments)

    def judged(*arguments: Any, **keywords: Any) -> Any:
        gc.collect()
        assert [worker() for worker in made] == [None]
        return judge(*arguments, **keywords)

    monkeypatch.setattr(Worker, "__init__", known)
    monkeypatch.setattr(driver, "judge", judged)
    distill(tiny(**NO_STUDENTS), Path(tmp_path / "run"), progress=QUIET)
    assert len(made) == 1


def test_a_worker_drops_what_other_stages_left_before_the_last_students(tmp_path, monkeypatch):
    """Once: what students keep between tasks stays."""
    recipe = tiny()
    data = load(recipe.data)
    worker = Worker(recipe, DatasetInfo.of(data))
    Measure(Job(recipe, data, Store(tmp_path)), {}).run(LocalPool.around(worker))
    kept = [weakref.ref(observer.network) for observer in worker._networks._fixed.values()]
    assert kept
    forgotten = []
    forget = worker.forget
    monkeypatch.setattr(worker, "forget", lambda: forgotten.append(forget()))
    monkeypatch.setattr(StudentTrainer, "train", lambda *_: iter(()))
    for number in range(2):
        list(worker.train_last(number))
    gc.collect()
    assert [network() for network in kept] == [None] * len(kept)
    assert len(forgotten) == 1


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_set_is_written_while_students_are_trained(tmp_path, monkeypatch, seconds):
    """A large one, that is; the card that labels were added to follows."""
    monkeypatch.setattr(set_writer, "AT_ONCE", seconds)
    save = Distilled.save
    there = []

    def slowly(self: Distilled, directory: Path) -> None:
        if seconds == 0:
            assert evaluating.wait(60)
        save(self, directory)

    evaluating = threading.Event()
    judge = driver.judge

    def judged(*arguments: Any, **more: Any) -> Any:
        there.append((tmp_path / "run" / "distilled" / "card.json").exists())
        evaluating.set()
        return judge(*arguments, **more)

    monkeypatch.setattr(Distilled, "save", slowly)
    monkeypatch.setattr(driver, "judge", judged)
    distill(edc(labels={"kind": "stored"}, **NO_STUDENTS), tmp_path / "run", progress=QUIET)
    assert there == [seconds > 0]
    assert load_distilled(tmp_path / "run").card["labels"]["epochs"] == 1
