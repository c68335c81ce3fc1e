"""CDA: SRe2L with a curriculum of crops.

Zeyuan Yin and Zhiqiang Shen, "Dataset Distillation via Curriculum Data Synthesis in Large Data
Era", TMLR 2024.

The objective is SRe2L's. Only the random view changes over the steps: the minimum share of the area
that a crop keeps starts at 1, the whole image, and falls to 0.08, from easy to hard:

    least(t) = 0.08 + 0.92 (1 + cos(pi t / m)) / 2   for t < m, then 0.08

    t   share of the steps that are done
    m   where the curriculum ends (`synthesis.curriculum_end`), 1; `synthesis.curriculum` may be linear or a step instead

Paper and released code agree on the schedule; their other differences are those described for
SRe2L. The scripts use step size 0.25 and r = 0.01 for ImageNet-1k, 0.4 and 0.05 for Tiny-ImageNet,
4,000 steps.

Use it in place of SRe2L wherever crops make sense, from Tiny-ImageNet on.
"""

from __future__ import annotations

from rayd.config import merge
from rayd.methods.sre2l import SqueezeRecoverRelabel


class CurriculumDataAugmentation(SqueezeRecoverRelabel):
    """SRe2L with crops that become smaller during the synthesis."""

    name = "cda"
    citation = """@article{yin2024cda,
  title   = {Dataset Distillation via Curriculum Data Synthesis in Large Data Era},
  author  = {Yin, Zeyuan and Shen, Zhiqiang},
  journal = {Transactions on Machine Learning Research},
  year    = {2024}
}"""
    defaults = merge(
        SqueezeRecoverRelabel.defaults,
        {
            "synthesis": {
                "steps": 4000,
                "curriculum": "cosine",
                "curriculum_end": 1.0,
                "transform": {"crop": [0.08, 1.0], "flip": True, "roll": 4},
            }
        },
    )
