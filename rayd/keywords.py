"""Keywords of `rayd.distill` and its siblings that are settings of a recipe, for type checkers and
editors.

Nested settings are mappings, as in `synthesis={"steps": 500}`; dotted keys go into
`settings={"synthesis.steps": 500}`. Types are also checked at run time, when the recipe is created.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

Tree = Mapping[str, Any]
"""Settings by name, which may be nested."""


class Keywords(TypedDict, total=False):
    """Settings of a recipe that every function takes as keywords.

    A `Tree` is a mapping of settings by name, which may be nested: `{"schedule": {"name": "cosine"}}`.
    """

    summary: str
    """One line on the recipe."""
    data: str | Tree
    """Name or path of the real images, or settings of them: `{"name": "cifar10", "classes": [...]}`."""
    seed: int
    """Seed of the run; every random draw derives from it."""
    real: Literal["measured", "sampled"]
    """Real images in the loss: measured once, or a mini-batch drawn in each step."""
    observers: Tree
    """Networks whose features are compared: `{"networks": ["convnet"], "pool": 20}`."""
    squeeze: Tree
    """Training of the observers, if they are trained: `{"epochs": 30}`."""
    classifiers: Tree | None
    """Networks that know the classes, for terms whose observers do not."""
    experts: Tree
    """Training of expert trajectories: `{"count": 100, "epochs": 50}`."""
    ranking: Tree
    """Networks that rank the real images, if some are selected by rank."""
    synthetic: Tree
    """Parameterisation and initialisation: `{"kind": "lowrank", "init": "real"}`."""
    synthesis: Tree
    """Optimisation of the images: `{"steps": 1000, "learning_rate": 0.1}`."""
    terms: Tree
    """Terms of the objective: `{"covariance": {"weight": 0.01}}`."""
    objective: Tree
    """Settings of the method's objective."""
    labels: Tree
    """Labels that students are trained with: `{"kind": "stored"}`."""
    evaluation: Tree
    """Evaluation: `{"networks": ["resnet18"], "epochs": 300, "seeds": 5}`."""
    resources: Tree
    """Where computation runs: `{"device": "cuda", "threads": 4}`."""


class RecipeKeywords(Keywords, total=False):
    """Settings of a recipe as keywords, for functions without separate parameters for any."""

    method: str
    """A known method, or `package.module:Name`."""
    ipc: int
    """Images per class."""
    callbacks: Sequence[str | Tree]
    """Callbacks by name."""
