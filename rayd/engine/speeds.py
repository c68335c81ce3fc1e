"""Time of counted operations on this machine.

The time of an operation is the overhead of a call in Python and autograd, plus that of its kernel,

    seconds = call + work / rate + fresh

    call    of Python code, or of autograd within a backward pass, which takes less than half
    work    floating-point operations of convolutions and matrix products; bytes read and written of
            all other operations, which are bound by memory
    fresh   time to clear newly mapped memory; see `rayd.engine.kernels.FRESH_BYTES`

where the rate is that of operations of the same kind and about the same size on this machine:
convolutions of few and of many channels, depthwise ones, matrix products, pooling, normalisation,
sums and elementwise arithmetic, each forward and backward, in the precision and memory layout of
the call. A rate is measured when a plan first needs it, on a smaller batch where the batch is
large, and kept (`rayd.machine`). The most expensive operations of a plan are measured first, for at
most a few seconds; the others use the rate of the nearest measured size until a later plan measures
them.

On the CPU, rates are those of one thread in processor time, which other programs hardly affect, and
are used for all numbers of threads. The speed-up by several threads is measured once for each
number of them and each family of operations (`Speeds.calibrate`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from rayd import devices, machine
from rayd.engine.counting import Count, Operation, counted
from rayd.engine.kernels import Kernel, kernel
from rayd.engine.timing import (
    SHARED,
    fresh_seconds,
    gain,
    nothing,
    references,
    replay,
    timed,
    tiny_backward,
    tiny_step,
)

VERSION = 4
"""Version of the method of measuring; results of other versions are ignored."""
BUDGET = 1.0
"""Seconds spent on measuring for one plan."""
WORTHWHILE = 0.02
"""Fraction of the total time below which the remaining operations, together, are not measured."""
NEAR = 2.5
"""Distance of sizes, in factors of two summed over all dimensions, up to which a rate is reused."""

NOMINAL = {"cpu": (4e10, 8e9, 8e-6), "mps": (2e12, 1e11, 2e-5), "cuda": (1e13, 5e11, 1e-5)}
"""Nominal operations per second, bytes per second (of one thread on the CPU), and seconds per
call.
"""
LEAST = {"convolutions": 2e-5, "matrix products": 5e-6, "memory": 4e-6}
"""Nominal seconds of the smallest kernels of the CPU."""

PARALLEL = {"convolutions": 2.0**21, "matrix products": 2.0**21, "memory": 2.0**18}
"""Minimum work per thread, below which torch does not start another one: floating-point operations,
or bytes of 32,768 numbers read and written.
"""
CALL = "call"
"""Name of the overhead of a call in Python code."""
BACKWARD = "backward call"
"""Name of the overhead of a call that autograd makes in a backward pass."""
FRESH = "fresh"
"""Name of the time of a byte of fresh memory."""
SCARCE = 1e-9
"""Seconds per byte of fresh memory above which later plans repeat the measurement: a virtual
machine that is short of memory takes ten times as long as usual.
"""
THREADS = "threads"
"""Name of the speed-up by several threads, before the family."""


class Speeds:
    """Measured speeds of a device with the current number of threads.

    Args:
        device: the device, whose cached speeds are loaded.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        # the rates of one thread are used for all numbers of threads
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
        # a GPU computes while Python launches the next calls
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
        """Overhead of all calls in addition to their kernels, in seconds."""
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
        # on the CPU, processor time, so that other programs do not count
        clock = time.thread_time if self.device.type == "cpu" else time.monotonic
        began = clock()
        if anew:
            self._rates.clear()
        if self._threads > 1:
            self._measure_gains(anew)
        with devices.thread_limit(1) if self.device.type == "cpu" else nullcontext():
            if anew or not self.measured:
                self._measure_calls()
            elif self._fresh > SCARCE and self.device.type == "cpu":
                self._keep({FRESH: min(self._fresh, fresh_seconds())})
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
        base = timed(nothing(self.device), self.device)
        # the most expensive first, so that what remains when the budget is spent matters least
        for name in sorted(missing, key=seconds.__getitem__, reverse=True):
            if left < WORTHWHILE * total or spent():
                break
            found[name] = self._measured(operations[name][0], base)
            left -= seconds[name]
        self._keep(found)

    def _measure_gains(self, anew: bool) -> None:
        """Measure the speed-up by threads of each family.

        Other programs reduce it, so later plans repeat the measurement of low values, and the
        highest is kept.
        """
        if anew:
            self._gains.clear()
        found = {}
        for family, work in references().items():
            known = self._gains.get(family, 0.0)
            if known < SHARED * self._threads:
                found[_fact(f"{THREADS} {family}")] = max(known, gain(work, self._threads))
        machine.remember(found, self.device)
        self._know_gains(found)

    def _measure_calls(self) -> None:
        """Measure the overhead of calls, and the time of fresh memory.

        The overhead is the time of tiny computations less that of their kernels. Calls by autograd,
        of which second-order gradients consist, take less than half of the time of calls by Python
        code.
        """
        backward = tiny_backward(self.device)
        step = tiny_step(self.device)
        inside = counted(backward)
        whole = counted(step)
        base = timed(nothing(self.device), self.device)
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
            found[FRESH] = fresh_seconds()
        self._keep(found)

    def _beside_kernels(self, work: Callable[[], object], count: Count) -> float:
        """Seconds of a computation minus those of its kernels."""
        seconds = timed(work, self.device, tries=20)
        if self.device.type == "cuda":
            # kernels run while Python launches the next calls
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
        """Seconds per unit of work; the current estimate if the operation cannot be replayed."""
        try:
            work, fresh, call = replay(operation, self.device)
            seconds = timed(call, self.device)
        # arguments are parsed from text, from which not every operation can be replayed
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            entry = kernel(operation)
            return self._kernel_seconds(entry) / entry.work
        # never zero or negative: the overhead of a call varies by more than short kernels take
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
