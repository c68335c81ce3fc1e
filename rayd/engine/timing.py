"""Timing of single operations, small computations, and the speed-up by several threads.

On the CPU, times are those of one thread in processor time, which other programs hardly affect.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rayd import devices, networks, seeding
from rayd.config import EvaluationSettings, NetworkSettings
from rayd.data.images import ImageShape
from rayd.engine.counting import Operation
from rayd.engine.kernels import (
    FRESH_BYTES,
    REPLAYED_BYTES,
    Kernel,
    dtype_of,
    fewer,
    is_tensor,
    kernel,
    tensors_of,
)
from rayd.training.batches import Draws
from rayd.training.losses import loss_of
from rayd.training.sets import TrainingSet
from rayd.training.trainer import Trainer

SLOW = 0.1
"""Seconds from which a call is timed only once."""
TIMED = 2e-3
"""Seconds of calls that are timed together."""
ALIKE = 0.03
"""Relative difference of two times up to which no third one is measured."""
ATTEMPTS = 8
"""Maximum number of repetitions of a measurement of the speed-up by threads."""
TINY_LAYERS = 4
"""Layers of the network whose second-order gradient is timed for the overhead of a call."""
SHARED = 0.9
"""Speed-up relative to the number of threads that needs no further measurement."""


def nothing(device: torch.device) -> Callable[[], object]:
    """A call that does almost nothing, to measure the overhead of timing a kernel."""
    number = torch.zeros(1, device=device)
    return lambda: torch.ops.aten.neg.default(number)


def references() -> dict[str, Callable[[], object]]:
    """Reference work of each family, which takes milliseconds and can be divided among threads."""
    draws = seeding.generator(0, "threads")
    images = torch.rand(16, 64, 16, 16, generator=draws)
    weight = torch.rand(64, 64, 3, 3, generator=draws)
    matrix = torch.rand(512, 512, generator=draws)
    numbers = torch.rand(2**22, generator=draws)
    made = torch.empty_like(numbers)
    return {
        "convolutions": lambda: torch.conv2d(images, weight, padding=1),
        "matrix products": lambda: matrix @ matrix,
        "memory": lambda: torch.add(numbers, numbers, out=made),
    }


def gain(work: Callable[[], object], threads: int) -> float:
    """Speed-up of some work by `threads` threads.

    One thread is timed by processor time, several by the minimum of wall times, as processor time
    would include threads that spin while they wait for preempted ones.
    """
    single = math.inf
    shared = math.inf
    for _ in range(ATTEMPTS):
        # the minimum, as other programs can only make it longer
        single = min(single, _time_once(work, 1, time.thread_time))
        shared = min(shared, _time_once(work, threads, time.perf_counter))
        if single >= SHARED * threads * shared:
            break
    # a gain above the number of threads is noise, and one below 1 means a busy machine
    return min(max(single / shared, 1.0), float(threads))


def _time_once(work: Callable[[], object], threads: int, clock: Callable[[], float]) -> float:
    with devices.thread_limit(threads):
        # the first call creates the threads
        work()
        began = clock()
        work()
        return clock() - began


def fresh_seconds() -> float:
    """Extra seconds per byte of the first write to newly mapped memory.

    The minimum of three measurements, as other programs disturb them.
    """
    count = 2 * FRESH_BYTES // 4
    kept = torch.zeros(count)
    cpu = torch.device("cpu")
    first = min(timed(lambda: torch.empty(count).fill_(1.0), cpu) for _ in range(3))
    return max(0.0, first - timed(lambda: kept.fill_(1.0), cpu)) / (4 * count)


def tiny_step(device: torch.device) -> Callable[[], object]:
    """A training step of a network so small that the overhead of calls dominates."""
    settings = EvaluationSettings(batch_size=2)
    shape = ImageShape(1, 8, 8)
    images = torch.rand(2, *shape, generator=seeding.generator(0, "tiny step"))
    training = TrainingSet(images, torch.arange(2))
    network = networks.build(NetworkSettings(name="convnet", width=4, depth=2), shape, 2, seed=0)
    batches = Draws(settings, 2, shape, 0)
    loss = loss_of(settings)
    trainer = Trainer(
        network, training, settings, batches, loss, epochs=10**6, seed=0, device=device
    )
    return trainer.advance


def tiny_backward(device: torch.device) -> Callable[[], object]:
    """A second-order gradient of a network so small that the overhead of calls dominates."""
    draws = seeding.generator(0, "tiny backward")
    weights = [
        torch.rand(8, 8, generator=draws).to(device).requires_grad_() for _ in range(TINY_LAYERS)
    ]
    features = torch.rand(2, 8, generator=draws).to(device)
    for weight in weights:
        features = torch.relu(features @ weight)
    loss = features.square().mean()
    along = [torch.ones_like(weight) for weight in weights]

    def gradient() -> object:
        first = torch.autograd.grad(loss, weights, create_graph=True)
        return torch.autograd.grad(first, weights, along, retain_graph=True)

    return gradient


def replay(operation: Operation, device: torch.device) -> tuple[float, float, Callable[[], object]]:
    """Build a call of the same kind on this device, with a smaller batch if it is large.

    Returns its work, the bytes of its fresh memory, and the call.
    """
    name, args, kwargs, _ = json.loads(operation)
    entry = kernel(operation)
    packet, overload = name.split(".")[1:3]
    func = getattr(getattr(torch.ops.aten, packet), overload)
    share = _shrink(packet, func, args, entry)
    if entry.bytes * share > 8 * REPLAYED_BYTES:
        raise ValueError("too large to be repeated")
    draws = seeding.generator(0, "speeds")
    real = _real(args, device, draws)
    named = {key: _real(value, device, draws) for key, value in kwargs.items()}
    if any(argument.name == "device" for argument in func._schema.arguments):
        named["device"] = device

    def call() -> object:
        with torch.no_grad():
            return func(*real, **named)

    return entry.work * share, entry.fresh if share == 1 else 0.0, call


IMAGES = {
    "convolution": ((0,), ()),
    "convolution_backward": ((0, 1), ()),
    "mm": ((0,), ()),
    "addmm": ((1,), ()),
    "native_group_norm": ((0,), (3,)),
    "native_group_norm_backward": ((0, 1, 2, 3), (5,)),
}
"""Indices of the arguments that are tensors with images as first dimension, and of those that are
the number of images.
"""


def _shrink(packet: str, func: Any, args: list[Any], entry: Kernel) -> float:
    """Reduce the batch of arguments, in place, to a size that is quick to compute.

    Returns the fraction that is left.
    """
    # operations whose tensor arguments all have the images as first dimension
    alike = (
        torch.Tag.pointwise in func.tags
        or "pool2d" in packet
        or "batch_norm" in packet
        or packet == "bmm"
    )
    if packet not in IMAGES and not alike:
        return 1.0
    tensors, numbers = IMAGES.get(packet, (tuple(range(len(args))), ()))
    shapes = [args[index][1] for index in tensors if tensors_of([args[index]]) == [args[index]]]
    most = max(map(len, shapes), default=0)
    batch = max((shape[0] for shape in shapes if len(shape) == most > 0), default=1)
    few = fewer(batch, entry.flops, entry.bytes)
    for shape in shapes:
        # a vector of that length may be per channel, and kernels do not check the length of vectors
        if shape and shape[0] == batch and (len(shape) == most or numbers):
            shape[0] = few
    for index in numbers:
        args[index] = few
    return few / batch


def _real(value: Any, device: torch.device, draws: torch.Generator) -> Any:
    """Convert arguments from JSON, with random tensors."""
    if is_tensor(value):
        return _filled(value, device, draws)
    if isinstance(value, list):
        return [_real(each, device, draws) for each in value]
    if isinstance(value, dict):
        if "dtype" in value:
            return dtype_of(value["dtype"])
        if "memory_format" in value:
            return getattr(torch, value["memory_format"])
        return float(value["float"])
    return value


def _filled(tensor: Any, device: torch.device, draws: torch.Generator) -> Tensor:
    _, shape, strides, name = tensor
    dtype = dtype_of(name)
    made = torch.empty_strided(shape, strides, dtype=dtype)
    if dtype.is_floating_point and 0 not in strides:
        # neither zeros, which kernels may skip, nor numbers whose products overflow
        values = torch.rand(1024, generator=draws).repeat(-(-made.numel() // 1024))
        made.copy_(values[: made.numel()].view(shape))
    else:
        made.zero_()
    return made.to(device)


def timed(work: Callable[[], object], device: torch.device, tries: int = 5) -> float:
    """Seconds of one call: the minimum over a few tries, each of as many calls as take `TIMED`
    seconds.

    On the CPU it is processor time, which excludes other programs, of one thread.
    """
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    best = math.inf
    calls = 1
    for attempt in range(tries):
        began = clock()
        for _ in range(calls):
            work()
        devices.synchronize(device)
        elapsed = (clock() - began) / calls
        # the first try includes one-time initialisation and is replaced by the second one
        before = best
        best = elapsed if attempt < 2 else min(best, elapsed)
        if elapsed > SLOW or (attempt >= 2 and abs(elapsed - before) <= ALIKE * before):
            break
        calls = max(1, min(1000, int(TIMED / max(elapsed, 1e-7))))
    return best
