"""Array types of images, labels and rows."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""Images (N, C, H, W)."""
Labels = npt.NDArray[np.int64]
"""Class indices (N,)."""
Rows = npt.NDArray[np.int64]
"""Indices of images within a split, ascending unless stated otherwise."""


class ImageArray(Protocol):
    """Images uint8 (N, C, H, W): a NumPy array, or `rayd.data.streaming.StreamedPixels`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        ...

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """Type of the pixels."""
        ...

    @property
    def nbytes(self) -> int:
        """Number of bytes of all pixels, decoded."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Rows, /) -> Pixels:
        """Images at the given rows, in that order."""
        ...


class ImageShape(NamedTuple):
    """Shape of one image."""

    channels: int
    height: int
    width: int
