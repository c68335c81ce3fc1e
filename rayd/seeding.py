"""Random generators that depend on the purpose of a draw, not on the process that makes it.

Every draw of a run uses `generator(seed, purpose, *indices)`: the stream is a hash of the run's
seed, the purpose of the draw and the indices of the work item, so results do not depend on the
number of workers, on their order, or on restarts. Generators are on the CPU: the same draws are
used on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


def derive(seed: int, purpose: str, *indices: int | str) -> int:
    """Derive a 63-bit seed for a purpose and indices: the first 8 bytes of a BLAKE2b hash.

    >>> derive(0, "init") == derive(0, "init"), derive(0, "init") == derive(0, "init", 0)
    (True, False)
    """
    text = "\x1f".join([str(seed), purpose, *(f"{type(i).__name__}:{i}" for i in indices)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, *indices: int | str) -> torch.Generator:
    """Create a CPU generator for a purpose and indices."""
    return torch.Generator().manual_seed(derive(seed, purpose, *indices))


@contextmanager
def seeded(
    seed: int, purpose: str, *indices: int | str, device: torch.device | None = None
) -> Iterator[None]:
    """Run code that uses torch's global generators on a derived stream, then restore them.

    Constructors of modules and dropout cannot use other generators.

    Args:
        seed: seed of the run.
        purpose: purpose of the draws.
        indices: indices of the work item.
        device: device on which the code draws, besides the CPU; only its generator is seeded.
    """
    chosen = derive(seed, purpose, *indices)
    with ExitStack() as restored:
        restored.callback(torch.default_generator.set_state, torch.default_generator.get_state())
        torch.default_generator.manual_seed(chosen)
        if device is not None and device.type == "cuda":
            # by its index: the current device may be another one
            restored.callback(torch.cuda.set_rng_state, torch.cuda.get_rng_state(device), device)
            with torch.cuda.device(device):
                torch.cuda.manual_seed(chosen)
        elif device is not None and device.type == "mps":
            restored.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
            torch.mps.manual_seed(chosen)
        yield
