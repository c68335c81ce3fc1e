"""RDED: real patches that a network finds realistic, stitched together; nothing is optimised.

Peng Sun, Bei Shi, Daiwei Yu and Tao Lin, "On the Diversity and Realism of Distilled Dataset: An
Efficient Dataset Distillation Paradigm", CVPR 2024.

    score(p) = -log softmax(phi(p))_y

    p     a patch of a real image of class y; a small score is realistic
    phi   a network that was trained on the real data, the first observer
    f     patches along a side of an image (`synthetic.patches`): 1 for small images, 2 for ImageNet

For each class:

- draw 300 real images (`synthetic.candidates`);
- cut 5 random square crops of each (`synthetic.crops`), each of a random share of its area, and keep
  the one of the best score;
- of these take the IPC f^2 best;
- join f x f of them, of side S / f, to one image of side S: of the n images of a class, image j has
  those of rank j, n + j, 2 n + j, ..., as in the released code.

The steps are in `rayd.synthetic.rded`. Students then learn from the observers' softened labels (T =
20) of every batch, mixed by cutmix; their step size follows half a cosine of twice the epochs, so
that it ends at half its first value.

**Paper and released code.** The code normalises all data with ImageNet's mean and standard
deviation; here with those of the training split. It also forwards each batch through the student
before the step, without gradient and in training mode, so that batch statistics update twice. It
is meant for the images before they are mixed, but mixing is in place, so that they are mixed ones;
here they are unmixed (`evaluation.clean_forward`), a deviation. Crops in training keep at least 1/f
of the area, so for f = 2 set `evaluation.transform.crop: [0.5, 1]`; for f = 1 that leaves images
whole. The code also shuffles the patches of an image in training, always, which is not offered, and
resizes the test images of Tiny-ImageNet to 72 pixels and crops 64. Biases and normalisations of
students do not decay. Batches are of 10, 50 and 100 images for IPC 1, 10 and 50. The best of all
test evaluations is reported; here the last is the default.

Use it as the strong baseline that costs minutes, and as the start of EDC on large images.
"""

from __future__ import annotations

from rayd.config import Recipe
from rayd.methods.base import Method
from rayd.methods.decoupled import family
from rayd.objectives import Term


class RealisticPatches(Method):
    """Selected patches of real images, with labels by teachers; nothing is optimised."""

    name = "rded"
    citation = """@inproceedings{sun2024rded,
  title     = {On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm},
  author    = {Sun, Peng and Shi, Bei and Yu, Daiwei and Lin, Tao},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024}
}"""
    needs_trained_observers = True
    defaults = family(
        {
            "synthetic": {"init": "rded", "patches": 1},
            "synthesis": {"steps": 0},
            "evaluation": {
                "epochs": 300,
                "batch_size": 50,
                "weight_decay_of": "weights",
                "schedule": {"name": "cosine", "stretch": 2.0},
                # crops keep at least 1/f of the area of f x f patches, that is everything of one
                "transform": {"crop": None, "flip": True},
                "clean_forward": True,
            },
        }
    )

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """No terms."""
        return ()
