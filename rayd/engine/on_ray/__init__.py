"""Groups on Ray: this package and Ray Tune's `tuning` are all that imports it.

    cluster   who is connected to what, and what fits into it
    actors    objects in actors: how they are called, and how they fail
    crew      which workers are there and which are away
    group     work items over standing actors
    train     work items that several workers do together, by Ray Train
    data      streamed images, decoded by Ray Data beside those who look
    metrics   what Ray's dashboard shows of a run

Tensors travel as numpy arrays. Every wait has a limit.
"""

from rayd.errors import ResourceError

try:
    import ray  # noqa: F401
except ImportError as missing:
    raise ResourceError(
        "Workers need Ray, which is not installed; install 'ray[tune,train]' or run in process with --workers 0."
    ) from missing
