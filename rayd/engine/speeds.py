"""What counted operations cost on this machine.

The time of an operation is what Python and autograd need for any call, plus what its kernel needs,

    seconds = call + work / rate + fresh

    work    floating-point operations of convolutions and matrix products; bytes read and written of
            everything else, which memory bounds
    fresh   for memory that the system must clear first; see `FRESH_BYTES`

where the rate is that of operations of the same kind and about the same size on this machine:
convolutions of few and of many channels, depthwise ones, matrix products, pooling, normalisation,
sums and elementwise arithmetic, each forward and backward, in the precision and memory layout of
the call. A rate is measured when a plan first needs it, on a smaller batch where the batch is
large, and kept (`rayd.machine`). The operations that a plan spends most of its time in are measured
first, for a few seconds at most; of the others the rate is that of the nearest size that was
measured, until a later plan measures them.

On the CPU rates are those of one thread in its processor time, which other programs move little,
and are kept for whatever number of threads. How many times as fast several threads are is measured
once for each number of them and each family of operations (`Speeds.calibrate`), as a fact of the
machine.
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

VERSION = 2
"""Of the way in which speeds are measured; others are forgotten."""
BUDGET = 1.5
"""Seconds of measuring for one plan."""
WORTHWHILE = 0.02
"""Share of the time that operations must have together to be measured."""
REPLAYED_FLOPS = 4e8
"""Floating-point operations of a call that is timed, about: batches are cut down to that."""
REPLAYED_BYTES = 2**25
"""The same in bytes."""
SLOW = 0.1
"""Seconds after which a call is not timed again."""
TIMED = 2e-3
"""Seconds of calls that are timed together."""
ALIKE = 0.03
"""How much two times may differ so that no third is taken."""
FRESH_BYTES = 2**25
"""Bytes from which a tensor gets memory that no other had before: glibc maps it for this tensor
alone, and the system clears it page by page when it is first written to, which takes longer than
most kernels."""
NEAR = 2.5
"""How far apart two sizes may be, in factors of two over all dimensions, that stand for each
other."""

NOMINAL = {"cpu": (4e10, 8e9, 8e-6), "mps": (2e12, 1e11, 2e-5), "cuda": (1e13, 5e11, 1e-5)}
"""Before anything is measured: operations a second, bytes a second (of one thread on the CPU), and
seconds a call."""
LEAST = {"convolutions": 2e-5, "matrix products": 5e-6, "memory": 4e-6}
"""Seconds of the smallest kernels of the CPU, before they are measured."""

PARALLEL = {"convolutions": 2.0**21, "matrix products": 2.0**21, "memory": 2.0**18}
"""Work that is worth a thread: floating-point operations, and bytes of 32,768 numbers read and
written, below which torch does not begin another.
"""
ATTEMPTS = 8
"""How often work is timed to know what threads are worth."""
SHARED = 0.9
"""Share of their number that threads are worth where no more is looked for."""

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})
CALL = "call"
"""What the time of a call is called."""
FRESH = "fresh"
"""What the time of a byte of fresh memory is called."""
THREADS = "threads"
"""What the speed-up of several threads is called, with the family."""


@dataclass(frozen=True)
class Kernel:
    """What is known of an operation from its text."""

    flops: float
    """Floating-point operations; 0 of what memory bounds."""
    bytes: float
    """Bytes of tensors read and written."""
    kind: tuple[Any, ...]
    """What must be equal of two operations that are compared."""
    sizes: tuple[float, ...]
    """Logarithms, to base two, of what should be about equal."""
    family: str
    """For people: `convolutions`, `matrix products`, `memory`, or `calls` where nothing is
    computed."""
    fresh: float = 0.0
    """Bytes that are written to fresh memory."""

    @property
    def work(self) -> float:
        """Floating-point operations, or bytes."""
        return self.flops or self.bytes

    @property
    def name(self) -> str:
        """What its measurement is called."""
        return json.dumps([*self.kind, [round(size) for size in self.sizes]], separators=(",", ":"))


@lru_cache(maxsize=100_000)
def kernel(operation: Operation) -> Kernel:
    """What is known of an operation."""
    name, args, kwargs, made = json.loads(operation)
    short = name.split(".")[1]
    read = _tensors([args, kwargs])
    written = _tensors(made)
    if not written and short != "_local_scalar_dense" and not short.startswith("_fused"):
        return Kernel(0.0, 0.0, (short,), (), "calls")
    size = float(sum(map(_bytes, [*read, *written])))
    fresh = (
        float(sum(each for each in map(_bytes, written) if each > FRESH_BYTES))
        if not short.endswith("_")
        else 0.0
    )
    types = sorted({each[3] for each in read})
    if short in ("convolution", "convolution_backward"):
        return _convolution(short, args, made, types, size, fresh)
    if short in PRODUCTS:
        left, right = [each for each in read if len(each[1]) > 1][-2:]
        rows = math.prod(left[1][:-1])
        inner = left[1][-1]
        columns = right[1][-1]
        kind = (short, *types, _order(left), _order(right))
        sizes = tuple(math.log2(max(1, each)) for each in (rows, inner, columns))
        return Kernel(2.0 * rows * inner * columns, size, kind, sizes, "matrix products", fresh)
    kind = (short, *types, *sorted({_order(each) for each in read}), *_options([args, kwargs]))
    return Kernel(0.0, size, kind, (math.log2(max(1.0, size)),), "memory", fresh)


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
    groups, wanted = (args[9], args[10][:2]) if backward else (args[8], [True])
    shape = outputs[1]
    filters = weight[1]
    grid = inputs[1] if transposed else shape
    flops = 2.0 * grid[0] * math.prod(grid[2:]) * math.prod(filters) * sum(wanted)
    kind = (short, *types, _order(inputs), *filters[2:], *stride, transposed, groups > 1, *wanted)
    batch = max(1, min(shape[0], _fewer(shape[0], flops, size)))
    lengths = (filters[0] / groups, filters[1], groups, math.prod(shape[2:]), batch)
    return Kernel(
        flops, size, kind, tuple(math.log2(max(1, each)) for each in lengths), "convolutions", fresh
    )


def _fewer(batch: int, flops: float, size: float) -> int:
    """Images of a batch on which a call is timed."""
    share = max(flops / REPLAYED_FLOPS, size / REPLAYED_BYTES, 1.0)
    return max(1, round(batch / share))


def _tensors(value: Any) -> list[Any]:
    """All tensors among arguments."""
    if isinstance(value, list):
        if len(value) == 4 and value[0] == "T":
            return [value]
        return [found for each in value for found in _tensors(each)]
    return (
        [found for each in value.values() for found in _tensors(each)]
        if isinstance(value, dict)
        else []
    )


def _options(value: Any) -> list[Any]:
    """Arguments that may decide how a kernel works, such as which dimensions are summed: small
    whole numbers and words.
    """
    if isinstance(value, list):
        if len(value) == 4 and value[0] == "T":
            return [len(value[1])]
        return [found for each in value for found in _options(each)]
    if isinstance(value, dict):
        return [found for each in value.values() for found in _options(each)]
    return (
        [value]
        if isinstance(value, bool | str) or (isinstance(value, int) and abs(value) < 16)
        else []
    )


def _bytes(tensor: Any) -> int:
    _, shape, strides, dtype = tensor
    # what is expanded is read from the cache
    real: int = math.prod(
        length for length, stride in zip(shape, strides, strict=True) if stride != 0
    )
    return real * _dtype(dtype).itemsize


def _order(tensor: Any) -> str:
    """How a tensor lies in memory."""
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
    """The speeds of one device with the present number of threads."""

    def __init__(self, device: torch.device):
        """Know what was measured before."""
        self.device = device
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        # one thread's rates serve all numbers of threads
        self._one = 1 if device.type == "cpu" else None
        flops, width, call = NOMINAL[device.type]
        self._nominal = {True: flops, False: width}
        self._call = call
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
        if described == FRESH:
            self._fresh = value
            return
        *kind, sizes = json.loads(described)
        self._rates.setdefault(tuple(kind), {})[tuple(sizes)] = value

    def _know_gains(self, facts: Mapping[str, float]) -> None:
        names = {family: _fact(f"{THREADS} {family}") for family in PARALLEL}
        known = {family: facts[name] for family, name in names.items() if name in facts}
        self._gains.update(
            {family: min(max(gain, 1.0), float(self._threads)) for family, gain in known.items()}
        )

    def seconds(self, count: Count) -> float:
        """Seconds of counted work."""
        calls = sum(count.calls.values()) * self._call
        work = sum(
            number * self._shared_seconds(kernel(operation))
            for operation, number in count.calls.items()
        )
        # a GPU computes while the next calls are made
        return max(calls, work) if self.device.type == "cuda" else calls + work

    def shares(self, count: Count) -> dict[str, float]:
        """The same by what it is spent on: `convolutions`, `matrix products`, `memory` and
        `calls`.
        """
        shares = {"calls": sum(count.calls.values()) * self._call}
        for operation, number in count.calls.items():
            one = kernel(operation)
            shares[one.family] = shares.get(one.family, 0.0) + number * self._shared_seconds(one)
        return shares

    def _shared_seconds(self, one: Kernel) -> float:
        """Seconds of a kernel that the threads share."""
        seconds = self._kernel_seconds(one)
        if self._threads == 1 or one.work == 0:
            return seconds
        gain = self._gains.get(one.family, float(self._threads))
        return seconds / max(1.0, min(gain, one.work / PARALLEL[one.family]))

    def _kernel_seconds(self, one: Kernel) -> float:
        if one.work == 0:
            return 0.0
        known = self._rates.get(one.kind, {})
        fresh = one.fresh * self._fresh
        if known:
            nearest = min(known, key=lambda sizes: _distance(sizes, one.sizes))
            if _distance(nearest, one.sizes) <= NEAR:
                return one.work * known[nearest] + fresh
        least = LEAST[one.family] if self.device.type == "cpu" else 0.0
        return one.work / self._nominal[one.flops > 0] + least + fresh

    def _is_known(self, one: Kernel) -> bool:
        return tuple(round(size) for size in one.sizes) in self._rates.get(one.kind, {})

    def calibrate(
        self, counts: Iterable[Count], budget: float = BUDGET, anew: bool = False
    ) -> float:
        """Measure what takes most of some counted work and was not measured yet.

        Args:
            counts: all that is planned, each as often as it is done.
            budget: seconds after which no other rate is measured.
            anew: measure again what is known.

        Returns:
            The seconds that it took.
        """
        # on the CPU, other programs must not use up the budget
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
        absent = [
            name
            for name, (operation, _) in operations.items()
            if not self._is_known(kernel(operation))
        ]
        left = sum(seconds[name] for name in absent)
        total = sum(seconds.values())
        found: dict[str, float] = {}
        base = _timed(_nothing(self.device), self.device)
        for name in sorted(absent, key=seconds.__getitem__, reverse=True):
            if left < WORTHWHILE * total or spent():
                break
            found[name] = self._measured(operations[name][0], base)
            left -= seconds[name]
        self._keep(found)

    def _measure_gains(self, anew: bool) -> None:
        """How many times as fast as one thread all of them are, for each family. Other programs
        make it less, so what is little is measured again by later plans, and the most is kept.
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
        """The time of a call, from a training step of a tiny network less what its kernels take;
        and that of fresh memory.
        """
        step = tiny_step(self.device)
        count = counted(step)
        base = _timed(_nothing(self.device), self.device)
        kernels = _together([count])
        self._keep(
            {name: self._measured(operation, base) for name, (operation, _) in kernels.items()}
        )
        work = sum(
            number * self._kernel_seconds(kernel(operation))
            for operation, number in count.calls.items()
        )
        seconds = _timed(step, self.device, tries=20)
        if self.device.type == "cuda":
            # kernels run while the next calls are made
            work = 0.0
        found = {CALL: max(seconds - work, seconds / 10) / sum(count.calls.values())}
        if self.device.type == "cpu":
            found[FRESH] = _fresh_seconds()
        self._keep(found)

    def _keep(self, found: Mapping[str, float]) -> None:
        named = {_fact(name): value for name, value in found.items()}
        machine.remember(named, self.device, self._one)
        for name, value in named.items():
            self._know(name, value)

    def _measured(self, operation: Operation, base: float) -> float:
        """Seconds of a unit of work of an operation; where it cannot be repeated, what was taken
        for it before.
        """
        one = kernel(operation)
        try:
            work, fresh, call = _replay(operation, self.device)
            seconds = _timed(call, self.device)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return self._kernel_seconds(one) / one.work
        return max(seconds - base - fresh * self._fresh, seconds / 20) / work


