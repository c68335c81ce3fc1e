"""NCFM: neural characteristic function matching.

Shaobo Wang, Yicun Yang, Zhiyuan Liu, Chenghao Sun, Xuming Hu, Conghui He and Linfeng Zhang,
"Dataset Distillation with Neural Characteristic Function: A Minmax Perspective", CVPR 2025.

    minimise over S   300 sum_c mean_t sqrt( a (A_T - A_S)^2 + (1 - a) 2 (A_T A_S - R_T R_S - I_T I_S) )
                      + sum_c mean_{s in S_c} CE(phi(A(s)), c)

    T, S    real and synthetic images of class c, S = S_c
    R + i I  = A exp(i theta), characteristic functions of psi(A(.)), of norm 1 (d,)
    t       4,096 frequencies, standard normal (M, d)
    phi     20 networks that were trained on the real data
    psi     last map of the same somewhere between their initial and trained weights, flattened:
            d = 2,048 for 32 x 32 pixels
    a       amplitude weight, 1/2
    A       colour, crop and cutout, the same for both sides

Each stored image decodes to four (multi-formation with factor 2). Networks are trained for 60
epochs with cutmix, colour, crop, shift and flip; images are optimised by AdamW for 20,000 steps,
with pixels kept in range; students learn hard labels for 2,000 epochs in batches of 128, with
flips, colour, and crops, scales or rotations.

**Paper and released code differ, and what was chosen here.**

- The code draws new frequencies and 1,024 real images per class in every step. `real: measured`
  draws frequencies once per observer and measures *all* real images at them once, so the cost of a
  step does not depend on the amount of real data.
- The *sampling network*, which draws frequencies adversarially, is the subject of the paper's
  title, but off in every configuration of the code; `sampling_network: true` switches on a network
  that weights drawn frequencies instead, so that the real side can be measured once. It maximises
  the same objective over the densities that differ from the kernel's spectrum by a bounded factor.
  See `rayd.objectives.frequency_network`.
- The code takes one optimizer step for each class, and alternates with steps of the cross-entropy
  of one network (*calibration*), the mean over one class with weight 1. Here, all classes and both
  terms are part of one step, and both are sums over classes (`terms.calibration.weight`: 0 switches
  the latter off).
- Images are optimised by Adam, without AdamW's decay, at a constant step size, whereas the code
  lowers it on a plateau. The code's 0.001 is in units of pixels in [0, 1], that is 0.004 in units
  of normalised ones. An iteration of the code takes 2 C steps for C classes, of which two have a
  gradient for a given image: with Adam's moments they move it by 2 sqrt(C) steps. The default of
  0.025 gives the same pace for ten classes, with all gradients taken at the same point; set 0.008
  sqrt(C) for other numbers.
- Accuracies are those of the last epoch; the code reports the best of the tests every 100 epochs.
  Cutmix is applied to every batch, in the code to half of them.
- The weights of observers are interpolated between initial and trained ones, l initial + (1 - l)
  trained with l uniform in [0, 1]. The code draws a new l in every step; here, every observer has a
  fixed l, so that it can be measured once (`real: sampled` keeps it fixed, too).
  `observers.interpolate: false` uses the trained weights.
- Calibration, as in the code, is computed in networks as they were trained: interpolated observers
  are complemented by the same networks with their trained weights (`Recipe.classifier_settings`),
  unless the recipe has `classifiers` of its own.

Use it if observers can be trained on the real data and labels must be hard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rayd.config import Recipe
from rayd.methods.base import Method
from rayd.objectives import Calibration, CharacteristicFunctionMatching, Term

MULTI_FORMATION: Mapping[str, Any] = {"kind": "partitioned", "factor": 2}
"""Each stored image decodes to factor x factor images, cut from it and enlarged."""


class NeuralCharacteristicFunctionMatching(Method):
    """Characteristic functions of classes in trained networks, and their cross-entropy."""

    name = "ncfm"
    citation = """@inproceedings{wang2025ncfm,
  title     = {Dataset Distillation with Neural Characteristic Function: A Minmax Perspective},
  author    = {Wang, Shaobo and Yang, Yicun and Liu, Zhiyuan and Sun, Chenghao and Hu, Xuming and He, Conghui and
               Zhang, Linfeng},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2025}
}"""
    needs_trained_observers = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "observers": {
            "trained": True,
            "interpolate": True,
            "pool": 20,
            "augmentation": "color+crop+cutout",
        },
        "squeeze": {
            "epochs": 60,
            "learning_rate": 0.01,
            "schedule": {"name": "multistep", "milestones": [2 / 3, 5 / 6], "factor": 0.2},
            "augmentation": "color+crop",
            "mix": "cutmix",
        },
        "synthetic": {"init": "real", **MULTI_FORMATION},
        "synthesis": {
            "steps": 20_000,
            "optimizer": "adam",
            "learning_rate": 0.025,
            "momentum": 0.9,
            "clip": True,
        },
        "evaluation": {
            "epochs": 2000,
            "batch_size": 128,
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "schedule": {"name": "multistep", "milestones": [0.2, 0.4, 0.6, 0.8], "factor": 0.5},
            "augmentation": "flip+color+crop_flip+color+scale_flip+color+rotate",
            "mix": "cutmix",
        },
    }

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Two terms: the distance of characteristic functions of the last map, and the
        cross-entropy of networks as they were trained.
        """
        distance = CharacteristicFunctionMatching(
            layers="last_map",
            scale=1.0,
            frequencies=4096,
            normalize=True,
            head_amplitude_weight=0.5,
            split="uniform",
            factor=1.0,
            root=True,
            over_classes="sum",
        )
        return distance, Calibration()
