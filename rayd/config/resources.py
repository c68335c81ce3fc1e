"""Settings of who does the work."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rayd.config.base import Settings


class ResourceSettings(Settings):
    """Who does the work. Results do not depend on it, but for rounding between thread counts and
    devices.
    """

    workers: int = Field(default=0, ge=0)
    """Ray actors; 0 runs everything in this process, without Ray."""
    cpus_per_worker: float = Field(default=1.0, ge=0)
    """CPUs that Ray reserves for a worker."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for a worker; fractions share a device."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads of each worker; absent: `cpus_per_worker` on Ray, all cores in process."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Of work in this process: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`. Ray workers use the GPUs
    that they reserve.
    """
    layout: Literal["auto", "contiguous", "channels-last"] = "auto"
    """Memory layout of images and convolution weights in networks with batch normalisation (others
    are contiguous): `auto` takes what a measurement on this machine found faster. Results differ by
    rounding alone.
    """
    address: str | None = None
    """Ray cluster to join; absent: a private one on this machine."""
    placement: Literal["pack", "spread"] = "pack"
    """`spread` puts workers on as many nodes as it can, for work that is bound by memory or by
    reading files; `pack` leaves it to Ray, which fills a node to half before it takes the next
    one.
    """
    decoders: int = Field(default=0, ge=0)
    """CPUs beside those of the workers that decode streamed images (`data.stream`) while statistics
    are measured, by a Ray Data pipeline: for clusters with CPUs to spare, on nodes without GPUs
    say. 0: workers decode what they need, which is quicker where they have all cores.
    """
    elastic: bool = False
    """Begin as soon as one worker is there and use the others when nodes for them join; absent, all
    must fit from the start. Workers whose node is lost are done without either way, and used again
    where Ray can start them again.
    """

    @model_validator(mode="after")
    def _consistent(self) -> ResourceSettings:
        if self.address is not None and self.workers == 0:
            raise ValueError(
                "a cluster's 'address' needs 'workers' above 0 (--workers N); with 0 all work is done in this process"
            )
        if self.decoders > 0 and self.workers == 0:
            raise ValueError(
                "'decoders' work beside Ray workers: they need 'workers' above 0 (--workers N)"
            )
        if self.device != "auto" and self.workers > 0:
            raise ValueError(
                "'device' is for work in this process; Ray workers take what 'gpus_per_worker' reserves"
            )
        return self
