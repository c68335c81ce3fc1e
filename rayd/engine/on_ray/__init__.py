"""Worker pools on Ray; only this package and `tuning` import Ray.

    cluster   connection to a cluster, and checks of its capacity
    actors    wrapper of Ray actors: creation, calls, error translation
    health    which workers are alive
    pool      workers: started, and stopped
    actor_tasks, item_queue, calls
              tasks on workers: which is next, where it goes, and what becomes of it
    neighbours
              the workers as one of them calls them
    watch     whether the head is there, and which nodes will go
    train     tasks that several workers compute together, by Ray Train
    data      decoding of streamed images, by Ray Data
    metrics   metrics on Ray's dashboard

Tensors are sent as numpy arrays. Every wait has a limit.
"""

from rayd.errors import ResourceError

try:
    import ray  # noqa: F401
except ImportError as missing:
    raise ResourceError(
        "Workers need Ray, which is not installed; install 'ray[tune,train]' or run in process "
        "with --workers 0."
    ) from missing
