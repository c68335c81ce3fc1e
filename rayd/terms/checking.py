"""Validation of plain tensors given to terms: labels, features and logits.

The engine's own tensors are valid by construction. Invalid ones from a user's loop would mostly be
misread silently: an index of -1 is the last class to one operation and no class to the next, and
features of one dimension are broadcast to any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def indices(labels: Any, images: int, classes: int | None, what: str) -> Tensor:
    """Labels as class indices int64 (images,).

    Args:
        labels: the argument.
        images: required number of labels.
        classes: number of classes, an upper bound of the indices; None if it follows from them.
        what: description of the labels, for messages.

    Raises:
        TypeError: it is not a tensor of integers.
        ValueError: their number is not `images`, or an index is out of range.
    """
    import torch

    from rayd.derived import index_range

    if not isinstance(labels, torch.Tensor):
        raise TypeError(f"{what} must be a tensor. Got {type(labels).__name__} instead.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"{what} must be class indices, a tensor of integers ({images},). Got {_of(labels)} "
            "instead."
        )
    if tuple(labels.shape) != (images,):
        raise ValueError(
            f"{what} must be class indices ({images},), one per image. Got {_of(labels)} instead."
        )
    if not images:
        raise ValueError(f"{what} must contain at least one image. Got none.")
    least, most = index_range(labels)
    if least < 0 or (classes is not None and most >= classes):
        above = "" if classes is None else f" to {classes - 1}"
        raise ValueError(
            f"{what} must be class indices from 0{above}. Got {least} to {most} instead."
        )
    return labels.long()


def learned_or_indices(labels: Any, images: int, classes: int | None, what: str) -> Tensor:
    """Labels as class indices int64 (images,), or soft ones, rows of numbers (images, classes).

    Raises:
        TypeError: it is neither.
        ValueError: their number is not `images`, or they have other classes.
    """
    import torch

    if not isinstance(labels, torch.Tensor) or not labels.is_floating_point():
        return indices(labels, images, classes, what)
    if labels.ndim != 2 or len(labels) != images or classes not in (None, labels.shape[1]):
        columns = "classes" if classes is None else classes
        raise ValueError(
            f"{what} must be class indices ({images},), or rows of numbers ({images}, {columns}). Got "
            f"{_of(labels)} instead."
        )
    return labels


def largest(labels: Tensor) -> int:
    """The largest of class indices (N,), N above 0; cached after the first call."""
    from rayd.derived import index_range

    return index_range(labels)[1]


def layers(given: Mapping[Any, Sequence[Any]], term: Any) -> int:
    """Number of images of the features that a term is given, by layer role.

    Raises:
        TypeError: features are not tensors of floating-point numbers.
        ValueError: layers are of different numbers of images, or have dimensions that the term
            cannot read.
    """
    name = type(term).__name__
    counts = []
    for role, features in given.items():
        transforms = [spec.transform for spec in term.specs if spec.layer_role == role]
        for layer in features:
            floating(layer, f"Features of {name}")
            allowed, wanted = _dimensions(transforms)
            if layer.ndim not in allowed:
                raise ValueError(f"Features of {name} must be {wanted}. Got {_of(layer)} instead.")
            counts.append(len(layer))
    if len({*counts}) > 1:
        raise ValueError(
            f"All layers must be of the same images. {name} got {' and '.join(map(str, counts))}."
        )
    return counts[0]


def comparable(statistics: Any, given: Mapping[Any, Sequence[Tensor]], term: Any) -> None:
    """Refuse features that cannot be compared with statistics of real ones.

    Raises:
        ValueError: layers or dimensions of vectors differ.
    """
    name = type(term).__name__
    for spec in term.specs:
        if spec not in statistics:
            raise ValueError(f"{name} needs statistics '{spec.key}', as returned by its `measure`.")
        theirs = statistics[spec]
        ours = given[spec.layer_role]
        if len(theirs) != len(ours):
            raise ValueError(
                f"{name} needs as many layers '{spec.layer_role.value}' of synthetic images as of "
                f"real ones. Got {len(ours)} and {len(theirs)} instead."
            )
        for statistic, layer in zip(theirs, ours, strict=True):
            wanted = _sizes(statistic)
            found = spec.transform.size(tuple(layer.shape[1:]))
            if wanted and wanted != found[-len(wanted) :]:
                raise ValueError(
                    f"{name} needs synthetic features of the shape of real ones, apart from their "
                    f"number. Got vectors of {found[1]} and {wanted[-1]} numbers instead, in layers "
                    f"'{spec.layer_role.value}'."
                    if wanted[-1] != found[1]
                    else f"{name} needs synthetic maps of the size of real ones. Got {found[0]} and "
                    f"{wanted[0]} positions instead."
                )


def floating(tensor: Tensor, what: str) -> Tensor:
    """Convert a tensor to float32 at least, as losses need more digits than bfloat16 has.

    Raises:
        TypeError: it does not contain floating-point numbers.
    """
    import torch

    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        got = _of(tensor) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise TypeError(f"{what} must be a tensor of floating-point numbers. Got {got} instead.")
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def logits(given: Any, what: str = "Logits") -> Tensor:
    """Logits (M, C), in float32 at least.

    Raises:
        TypeError: they are not a tensor of floating-point numbers.
        ValueError: they are not a matrix, or there are no images.
    """
    wide = floating(given, what)
    if wide.ndim != 2 or not len(wide):
        raise ValueError(f"{what} must be (images, classes). Got {_of(given)} instead.")
    return wide


def images(given: Any, what: str) -> Tensor:
    """Validate images (N, channels, h, w), and return them unchanged.

    Raises:
        TypeError: they are not a tensor of floating-point numbers.
        ValueError: they have a different number of dimensions.
    """
    floating(given, what)
    if given.ndim != 4:
        raise ValueError(f"{what} must be (n, channels, h, w). Got {_of(given)} instead.")
    tensor: Tensor = given
    return tensor


def vectors(given: Any, what: str) -> Tensor:
    """Feature vectors (N, d), in float32 at least.

    Raises:
        TypeError: they are not a tensor of floating-point numbers.
        ValueError: they have a different number of dimensions.
    """
    wide = floating(given, what)
    if wide.ndim != 2:
        raise ValueError(f"{what} must be feature vectors (n, d). Got {_of(given)} instead.")
    return wide


def _dimensions(transforms: Sequence[Any]) -> tuple[tuple[int, ...], str]:
    """Numbers of dimensions that all of these transforms accept, and their description."""
    from rayd.statistics import Attention, Channels, Flat, Normalized, Patches, Vectors

    plain = [one.inner if isinstance(one, Normalized) else one for one in transforms]
    if any(isinstance(one, Channels | Patches | Attention) for one in plain):
        return (2, 4), "maps (n, channels, h, w), or vectors (n, d)"
    if any(isinstance(one, Vectors) for one in plain):
        return (3,), "vectors (n, s, d)"
    if plain and not any(isinstance(one, Flat) for one in plain):
        return tuple(range(1, 9)), "what its transform takes"  # a user-defined transform
    if not plain:
        return (2,), "vectors (n, d)"
    return tuple(range(2, 9)), "vectors (n, d), or maps, which are flattened"


def _sizes(statistic: Any) -> tuple[int, ...]:
    """Number s, if it matters, and dimension d of the feature vectors of a statistic of the
    package; empty for user-defined statistics.
    """
    from rayd.statistics import (
        CharacteristicFunction,
        Covariance,
        LabelCorrelation,
        LocalCovariance,
        Moments,
    )

    if isinstance(statistic, CharacteristicFunction):
        return (statistic.frequencies.shape[1],)
    if isinstance(statistic, LabelCorrelation):
        return (statistic.total.shape[1],)
    if isinstance(statistic, Moments | Covariance | LocalCovariance):
        return tuple(statistic.mean.shape[1:])
    return ()


def _of(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
