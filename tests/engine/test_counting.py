"""Operations are counted as they would be done, without being done."""

import json
import math
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rayd import networks
from rayd.config import EvaluationSettings, NetworkSettings
from rayd.data.images import ImageShape
from rayd.engine.counting import Count, Counting, counted
from rayd.engine.kernels import kernel
from rayd.statistics import Moments, transforms
from rayd.training.batches import Draws
from rayd.training.losses import loss_of
from rayd.training.sets import TrainingSet
from rayd.training.trainer import Trainer


class Recorded(TorchDispatchMode):
    """Names of all operations that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def trainer(name: str = "convnet", images: int = 20, **settings: object) -> Trainer:
    chosen = EvaluationSettings(
        augmentation="color_crop_cutout_flip_scale_rotate", batch_size=images, **settings
    )
    shape = ImageShape(3, 32, 32)
    training = TrainingSet(torch.randn(images, *shape), torch.arange(images) % 10)
    network = networks.build(NetworkSettings(name=name), shape, 10, seed=0)
    draws = Draws(chosen, images, shape, 0)
    return Trainer(
        network,
        training,
        chosen,
        draws,
        loss_of(chosen),
        epochs=50,
        seed=0,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_counted_operations_are_those_of_the_real_step(name):
    """The same operations, as often, as when the step is computed."""
    one = trainer(name, 4)
    with Recorded() as real:
        one.advance()
    found: Counter[str] = Counter()
    for operation, number in counted(trainer(name, 4).advance).calls.items():
        found[json.loads(operation)[0]] += int(number)
    # what is saved for backward passes is detached once more while it is counted
    for names in (found, real.names):
        names.pop("aten.detach.default")
    assert not found - real.names
    # a gradient may have to be laid out anew, where it is a real one
    assert (real.names - found).total() <= 10


def test_floating_point_operations_are_those_of_torch():
    """Convolutions and matrix products, forward and backward."""
    modules = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, stride=2, padding=1),
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 8 * 8, 10),
    )
    images = torch.randn(6, 4, 16, 16)

    def work() -> None:
        modules(images).sum().backward()

    with FlopCounterMode(display=False) as expected:
        work()
    calls = counted(work).calls
    assert (
        sum(number * kernel(operation).flops for operation, number in calls.items())
        == expected.get_total_flops()
    )


def test_large_work_is_counted_without_memory():
    """A batch whose activations would fill hundreds of gigabytes."""
    with Counting() as counting:
        network = networks.build(
            NetworkSettings(name="convnet"), ImageShape(3, 224, 224), 10, seed=0
        )
        images = torch.zeros(1).expand(10_000, 3, 224, 224).clone()
        network(images).sum().backward()
    count = counting.count()
    assert count.saved_bytes > 2e11
    flops = sum(number * kernel(operation).flops for operation, number in count.calls.items())
    assert flops > 1e14


def test_saved_bytes_are_those_of_autograd():
    """What autograd keeps, each storage once."""
    network = networks.build(
        NetworkSettings(name="convnet", width=16), ImageShape(3, 32, 32), 10, seed=0
    )
    images = torch.randn(8, 3, 32, 32)
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(images).square().mean()
    count = counted(lambda: network(images).square().mean())
    assert count.saved_bytes == pytest.approx(sum(saved.values()), rel=0.05)
    assert loss.isfinite()


class _Doubled(torch.autograd.Function):
    """A function whose backward pass is Python code."""

    @staticmethod
    def forward(ctx, numbers):
        return numbers * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


@pytest.mark.parametrize(
    ("work", "by_autograd"),
    [
        (lambda numbers: numbers * 3, False),
        (lambda numbers: torch.autograd.grad(numbers.sin(), numbers, torch.ones(4)), True),
        (
            lambda numbers: torch.autograd.grad(_Doubled.apply(numbers), numbers, torch.ones(4)),
            False,
        ),
    ],
    ids=["forward", "autograd", "function"],
)
def test_calls_of_autograd_are_told_from_those_of_python(work, by_autograd):
    """`sin` has the derivative `cos`, times the incoming gradient: which no Python code computes."""
    numbers = torch.rand(4).requires_grad_()
    count = counted(lambda: work(numbers))
    assert (count.backward > 0) == by_autograd
    assert count.backward < count.number
    assert (count * 2 + count).backward == 3 * count.backward
    assert (count - count).backward == 0
    assert Count.from_json(count.to_json()) == count


def test_control_flow_sees_real_draws_and_harmless_numbers():
    """Draws and labels are real; a number of what was not computed is finite and true."""
    seen = []

    def work() -> None:
        draws = torch.Generator().manual_seed(0)
        rows = torch.randperm(50_000, generator=draws)[:64]
        images = torch.randn(50_000, 3, 32, 32, generator=draws)[rows]
        seen.append((len(rows.unique()), float(images.mean()), bool(images.isfinite().all())))

    counted(work)
    assert seen[0][0] == 64
    assert math.isfinite(seen[0][1])
    assert seen[0][2]


def test_counts_are_added_multiplied_and_kept():
    one = counted(lambda: torch.ones(3) + 1)
    assert (one + one).calls == (one * 2).calls
    assert ((one * 3) - one).calls == (one * 2).calls
    assert Count.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_repeated_work_is_counted_each_time(monkeypatch):
    """Moments of many parts count as they would if every part was computed."""
    maps = torch.zeros(64, 16, 64, 64)
    labels = torch.zeros(1, dtype=torch.long)

    def moments() -> None:
        features = (maps + labels).requires_grad_()
        mean, m2 = transforms.Channels().moments(features)[:2]
        again = transforms.Patches(4).moments(features.detach()[:60])
        (mean.sum() + m2.sum() + again.mean.sum()).backward()

    short = counted(moments)
    # nothing is known of it, and nobody is asked instead
    monkeypatch.setattr(Counting, "_repeat", lambda self, made, args: made(*args))
    whole = counted(moments)
    assert short.calls == whole.calls
    assert short.saved_bytes == whole.saved_bytes
    assert whole.number > 40


def test_statistics_updated_batch_by_batch_count_each_batch(monkeypatch):
    """An update that is repeated counts as it would if it was performed."""
    features = torch.zeros(64, 256, 8, 8)

    def measure() -> None:
        labels = torch.arange(64) % 10
        moments = Moments.empty(10, 256)
        for _ in range(3):
            # a placeholder, as in a plan
            moments.update(features + 1, labels, transforms.Channels())

    short = counted(measure)
    monkeypatch.setattr(Counting, "_repeat", lambda self, work, args: work(*args))
    whole = counted(measure)
    assert short.calls == whole.calls
    assert whole.number > 60


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.ones(64, 32, 16, 16), torch.ones(64, 32, 16, 16)),
        (torch.ones(64, 32, 16, 16), torch.ones(1, 32, 1, 1)),
        (torch.ones(64, 32, 16, 16), torch.ones(16)),
        (torch.ones(64, 1, 256), torch.ones(64, 32, 256)),
        (torch.ones(64, 1, 256), torch.ones(32, 256)),
        (torch.ones(64, 1, 256).expand(64, 32, 256), torch.ones(32, 256)),
        (torch.ones(64, 32, 16, 16).to(memory_format=torch.channels_last), torch.ones(1, 32, 1, 1)),
        (torch.ones(64, 32, 16, 16).transpose(0, 1), torch.ones(32, 1, 16, 16)),
    ],
)
def test_results_of_broadcasting_have_the_shape_and_layout_of_torch(left, right):
    found = {}

    def subtract() -> None:
        result = left - right
        found["counted"] = (result.shape, result.stride())

    counted(subtract)
    real = left - right
    assert found["counted"] == (real.shape, real.stride())
