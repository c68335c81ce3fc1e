"""Settings of the synthetic set and its optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from rayd.config.base import Precision, Settings, When
from rayd.config.training import Area, TransformSettings

Parameter = Literal[
    "images",
    "left",
    "right",
    "bases",
    "encoder",
    "encoder_bias",
    "scale",
    "shift",
    "decoder",
    "decoder_bias",
    "labels",
    "log_step_size",
]
"""Parameters of synthetic sets."""


class SyntheticSettings(Settings):
    """Parameterisation and initialisation of the synthetic set."""

    kind: Literal["pixels", "partitioned", "lowrank", "hallucinated"] = "pixels"
    """Parameterisation of the images: pixels; squares of smaller images that are enlarged for use
    (IDM, IDC, NCFM); products of small matrices shared by several images (LS-MTT), as many as
    `budget` allows; or images that several small networks generate from each stored one (HaBa).
    """
    factor: Annotated[int, When(kind="partitioned")] = Field(default=2, ge=2)
    """`partitioned`: smaller images along each side, so that a stored image holds `factor`^2."""
    init: Literal[
        "real", "noise", "herding", "k-center", "forgetting", "el2n", "difficulty", "rded"
    ] = "real"
    """Initial images: random real ones, Gaussian noise, a selection of real ones
    (`rayd.data.selection`; `forgetting`, `el2n` and `difficulty` select by how networks learn them,
    see `ranking`), or images stitched from the patches that the first observer finds most realistic
    (RDED).
    """
    patches: Annotated[int, When(init="rded")] = Field(default=1, ge=1)
    """`rded`: patches along each side of an image."""
    candidates: Annotated[int, When(init="rded")] = Field(default=300, ge=1)
    """`rded`: maximum number of real images per class that patches are cut from."""
    crops: Annotated[int, When(init="rded")] = Field(default=5, ge=1)
    """`rded`: random crops scored per candidate, of which the best is used."""
    crop: Annotated[Area, When(init="rded")] = (0.08, 1.0)
    """`rded`: least and largest fraction of a candidate's area in a crop."""

    rank: Annotated[int, When(kind="lowrank")] = Field(default=8, ge=1)
    """`lowrank`: rank of the images."""
    budget: Annotated[int | None, When(kind="lowrank")] = Field(default=None, ge=1)
    """`lowrank`: number of stored values of 4 bytes, including soft labels; by default that of
    `ipc` images per class.
    """
    sets: Annotated[int | None, When(kind="lowrank")] = Field(default=None, ge=1)
    """`lowrank`: number of sets of shared factors; by default chosen for the budget."""
    hallucinators: Annotated[int, When(kind="hallucinated")] = Field(default=5, ge=1)
    """`hallucinated`: number of networks; each generates an image from every stored one."""
    kernel_size: Annotated[int, When(kind="hallucinated")] = Field(default=3, ge=1)
    """`hallucinated`: side of the networks' convolutions, in pixels."""
    labels: Literal["hard", "classes", "experts", "random"] = "hard"
    """Class indices; or learned and stored logits, initialised with a probability of 0.9 for the
    image's class, with the mean prediction of experts that are correct (DATM), or at random
    (LS-MTT). Labels are learned by methods that match trajectories or regress on labels (FRePo).
    """
    step_size: float | None = Field(default=None, gt=0)
    """Initial value of a learned step size, which is then used to train on the set; by default none
    is learned. For methods that match trajectories only.
    """

    @property
    def parts(self) -> int:
        """Number of smaller images in a stored one."""
        return self.factor**2 if self.kind == "partitioned" else 1

    @property
    def per_basis(self) -> int:
        """Number of images that are generated from a stored one, which they all use as a whole."""
        return self.hallucinators if self.kind == "hallucinated" else 1

    @property
    def expansion(self) -> int:
        """Number of images that a stored image decodes to."""
        return self.parts * self.per_basis

    @model_validator(mode="after")
    def _fitting(self) -> SyntheticSettings:
        if self.labels == "experts" and self.init in ("noise", "rded"):
            raise ValueError(
                "'synthetic.labels: experts' needs real images: "
                "set 'synthetic.init' to real or a selection"
            )
        if self.labels != "hard" and self.expansion > 1:
            raise ValueError(
                f"'synthetic.kind: {self.kind}' has hard labels, as each stored image stands for "
                "several"
            )
        if self.kind == "lowrank" and self.init == "rded":
            raise ValueError(
                "'synthetic.init: rded' makes only 'ipc' images per class, and 'synthetic.kind: "
                "lowrank' needs more"
            )
        return self


