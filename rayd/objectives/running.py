"""Exponential moving updating: means of statistics over the blocks of a synthetic set.

Bo, Liu and Wang, "Understanding Dataset Distillation via Spectral Filtering" (UniDD, ICLR 2026): a
block of few images is too small to represent a data set, so its statistic is averaged with those of
the previous blocks, which are finished and fixed:

    s_b = (1 - 1/b) s_{b-1} + (1/b) stat_b          s_0 = 0,     b = 1, 2, ...  blocks

    stat_b  of block b, as it is now, with its gradient, which the mean passes on with the
            factor 1/b
    s_b     what is compared; s_{b-1} is that of the last call in block b-1

So s_b is the mean over the blocks, with equal weights. A covariance averaged in this way lacks the
part between blocks, in the paper as well as here. The released code stores s_b when a block is
finished; here every call stores its mean, which the first call of the next block reads (see
`Context.memory`). Blocks are counted per observer: a block in which an observer was not used is not
part of its mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayd.objectives.terms import Context


class RunningMeans:
    """The means of one call, stored in the context's memory under the names of the statistics,
    `block` and `before`.
    """

    def __init__(self, context: Context):
        """Determine the number of previous blocks; a single block has no memory."""
        self._memory = context.memory
        self._kept = dict(context.memory)
        self._alone = context.blocks == 1
        self._last = context.block + 1 == context.blocks
        self._before = 0
        self._source = "before"
        if "block" in self._kept:
            self._before = int(self._kept["before"])
            if int(self._kept["block"]) != context.block:
                self._before = self._before + 1
                self._source = "now"
        if not self._alone:
            self._memory["block"] = torch.tensor(context.block)
            self._memory["before"] = torch.tensor(self._before)

    @property
    def count(self) -> int:
        """Number of blocks so far, including this one."""
        return self._before + 1

    def __call__(self, name: str, current: Tensor) -> Tensor:
        """The mean of `current` and the previous blocks, of the same shape and dtype; its gradient
        is that of `current`, times 1/b.
        """
        mean = current
        if self._before > 0:
            weight = 1 / (self._before + 1)
            before = self._kept[f"{name} {self._source}"]
            self._memory[f"{name} before"] = before
            mean = (1 - weight) * before.to(current) + weight * current
        if self._last:
            self._memory.pop(f"{name} now", None)
        elif not self._alone:
            self._memory[f"{name} now"] = mean.detach()
        return mean
