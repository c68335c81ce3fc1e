r"""DATM: trajectory matching of a difficulty that fits the budget, with learned soft labels.

Ziyao Guo, Kai Wang, George Cazenavette, Hui Li, Kaipeng Zhang and Yang You, "Towards Lossless
Dataset Distillation via Difficulty-Aligned Trajectory Matching", ICLR 2024. MTT, and:

- Start epochs are late for large budgets and early for small ones, and later ones are added in the
  course of the synthesis (`objective.start.schedule: rising`).
- Labels are learned logits. They are initialised with the mean logits of the experts that classify
  the image correctly, and images that no expert classifies correctly are not used
  (`synthetic.labels: experts`). Students learn from their softmax.
- Experts have flat trajectories (GSAM with radius 0.01 and weight 0.3) of 100 epochs.
- Steps with a loss above 1 are skipped (`objective.loss_limit`).

**Different from the released code**: its momentum is 0.5 for images and 0.9 for labels; here, it is
the same for both. Its students use batches of 128, which the recipes set. The decays `ema_decay` in
its settings belong to an average of the images in FTD's code, on which it is based; DATM's own code
averages nothing, and neither do the recipes.

Use it for larger budgets, for which matching only early epochs, as in MTT, no longer helps.
"""

from __future__ import annotations

from rayd.config import merge
from rayd.methods.mtt import DEFAULTS
from rayd.methods.trajectories import TrajectoryMethod


class DifficultyAlignedMatching(TrajectoryMethod):
    """Trajectory matching: learned labels, and start epochs from a range that rises."""

    name = "datm"
    citation = """@inproceedings{guo2024datm,
  title     = {Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching},
  author    = {Guo, Ziyao and Wang, Kai and Cazenavette, George and Li, Hui and Zhang, Kaipeng and You, Yang},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2024}
}"""
    defaults = merge(
        DEFAULTS,
        {
            # GSAM gives flat trajectories, so that students need not reach a point exactly
            "experts": {"epochs": 100, "flat_radius": 0.01, "flat_weight": 0.3},
            "synthetic": {"labels": "experts"},
            "synthesis": {
                "steps": 10000,
                "learning_rate": 100.0,
                "learning_rates": {"labels": 2.0},
            },
            "objective": {
                "start": {"schedule": "rising", "first": 10, "most": 20, "rise": 1000},
                # a student that ends farther from its target than it started is of no use
                "loss_limit": 1.0,
            },
        },
    )
