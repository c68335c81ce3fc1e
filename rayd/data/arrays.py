"""What images, labels and rows are, for those who hold them and those who make them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""Images (N, C, H, W)."""
Labels = npt.NDArray[np.int64]
"""Class indices (N,)."""
Rows = npt.NDArray[np.int64]
"""Indices of images within a split, ascending unless said otherwise."""


class ImageArray(Protocol):
    """Images uint8 (N, C, H, W): an array in memory, or `rayd.data.streaming.StreamedPixels`,
    decoded when indexed.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        ...

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """Of the pixels."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels, decoded."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Rows, /) -> Pixels:
        """The images at rows, in the order asked."""
        ...


class ImageShape(NamedTuple):
    """Shape of one image."""

    channels: int
    height: int
    width: int
