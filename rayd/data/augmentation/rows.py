"""What was drawn for a batch, cut down to some of its images."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def at_rows(drawn: T, rows: Tensor | slice) -> T:
    """What was drawn for the images at `rows`, int64 (n,) or a slice, of a batch: any dataclass of
    drawn parameters, or None.

    Parameters that are tensors have a row an image, or one for all; what else there is holds for
    the batch as a whole. A mix is not among them, as its partners may be anywhere in the batch.
    """
    kept: Any = drawn
    if isinstance(kept, Tensor):
        kept = kept[rows] if len(kept) > 1 else kept
    elif is_dataclass(kept) and not isinstance(kept, type):
        kept = replace(
            kept, **{field.name: at_rows(getattr(kept, field.name), rows) for field in fields(kept)}
        )
    return kept  # type: ignore[no-any-return]
