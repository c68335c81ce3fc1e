"""The error for batch normalisation of a single image, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rayd.errors import RunError


@contextmanager
def explained(network: str, images: int, batch_size: str) -> Iterator[None]:
    """Say what to change where torch refuses to normalise a batch of one image.

    That happens where maps have shrunk to one value per channel and the last batch of an epoch
    has one image.

    Args:
        network: its name in the message.
        images: how many it is trained on.
        batch_size: the setting or argument to change.

    Raises:
        RunError: in place of torch's ValueError; other errors pass.

    Example:
        >>> import torch
        >>> try:
        ...     with explained("network", 9, "batch_size"):
        ...         _ = torch.nn.BatchNorm1d(2)(torch.ones(1, 2))
        ... except RunError as error:
        ...     print(str(error).partition(": ")[2])
        set another 'batch_size'.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise RunError(
            f"The {network} cannot normalise a batch of one image, which its {images} images "
            f"leave at the end of an epoch: set another '{batch_size}'."
        ) from error
