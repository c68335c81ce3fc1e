"""Real images: where they are, how they are read, split and normalised. Nothing here imports Ray."""

from __future__ import annotations

from rayd.data.catalog import KNOWN, KnownSet, check_class_order
from rayd.data.fetch import fetch
from rayd.data.images import ImageData, ImageSet, ImageShape
from rayd.data.loading import load
from rayd.data.normalization import Normalization, Standardization, Whitening, fit_normalization, restore
from rayd.data.sources import SourceInfo, data_roots, known_sources, locate

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
