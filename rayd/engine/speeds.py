"""Time of counted operations on this machine.

The time of an operation is the overhead of a call in Python and autograd, plus that of its kernel,

    seconds = call + work / rate + fresh

    call    of Python code, or of autograd within a backward pass, which takes less than half
    work    floating-point operations of convolutions and matrix products; bytes read and written of
            all other operations, which are bound by memory
    fresh   time to clear newly mapped memory; see `FRESH_BYTES`

where the rate is that of operations of the same kind and about the same size on this machine:
convolutions of few and of many channels, depthwise ones, matrix products, pooling, normalisation,
sums and elementwise arithmetic, each forward and backward, in the precision and memory layout of
the call. A rate is measured when a plan first needs it, on a smaller batch where the batch is
large, and kept (`rayd.machine`). The most expensive operations of a plan are measured first, for a
few seconds at most; the others use the rate of the nearest measured size until a later plan
measures them.

On the CPU, rates are those of one thread in processor time, which other programs affect little, and
serve all numbers of threads. The speed-up by several threads is measured once for each number of
them and each family of operations (`Speeds.calibrate`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rayd import devices, machine, networks, seeding
from rayd.config import EvaluationSettings, NetworkSettings
from rayd.data.images import ImageShape
from rayd.engine.counting import Count, Operation, counted
from rayd.training.batches import Draws
from rayd.training.losses import loss_of
from rayd.training.sets import TrainingSet
from rayd.training.trainer import Trainer

VERSION = 3
"""Version of the method of measuring; results of other versions are ignored."""
BUDGET = 1.0
"""Seconds spent on measuring for one plan."""
WORTHWHILE = 0.02
"""Share of the total time up to which all unmeasured operations together are not measured."""
REPLAYED_FLOPS = 4e8
"""Approximate floating-point operations of a timed call, to which batches are reduced."""
REPLAYED_BYTES = 2**25
"""The same in bytes."""
SLOW = 0.1
"""Seconds from which on a call is timed only once."""
TIMED = 2e-3
"""Seconds of calls that are timed together."""
ALIKE = 0.03
"""Relative difference of two times up to which no third is taken."""
FRESH_BYTES = 2**25
"""Bytes from which on a tensor gets newly mapped memory: glibc maps it for this tensor alone, and
the system clears it page by page on the first write, which takes longer than most kernels."""
NEAR = 2.5
"""Distance of sizes, in factors of two summed over all dimensions, up to which a rate is reused."""

NOMINAL = {"cpu": (4e10, 8e9, 8e-6), "mps": (2e12, 1e11, 2e-5), "cuda": (1e13, 5e11, 1e-5)}
"""Nominal operations per second, bytes per second (of one thread on the CPU), and seconds per
call."""
LEAST = {"convolutions": 2e-5, "matrix products": 5e-6, "memory": 4e-6}
"""Nominal seconds of the smallest kernels of the CPU."""

PARALLEL = {"convolutions": 2.0**21, "matrix products": 2.0**21, "memory": 2.0**18}
"""Least work of a thread: floating-point operations, or bytes of 32,768 numbers read and written,
below which torch does not start another one.
"""
ATTEMPTS = 8
"""Most repetitions of a measurement of the speed-up by threads."""
TINY_LAYERS = 4
"""Layers of the network whose second-order gradient is timed for the overhead of a call."""
SHARED = 0.9
"""Speed-up relative to the number of threads that needs no further measurement."""

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})
CALL = "call"
"""Name of the overhead of a call in Python code."""
BACKWARD = "backward call"
"""Name of the overhead of a call that autograd makes in a backward pass."""
FRESH = "fresh"
"""Name of the time of a byte of fresh memory."""
THREADS = "threads"
"""Name of the speed-up by several threads, before the family."""


@dataclass(frozen=True)
class Kernel:
    """Properties of an operation, parsed from its text."""

    flops: float
    """Floating-point operations; 0 for operations that memory bounds."""
    bytes: float
    """Bytes of tensors read and written."""
    kind: tuple[Any, ...]
    """Properties that operations with a common rate must share."""
    sizes: tuple[float, ...]
    """Binary logarithms of sizes that must be close for a common rate."""
    family: str
    """`convolutions`, `matrix products`, `memory`, or `calls` where nothing is computed."""
    fresh: float = 0.0
    """Bytes that are written to fresh memory."""

    @property
    def work(self) -> float:
        """Floating-point operations, or bytes."""
        return self.flops or self.bytes

    @property
    def name(self) -> str:
        """Name of its measured rate."""
        return json.dumps([*self.kind, [round(size) for size in self.sizes]], separators=(",", ":"))


@lru_cache(maxsize=100_000)
def kernel(operation: Operation) -> Kernel:
    """Parse an operation."""
    name, args, kwargs, made = json.loads(operation)
    short = name.split(".")[1]
    read = _tensors([args, kwargs])
    written = _tensors(made)
    if not written and short != "_local_scalar_dense" and not short.startswith("_fused"):
        return Kernel(0.0, 0.0, (short,), (), "calls")
    size = float(sum(map(_bytes, [*read, *written])))
    fresh = 0.0
    # operations in place write to memory that was used before
    if not short.endswith("_"):
        fresh = float(sum(each for each in map(_bytes, written) if each > FRESH_BYTES))
    types = sorted({each[3] for each in read})
    if short in ("convolution", "convolution_backward"):
        return _convolution(short, args, made, types, size, fresh)
    if short in PRODUCTS:
        left, right = [each for each in read if len(each[1]) > 1][-2:]
        rows = math.prod(left[1][:-1])
        inner = left[1][-1]
        columns = right[1][-1]
        kind = (short, *types, _order(left), _order(right))
        return Kernel(
            flops=2.0 * rows * inner * columns,
            bytes=size,
            kind=kind,
            sizes=tuple(math.log2(max(1, each)) for each in (rows, inner, columns)),
            family="matrix products",
            fresh=fresh,
        )
    return Kernel(
        flops=0.0,
        bytes=size,
        kind=(short, *types, *sorted({_order(each) for each in read}), *_options([args, kwargs])),
        sizes=(math.log2(max(1.0, size)),),
        family="memory",
        fresh=fresh,
    )


def _convolution(
    short: str,
    args: Sequence[Any],
    made: Sequence[Any],
    types: Sequence[str],
    size: float,
    fresh: float,
) -> Kernel:
    backward = short == "convolution_backward"
    inputs, weight = (args[1], args[2]) if backward else (args[0], args[1])
    outputs = args[0] if backward else made[0]
    stride = args[4 if backward else 3]
    transposed = args[7 if backward else 6]
    # of a backward pass: which of the gradients of images and weights are computed
    groups, mask = (args[9], args[10][:2]) if backward else (args[8], [True])
    shape = outputs[1]
    filters = weight[1]
    grid = inputs[1] if transposed else shape
    flops = 2.0 * grid[0] * math.prod(grid[2:]) * math.prod(filters) * sum(mask)
    batch = max(1, min(shape[0], _fewer(shape[0], flops, size)))
    lengths = (filters[0] / groups, filters[1], groups, math.prod(shape[2:]), batch)
    return Kernel(
        flops=flops,
        bytes=size,
        kind=(short, *types, _order(inputs), *filters[2:], *stride, transposed, groups > 1, *mask),
        sizes=tuple(math.log2(max(1, each)) for each in lengths),
        family="convolutions",
        fresh=fresh,
    )


def _fewer(batch: int, flops: float, size: float) -> int:
    """Size to which a batch is reduced for timing."""
    share = max(flops / REPLAYED_FLOPS, size / REPLAYED_BYTES, 1.0)
    return max(1, round(batch / share))


def _tensors(value: Any) -> list[Any]:
    """All tensors among arguments."""
    if _is_tensor(value):
        return [value]
    tensors = []
    for each in _children(value):
        tensors.extend(_tensors(each))
    return tensors


def _options(value: Any) -> list[Any]:
    """Small integers and strings among arguments, and the dimensions of tensors.

    They may select the kernel: the dimensions to be summed, for example.
    """
    if _is_tensor(value):
        return [len(value[1])]
    if isinstance(value, bool | str) or (isinstance(value, int) and abs(value) < 16):
        return [value]
    options = []
    for each in _children(value):
        options.extend(_options(each))
    return options


def _is_tensor(value: Any) -> bool:
    """Whether an argument is a tensor: ["T", shape, strides, type]."""
    return isinstance(value, list) and len(value) == 4 and value[0] == "T"


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _bytes(tensor: Any) -> int:
    _, shape, strides, dtype = tensor
    # expanded dimensions have stride 0: they are read from the processor's cache
    real: int = math.prod(
        length for length, stride in zip(shape, strides, strict=True) if stride != 0
    )
    return real * _dtype(dtype).itemsize


def _order(tensor: Any) -> str:
    """Memory layout of a tensor: `first` is contiguous, `last` has channels last."""
    _, shape, strides, _ = tensor
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != expected:
            return "last" if len(shape) == 4 and strides[1] == 1 else "other"
        expected *= length
    return "first"


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


class Speeds:
    """Measured speeds of a device with the present number of threads.

    Args:
        device: speeds that were measured on it before are loaded.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        # the rates of one thread serve all numbers of threads
        self._one = 1 if device.type == "cpu" else None
        flops, bandwidth, call = NOMINAL[device.type]
        # by whether an operation is bound by arithmetic
        self._nominal = {True: flops, False: bandwidth}
        self._call = call
        self._backward = call / 2
        self._fresh = 0.0
        self._rates: dict[tuple[Any, ...], dict[tuple[int, ...], float]] = {}
        self._gains: dict[str, float] = {}
        self.measured = False
        for name, value in machine.facts(device, self._one).items():
            self._know(name, value)
        if self._threads > 1:
            self._know_gains(machine.facts(device))

    def _know(self, name: str, value: float) -> None:
        prefix = _fact("")
        if not name.startswith(prefix):
            return
        described = name.removeprefix(prefix)
        if described == CALL:
            self._call = value
            self.measured = True
            return
        if described == BACKWARD:
            self._backward = value
            return
        if described == FRESH:
            self._fresh = value
            return
        *kind, sizes = json.loads(described)
        self._rates.setdefault(tuple(kind), {})[tuple(sizes)] = value

    def _know_gains(self, facts: Mapping[str, float]) -> None:
        for family in PARALLEL:
            gain = facts.get(_fact(f"{THREADS} {family}"))
            if gain is not None:
                self._gains[family] = min(max(gain, 1.0), float(self._threads))

    def seconds(self, count: Count) -> float:
        """Seconds that counted operations take."""
        calls = self._overhead(count)
        work = sum(
            number * self._shared_seconds(kernel(operation))
            for operation, number in count.calls.items()
        )
        # a GPU computes while Python issues the next calls
        return max(calls, work) if self.device.type == "cuda" else calls + work

    def shares(self, count: Count) -> dict[str, float]:
        """The same by family: `convolutions`, `matrix products`, `memory` and `calls`."""
        shares = {"calls": self._overhead(count)}
        for operation, number in count.calls.items():
            entry = kernel(operation)
            seconds = number * self._shared_seconds(entry)
            shares[entry.family] = shares.get(entry.family, 0.0) + seconds
        return shares

    def _overhead(self, count: Count) -> float:
        """Seconds of all calls beside those of their kernels."""
        return (count.number - count.backward) * self._call + count.backward * self._backward

    def _shared_seconds(self, entry: Kernel) -> float:
        """Seconds of a kernel on all threads."""
        seconds = self._kernel_seconds(entry)
        if self._threads == 1 or entry.work == 0:
            return seconds
        gain = self._gains.get(entry.family, float(self._threads))
        return seconds / max(1.0, min(gain, entry.work / PARALLEL[entry.family]))

    def _kernel_seconds(self, entry: Kernel) -> float:
        """Seconds of a kernel on one thread, by the rate of the nearest measured size."""
        if entry.work == 0:
            return 0.0
        known = self._rates.get(entry.kind, {})
        fresh = entry.fresh * self._fresh
        if known:
            nearest = min(known, key=lambda sizes: _distance(sizes, entry.sizes))
            if _distance(nearest, entry.sizes) <= NEAR:
                return entry.work * known[nearest] + fresh
        least = LEAST[entry.family] if self.device.type == "cpu" else 0.0
        return entry.work / self._nominal[entry.flops > 0] + least + fresh

    def _is_known(self, entry: Kernel) -> bool:
        return tuple(round(size) for size in entry.sizes) in self._rates.get(entry.kind, {})

    def calibrate(
        self, counts: Iterable[Count], budget: float = BUDGET, anew: bool = False
    ) -> float:
        """Measure the most expensive operations of a plan that were not measured yet.

        Args:
            counts: all operations of the plan.
            budget: seconds after which no further rate is measured.
            anew: measure known rates again.

        Returns:
            The seconds that it took.
        """
        # on the CPU, time spent by other programs does not count
        clock = time.thread_time if self.device.type == "cpu" else time.monotonic
        began = clock()
        if anew:
            self._rates.clear()
        if self._threads > 1:
            self._measure_gains(anew)
        with devices.thread_limit(1) if self.device.type == "cpu" else nullcontext():
            if anew or not self.measured:
                self._measure_calls()
            ends = clock() + budget
            self._measure(counts, lambda: clock() > ends)
        return clock() - began

    def _measure(self, counts: Iterable[Count], spent: Callable[[], bool]) -> None:
        operations = _together(counts)
        seconds = {
            name: self._kernel_seconds(kernel(operation)) * number
            for name, (operation, number) in operations.items()
        }
        missing = [
            name
            for name, (operation, _) in operations.items()
            if not self._is_known(kernel(operation))
        ]
        left = sum(seconds[name] for name in missing)
        total = sum(seconds.values())
        found: dict[str, float] = {}
        base = _timed(_nothing(self.device), self.device)
        for name in sorted(missing, key=seconds.__getitem__, reverse=True):
            if left < WORTHWHILE * total or spent():
                break
            found[name] = self._measured(operations[name][0], base)
            left -= seconds[name]
        self._keep(found)

    def _measure_gains(self, anew: bool) -> None:
        """Measure the speed-up by threads of each family.

        Other programs reduce it, so low values are measured again by later plans, and the highest
        is kept.
        """
        if anew:
            self._gains.clear()
        found = {}
        for family, work in _references().items():
            known = self._gains.get(family, 0.0)
            if known < SHARED * self._threads:
                found[_fact(f"{THREADS} {family}")] = max(known, _gain(work, self._threads))
        machine.remember(found, self.device)
        self._know_gains(found)

    def _measure_calls(self) -> None:
        """Measure the overhead of calls, and the time of fresh memory.

        The overhead is the time of tiny computations less that of their kernels. Autograd makes
        calls in less than half of the time that Python code takes, and second-order gradients
        consist of these.
        """
        backward = tiny_backward(self.device)
        step = tiny_step(self.device)
        inside = counted(backward)
        whole = counted(step)
        base = _timed(_nothing(self.device), self.device)
        kernels = _together([inside, whole])
        self._keep(
            {name: self._measured(operation, base) for name, (operation, _) in kernels.items()}
        )
        one = self._beside_kernels(backward, inside) / inside.number
        left = self._beside_kernels(step, whole) - whole.backward * one
        found = {
            BACKWARD: one,
            CALL: max(left / (whole.number - whole.backward), one),
        }
        if self.device.type == "cpu":
            found[FRESH] = _fresh_seconds()
        self._keep(found)

    def _beside_kernels(self, work: Callable[[], object], count: Count) -> float:
        """Seconds of a computation less those of its kernels."""
        seconds = _timed(work, self.device, tries=20)
        if self.device.type == "cuda":
            # kernels run while Python issues the next calls
            return seconds
        kernels = sum(
            number * self._kernel_seconds(kernel(operation))
            for operation, number in count.calls.items()
        )
        return max(seconds - kernels, seconds / 10)

    def _keep(self, found: Mapping[str, float]) -> None:
        named = {_fact(name): value for name, value in found.items()}
        machine.remember(named, self.device, self._one)
        for name, value in named.items():
            self._know(name, value)

    def _measured(self, operation: Operation, base: float) -> float:
        """Seconds per unit of work; the present estimate if the operation cannot be repeated."""
        try:
            work, fresh, call = _replay(operation, self.device)
            seconds = _timed(call, self.device)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            entry = kernel(operation)
            return self._kernel_seconds(entry) / entry.work
        return max(seconds - base - fresh * self._fresh, seconds / 20) / work


