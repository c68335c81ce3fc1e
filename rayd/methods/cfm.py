"""CFM: curriculum frequency matching, low frequencies first.

Deyu Bo, Songhua Liu and Xinchao Wang, "Understanding Dataset Distillation via Spectral Filtering",
ICLR 2026.

    minimise over X_b   CE(phi(A(X_b)), y) + eta sum_l ( || f_b(C_l) - f_b(C_bl) ||_F + || f_b(C_l) S_l - f_b(C_bl) S_bl ||_2 )
    f_b(C) = (C + beta_b I)^-1
    beta_b = beta (1 + cos(pi b / B)) / 2,  b = 0, ..., B - 1
    C_bl = (1 - 1/(b+1)) C_{b-1,l} + 1/(b+1) cov_l(A(X_b)),  S_bl likewise

    X_b    block b of B, one image of each class, from real images; y its labels; A a random view (crop, flip, roll)
    phi    a network that was trained on the real data, in eval mode
    C_l    covariance of the channels that convolution l reads over all real images (d, d); S_l their correlation with labels
    C_bl, S_bl   the same of the synthetic images, as means over the blocks so far (exponential moving updating, EMU)
    beta   0.1 on CIFAR and ImageNet, 1 on Tiny-ImageNet (`terms.spectral_filter.filter.beta`)
    eta    0.1 (`terms.spectral_filter.weight`)

A large beta leaves what many images share, a small one brings out detail; so the first images of
each class get structure and the last ones texture. Adam (0.5, 0.9), 1,000 steps of size 0.25 on
CIFAR and 0.1 elsewhere along a cosine to zero; pixels are kept in range. Students learn the
softened logits of the network on batches mixed by CutMix.

Blocks follow one another, each with the memory of the one before; `synthesis.block` may set another
size than one image of each class.

**Paper and released code differ.**

- Eq. 16 writes beta over t of T; Algorithm 1 and the code change it from block to block, b of B,
  the default here; `over: steps` is the literal reading. Algorithm 1 names a least beta that Eq. 16
  does not use: `terms.spectral_filter.filter.schedule.least`, 0.
- The command that the code gives for CIFAR leaves EMU out, the paper does not:
  `terms.spectral_filter.updating`.
- The signal by class (paper) or the global mean (the code's default), and the real covariance: see
  `rayd.objectives.spectral_filter`.
- Students differ throughout: the paper's supplement (Tables 2 to 4) has Adam or SGD in batches of
  64 or 128, a whole cosine, T = 30 and padded crops on CIFAR; the code has AdamW, the first half of
  a cosine, T = 20 and resized crops. Recipes follow the paper, those named `-code` the code; the
  method's defaults are the code's for CIFAR. The supplement lists no roll of synthetic images; the
  code rolls by 4. The paper's table says 64 pixels for CIFAR where the code has 32. On large data
  the paper has blocks of 500, which count for EMU and beta here; the code cuts blocks into chunks
  of 200 classes, and counts each of them for EMU, not for beta.
- Real statistics are of whole images, those of synthetic ones of what a crop leaves, enlarged: in
  paper, code and here. Matched to each other, crops come to look like whole images.
  `synthesis.transform.crop: null` has both seen whole.
- The code starts from the first real images of each class; here they are drawn. It reports the best
  of the test evaluations after 80 % of the epochs; here the last is the default. It normalises the
  test images of CIFAR-100 with the mean and deviation of ImageNet, a mistake that is not repeated.

Use it for a few dozen images per class, where blocks differ enough for a curriculum; with one image
per class there is one block, and beta stays what it is.
"""

from __future__ import annotations

from rayd.config import Recipe, merge
from rayd.methods.base import Method
from rayd.methods.unidd import CITATION, DEFAULTS, SpectralFiltering
from rayd.objectives import CrossEntropy, CurriculumFilterMatching, Term


class CurriculumFrequencyMatching(Method):
    """Cross-entropy, and correlations of features and labels through a ridge that falls from block
    to block.
    """

    name = "cfm"
    # rows of signals are averaged over the blocks that hold their class
    version = 1
    citation = CITATION
    needs_trained_observers = True
    least_precision = SpectralFiltering.least_precision
    # each block finds the means over those before it, and has a smaller ridge than they had
    sequential = True
    # one image of each class a block, as the paper counts blocks for the ridge
    defaults = merge(DEFAULTS, {"synthesis": {"block": "classes"}})

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Two terms: the classes, and what the filter passes."""
        return CrossEntropy(), CurriculumFilterMatching()
