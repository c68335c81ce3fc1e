"""CAFE: features of every layer aligned by class, and centres that tell real images apart.

Kai Wang, Bo Zhao, Xiangyu Peng, Zheng Zhu, Shuo Yang, Shuo Wang, Guan Huang, Hakan Bilen, Xinchao
Wang and Yang You, "CAFE: Learning to Condense Dataset by Aligning Features", CVPR 2022.

    minimise over S   E_theta [ L_f + beta L_d ]

    L_f    squared distances of class means of the outputs of all blocks
    L_d    cross-entropy of real images whose logits are inner products with the synthetic centres
    theta  a ConvNet that learns from the synthetic images between the steps; a fresh one after some
    beta   0.01 (`terms.discrimination.weight`)

The terms are in `rayd.objectives.discrimination`, with their symbols; any method may add them.

**Different from the paper.** It changes between matching and training the network by thresholds of
its accuracy on a query set; here the loops by images per class are those of DC
(`rayd.methods.dc`), which it starts from. Its features are layers' outputs as they are, here those
of blocks after pooling.

Use it as a baseline between DM, which aligns the last layer alone, and DC. It needs `real: sampled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayd.config import DSA_STRATEGY, Recipe, merge
from rayd.methods.base import Method
from rayd.methods.dc import DatasetCondensation
from rayd.objectives import Discrimination, LayerMeanMatching, Term


class FeatureAlignment(Method):
    """Class means of all layers, and discrimination by synthetic centres."""

    name = "cafe"
    citation = """@inproceedings{wang2022cafe,
  title     = {{CAFE}: Learning to Condense Dataset by Aligning Features},
  author    = {Wang, Kai and Zhao, Bo and Peng, Xiangyu and Zhu, Zheng and Yang, Shuo and Wang, Shuo and Huang, Guan and
               Bilen, Hakan and Wang, Xinchao and You, Yang},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022}
}"""

    @classmethod
    def defaults_at(cls, ipc: int) -> Mapping[str, Any]:
        """Those of DC, from real images, with students that are augmented."""
        own = {
            "synthetic": {"init": "real"},
            "evaluation": {"augmentation": DSA_STRATEGY, "epochs": 1000},
        }
        return merge(DatasetCondensation.defaults_at(ipc), own)

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Two terms: layers by class, and discrimination."""
        return LayerMeanMatching(), Discrimination()
