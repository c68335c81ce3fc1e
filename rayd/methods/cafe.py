"""CAFE: features of every layer aligned by class, and centres that tell real images apart.

Kai Wang, Bo Zhao, Xiangyu Peng, Zheng Zhu, Shuo Yang, Shuo Wang, Guan Huang, Hakan Bilen, Xinchao
Wang and Yang You, "CAFE: Learning to Condense Dataset by Aligning Features", CVPR 2022.

    minimise over S   E_theta [ L_f + beta L_d ]

    L_f    squared distances of class means of the outputs of all blocks
    L_d    cross-entropy of real images whose logits are inner products with the synthetic centres
    theta  a ConvNet that learns from the synthetic images between the steps; a fresh one after some
    beta   0.01 (`terms.discrimination.weight`), of a mean over the real images

The terms are in `rayd.objectives.discrimination`, with their symbols; any method may add them.

**Released code, and what differs here.**

- The code starts from noise and uses no augmentation, which is the default here; with DSA (CAFE+DSA
  in the tables) matching, networks and students use augmented images (cells `-dsa`). Students are
  trained for 600 epochs, 1,000 with DSA.
- It compares the maps of blocks before pooling, weights the first two by 0.1, and adds the last,
  after pooling, twice more; here, the maps after pooling are compared, with equal weights.
- Its cross-entropy is a sum over the 256 C real images, so its beta corresponds to 2.56 C for their
  mean (cell `cafe-cifar10-ipc10-code`).
- It switches between matching and training according to the network's accuracy on 128 real images
  per class: a network is replaced when ten accuracies in a row differ by less than 0.04, and
  trained until ten in a row differ by more than 0.03. Here, the loops are those of DC, by images
  per class (`rayd.methods.dc`).
- The code uses 2,000 networks, and halves the step size of the images, 0.1, after 1,200, 1,600 and
  1,800 of them; here there are 1,000 as in DC, at a constant step size.

Use it as a baseline between DM, which aligns only the last layer, and DC. It needs `real: sampled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayd.config import Recipe, merge
from rayd.methods.base import Method
from rayd.methods.dc import DatasetCondensation
from rayd.objectives import Discrimination, LayerMeanMatching, Term


class FeatureAlignment(Method):
    """Class means of all layers, and classification of real images by the synthetic class centres."""

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
        """The defaults of DC, with longer training of students."""
        return merge(DatasetCondensation.defaults_at(ipc), {"evaluation": {"epochs": 600}})

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Two terms: layers by class, and discrimination."""
        return LayerMeanMatching(), Discrimination()
