"""Settings of spectral filters and of their schedules; see `rayd.objectives.filters`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayd.config.base import Listed, Settings, When

_MOVING = When(name=("cosine", "linear", "step", "reversed", "cyclic"))


class FilterScheduleSettings(Settings):
    """Schedule of a filter's parameter; see `rayd.schedules.filter_parameter`."""

    name: Literal["constant", "cosine", "linear", "step", "reversed", "cyclic"] = "constant"
    """`cosine` is Eq. 16 of UniDD, `reversed` its reverse; `cyclic` oscillates along a cosine."""
    over: Annotated[Literal["blocks", "steps"], _MOVING] = "blocks"
    """Unit of progress: blocks of images, so that the parameter is constant within a block
    (Algorithm 1 of UniDD), or the steps of every block.
    """
    least: Annotated[float, _MOVING] = Field(default=0.0, ge=0)
    """Minimum of the parameter, the paper's beta_min."""
    milestones: Annotated[tuple[float, ...], Listed, When(name="step")] = (0.5,)
    """`step`: fractions of the run after which the parameter is multiplied by `factor`."""
    factor: Annotated[float, When(name="step")] = Field(default=0.1, gt=0, le=1)
    """`step`: factor of the parameter at a milestone."""
    cycles: Annotated[int, When(name="cyclic")] = Field(default=2, ge=1)
    """`cyclic`: number of cycles."""


class FilterSettings(Settings):
    """A function of eigenvalues, and the schedule of its parameter."""

    name: Literal["all-pass", "low-pass", "gradient", "gradient-sum", "ridge"] = "ridge"
    """Function of the eigenvalue l: 1; l; (1 - alpha l)^p; alpha times the sum of the first p of
    these; or 1 / (l + beta).
    """
    beta: Annotated[float, When(name="ridge")] = Field(default=0.1, gt=0)
    """`ridge`: eigenvalue below which directions are suppressed; scheduled."""
    alpha: Annotated[float, When(name=("gradient", "gradient-sum"))] = Field(default=0.01, gt=0)
    """`gradient` and `gradient-sum`: step size of the gradient steps; scheduled."""
    power: Annotated[int, When(name=("gradient", "gradient-sum"))] = Field(default=1, ge=0)
    """`gradient` and `gradient-sum`: number p of gradient steps."""
    schedule: FilterScheduleSettings = FilterScheduleSettings()
    """Schedule of beta or alpha."""

    @property
    def parameter(self) -> float:
        """Initial value of the scheduled parameter; 0 for filters without one."""
        parameters = {"ridge": self.beta, "gradient": self.alpha, "gradient-sum": self.alpha}
        return parameters.get(self.name, 0.0)

    @model_validator(mode="after")
    def _possible(self) -> FilterSettings:
        schedule = self.schedule
        if schedule.name != "constant" and self.parameter == 0:
            raise ValueError(
                f"filter '{self.name}' has no parameter that 'schedule' could change: "
                "set 'schedule.name: constant'"
            )
        if schedule.name != "constant" and schedule.least > self.parameter:
            raise ValueError(
                f"'schedule.least' ({schedule.least:g}) must not exceed the parameter "
                f"({self.parameter:g})"
            )
        if self.name == "ridge" and schedule.name in ("reversed", "cyclic") and schedule.least == 0:
            raise ValueError(
                f"'schedule.name: {schedule.name}' takes beta down to 'schedule.least', "
                "which must be above 0"
            )
        return self
