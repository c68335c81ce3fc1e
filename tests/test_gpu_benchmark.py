"""`benchmarks/gpu.py` on the CPU: what it checks, times and runs, what it keeps, and that it finds
what is wrong.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu, gpu_cell, gpu_checks, gpu_timings
from rayd.engine.stages import measure

QUICK = ("--device", "cpu", "--quick")


def benchmark(out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the result of a call."""
    code = gpu.main(["--out", str(out), *QUICK, *options])
    path = out / gpu.RESULT
    return code, json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """The exit code of a whole call, and its folder."""
    out = tmp_path_factory.mktemp("benchmark") / "out"
    code, _ = benchmark(out)
    return code, out


@pytest.fixture
def result(finished: tuple[int, Path]) -> dict[str, Any]:
    return json.loads((finished[1] / "gpu.json").read_text())


def test_a_call_checks_times_and_runs_a_cell(finished, result):
    assert finished[0] == 0
    assert result["environment"]["torch"] == torch.__version__
    assert (result["checks_not_run"], result["timings_not_run"]) == ([], [])
    assert result["cell"]["finished"]
    assert "not CIFAR-10" in result["cell"]["data"]
    assert {"squeeze", "measure", "synthesize", "evaluate"} <= result["cell"]["progress"][
        "stage_seconds"
    ].keys()
    assert all(0 <= accuracy <= 1 for accuracy in result["cell"]["accuracy"].values())


def test_every_part_of_a_method_is_checked_within_its_tolerance(result):
    assert {"statistics", "gradient", "synthesis", "student"} <= result["checks"]["dm"][
        "parts"
    ].keys()
    everything = result["checks"]["edc"]["parts"]
    assert everything.keys() == gpu_checks.TOLERANCES.keys()
    for check in result["checks"].values():
        assert check["passed"]
        assert all(part["deviation"] <= part["tolerance"] for part in check["parts"].values())
    # the other side really took other kernels
    assert everything["gradient"]["deviation"] > 0


def test_times_are_told_in_units_of_the_forward_pass(result):
    assert len(result["timings"]) == 6
    for entry in result["timings"].values():
        assert entry["ratio"] == pytest.approx(entry["seconds"] / entry["forward_seconds"])
    # a step holds a forward and a backward pass
    assert all(
        entry["ratio"] > 1 for name, entry in result["timings"].items() if name.startswith("step")
    )


def test_another_call_keeps_what_is_there(finished, result, monkeypatch):
    for module, name in ((gpu_checks, "checked"), (gpu_timings, "KINDS"), (gpu_cell, "distill")):
        monkeypatch.setattr(module, name, {} if name == "KINDS" else None)
    assert benchmark(finished[1]) == (0, result)


def test_a_part_that_had_no_time_is_made_by_the_next_call(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_checks, "QUICK", ("dm",))
    code, result = benchmark(tmp_path, "--parts", "checks,cell", "--minutes", "0")
    assert (code, result["checks_not_run"]) == (0, ["dm"])
    assert "cell" not in result
    result = benchmark(tmp_path, "--parts", "checks")[1]
    assert (result["checks_not_run"], result["checks"]["dm"]["passed"]) == ([], True)


def tf32(tensor: Tensor) -> Tensor:
    """Rounded to the ten bits of TF32."""
    rounded = ((tensor.detach().contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(
        torch.float32
    )
    return tensor + (rounded.view_as(tensor) - tensor.detach())


def test_float32_that_is_tf32_fails(tmp_path, monkeypatch):
    exact = torch.nn.functional.conv2d

    def coarse(images: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        # oneDNN is off on the side that stands for the device
        if torch.backends.mkldnn.enabled:
            return exact(images, weight, *rest)
        return exact(tf32(images), tf32(weight), *rest)

    monkeypatch.setattr(torch.nn.functional, "conv2d", coarse)
    data = gpu_checks.load(gpu_checks.assemble(gpu_checks.BASE | {"method": "dm"}).data)
    entry = gpu_checks.checked("dm", data, torch.device("cpu"), tmp_path)
    assert not entry["passed"]
    gradient = entry["parts"]["gradient"]
    assert gradient["deviation"] > gradient["tolerance"]


def test_an_error_fails_its_check_and_no_other(tmp_path, monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(gpu_checks, "QUICK", ("dm", "mtt"))
    monkeypatch.setattr(measure.Measure, "compute", broken)
    code, result = benchmark(tmp_path, "--parts", "checks")
    assert code == 1
    assert {name for name, entry in result["checks"].items() if entry["passed"]} == {"mtt"}
    assert result["checks"]["dm"]["error"].startswith(
        "RuntimeError: no kernel image is available ("
    )


def test_the_time_of_a_cell_can_be_over():

    # a process that runs tests for another one ignores interrupts
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def endless(seconds: float) -> None:
        with gpu_cell.interrupted_after(seconds):
            while True:
                time.sleep(0.01)

    try:
        with pytest.raises(gpu_cell.TimeOverError):
            endless(0.05)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(KeyboardInterrupt), gpu_cell.interrupted_after(60):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--parts", "checks,tests"],
            "--parts takes checks, timings, cell, separated by commas. Got 'tests' instead.",
        ),
        (["--device", "nonsense"], "Got 'nonsense' instead."),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(tmp_path, capsys, options, sentence):
    assert benchmark(tmp_path / "out", *options) == (2, {})
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_result_of_another_machine_is_left_alone(finished, tmp_path, capsys):
    shutil.copy(finished[1] / "gpu.json", tmp_path / "gpu.json")
    content = json.loads((tmp_path / "gpu.json").read_text())
    content["environment"]["processor"] = "another"
    (tmp_path / "gpu.json").write_text(json.dumps(content))
    assert benchmark(tmp_path) == (2, content)
    assert "was written with another 'environment'" in capsys.readouterr().err
