"""Opens the pool of workers that a run's resources describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayd.config import ResourceSettings
from rayd.engine.pool import HostingPool, LocalPool


def open_pool(
    resources: ResourceSettings, factory: Callable[..., Any], *arguments: Any, memory: int = 0
) -> HostingPool:
    """Open the pool for some resources: in process for 0 workers, else on Ray.

    Args:
        resources: number of workers and what each reserves.
        factory: creates a replica.
        arguments: of the factory.
        memory: estimated bytes that a worker will take, so that Ray places workers where there is
            enough; 0 if unknown.

    Raises:
        ResourceError: Ray is not installed, cannot be reached, or cannot hold the workers.
    """
    if resources.workers == 0:
        return LocalPool(resources, factory, *arguments)
    # imported here, so that runs in process need neither Ray nor the time of its import
    from rayd.engine.on_ray.pool import RayPool

    return RayPool(resources, factory, *arguments, memory=memory)
