"""GPU sharing: the number of students or experts that are trained concurrently on each GPU.

A small network leaves most of a large GPU idle, as its kernels are short and each is launched by
one CPU core. Several processes can fill it; their number is limited by its memory and by the cores
of a worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from rayd.config import ResourceSettings
from rayd.engine.pool import TaskStream, WorkerPool
from rayd.errors import OutOfMemoryError

log = logging.getLogger(__name__)

MOST = 8
"""Maximum number of processes per GPU; further tasks wait."""
CONTEXT_BYTES = 700 * 2**20
"""Memory of a GPU that a process takes before its first tensor: the CUDA context and libraries."""
USABLE = 0.8
"""Fraction of a GPU's memory that is divided among processes, as estimates exclude temporary
tensors of kernels and memory that the allocator caches.
"""


def processes(resources: ResourceSettings, tasks: int, bytes_each: float, gpu_bytes: int) -> int:
    """Number of processes on each worker's GPU.

    Args:
        resources: of the workers.
        tasks: total number of tasks, which limits the number of processes.
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
    # each process needs a core to launch its kernels
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

    If memory runs out nevertheless, the remaining tasks are run one at a time on each GPU.

    Args:
        pool: its workers.
        resources: of the workers.
        tasks: number of the stage's tasks.
        bytes_each: memory of a GPU that a task takes, in bytes; called only if needed.
        run: runs the stage on a pool, and may be called again.
    """
    each = 1
    if not isinstance(pool, WorkerPool):
        run(pool)
        return
    # with a worker for each task nothing is shared, and the estimate would take time in vain
    if 0 < resources.workers < tasks:
        gpu_bytes = min((info.gpu_bytes for info in pool.workers() if info.there), default=0)
        if gpu_bytes > 0:
            try:
                each = processes(resources, tasks, bytes_each(), gpu_bytes)
            except Exception as error:
                # a failed estimate must not end a run
                log.debug("No estimate of memory: %s", error)
    if each > 1:
        try:
            with pool.sharing_gpus(each) as shared:
                run(shared)
            return
        except OutOfMemoryError as error:
            log.warning("%s with %d tasks on each GPU; going on with one.", error.what, each)
    run(pool)