def _fact(name: str) -> str:
    return f"speed {VERSION} {name}"


def _distance(sizes: Sequence[float], others: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(sizes, others, strict=True))


def _together(counts: Iterable[Count]) -> dict[str, tuple[Operation, float]]:
    """Operations whose speeds go by one name: the one of them with most work, and how many of it
    they are worth.
    """
    found: dict[str, tuple[Operation, float]] = {}
    for count in counts:
        for operation, number in count.calls.items():
            one = kernel(operation)
            if one.work == 0:
                continue
            largest, before = found.get(one.name, (operation, 0.0))
            done = before * kernel(largest).work + number * one.work
            if one.work > kernel(largest).work:
                largest = operation
            found[one.name] = (largest, done / kernel(largest).work)
    return found


def _nothing(device: torch.device) -> Callable[[], object]:
    """A call with hardly any work: what is measured of it was counted already."""
    number = torch.zeros(1, device=device)
    return lambda: torch.ops.aten.neg.default(number)


def _references() -> dict[str, Callable[[], object]]:
    """Work of each family that takes milliseconds, and that threads can share."""
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
    """How many times as fast as one thread `threads` of them do work that they can share.

    That of one is processor time, and that of several the wall clock's at its best, as processor
    time would count threads that wait in a loop for those that other programs hold up.
    """
    one = math.inf
    shared = math.inf
    for _ in range(ATTEMPTS):
        one = min(one, _briefly(work, 1, time.thread_time))
        shared = min(shared, _briefly(work, threads, time.perf_counter))
        if one >= SHARED * threads * shared:
            break
    return min(max(one / shared, 1.0), float(threads))


