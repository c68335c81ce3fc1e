"""RDED: real patches that a network rates as realistic, stitched together; nothing is optimised.

Peng Sun, Bei Shi, Daiwei Yu and Tao Lin, "On the Diversity and Realism of Distilled Dataset: An
Efficient Dataset Distillation Paradigm", CVPR 2024.

    score(p) = -log softmax(phi(p))_y

    p     a patch of a real image of class y; a small score is realistic
    phi   a network that was trained on the real data, the first observer
    f     patches along a side of an image (`synthetic.patches`): 1 for small images, 2 for ImageNet

For each class:

- draw 300 real images (`synthetic.candidates`);
- cut 5 random square crops from each (`synthetic.crops`), each covering a random share of its area,
  and keep the one with the best score;
- take the IPC f^2 best of these;
- join f x f of them, of side S / f, into one image of side S: of the n images of a class, image j
  gets the patches of rank j, n + j, 2 n + j, ..., as in the released code.

The steps are in `rayd.synthetic.rded`. Students then learn the observers' softened labels (T = 20)
for every batch, mixed by cutmix; their step size follows half a cosine of twice the epochs, so that
it ends at half its first value.

**Paper and released code.** The code normalises all data with ImageNet's mean and standard
deviation, here with those of the training split. It also forwards each batch through the student
before the step, without gradient and in training mode, so that batch statistics are updated twice.
This pass is meant for the images before mixing, but as mixing is done in place, it gets mixed ones;
here it gets unmixed ones (`evaluation.clean_forward`), a deviation. Crops in training keep at least
1/f of the area, so set `evaluation.transform.crop: [0.5, 1]` for f = 2; f = 1 leaves images whole.
The code also always shuffles the patches of an image in training, which is not supported here, and
resizes the test images of Tiny-ImageNet to 72 pixels and crops 64. Weight decay does not apply to
students' biases and normalisations. Batches are of 10, 50 and 100 images for IPC 1, 10 and 50. The
code reports the best of all test evaluations; here the last is the default.

Use it as the strong baseline that costs minutes, and as the start of EDC on large images.
"""

from __future__ import annotations

from rayd.config import Recipe
from rayd.methods.base import Method
from rayd.methods.decoupled import family
from rayd.objectives import Term


class RealisticPatches(Method):
    """Selected patches of real images, labelled by teachers; nothing is optimised."""

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
                # crops keep at least 1/f of the area of f x f patches, i.e. all of a single one
                "transform": {"crop": None, "flip": True},
                "clean_forward": True,
            },
        }
    )

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """No terms."""
        return ()
