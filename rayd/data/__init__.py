"""Real images: locating, reading, splitting and normalising data sets. Does not import Ray.

`rayd.data.augmentation` applies to all images, real and synthetic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rayd.data.arrays import ImageShape
from rayd.data.catalog import KNOWN, KnownSet, check_class_order
from rayd.data.fetch import fetch
from rayd.data.sources import SourceInfo, data_roots, known_sources, locate

if TYPE_CHECKING:
    from rayd.data.images import ImageData, ImageSet
    from rayd.data.loading import load
    from rayd.data.normalization import (
        Normalization,
        Standardization,
        Whitening,
        fit_normalization,
        restore,
    )

__all__ = [
    "KNOWN",
    "ImageData",
    "ImageSet",
    "ImageShape",
    "KnownSet",
    "Normalization",
    "SourceInfo",
    "Standardization",
    "Whitening",
    "check_class_order",
    "data_roots",
    "fetch",
    "fit_normalization",
    "known_sources",
    "load",
    "locate",
    "restore",
]

_WITH_TORCH = {
    "ImageData": "images",
    "ImageSet": "images",
    "load": "loading",
    "Normalization": "normalization",
    "Standardization": "normalization",
    "Whitening": "normalization",
    "fit_normalization": "normalization",
    "restore": "normalization",
}
"""Names imported on first use, with their module, because finding data sets needs no torch."""


def __getattr__(name: str) -> Any:
    """Import names that need torch on first use."""
    if name in _WITH_TORCH:
        return getattr(import_module(f"rayd.data.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module 'rayd.data' has no attribute '{name}'")
