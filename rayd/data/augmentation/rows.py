"""Selection of drawn parameters for some images of a batch."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def at_rows(drawn: T, rows: Tensor | slice) -> T:
    """Select the parameters drawn for the images at `rows` of a batch.

    Tensors have one row per image, or one row for all; other parameters apply to the whole batch.
    Mixes are not supported, as partners may be anywhere in the batch.

    Args:
        drawn: a dataclass of drawn parameters, a tensor, or None.
        rows: int64 (n,) or a slice.
    """
    kept: Any = drawn
    if isinstance(kept, Tensor):
        kept = kept[rows] if len(kept) > 1 else kept
    elif is_dataclass(kept) and not isinstance(kept, type):
        kept = replace(
            kept, **{field.name: at_rows(getattr(kept, field.name), rows) for field in fields(kept)}
        )
    return kept  # type: ignore[no-any-return]
