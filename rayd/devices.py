"""Choice of devices, arithmetic and memory layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rayd.allocator import keep_freed_memory
from rayd.config import ResourceSettings
from rayd.errors import ResourceError


def choose(resources: ResourceSettings) -> torch.device:
    """Choose the device of this process's work, or of a Ray worker's.

    In process, `auto` selects CUDA, then MPS, then the CPU. A Ray worker uses the GPU that Ray
    reserved for it (its only visible one), and the CPU when none was requested, even on a machine
    with GPUs.

    For work on the CPU, freed memory is reused from now on, see `rayd.allocator`.

    Raises:
        ResourceError: the named device does not exist here.
    """
    device = _named(resources)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def _named(resources: ResourceSettings) -> torch.device:
    """Device according to the settings."""
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
    """Torch threads of a worker: the setting, else its reserved CPUs, else all cores."""
    if resources.threads is not None:
        return resources.threads
    if resources.workers > 0:
        return max(1, int(resources.cpus_per_worker))
    return torch.get_num_threads()


@contextmanager
def thread_limit(count: int) -> Iterator[None]:
    """Limit torch to `count` threads within the context."""
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
    """Torch type of weights and images for a precision setting.

    `tf32` is float32 with rounded convolutions, see `convolutions`. `auto` is resolved before a run
    begins (`rayd.engine.arithmetic`); when components are used on their own it means float32.
    """
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context for networks to compute in a precision setting; has an effect for `bfloat16` only."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def convolutions(device: torch.device, precision: str) -> Iterator[None]:
    """Context with exact float32 convolutions on CUDA, or TF32 ones if `precision` is `tf32`.

    torch uses TF32 by default on Ampere and later GPUs. Both forward and backward passes belong
    inside. Matrix products stay exact, torch's default, because statistics are computed with them.
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


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that was queued on it; needed before a clock is read."""
    if device.type == "cuda":
        # by its name: the current device may be another one
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def use_layout(resources: ResourceSettings) -> None:
    """Set the memory layout of networks in this process, from now on."""
    global _layout
    _layout = resources.layout


_layout = "auto"
"""Value set by `use_layout`; `auto` by default: channels last on the CPU."""


NARROW = 8
"""Channels below which convolutions in channels-last layout are unsafe on CPUs: with AVX2 the backward
pass of PyTorch 2.14 writes out of bounds and ends the process (seen with 4 channels, never with 8).
"""


def layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Memory layout of a network's convolution weights and images.

    Networks without batch normalisation are contiguous: channels last makes group and instance
    normalisation slower on every processor tried. For others it depends on the processor, see
    `rayd.engine.arithmetic`. On CPUs, networks with a convolution of fewer than `NARROW` channels
    are contiguous whatever the setting.
    """
    modules = list(network.modules())
    batch = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)
    last = _layout == "channels-last" or (_layout == "auto" and device.type == "cpu")
    if device.type == "cpu":
        convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
        last = last and all(module.out_channels >= NARROW for module in convolutions)
    return torch.channels_last if batch and last else torch.contiguous_format


def to_device(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Move a network to a device, in its fastest layout, and return that layout."""
    network.to(device)
    chosen = layout(network, device)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=chosen)
    return chosen
