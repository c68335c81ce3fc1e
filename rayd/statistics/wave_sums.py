"""Class sums of cosines and sines of feature vectors at many frequencies, in bounded memory.

    C_cj = sum_{i in c} cos<t_j, x_i>          S_cj = sum_{i in c} sin<t_j, x_i>          (C, M)

    x  n feature vectors (n, d)      t  M frequencies (M, d)      c  classes; the angles <t_j, x_i> are (n, M)

The matrix of angles is never materialised: it is computed tile by tile, rows of x times rows of t,
and recomputed for the gradients. With p and q the gradients of C and S, and e_ij = q_cj cos<t_j,
x_i> - p_cj sin<t_j, x_i> for i of class c,

    dx_i = sum_j e_ij t_j          dt_j = sum_i e_ij x_i

so that only x and t are saved for the backward pass. Differentiable any number of times.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rayd.statistics.base import membership

AT_ONCE = 1 << 22
IN_CACHE = {"cpu": 1 << 18}
"""Number of angles processed at once: on a CPU few enough to stay in cache."""


def wave_sums(
    features: Tensor, frequencies: Tensor, labels: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Class sums of cosines and of sines, each (classes, M).

    Args:
        features: feature vectors (n, d).
        frequencies: (M, d), in the same precision.
        labels: class indices (n,).
        classes: number of classes.
    """
    cosine, sine = _WaveSums.apply(features, frequencies, labels, classes)
    return cosine, sine


class _WaveSums(torch.autograd.Function):
    """The sums, with angles that are recomputed in the backward pass."""

    @staticmethod
    def forward(
        features: Tensor, frequencies: Tensor, labels: Tensor, classes: int
    ) -> tuple[Tensor, Tensor]:
        member = membership(labels, classes, features.dtype).T
        cosines = []
        sines = []
        for columns, tiles in _tiles(features, frequencies):
            cosine, sine = (
                features.new_zeros(classes, columns.stop - columns.start) for _ in range(2)
            )
            for rows in tiles:
                angle = features[rows] @ frequencies[columns].T
                sine.addmm_(member[:, rows], angle.sin())
                cosine.addmm_(member[:, rows], angle.cos_())
            cosines.append(cosine)
            sines.append(sine)
        return torch.cat(cosines, 1), torch.cat(sines, 1)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, Tensor]
    ) -> None:
        features, frequencies, labels, _ = inputs
        ctx.save_for_backward(features, frequencies, labels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        features, frequencies, labels = ctx.saved_tensors
        cosine, sine = gradients
        to_features = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        to_frequencies = []
        for columns, tiles in _tiles(features, frequencies):
            waves = frequencies[columns]
            to_waves = torch.zeros_like(waves) if ctx.needs_input_grad[1] else None
            for rows in tiles:
                angle = features[rows] @ waves.T
                of = labels[rows]
                slope = sine[:, columns][of] * angle.cos() - cosine[:, columns][of] * angle.sin()
                if to_features is not None:
                    to_features[rows] += slope @ waves
                if to_waves is not None:
                    to_waves = to_waves + slope.T @ features[rows]
            to_frequencies += [to_waves] if to_waves is not None else []
        return to_features, torch.cat(to_frequencies) if to_frequencies else None, None, None


def _tiles(features: Tensor, frequencies: Tensor) -> Iterator[tuple[slice, list[slice]]]:
    """Tiles of a bounded number of angles: parts of the frequencies, each with parts of the
    features.
    """
    angles = IN_CACHE.get(features.device.type, AT_ONCE)
    samples = len(features)
    number = len(frequencies)
    height = min(max(samples, 1), max(1, int(angles**0.5)))
    width = min(number, max(1, angles // height))
    for start in range(0, number, width):
        rows = [slice(first, min(first + height, samples)) for first in range(0, samples, height)]
        yield slice(start, min(start + width, number)), rows