def _fact(name: str) -> str:
    return f"speed {VERSION} {name}"


def _distance(sizes: Sequence[float], others: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(sizes, others, strict=True))


def _together(counts: Iterable[Count]) -> dict[str, tuple[Operation, float]]:
    """Operations grouped by the name of their rate.

    For each name, the operation with the most work, and the number of its calls that have the work
    of the whole group.
    """
    found: dict[str, tuple[Operation, float]] = {}
    for count in counts:
        for operation, number in count.calls.items():
            entry = kernel(operation)
            if entry.work == 0:
                continue
            largest, before = found.get(entry.name, (operation, 0.0))
            work = before * kernel(largest).work + number * entry.work
            if entry.work > kernel(largest).work:
                largest = operation
            found[entry.name] = (largest, work / kernel(largest).work)
    return found


def _nothing(device: torch.device) -> Callable[[], object]:
    """A call with hardly any work, whose time is the overhead of timing a kernel."""
    number = torch.zeros(1, device=device)
    return lambda: torch.ops.aten.neg.default(number)


def _references() -> dict[str, Callable[[], object]]:
    """Work of each family that takes milliseconds and can be divided among threads."""
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


def _gain(work: Callable[[], object], threads: int) -> float:
    """Speed-up of some work by `threads` threads.

    One thread is timed by processor time, several by the least wall time: processor time would
    count threads that spin while they wait for others that the system preempted.
    """
    single = math.inf
    shared = math.inf
    for _ in range(ATTEMPTS):
        single = min(single, _time_once(work, 1, time.thread_time))
        shared = min(shared, _time_once(work, threads, time.perf_counter))
        if single >= SHARED * threads * shared:
            break
    return min(max(single / shared, 1.0), float(threads))


