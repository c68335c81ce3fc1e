"""Settings of computing resources."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rayd.config.base import Settings


class ResourceSettings(Settings):
    """Where computation runs; results depend on it only by rounding."""

    workers: int = Field(default=0, ge=0)
    """Number of Ray actors; 0 runs everything in this process, without Ray."""
    cpus_per_worker: float = Field(default=1.0, ge=0)
    """CPUs reserved by Ray for a worker."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPU reserved by Ray for a worker: 0, 1, or a fraction, with which workers share a device."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads per worker; by default `cpus_per_worker` on Ray, all cores in this process."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Device of work in this process: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`. Ray workers use the
    GPUs that they reserve.
    """
    layout: Literal["auto", "contiguous", "channels-last"] = "auto"
    """Memory layout of images and convolution weights in networks with batch normalisation (others
    are contiguous); `auto` uses the faster one according to measurements on this machine. Results
    differ by rounding only.
    """
    address: str | None = None
    """Ray cluster to join; by default a private one on this machine."""
    placement: Literal["pack", "spread"] = "pack"
    """`spread` distributes workers over as many nodes as possible, for work bound by memory or by
    reading files; `pack` is Ray's default, which fills half of a node before using the next.
    """
    decoders: int = Field(default=0, ge=0)
    """CPUs, in addition to those of the workers, that decode streamed images (`data.stream`) while
    statistics are measured, in a Ray Data pipeline: for clusters with spare CPUs, for example on
    nodes without GPUs. With 0, workers decode what they need, which is faster if they have all
    cores.
    """
    elastic: bool = False
    """Start with a single worker and use others when nodes join; otherwise, all workers must fit
    from the start. In both cases, workers of lost nodes are replaced by the remaining ones until
    Ray can restart them.
    """

    @model_validator(mode="after")
    def _consistent(self) -> ResourceSettings:
        if self.address is not None and self.workers == 0:
            raise ValueError(
                "a cluster's 'address' needs 'workers' above 0 (--workers N); "
                "with 0 all work is done in this process"
            )
        if self.decoders > 0 and self.workers == 0:
            raise ValueError(
                "'decoders' work alongside Ray workers: they need 'workers' above 0 (--workers N)"
            )
        if self.gpus_per_worker > 1:
            raise ValueError(
                "'gpus_per_worker' must be 0, 1, or a fraction below 1, as a worker computes on one "
                f"GPU; got {self.gpus_per_worker:g}. For more GPUs ask for more 'workers'"
            )
        if self.device != "auto" and self.workers > 0:
            raise ValueError(
                "'device' is for work in this process; "
                "Ray workers take what 'gpus_per_worker' reserves"
            )
        return self