def _size_of_a_block(value: object) -> object:
    if value is None or value == "classes" or (type(value) is int and value >= 1):
        return value
    raise ValueError("it is a whole number of at least 1, 'classes', or null")


class SynthesisSettings(Settings):
    """Optimisation of the synthetic set."""

    steps: int = Field(default=1000, ge=0)
    """Optimiser steps; 0 keeps the initial images."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the synthetic set's parameters."""
    learning_rate: float = Field(default=1.0, gt=0)
    """Step size of the parameters, in units of normalised pixels. For low-rank mappers (`left`,
    `right`) it is divided under SGD by the number of pixels of the images that share one, because
    images move that much further with them.
    """
    learning_rates: dict[Parameter, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Step sizes of individual parameters, as far as the set has them: `images`, or `left`, `right`
    and `bases` of low-rank images, `encoder`, `encoder_bias`, `scale`, `shift`, `decoder` and
    `decoder_bias` of hallucinators, `labels`, `log_step_size`.
    """
    clip_gradient: float | None = Field(default=None, gt=0)
    """Maximum norm of a step's gradient over all parameters; by default unlimited."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Momentum of SGD, first moment decay of Adam."""
    second_momentum: Annotated[float, When(optimizer="adam")] = Field(default=0.999, ge=0, lt=1)
    """Second moment decay of Adam."""
    sam_radius: float = Field(default=0.0, ge=0)
    """Sharpness-aware minimisation (SAM): the gradient is taken at the images after a step of this
    length uphill, through the same network; 0 for none. It doubles the time of a step.
    """
    schedule: Literal["constant", "cosine"] = "constant"
    """Schedule of the step size: constant, or half a cosine down to zero."""
    block: Annotated[int | Literal["classes"] | None, BeforeValidator(_size_of_a_block)] = None
    """Number of stored images, or of low-rank mapper sets, that are optimised together; `classes`
    for the number of classes, one image of each; by default all, as one block. Blocks run in
    parallel, unless the method makes them sequential.
    """
    order: Literal["turn", "class"] = "turn"
    """Order in which blocks are filled: one image of each class in turn (SRe2L), or all images of a
    class before the next class, so that statistics of a class are computed from several images
    (released code of G-VBSM and EDC).
    """
    split: int = Field(default=1, ge=1)
    """Number of parts into which the images of a step are split, each computed by a different
    worker, so that several workers can share the step of one observer. For methods whose terms
    allow it, with `real: measured`. Results depend on it by rounding only, and never on the number
    of workers.
    """
    transform: TransformSettings = TransformSettings()
    """Random view of the synthetic images, drawn for every observer and step."""
    shared_view: bool = False
    """One crop, shift and flip for all images of a step (released code of SRe2L, CDA, G-VBSM, EDC
    and UniDD), instead of one for each.
    """
    curriculum: Literal["none", "cosine", "linear", "step"] = "none"
    """CDA: schedule of the least area of `transform.crop`, from 1 (the whole image) down to its
    setting.
    """
    curriculum_end: Annotated[float, When(curriculum=("cosine", "linear", "step"))] = Field(
        default=1.0, gt=0, le=1
    )
    """Fraction of the steps at which the curriculum ends."""
    clip: bool = False
    """Clip images to the range of real pixels after every step."""
    precision: Precision = "auto"
    """Arithmetic of the observers' forward and backward passes in a step."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between checkpoints, and between image grids in TensorBoard."""

    @model_validator(mode="after")
    def _consistent(self) -> SynthesisSettings:
        if self.block == "classes" and self.order == "class":
            raise ValueError(
                "'synthesis.block: classes' is one image of each class: "
                "set 'synthesis.order: turn', or a number"
            )
        if self.shared_view and self.transform == TransformSettings():
            raise ValueError(
                "'synthesis.shared_view' has no effect without a view: "
                "set 'synthesis.transform', e.g. 'synthesis.transform.flip: true'"
            )
        if self.curriculum != "none" and self.transform.crop is None:
            raise ValueError(
                "'synthesis.curriculum' is one of crops: "
                "set 'synthesis.transform.crop', e.g. [0.08, 1]"
            )
        return self