def _time_once(work: Callable[[], object], threads: int, clock: Callable[[], float]) -> float:
    with devices.thread_limit(threads):
        # the first call creates the threads
        work()
        began = clock()
        work()
        return clock() - began


def _fresh_seconds() -> float:
    """Extra seconds per byte of the first write to newly mapped memory."""
    count = 2 * FRESH_BYTES // 4
    kept = torch.zeros(count)
    cpu = torch.device("cpu")
    first = _timed(lambda: torch.empty(count).fill_(1.0), cpu)
    return max(0.0, first - _timed(lambda: kept.fill_(1.0), cpu)) / (4 * count)


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


def _replay(
    operation: Operation, device: torch.device
) -> tuple[float, float, Callable[[], object]]:
    """A call of the same kind on this device, with a smaller batch if it is large.

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
the number of images."""


def _shrink(packet: str, func: Any, args: list[Any], entry: Kernel) -> float:
    """Reduce the batch of arguments, in place, to a size that is quick to compute.

    Returns the share that is left.
    """
    # operations whose tensor arguments all have images as first dimension
    alike = (
        torch.Tag.pointwise in func.tags
        or "pool2d" in packet
        or "batch_norm" in packet
        or packet == "bmm"
    )
    if packet not in IMAGES and not alike:
        return 1.0
    tensors, numbers = IMAGES.get(packet, (tuple(range(len(args))), ()))
    shapes = [args[index][1] for index in tensors if _tensors([args[index]]) == [args[index]]]
    most = max(map(len, shapes), default=0)
    batch = max((shape[0] for shape in shapes if len(shape) == most > 0), default=1)
    few = _fewer(batch, entry.flops, entry.bytes)
    for shape in shapes:
        # a vector of that length may hold channels, and kernels do not check the length of vectors
        if shape and shape[0] == batch and (len(shape) == most or numbers):
            shape[0] = few
    for index in numbers:
        args[index] = few
    return few / batch


