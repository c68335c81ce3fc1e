r"""MTT: students trained on the synthetic images follow the trajectories of experts trained on the
real ones.

George Cazenavette, Tongzhou Wang, Antonio Torralba, Alexei A. Efros and Jun-Yan Zhu, "Dataset
Distillation by Matching Training Trajectories", CVPR 2022. From an expert's parameters after epoch
t, drawn from the first `start.most`, a student takes N steps on the synthetic images with a learned
step size, and should arrive where the expert is M epochs later:

    minimise over S, alpha   E_t [ || theta_N - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2 ]

with the symbols of `rayd.objectives.trajectory`. N is `objective.steps`, M `objective.epochs`.

The defaults are those of the released code: 100 experts of 50 epochs, 5,000 steps, images of step
size 1,000 with momentum 0.5. The step size alpha starts at 0.01 and is learned at a rate of 1e-5 in
the code; here its logarithm is learned at 0.1, which is equivalent at the start
(`rayd.synthetic.learned_step_size`). N, M and `start.most` differ between the cells of the paper's
tables.

**Different from the released code**: the gradient is the same, but is computed in the memory of one
step (`objective.way: reverse`). If the batch size does not divide the set, the smaller batch is the
last one of an epoch; in the released code it is the first. Steps whose loss is not finite are
skipped and counted.

Use it if DM is not good enough and experts are affordable; LS-MTT stores images in less space.
"""

from __future__ import annotations

from rayd.methods.trajectories import TrajectoryMethod

DEFAULTS = {
    "synthetic": {"step_size": 0.01},
    "synthesis": {
        "steps": 5000,
        "learning_rate": 1000.0,
        "momentum": 0.5,
        # of the logarithm: at 0.01, a step is as long as one of size 1e-5 in the step size itself
        "learning_rates": {"log_step_size": 0.1},
    },
}
"""Defaults of the methods of this family."""


class MatchingTrainingTrajectories(TrajectoryMethod):
    """Trajectory matching: hard labels, and the exact gradient."""

    name = "mtt"
    citation = """@inproceedings{cazenavette2022mtt,
  title     = {Dataset Distillation by Matching Training Trajectories},
  author    = {Cazenavette, George and Wang, Tongzhou and Torralba, Antonio and Efros, Alexei A. and Zhu, Jun-Yan},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022}
}"""
    defaults = DEFAULTS
