"""What operations cost on this machine: what is measured, how long, and what is made of it."""

import pytest
import torch

from rayd import machine
from rayd.engine import kernels, speeds, timing
from rayd.engine.counting import Count, counted
from rayd.engine.speeds import Speeds

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_measured(tmp_path, monkeypatch):
    """Every test begins on a machine of which nothing is known."""
    monkeypatch.setenv("RAYD_MACHINE", str(tmp_path / "machine"))


def work(batch: int, channels: int = 16) -> Count:
    """A convolution, a sum and a product."""
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1)
    images = torch.randn(batch, channels, 16, 16)
    return counted(
        lambda: (layer(images).relu().flatten(1) @ torch.zeros(channels * 256, 10)).sum().backward()
    )


def test_foreseen_seconds_are_near_those_that_it_takes():
    """Within a factor of three, whatever else this machine does: a plan is meant to keep within 1.5
    on a quiet one.
    """
    layer = torch.nn.Sequential(
        torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.GroupNorm(32, 32), torch.nn.ReLU()
    )
    images = torch.randn(64, 32, 32, 32)

    def step() -> None:
        layer(images).sum().backward()

    count = counted(step)
    known = Speeds(CPU)
    known.calibrate([count])
    assert known.seconds(count) == pytest.approx(timing.timed(step, CPU), rel=2.0, abs=0)
    assert known.seconds(count) > timing.timed(step, CPU) / 3


def test_calls_of_autograd_take_less_than_those_of_python():
    """Both are found by measuring; second-order gradients consist of those of autograd."""
    measured = Speeds(CPU)
    measured.calibrate([])
    operation = next(iter(counted(lambda: torch.zeros(1).neg()).calls))
    python = measured.seconds(Count({operation: 1000.0}))
    autograd = measured.seconds(Count({operation: 1000.0}, backward=1000.0))
    assert 0 < autograd < python


def test_speeds_are_measured_once_and_kept(monkeypatch):
    first = Speeds(CPU)
    assert not first.measured
    first.calibrate([work(8)])
    known = machine.facts(CPU)
    assert any("convolution" in name for name in known)
    monkeypatch.setattr(speeds, "timed", lambda *_, **__: 1.0)
    again = Speeds(CPU)
    again.calibrate([work(8)])
    assert again.measured
    assert again.seconds(work(8)) == pytest.approx(first.seconds(work(8)))
    again.calibrate([work(8)], anew=True)
    assert machine.facts(CPU) != known


def test_what_takes_most_time_is_measured_first(monkeypatch):
    known = Speeds(CPU)
    known.calibrate([work(2)])
    measured = []
    replay = timing.replay
    monkeypatch.setattr(
        speeds,
        "replay",
        lambda operation, device: measured.append(operation) or replay(operation, device),
    )
    known.calibrate([work(64, 96)], budget=0.0)
    assert measured == []
    known.calibrate([work(64, 96)])
    assert "convolution" in measured[0]


def test_seconds_grow_with_work():
    known = Speeds(CPU)
    assert known.seconds(work(64)) > known.seconds(work(4)) > 0
    assert known.seconds(work(4) * 3) == pytest.approx(3 * known.seconds(work(4)))
    assert sum(known.shares(work(4)).values()) == pytest.approx(known.seconds(work(4)))


def test_large_batches_are_measured_on_a_part():
    """A call that is timed does at most about REPLAYED_FLOPS operations."""
    count = work(4096, 64)
    for operation in count.calls:
        if kernels.kernel(operation).family == "convolutions":
            done, _, call = timing.replay(operation, CPU)
            assert done <= 2 * kernels.REPLAYED_FLOPS
            call()


