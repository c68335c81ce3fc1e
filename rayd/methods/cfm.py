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

A large beta keeps what many images have in common, a small one emphasises detail, so the first
images of each class receive structure and the last ones texture. Adam (0.5, 0.9), 1,000 steps of
size 0.25 on CIFAR and 0.1 elsewhere along a cosine to zero; pixels are kept in range. Students
learn the network's softened logits on batches mixed by CutMix.

Blocks are optimised one after another, each with the memory of the previous one; `synthesis.block`
sets a size other than one image of each class.

**Paper and released code differ.**

- Eq. 16 writes beta over t of T; Algorithm 1 and the code change it from block to block, b of B,
  which is the default here; `over: steps` is the literal reading. Algorithm 1 has a minimum beta
  that Eq. 16 does not use: `terms.spectral_filter.filter.schedule.least`, 0.
- The code's command for CIFAR omits EMU, the paper does not: `terms.spectral_filter.updating`.
- For the signal, by class (paper) or the global mean (the code's default), and for the real
  covariance, see `rayd.objectives.spectral_filter`.
- Students differ throughout: the paper's supplement (Tables 2 to 4) has Adam or SGD in batches of
  64 or 128, a whole cosine, T = 30 and padded crops on CIFAR; the code has AdamW, the first half of
  a cosine, T = 20 and resized crops. Recipes follow the paper, those named `-code` the code; the
  method's defaults are the code's for CIFAR. The supplement lists no roll of synthetic images; the
  code rolls by 4. The paper's table says 64 pixels for CIFAR where the code has 32. On large data
  the paper has blocks of 500, which count for EMU and beta here; the code cuts blocks into chunks
  of 200 classes, and counts each of them for EMU, not for beta.
- In paper, code and here, real statistics are those of whole images, while synthetic ones are those
  of enlarged crops. Matching the two makes crops look like whole images. With
  `synthesis.transform.crop: null`, whole images are used on both sides.
- The code starts from the first real images of each class; here, they are drawn at random. It
  reports the best of the test evaluations after 80 % of the epochs; here the last is the default.
  It normalises the test images of CIFAR-100 with the mean and standard deviation of ImageNet, a
  mistake that is not reproduced.

Use it for a few dozen images per class, where blocks differ enough for a curriculum; with one image
per class there is only one block, and beta is constant.
"""

from __future__ import annotations

from rayd.config import Recipe, merge
from rayd.methods.base import Method
from rayd.methods.unidd import CITATION, DEFAULTS, SpectralFiltering
from rayd.objectives import CrossEntropy, CurriculumFilterMatching, Term


class CurriculumFrequencyMatching(Method):
    """Cross-entropy, and correlations of features and labels through a ridge filter whose parameter
    decreases from block to block.
    """

    name = "cfm"
    # rows of signals are averaged over the blocks that hold their class
    version = 1
    citation = CITATION
    needs_trained_observers = True
    least_precision = SpectralFiltering.least_precision
    # each block finds the means over those before it, and has a smaller ridge than they had
    sequential = True
    # blocks of one image of each class, which is how the paper counts blocks for the ridge
    defaults = merge(DEFAULTS, {"synthesis": {"block": "classes"}})

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """Two terms: the cross-entropy, and the filtered correlations."""
        return CrossEntropy(), CurriculumFilterMatching()
