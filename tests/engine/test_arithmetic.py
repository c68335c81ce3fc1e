"""`precision: auto` and `resources.layout: auto` become what this machine is good at, and stay what
a run began with.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from rayd import devices, machine, methods
from rayd.config import Recipe
from rayd.data import ImageShape
from rayd.distilled import load as load_distilled
from rayd.engine import arithmetic
from rayd.engine.arithmetic import Hardware, choose
from rayd.engine.distill import distill
from rayd.engine.evaluate import evaluate_distilled
from rayd.engine.progress import Progress
from rayd.recipes import assemble
from tests.conftest import tiny

NATIVE = Hardware("cpu", "with bfloat16", bfloat16=0.6, tf32=False, channels_last=0.8)
EMULATED = Hardware("cpu", "without bfloat16", bfloat16=12.0, tf32=False, channels_last=1.2)
AMPERE = Hardware("cuda", "a GPU", bfloat16=0.4, tf32=True, channels_last=0.7)
TURING = Hardware("cuda", "an older GPU", bfloat16=2.0, tf32=False, channels_last=0.9)
CIFAR = ImageShape(3, 32, 32)
DIGITS = ImageShape(1, 8, 8)


def on(hardware: Hardware, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that runs in process compute on some hardware."""
    monkeypatch.setattr(arithmetic, "measure", lambda device, anew=False: hardware)


def recipe(method: str = "dm", **overrides: object) -> Recipe:
    return assemble({"name": "some", "method": method, "data": {"name": "cifar10"}}, overrides)


def precisions(chosen: Recipe) -> dict[str, str]:
    """What was chosen, by section; unused sections are left as they are."""
    found = {
        "observers": chosen.observers.precision,
        "squeeze": chosen.squeeze.precision,
        "experts": chosen.experts.precision,
        "synthesis": chosen.synthesis.precision,
        "evaluation": chosen.evaluation.precision,
    }
    unused = methods.build(chosen).unused
    assert all(found[name] == "auto" for name in unused if name in found)
    return {name: value for name, value in found.items() if name not in unused}


@pytest.mark.parametrize(
    ("hardware", "shape", "wanted"),
    [
        (NATIVE, CIFAR, "bfloat16"),
        (EMULATED, CIFAR, "float32"),
        (NATIVE, DIGITS, "float32"),
        (AMPERE, CIFAR, "bfloat16"),
    ],
)
def test_auto_is_bfloat16_only_where_it_is_fast(
    hardware: Hardware, shape: ImageShape, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(hardware, monkeypatch)
    assert set(precisions(choose(recipe(), shape).recipe).values()) == {wanted}


def test_auto_respects_what_a_method_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    on(AMPERE, monkeypatch)
    spectral = precisions(choose(recipe("cfm"), CIFAR).recipe)
    assert spectral["observers"] == spectral["synthesis"] == "float32"
    assert spectral["squeeze"] == spectral["evaluation"] == "bfloat16"
    trajectories = precisions(choose(recipe("mtt"), CIFAR).recipe)
    assert trajectories["synthesis"] == trajectories["experts"] == "tf32"
    on(TURING, monkeypatch)
    assert set(precisions(choose(recipe("mtt"), CIFAR).recipe).values()) == {"float32"}


def test_explicit_settings_stay_and_slow_ones_are_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on(EMULATED, monkeypatch)
    choice = choose(recipe(synthesis={"precision": "bfloat16"}), CIFAR)
    assert choice.recipe.synthesis.precision == "bfloat16"
    assert choice.recipe.observers.precision == "float32"
    (warning,) = choice.warnings
    assert "'synthesis.precision: bfloat16' takes 12 times as long as float32" in warning
    on(NATIVE, monkeypatch)
    assert choose(recipe(synthesis={"precision": "bfloat16"}), CIFAR).warnings == ()


def test_guides_compute_as_chosen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    on(NATIVE, monkeypatch)
    own = choose(recipe("iid-dm", ipc=2, classifiers={"pool": 1}), CIFAR).recipe
    assert own.classifiers is not None
    assert (own.classifiers.precision, own.classifiers.squeeze.precision) == (
        "bfloat16",
        "bfloat16",
    )
    default = choose(recipe("iid-dm", ipc=2), CIFAR).recipe
    assert default.classifiers is None
    assert (
        default.classifier_settings.precision,
        default.classifier_settings.squeeze.precision,
    ) == ("bfloat16", "bfloat16")


def test_layout_follows_the_measurement_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    on(NATIVE, monkeypatch)
    assert choose(recipe(), CIFAR).recipe.resources.layout == "channels-last"
    on(EMULATED, monkeypatch)
    assert choose(recipe(), CIFAR).recipe.resources.layout == "contiguous"
    assert (
        choose(recipe(resources={"layout": "channels-last"}), CIFAR).recipe.resources.layout
        == "channels-last"
    )


def test_narrow_networks_are_contiguous_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_layout", "channels-last")
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    assert devices.layout(network, torch.device("cpu")) is torch.contiguous_format
    assert devices.layout(network, torch.device("cuda")) is torch.channels_last


def test_networks_are_laid_out_as_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    for name, wanted in (
        ("contiguous", torch.contiguous_format),
        ("channels-last", torch.channels_last),
    ):
        monkeypatch.setattr(devices, "_layout", "auto")
        devices.use_layout(recipe(resources={"layout": name}).resources)
        assert devices.layout(network, torch.device("cpu")) is wanted
        assert (
            devices.layout(nn.Sequential(nn.GroupNorm(1, 1)), torch.device("cpu"))
            is torch.contiguous_format
        )


def test_a_run_computes_as_chosen_and_its_card_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # digits are too small to gain, so that what `auto` means is forced
    monkeypatch.setattr(arithmetic, "SMALL", 1)
    on(NATIVE, monkeypatch)
    fast = distill(tiny(), tmp_path / "fast", progress=Progress(quiet=True))
    asked = tiny(
        **{part: {"precision": "bfloat16"} for part in ("observers", "synthesis", "evaluation")}
    )
    same = distill(asked, tmp_path / "same", progress=Progress(quiet=True))
    on(EMULATED, monkeypatch)
    slow = distill(tiny(), tmp_path / "slow", progress=Progress(quiet=True))
    assert torch.equal(fast.distilled.images, same.distilled.images)
    assert not torch.equal(fast.distilled.images, slow.distilled.images)
    assert (fast.recipe.synthesis.precision, slow.recipe.synthesis.precision) == (
        "bfloat16",
        "float32",
    )
    assert fast.distilled.card["config"]["synthesis"]["precision"] == "bfloat16"
    assert fast.distilled.card["hardware"] == {
        "device": "cpu",
        "name": "with bfloat16",
        "threads": 1,
        "layout": "channels-last",
    }
    assert "precision bfloat16" in fast.report.results[0].protocol
    assert "precision" not in slow.report.results[0].protocol


def test_a_resumed_run_keeps_its_arithmetic_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "SMALL", 1)
    on(NATIVE, monkeypatch)
    first = distill(tiny(), tmp_path / "run", progress=Progress(quiet=True))
    on(EMULATED, monkeypatch)
    again = distill(tiny(), tmp_path / "run", resume=True, progress=Progress(quiet=True))
    assert precisions(again.recipe) == precisions(first.recipe)
    assert torch.equal(again.distilled.images, first.distilled.images)