@pytest.mark.parametrize("images", [64, 512])
def test_normalisation_is_measured_with_whole_vectors(images):
    """As many images as channels: kernels do not check the length of what belongs to channels."""
    layer = torch.nn.BatchNorm2d(images)
    for operation in counted(
        lambda: layer(torch.randn(images, images, 48, 48)).sum().backward()
    ).calls:
        name, args, _, _ = timing.json.loads(operation)
        if "batch_norm" in name:
            packet = name.split(".")[1]
            func = getattr(torch.ops.aten, packet).default
            share = timing._shrink(packet, func, args, kernels.kernel(operation))
            shapes = [each[1] for each in kernels.tensors_of(args)]
            assert share < 1
            assert {tuple(shape) for shape in shapes if len(shape) == 1} == {(images,)}
            assert {shape[0] for shape in shapes if len(shape) == 4} == {round(images * share)}


@pytest.fixture
def two_threads():
    """A process with two threads; tests have one."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_the_wall_clock_does_not_change_rates(monkeypatch):
    """A busy machine's is many times ahead of the processor time."""

    def rates(factor: float) -> list[float]:
        used = iter(range(10**6))
        monkeypatch.setattr(timing.time, "thread_time", lambda: 1e-3 * next(used))
        monkeypatch.setattr(timing.time, "perf_counter", lambda: factor * next(used))
        known = Speeds(CPU)
        known.calibrate([work(8)], budget=1e9, anew=True)
        return [value for name, value in machine.facts(CPU).items() if "convolution" in name]

    assert rates(1.0) == rates(1e6) != []


@pytest.mark.parametrize(
    ("wall", "gain"), [(1.0, 1.0), (0.6, 1 / 0.6), (0.5, 2.0), (0.1, 2.0), (40.0, 1.0)]
)
def test_threads_are_worth_between_one_and_their_number(monkeypatch, wall, gain):
    monkeypatch.setattr(timing, "_time_once", lambda _, threads, __: 1.0 if threads == 1 else wall)
    assert timing.gain(lambda: None, 2) == pytest.approx(gain)


@pytest.mark.usefixtures("two_threads")
def test_rates_are_those_of_one_thread_and_shared_by_what_threads_are_worth(monkeypatch):
    monkeypatch.setattr(speeds, "gain", lambda *_: 1.6)
    count = work(512, 64)
    both = Speeds(CPU)
    both.calibrate([count], budget=60.0)
    torch.set_num_threads(1)
    one = Speeds(CPU)
    assert one.measured
    mine = one.shares(count)
    theirs = both.shares(count)
    for family in ("convolutions", "matrix products"):
        assert mine[family] / theirs[family] == pytest.approx(1.6, rel=0.02)
    assert mine["calls"] == theirs["calls"]
    # small work is not shared
    torch.set_num_threads(2)
    small = counted(lambda: torch.zeros(1, 4) @ torch.zeros(4, 4))
    assert both.shares(small)["matrix products"] == one.shares(small)["matrix products"]


@pytest.mark.usefixtures("two_threads")
def test_what_threads_are_worth_is_measured_again_while_it_is_little(monkeypatch):
    """The most is kept, as other programs make it less."""
    found = iter([1.0, 1.2, 1.0, 1.9, 1.5])

    def gain() -> float:
        worth = next(found)
        monkeypatch.setattr(speeds, "gain", lambda *_: worth)
        known = Speeds(CPU)
        known.calibrate([])
        return known._gains["convolutions"]

    assert [gain() for _ in range(5)] == [1.0, 1.2, 1.2, 1.9, 1.9]
    assert Speeds(CPU)._gains["memory"] == 1.9


def test_fresh_memory_that_took_long_is_measured_again(monkeypatch):
    known = Speeds(CPU)
    known.calibrate([])
    known._keep({speeds.FRESH: 1e-6})
    count = counted(lambda: torch.zeros(12_000_000).neg())
    slow = known.seconds(count)
    monkeypatch.setattr(speeds, "fresh_seconds", lambda: 1e-9)
    later = Speeds(CPU)
    later.calibrate([])
    assert later.seconds(count) < slow / 100
    assert Speeds(CPU).seconds(count) == later.seconds(count)