def _briefly(work: Callable[[], object], threads: int, clock: Callable[[], float]) -> float:
    with devices.thread_limit(threads):
        # threads are made by the first call
        work()
        began = clock()
        work()
        return clock() - began


def _fresh_seconds() -> float:
    """Seconds of a byte of memory that is written to for the first time, beyond those of writing to
    it again.
    """
    count = 2 * FRESH_BYTES // 4
    kept = torch.zeros(count)
    cpu = torch.device("cpu")
    first = _timed(lambda: torch.empty(count).fill_(1.0), cpu)
    return max(0.0, first - _timed(lambda: kept.fill_(1.0), cpu)) / (4 * count)


def tiny_step(device: torch.device) -> Callable[[], object]:
    """A training step of a network so small that it consists of calls."""
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


def _replay(
    operation: Operation, device: torch.device
) -> tuple[float, float, Callable[[], object]]:
    """A call of the same kind on this device, with a smaller batch if it is large: its work, its
    fresh memory, the call.
    """
    name, args, kwargs, _ = json.loads(operation)
    one = kernel(operation)
    packet, overload = name.split(".")[1:3]
    func = getattr(getattr(torch.ops.aten, packet), overload)
    share = _shrink(packet, func, args, one)
    if one.bytes * share > 8 * REPLAYED_BYTES:
        raise ValueError("too large to be repeated")
    draws = seeding.generator(0, "speeds")
    real = _real(args, device, draws)
    named = {key: _real(value, device, draws) for key, value in kwargs.items()}
    if any(argument.name == "device" for argument in func._schema.arguments):
        named["device"] = device

    def call() -> object:
        with torch.no_grad():
            return func(*real, **named)

    return one.work * share, one.fresh if share == 1 else 0.0, call


