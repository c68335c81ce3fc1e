"""Settings of the synthetic set and of its optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from rayd.config.base import Only, Precision, Settings
from rayd.config.training import Area, TransformSettings

Parameter = Literal["images", "left", "right", "bases", "labels", "log_step_size"]
"""What of a synthetic set may be learned."""


class SyntheticSettings(Settings):
    """What is learned, and where it starts."""

    kind: Literal["pixels", "partitioned", "lowrank"] = "pixels"
    """Parameterisation of the images: as they are; each of them a square of smaller ones that are
    enlarged to full size for use (IDM, IDC, NCFM); or products of small matrices that several of
    them share (LS-MTT), as many as `budget` buys.
    """
    factor: Annotated[int, Only(kind="partitioned")] = Field(default=2, ge=2)
    """`partitioned`: smaller images along each side of a stored one, so that it stands for
    `factor`^2 images.
    """
    init: Literal["real", "noise", "herding", "k-center", "rded"] = "real"
    """First images: drawn from the real ones, Gaussian noise, a selection of the real ones, or
    stitched from those patches that the first observer finds most realistic (RDED).
    """
    patches: Annotated[int, Only(init="rded")] = Field(default=1, ge=1)
    """`rded`: patches along each side of a stitched image."""
    candidates: Annotated[int, Only(init="rded")] = Field(default=300, ge=1)
    """`rded`: real images of each class that patches are cut from; all of them where a class has
    fewer.
    """
    crops: Annotated[int, Only(init="rded")] = Field(default=5, ge=1)
    """`rded`: crops that are scored of each candidate; the best stands for it."""
    crop: Annotated[Area, Only(init="rded")] = (0.08, 1.0)
    """`rded`: least and most share of a candidate's area that a crop keeps."""

    rank: Annotated[int, Only(kind="lowrank")] = Field(default=8, ge=1)
    """`lowrank`: rank of the images."""
    budget: Annotated[int | None, Only(kind="lowrank")] = Field(default=None, ge=1)
    """`lowrank`: numbers that may be stored, soft labels included, 4 bytes each; absent: those of
    `ipc` images a class.
    """
    sets: Annotated[int | None, Only(kind="lowrank")] = Field(default=None, ge=1)
    """`lowrank`: how many sets of factors images share; absent: what suits the budget best."""
    labels: Literal["hard", "classes", "experts", "random"] = "hard"
    """Class indices; or logits, which are learned and stored, and start at nine parts in ten for
    the image's own class, at what those experts say who are right (DATM), or at random (LS-MTT).
    Methods that match trajectories learn labels, and those that regress on them (FRePo).
    """
    step_size: float | None = Field(default=None, gt=0)
    """First step size of the students, which is learned and then used to train on the set; absent:
    none is learned. Only methods that match trajectories learn one.
    """

    @property
    def expansion(self) -> int:
        """Images that one stored image stands for."""
        return self.factor**2 if self.kind == "partitioned" else 1

    @model_validator(mode="after")
    def _fitting(self) -> SyntheticSettings:
        if self.labels == "experts" and self.init in ("noise", "rded"):
            raise ValueError(
                "'synthetic.labels: experts' needs real images: set 'synthetic.init' to real or a selection"
            )
        if self.labels != "hard" and self.kind == "partitioned":
            raise ValueError(
                "'synthetic.kind: partitioned' has hard labels: each stored image stands for several"
            )
        if self.kind == "lowrank" and self.init == "rded":
            raise ValueError(
                "'synthetic.init: rded' makes 'ipc' images a class, 'synthetic.kind: lowrank' needs more of them"
            )
        return self


def _size_of_a_block(value: object) -> object:
    if value is None or value == "classes" or (type(value) is int and value >= 1):
        return value
    raise ValueError("it is a whole number of at least 1, 'classes', or null")


class SynthesisSettings(Settings):
    """How the synthetic set is optimised."""

    steps: int = Field(default=1000, ge=0)
    """Optimiser steps; 0 keeps the initial images."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the synthetic set's parameters."""
    learning_rate: float = Field(default=1.0, gt=0)
    """Step size of the parameters, in units of normalised pixels. That of low-rank mappers (`left`,
    `right`) is divided by the number of pixels of the images that share one under SGD, since images
    move so much further with them.
    """
    learning_rates: dict[Parameter, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Other step sizes for some of the parameters, where they are there: `images`, or `left`,
    `right` and `bases` of low-rank ones, `labels`, `log_step_size`.
    """
    clip_gradient: float | None = Field(default=None, gt=0)
    """Greatest norm of a step's gradient, all parameters together; longer ones are shortened to it.
    Absent: any.
    """
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Momentum of SGD, first moment decay of Adam."""
    second_momentum: Annotated[float, Only(optimizer="adam")] = Field(default=0.999, ge=0, lt=1)
    """Second moment decay of Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the step size falls: not at all, or along a half cosine to zero."""
    block: Annotated[int | Literal["classes"] | None, BeforeValidator(_size_of_a_block)] = None
    """Stored images, or sets of low-rank ones, that are optimised together; `classes`: as many as
    there are classes, one of each; absent: all of them, as one block. Blocks go side by side,
    unless the method has them follow one another.
    """
    order: Literal["turn", "class"] = "turn"
    """How blocks are filled: with an image of each class in turn (SRe2L), or with all images of one
    class after another, so that statistics of classes are those of several images (released code of
    G-VBSM and EDC).
    """
    transform: TransformSettings = TransformSettings()
    """Random view through which observers see the synthetic images, drawn anew for every observer
    of every step.
    """
    curriculum: Literal["none", "cosine", "linear", "step"] = "none"
    """CDA: the least share of `transform.crop` starts at 1 (the whole image) and falls to its
    setting.
    """
    curriculum_end: Annotated[float, Only(curriculum=("cosine", "linear", "step"))] = Field(
        default=1.0, gt=0, le=1
    )
    """Share of the steps at which the curriculum ends."""
    clip: bool = False
    """Keep images within the range of real pixels after every step, so that they can be stored as
    such.
    """
    precision: Precision = "auto"
    """Arithmetic of the observers' forward and backward passes in a step."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between checkpoints, and between image grids in TensorBoard."""

    @model_validator(mode="after")
    def _one_of_each_class(self) -> SynthesisSettings:
        if self.block == "classes" and self.order == "class":
            raise ValueError(
                "'synthesis.block: classes' is one image of each class: set 'synthesis.order: turn', or a number"
            )
        return self
