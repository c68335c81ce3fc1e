"""Decoding of streamed images in a Ray Data pipeline, in parallel with the workers that use them.

    encoded shards  ->  decoders, one task per shard, in order, on any CPU of the cluster
                    ->  Ray's object store  ->  workers

Every shard is decoded once, whatever the number of workers that use it, and leaves the store after
its last use. At most `decoders` shards are being decoded, and about as many wait to be used: the
pipeline pauses if shards are not consumed. Ray recomputes shards that are lost with their node.

Suited to clusters with CPUs that belong to no worker, e.g. on nodes without GPUs. Workers that own
all cores decode more quickly themselves, for several observers at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
from ray.exceptions import RayError

from rayd.data.arrays import Labels, Pixels
from rayd.data.images import ImageSet
from rayd.data.streaming import StreamedPixels
from rayd.engine.on_ray.actors import SILENCE_LIMIT, translated
from rayd.errors import RaydError, RunError

COLUMN = "pixels"
"""The column of a block; each row holds the bytes of an image."""


class DecodedShard:
    """A `RealBatch` in Ray's object store, freed with the last reference to it.

    Args:
        block: of the pipeline.
        shape: of its pixels, (N, C, H, W).
        labels: class indices (N,).
    """

    def __init__(self, block: Any, shape: tuple[int, ...], labels: Labels):
        self._block = block
        self._shape = shape
        self._labels = labels

    @property
    def key(self) -> str:
        """The object's identity in the store."""
        return str(self._block.hex())

    def get(self) -> tuple[Pixels, Labels]:
        """Images and labels; the images are a read-only view of the store."""
        (column,) = ray.get(self._block, timeout=SILENCE_LIMIT).column(COLUMN).chunks
        size = column.type.byte_width
        # buffer 1 of an Arrow array holds its values (0 is the validity mask); slices share it
        pixels = np.frombuffer(
            column.buffers()[1], np.uint8, len(column) * size, column.offset * size
        )
        return pixels.reshape(self._shape), self._labels


def decoded(parts: Sequence[ImageSet], decoders: int) -> Iterator[DecodedShard]:
    """Decode streamed images part by part, slightly ahead of their use.

    Args:
        parts: the images; each part is decoded by one task.
        decoders: number of concurrent tasks, each with a CPU of its own.

    Raises:
        DataError: a file is missing or has changed, or an image is damaged; names file and row.
        RunError: nothing was decoded for too long.
    """
    # file names and offsets, not pixels: tasks read the files on their own node
    encoded = [ray.put(part.images) for part in parts]

    def decode(rows: pa.Table) -> pa.Table:
        images: StreamedPixels = ray.get(encoded[rows.column("id")[0].as_py()])
        pixels = images.decode(slice(None), 1)
        content = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(pixels[0].nbytes), len(pixels), [None, pa.py_buffer(pixels)]
        )
        return pa.table({COLUMN: content})

    with DataContext.current(_context(decoders, max(part.images.nbytes for part in parts))):
        shards = ray.data.range(len(parts), override_num_blocks=len(parts)).map_batches(
            decode,
            batch_size=None,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(size=decoders),
            num_cpus=1,
        )
        bundles = shards.iter_internal_ref_bundles()
    # Ray's iterator has no timeout, so a thread waits for it
    waiting = ThreadPoolExecutor(1, "rayd-decoded")
    try:
        for part in parts:
            bundle: Any = waiting.submit(next, bundles).result(SILENCE_LIMIT)
            (block,) = bundle.block_refs
            yield DecodedShard(block, part.images.shape, part.labels)
    except TimeoutError as error:
        raise RunError(
            f"Nothing was decoded for {SILENCE_LIMIT / 3600:g} hours; free CPUs for "
            "'resources.decoders', or set it to 0."
        ) from error
    except Exception as error:
        raise _cause(error) from error
    finally:
        waiting.shutdown(wait=False)


def _context(decoders: int, shard: int) -> DataContext:
    """Settings of the pipeline; `shard` is the size of the largest shard in bytes."""
    # Ray Data logs every execution
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    context.target_max_block_size = None  # one block per shard
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(
        object_store_memory=2 * decoders * shard
    )
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


def _cause(error: Exception) -> Exception:
    """The error that a decoder raised, unwrapped from Ray's."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, RaydError):
            return found
        found = getattr(found, "cause", None) or found.__cause__
    return translated(error) if isinstance(error, RayError) else error