def test_a_set_is_judged_elsewhere_by_its_own_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "SMALL", 1)
    on(NATIVE, monkeypatch)
    distill(tiny(), tmp_path / "run", progress=Progress(quiet=True))
    on(EMULATED, monkeypatch)
    said: list[str] = []
    progress = Progress(quiet=True)
    monkeypatch.setattr(progress, "log", said.append)
    report = evaluate_distilled(load_distilled(tmp_path / "run"), {}, None, None, progress)
    assert "precision bfloat16" in report.results[0].protocol
    assert any("'evaluation.precision: bfloat16' takes 12 times" in sentence for sentence in said)


def test_facts_are_measured_once_and_anew_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYD_MACHINE", str(tmp_path))
    calls: list[int] = []

    def measured() -> float:
        calls.append(1)
        return float(len(calls))

    cpu = torch.device("cpu")
    assert [machine.fact("speed", cpu, measured) for _ in range(3)] == [1.0, 1.0, 1.0]
    monkeypatch.setattr(machine, "_MEASURED", {})  # another process
    assert machine.fact("speed", cpu, measured) == 1.0
    assert machine.fact("speed", cpu, measured, anew=True) == 2.0
    assert machine.fact("speed", cpu, measured) == 2.0
    monkeypatch.setattr(machine, "identity", lambda *_: {"name": "another processor"})
    assert machine.fact("speed", cpu, measured) == 3.0


def test_facts_that_cannot_be_kept_still_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RAYD_MACHINE", str(tmp_path / "file"))
    assert machine.fact("unkept", torch.device("cpu"), lambda: 5.0) == 5.0


def test_the_measurement_of_this_machine_is_a_plausible_ratio() -> None:
    found = arithmetic.measure(torch.device("cpu"), anew=True)
    assert 0.05 < found.bfloat16 < arithmetic.UNKNOWN
    assert 0.05 < found.channels_last < 20
    assert not found.tf32
    assert replace(found).to_json() == found.to_json()


def test_every_method_names_sections_that_exist() -> None:
    for name in methods.names():
        assert set(methods.get(name).least_precision) <= set(arithmetic.SECTIONS)