def _real(value: Any, device: torch.device, draws: torch.Generator) -> Any:
    """Convert arguments from JSON, with random tensors."""
    if _is_tensor(value):
        return _filled(value, device, draws)
    if isinstance(value, list):
        return [_real(each, device, draws) for each in value]
    if isinstance(value, dict):
        if "dtype" in value:
            return _dtype(value["dtype"])
        if "memory_format" in value:
            return getattr(torch, value["memory_format"])
        return float(value["float"])
    return value


def _filled(tensor: Any, device: torch.device, draws: torch.Generator) -> Tensor:
    _, shape, strides, name = tensor
    dtype = _dtype(name)
    made = torch.empty_strided(shape, strides, dtype=dtype)
    if dtype.is_floating_point and 0 not in strides:
        # neither zeros, which kernels may skip, nor numbers that overflow in products
        values = torch.rand(1024, generator=draws).repeat(-(-made.numel() // 1024))
        made.copy_(values[: made.numel()].view(shape))
    else:
        made.zero_()
    return made.to(device)


def _timed(work: Callable[[], object], device: torch.device, tries: int = 5) -> float:
    """Seconds of one call: the least of a few tries, each of as many calls as take `TIMED` seconds.

    On the CPU it is processor time, which excludes other programs; the work has one thread.
    """
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    best = math.inf
    calls = 1
    for attempt in range(tries):
        began = clock()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        elapsed = (clock() - began) / calls
        # the first try includes one-time initialisation: the second one replaces it
        before = best
        best = elapsed if attempt < 2 else min(best, elapsed)
        if elapsed > SLOW or (attempt >= 2 and abs(elapsed - before) <= ALIKE * before):
            break
        calls = max(1, min(1000, int(TIMED / max(elapsed, 1e-7))))
    return best
