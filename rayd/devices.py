"""Where tensors live: the one place that chooses devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rayd.allocator import keep_freed_memory
from rayd.config import ResourceSettings
from rayd.errors import ResourceError


def choose(resources: ResourceSettings) -> torch.device:
    """The device of this process's work, or of a Ray worker's.

    In process, `auto` takes CUDA, then MPS, then the CPU. A Ray worker uses the GPU that Ray
    reserved for it (Ray makes it the process's only visible one), and the CPU when none was asked
    for, even on a machine that has GPUs.

    Where work is done on the CPU, freed memory is kept for reuse from now on, see `rayd.allocator`.

    Raises:
        ResourceError: the named device does not exist here.
    """
    device = _named(resources)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def _named(resources: ResourceSettings) -> torch.device:
    """The device that the settings mean."""
    if resources.workers > 0:
        return torch.device("cuda:0" if resources.gpus_per_worker > 0 else "cpu")
    if resources.device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(resources.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ResourceError(f"Device '{resources.device}' cannot be used here: {reason}") from error
    return device


def threads(resources: ResourceSettings) -> int:
    """Torch threads of a worker: as set, else the CPUs that it reserves, else (in process) all
    cores.
    """
    if resources.threads is not None:
        return resources.threads
    return (
        max(1, int(resources.cpus_per_worker)) if resources.workers > 0 else torch.get_num_threads()
    )


@contextmanager
def thread_limit(count: int) -> Iterator[None]:
    """Give torch `count` threads for a while."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def dtype(precision: str) -> torch.dtype:
    """The torch type that weights and images have in a precision setting.

    `tf32` is float32 whose convolutions are rounded, see `convolutions`. `auto` is replaced before
    a run begins (`rayd.engine.arithmetic`); where parts are used on their own it means float32.
    """
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which networks compute in a precision setting; it changes nothing but for
    `bfloat16`.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def convolutions(device: torch.device, precision: str) -> Iterator[None]:
    """A context in which float32 convolutions on CUDA are exact, or rounded to TF32 if the
    precision setting is `tf32`.

    torch rounds them by default on Ampere and later GPUs. Forward and backward passes both belong
    inside. Matrix products are left exact, as torch has them by default: statistics are made of
    them.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def use_layout(resources: ResourceSettings) -> None:
    """Lay out networks in this process as `resources.layout` says, from now on."""
    global _layout
    _layout = resources.layout


_layout = "auto"
"""What `use_layout` was last given; `auto` where no run has chosen: channels last on the CPU."""


def layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """The order in which a network's convolution weights and images lie in memory.

    Networks without batch normalisation are contiguous: channels last makes group and instance
    normalisation slower on every processor tried. For the others it depends on the processor, see
    `rayd.engine.arithmetic`.
    """
    batch = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    last = _layout == "channels-last" or (_layout == "auto" and device.type == "cpu")
    return torch.channels_last if batch and last else torch.contiguous_format


def to_device(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Move a network to a device, in its fastest layout, which is returned."""
    network.to(device)
    chosen = layout(network, device)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=chosen)
    return chosen
