"""UniDD: distillation through a filter of your choice.

Deyu Bo, Songhua Liu and Xinchao Wang, "Understanding Dataset Distillation via Spectral Filtering",
ICLR 2026.

    minimise over X   CE(phi(A(X)), y) + eta sum_l ( w || f(C_l) - f(C'_l) ||_F + v || f(C_l) S_l - f(C'_l) S'_l ||_2 )

    X     a block of synthetic images, from real ones; y their labels; A a random view (crop of 0.08 to 1 of the area, flip,
          roll)
    phi   a network that was trained on the real data, in eval mode
    C_l   covariance of the channels that convolution l reads (d, d), over all real images; S_l their correlation with the
          labels (d, classes); C'_l, S'_l the same of A(X)        eta  0.1 (`terms.spectral_filter.weight`)
    f     a filter (`terms.spectral_filter.filter`), and how its parameter changes over the steps          w, v  1

In the view of the paper, the methods of the field differ in f. As settings of the term, they are:

    DM           filter: {name: all-pass}                                                        layers: features
    DC           filter: {name: low-pass}, signal_filter: {name: all-pass}
    MTT          filter: {name: gradient, alpha: a, power: P}, signal_filter: {name: gradient-sum, alpha: a, power: P},
                 real_filter: {name: gradient, alpha: b, power: Q}, real_signal_filter: {name: gradient-sum, alpha: b, power: Q}
    FRePo, KIP   filter: {name: ridge, beta: ...}                                                layers: features
    CFM          filter: {name: ridge, schedule: {name: cosine}}, and means over blocks: method `cfm`

P is the number of steps of MTT's student on the synthetic images and Q that of its expert on the
real ones (Eq. 10); a and b are their step sizes.

These are the filters of those methods, not the methods themselves: networks, step sizes, the
synthetic set and the filtered matrices are those of CFM (FRePo's own ridge is relative to the trace
of uncentred moments). The classification term can be switched off (`terms.cross_entropy.weight:
0`). A schedule runs over the steps of each block, as blocks are optimised in parallel. For the
mathematics, and for the differences between paper and code, see `rayd.objectives.spectral_filter`
and `rayd.objectives.filters`.

Use it to compare filters; use CFM to get a good set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rayd.config import Precision, Recipe
from rayd.methods.base import Method
from rayd.methods.decoupled import family
from rayd.objectives import CrossEntropy, SpectralFilterMatching, Term

CITATION = """@inproceedings{bo2026unidd,
  title     = {Understanding Dataset Distillation via Spectral Filtering},
  author    = {Bo, Deyu and Liu, Songhua and Wang, Xinchao},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2026}
}"""

DEFAULTS = family(
    {
        "synthetic": {"init": "real"},
        "synthesis": {
            "steps": 1000,
            "learning_rate": 0.25,
            "transform": {"crop": [0.08, 1.0], "flip": True, "roll": 4},
        },
        "evaluation": {
            "epochs": 1000,
            "batch_size": 100,
            # the first half of a cosine, as in the code: the step size ends at half its value
            "schedule": {"name": "cosine", "stretch": 2.0},
        },
    }
)
"""Settings of the synthesis and the evaluation on CIFAR for both methods of the paper."""


class SpectralFiltering(Method):
    """Cross-entropy, and filtered correlations of features and labels."""

    name = "unidd"
    citation = CITATION
    needs_trained_observers = True
    # filters weigh small eigenvalues, whose signal is below the rounding of bfloat16 and TF32
    least_precision: ClassVar[Mapping[str, Precision]] = {
        "observers": "float32",
        "synthesis": "float32",
    }
    defaults = DEFAULTS

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Two terms: the cross-entropy, and the filtered correlations."""
        return CrossEntropy(), SpectralFilterMatching()
