"""Settings of trajectory matching: expert training, and how students match experts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rayd.config.base import Settings, When
from rayd.config.observers import DSA_STRATEGY, Network, NetworkSettings
from rayd.config.training import ScheduleSettings, TrainingSettings


class ExpertSettings(TrainingSettings):
    """Training of experts on the real data; defaults of MTT."""

    network: Network = NetworkSettings()
    """Architecture of experts and students."""
    count: int = Field(default=100, ge=1)
    """Number of experts."""
    seed: int = Field(default=0, ge=0)
    """Seed of the experts, independent of the run's seed, so that runs can share them."""
    epochs: int = Field(default=50, ge=1)
    """Passes over the training split; parameters are stored after each."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum of SGD, first moment decay of AdamW (whose second is 0.999)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty of SGD, decoupled decay of AdamW."""
    schedule: ScheduleSettings = ScheduleSettings(name="constant")
    """Schedule of the step size."""
    augmentation: str | None = DSA_STRATEGY
    """DSA augmentation of the batches (per-sample parameters), operations joined by underscores;
    null for none.
    """
    flat_radius: float = Field(default=0.0, ge=0)
    """Radius rho of GSAM's ascent step, for flat trajectories (FTD: 0.01); 0 for plain steps."""
    flat_weight: Annotated[float, When(flat_radius=True)] = Field(default=1.0, ge=0)
    """Weight of GSAM's surrogate gap (FTD: 1, DATM: 0.3)."""
    stored: Literal["float32", "bfloat16"] = "float32"
    """Type of the stored parameters: bfloat16 halves the space and rounds by up to 0.4 %. On
    digits, that is up to 1 % of the squared distance between start and target two epochs apart.
    """

    @field_validator("average")
    @classmethod
    def _no_average(cls, value: float | None) -> None:
        if value is not None:
            raise ValueError(
                "experts have no moving average: the parameters after every epoch are stored"
            )


class StartSettings(Settings):
    """Expert epochs that students start from; see `rayd.schedules`."""

    schedule: Literal["uniform", "rising", "progressive"] = "uniform"
    """`uniform`: from `least` to `most`, excluded, at all steps (MTT). `rising`: the upper end
    rises from `first` to `most` (DATM). `progressive`: a window whose upper end, excluded, moves from
    `offset` by `most` over all steps (LS-MTT); in whole epochs, the last step has one less.
    """
    least: Annotated[int, When(schedule=("uniform", "rising"))] = Field(default=0, ge=0)
    """`uniform`, `rising`: earliest epoch."""
    most: int = Field(default=20, ge=1)
    """`uniform`, `rising`: upper end, excluded; `progressive`: distance that the window moves."""
    first: Annotated[int, When(schedule="rising")] = Field(default=1, ge=1)
    """`rising`: upper end at the first step, excluded."""
    rise: Annotated[int, When(schedule="rising")] = Field(default=1000, ge=1)
    """`rising`: number of steps until the upper end is `most`."""
    offset: Annotated[float, When(schedule="progressive")] = Field(default=5.0, ge=0)
    """`progressive`: upper end at the first step."""
    window: Annotated[float, When(schedule="progressive")] = Field(default=5.0, gt=0)
    """`progressive`: width of the window, in epochs."""

    @model_validator(mode="after")
    def _in_order(self) -> StartSettings:
        lower = self.least if self.schedule != "rising" else max(self.least, self.first - 1)
        if self.schedule != "progressive" and not lower < self.most:
            raise ValueError(
                f"'start.most' ({self.most}) must be above 'start.least', "
                "and not below 'start.first'"
            )
        if self.schedule == "rising" and not self.least < self.first:
            raise ValueError(
                f"'start.first' ({self.first}) must be above 'start.least' ({self.least})"
            )
        return self


class TrajectorySettings(Settings):
    """Settings of students that match expert trajectories."""

    steps: int = Field(default=20, ge=1)
    """Gradient steps of a student on the synthetic images."""
    epochs: int = Field(default=2, ge=1)
    """Expert epochs that these steps are to cover."""
    start: StartSettings = StartSettings()
    """Expert epochs that students start from."""
    batch_size: int | None = Field(default=None, ge=1)
    """Synthetic images per student step; by default all of them."""
    augmentation: str | None = DSA_STRATEGY
    """DSA augmentation of these batches (per-sample parameters), operations joined by underscores;
    null for none.
    """
    per_step: int = Field(default=1, ge=1)
    """Number of students, each with its own expert and start, whose gradients are averaged in a
    step; with more than one, workers compute them in parallel.
    """
    way: Literal["reverse", "full", "truncated"] = "reverse"
    """Gradient computation: exact with the memory of one step, exact with all steps in memory, or
    TESLA's approximation; see `rayd.objectives.trajectory`.
    """
    loss_limit: float | None = Field(default=None, gt=0)
    """Loss above which a student counts as diverged and is ignored; by default only a student whose
    loss or gradient is not finite counts as diverged.
    """
    patience: int = Field(default=100, ge=1)
    """Number of consecutive steps in which all students diverge, after which the run is aborted."""