IMAGES = {
    "convolution": ((0,), ()),
    "convolution_backward": ((0, 1), ()),
    "mm": ((0,), ()),
    "addmm": ((1,), ()),
    "native_group_norm": ((0,), (3,)),
    "native_group_norm_backward": ((0, 1, 2, 3), (5,)),
}
"""Which tensors among the arguments of an operation have images as first dimension, and which
numbers count them."""


def _shrink(packet: str, func: Any, args: list[Any], one: Kernel) -> float:
    """Cut arguments down, in place, to a batch that is quick to compute; the share of it that is
    left.
    """
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
    few = _fewer(batch, one.flops, one.bytes)
    for shape in shapes:
        # vectors may be of channels, as many as there are images: kernels do not check their length
        if shape and shape[0] == batch and (len(shape) == most or numbers):
            shape[0] = few
    for index in numbers:
        args[index] = few
    return few / batch


def _real(value: Any, device: torch.device, draws: torch.Generator) -> Any:
    """Arguments with values."""
    if isinstance(value, list):
        if len(value) == 4 and value[0] == "T":
            return _filled(value, device, draws)
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
        # values of one size: neither zeros, which may be skipped, nor numbers that overflow when
        # they are multiplied
        some = torch.rand(1024, generator=draws).repeat(-(-made.numel() // 1024))
        made.copy_(some[: made.numel()].view(shape))
    else:
        made.zero_()
    return made.to(device)


def _timed(work: Callable[[], object], device: torch.device, tries: int = 5) -> float:
    """Seconds of one call: the least of a few tries, each of as many calls as take `TIMED` seconds.

    On the CPU it is processor time that counts, as the wall clock shows other programs, too: what
    is timed there has one thread.
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
        # the first call makes what is made once
        before = best
        best = elapsed if attempt < 2 else min(best, elapsed)
        if elapsed > SLOW or (attempt >= 2 and abs(elapsed - before) <= ALIKE * before):
            break
        calls = max(1, min(1000, int(TIMED / max(elapsed, 1e-7))))
    return best
