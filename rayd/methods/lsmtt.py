r"""LS-MTT: trajectory matching in a low-rank space of images, with learned soft labels and
progressively later starts.

Hangyang Kong, Wenbo Zhou, Xuxiang He, Xiaotong Tu and Xinghao Ding, "Efficient Dataset Distillation
through Low-Rank Space Sampling", 2025. It learns small matrices whose products are the images.
Several images share factors, so that many more images fit into the storage of a few whole ones
(`rayd.synthetic.lowrank`, where the storage is counted as in the paper's Table 2). Apart from that,
it is MTT with

- labels that are learned, starting from random logits (`synthetic.labels: random`; `experts`
  initialises them as in DATM),
- start epochs from a window that moves from early epochs to late ones (`objective.start.schedule:
  progressive`).

There is no released code. **What the paper leaves open, and what was chosen**: for the number of
mapper sets and of images for a budget, and the initial factors, see `rayd.synthetic.lowrank`;
random logits are standard normal; step sizes, window and offset are those of the recipes, which
whiten CIFAR as those of MTT do. The budget is that of `ipc` whole images per class with hard
labels, unless `synthetic.budget` sets another. For the rank, the paper counts the storage of 4, 8,
12 and 16 (Table 2) without stating its choice; the recipes take 8, 12 and 16 for 1, 10 and 50
images per class.

Use it for the smallest budgets.
"""

from __future__ import annotations

from rayd.config import merge
from rayd.methods.mtt import DEFAULTS
from rayd.methods.trajectories import TrajectoryMethod


class LowRankSpaceMatching(TrajectoryMethod):
    """Trajectory matching: low-rank images, learned labels, start epochs from a moving window."""

    name = "ls-mtt"
    citation = """@article{kong2025lowrank,
  title   = {Efficient Dataset Distillation through Low-Rank Space Sampling},
  author  = {Kong, Hangyang and Zhou, Wenbo and He, Xuxiang and Tu, Xiaotong and Ding, Xinghao},
  journal = {arXiv preprint arXiv:2503.07998},
  year    = {2025}
}"""
    defaults = merge(
        DEFAULTS,
        {
            "synthetic": {"kind": "lowrank", "rank": 8, "labels": "random"},
            "synthesis": {"learning_rates": {"labels": 2.0}},
            "objective": {
                "start": {"schedule": "progressive", "most": 20, "offset": 5, "window": 5}
            },
        },
    )
