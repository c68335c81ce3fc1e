"""Tasks that share a GPU: how many students or experts are trained on each at a time.

A small network leaves most of a large GPU idle, as its kernels are short and each is launched by
one CPU core. Several processes on a GPU fill it, as many as its memory and the cores of a worker
allow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from rayd.config import ResourceSettings
from rayd.engine.pool import TaskStream, WorkerPool
from rayd.errors import OutOfMemoryError

log = logging.getLogger(__name__)

MOST = 8
"""Processes of a GPU, at most: more take turns."""
CONTEXT_BYTES = 700 * 2**20
"""Memory of a GPU that a process takes before its first tensor: the CUDA context and libraries."""
USABLE = 0.8
"""Share of a GPU's memory that is divided among processes: estimates do not count temporary
tensors of kernels, nor what the allocator holds back.
"""


def processes(resources: ResourceSettings, tasks: int, bytes_each: float, gpu_bytes: int) -> int:
    """Processes of each worker's GPU.

    Args:
        resources: of the workers.
        tasks: number of tasks in all; more processes than tasks are of no use.
        bytes_each: memory of the GPU that a task takes, in bytes.
        gpu_bytes: memory of the GPU, in bytes; 0 without one.

    >>> eight = ResourceSettings(workers=8, gpus_per_worker=1, cpus_per_worker=7)
    >>> processes(eight, tasks=100, bytes_each=2e9, gpu_bytes=24 * 10**9)
    7
    >>> processes(eight, tasks=15, bytes_each=2e9, gpu_bytes=24 * 10**9)
    2
    >>> processes(eight, tasks=100, bytes_each=20e9, gpu_bytes=24 * 10**9)
    1
    """
    workers = resources.workers
    if workers == 0 or resources.gpus_per_worker == 0:
        return 1
    usable = USABLE * gpu_bytes * resources.gpus_per_worker
    fitting = int(usable / (bytes_each + CONTEXT_BYTES))
    # every process launches its kernels from a core of its own
    cores = int(resources.cpus_per_worker)
    return max(1, min(fitting, cores, -(-tasks // workers), MOST))


def run_sharing_gpus(
    pool: TaskStream,
    resources: ResourceSettings,
    tasks: int,
    bytes_each: Callable[[], float],
    run: Callable[[TaskStream], object],
) -> None:
    """Run a stage with as many tasks on each GPU as fit.

    Where memory is short nevertheless, what is missing is done by one task at a time on each GPU.

    Args:
        pool: its workers.
        resources: of the workers.
        tasks: number of the stage's tasks.
        bytes_each: memory of a GPU that a task takes, in bytes; called only where it matters.
        run: runs the stage on a pool, and may be called again.
    """
    each = 1
    if not isinstance(pool, WorkerPool):
        run(pool)
        return
    # with a worker for each task there is nothing to pack, and no estimate to be paid for
    if 0 < resources.workers < tasks:
        gpu_bytes = min((info.gpu_bytes for info in pool.workers() if info.there), default=0)
        if gpu_bytes > 0:
            try:
                each = processes(resources, tasks, bytes_each(), gpu_bytes)
            except Exception as error:
                # an estimate must not end a run
                log.debug("No estimate of memory: %s", error)
    if each > 1:
        try:
            with pool.sharing_gpus(each) as shared:
                run(shared)
            return
        except OutOfMemoryError as error:
            log.warning("%s with %d tasks on each GPU; going on with one.", error.what, each)
    run(pool)
