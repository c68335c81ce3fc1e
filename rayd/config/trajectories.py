"""Settings of trajectory matching: the experts, and how students follow them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rayd.config.base import POSITIVE, Only, Settings
from rayd.config.observers import DSA_STRATEGY, Network, NetworkSettings
from rayd.config.training import ScheduleSettings, TrainingSettings


class ExpertSettings(TrainingSettings):
    """How experts are trained on the real data: as in MTT unless said otherwise."""

    network: Network = NetworkSettings()
    """Their architecture, which is also that of the students that follow them."""
    count: int = Field(default=100, ge=1)
    """Number of experts."""
    seed: int = Field(default=0, ge=0)
    """Seed of the experts. It is not the run's seed: runs that differ in seed alone share them."""
    epochs: int = Field(default=50, ge=1)
    """Passes over the training split; parameters are kept after each."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum of SGD, first moment decay of AdamW (whose second is 0.999)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty of SGD, decoupled decay of AdamW."""
    schedule: ScheduleSettings = ScheduleSettings(name="constant")
    """How the step size falls."""
    augmentation: str | None = DSA_STRATEGY
    """DSA augmentation of the batches (per-sample parameters), operations joined by underscores;
    null for none.
    """
    flat_radius: float = Field(default=0.0, ge=0)
    """Distance rho at which GSAM looks for a higher loss, for flat trajectories (FTD: 0.01); 0 for
    plain steps.
    """
    flat_weight: Annotated[float, Only(flat_radius=POSITIVE)] = Field(default=1.0, ge=0)
    """Weight of GSAM's surrogate gap (FTD: 1, DATM: 0.3)."""
    stored: Literal["float32", "bfloat16"] = "float32"
    """Type of the parameters on disk: bfloat16 takes half the space, and rounds them by up to 0.4
    %. On digits, that is up to 1 % of the squared distance that a student is to go for two
    epochs.
    """

    @field_validator("average")
    @classmethod
    def _no_average(cls, value: float | None) -> None:
        if value is not None:
            raise ValueError(
                "experts have no moving average: what is kept is what they are after every epoch"
            )


class StartSettings(Settings):
    """From which epochs of their experts students start; see `rayd.schedules`."""

    schedule: Literal["uniform", "rising", "progressive"] = "uniform"
    """`uniform`: any of `least` up to, but without, `most`, throughout (MTT). `rising`: the upper
    end rises from `first` to `most` (DATM). `progressive`: a window whose upper end moves from
    `offset` by `most` until the last step (LS-MTT).
    """
    least: Annotated[int, Only(schedule=("uniform", "rising"))] = Field(default=0, ge=0)
    """`uniform`, `rising`: the earliest epoch."""
    most: int = Field(default=20, ge=1)
    """`uniform`, `rising`: the upper end, itself left out; `progressive`: how far the window
    moves.
    """
    first: Annotated[int, Only(schedule="rising")] = Field(default=1, ge=1)
    """`rising`: the upper end at the first step, itself left out."""
    rise: Annotated[int, Only(schedule="rising")] = Field(default=1000, ge=1)
    """`rising`: steps until the upper end is `most`."""
    offset: Annotated[float, Only(schedule="progressive")] = Field(default=5.0, ge=0)
    """`progressive`: the upper end at the first step."""
    window: Annotated[float, Only(schedule="progressive")] = Field(default=5.0, gt=0)
    """`progressive`: width of the window, in epochs."""

    @model_validator(mode="after")
    def _in_order(self) -> StartSettings:
        lower = self.least if self.schedule != "rising" else max(self.least, self.first - 1)
        if self.schedule != "progressive" and not lower < self.most:
            raise ValueError(
                f"'start.most' ({self.most}) must be above 'start.least', and not below 'start.first'"
            )
        if self.schedule == "rising" and not self.least < self.first:
            raise ValueError(
                f"'start.first' ({self.first}) must be above 'start.least' ({self.least})"
            )
        return self


class TrajectorySettings(Settings):
    """How students follow experts."""

    steps: int = Field(default=20, ge=1)
    """Steps of gradient descent that a student takes on the synthetic images."""
    epochs: int = Field(default=2, ge=1)
    """Epochs of the expert that these steps stand for."""
    start: StartSettings = StartSettings()
    """From which epochs of the expert they start."""
    batch_size: int | None = Field(default=None, ge=1)
    """Synthetic images of one step of the student; absent: all of them."""
    augmentation: str | None = DSA_STRATEGY
    """DSA augmentation of these batches (per-sample parameters), operations joined by underscores;
    null for none.
    """
    per_step: int = Field(default=1, ge=1)
    """Students, each with an expert and a start of its own, whose gradients are averaged in one
    step; more than one lets workers share a step.
    """
    way: Literal["reverse", "full", "truncated"] = "reverse"
    """To the gradient: exact in the memory of one step, exact with all steps in memory, or TESLA's
    approximation; see `rayd.objectives.trajectory`.
    """
    loss_limit: float | None = Field(default=None, gt=0)
    """Loss above which a student counts as diverged and is left out; absent: only where it, or its
    gradient, is not finite.
    """
    patience: int = Field(default=100, ge=1)
    """Steps in a row without any student that did not diverge, after which the run is given up."""
