"""Settings of spectral filters and of how they change while images are optimised; see
`rayd.objectives.filters`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayd.config.base import Listed, Only, Settings

_MOVING = Only(name=("cosine", "linear", "step", "reversed", "cyclic"))


class FilterScheduleSettings(Settings):
    """How the parameter of a filter changes; see `rayd.schedules.filter_parameter`."""

    name: Literal["constant", "cosine", "linear", "step", "reversed", "cyclic"] = "constant"
    """`cosine` is Eq. 16 of UniDD, `reversed` the same backwards, `cyclic` falls and rises along a
    cosine.
    """
    over: Annotated[Literal["blocks", "steps"], _MOVING] = "blocks"
    """What progress is counted in: blocks of images, so that it is constant within each (Algorithm
    1 of UniDD), or the steps of every block.
    """
    least: Annotated[float, _MOVING] = Field(default=0.0, ge=0)
    """The paper's beta_min: the least value that the parameter takes."""
    milestones: Annotated[tuple[float, ...], Listed, Only(name="step")] = (0.5,)
    """`step`: shares of the way after each of which the parameter is multiplied by `factor`."""
    factor: Annotated[float, Only(name="step")] = Field(default=0.1, gt=0, le=1)
    """`step`: what the parameter is multiplied by at a milestone."""
    cycles: Annotated[int, Only(name="cyclic")] = Field(default=2, ge=1)
    """`cyclic`: how often the parameter falls and rises again."""


class FilterSettings(Settings):
    """A function of eigenvalues, and how its parameter changes."""

    name: Literal["all-pass", "low-pass", "gradient", "gradient-sum", "ridge"] = "ridge"
    """1, the eigenvalue l itself, (1 - alpha l)^p, alpha times the sum of the first p of these, or
    1 / (l + beta).
    """
    beta: Annotated[float, Only(name="ridge")] = Field(default=0.1, gt=0)
    """`ridge`: where high frequencies begin; the schedule changes it."""
    alpha: Annotated[float, Only(name=("gradient", "gradient-sum"))] = Field(default=0.01, gt=0)
    """`gradient` and `gradient-sum`: step size of the gradient steps; the schedule changes it."""
    power: Annotated[int, Only(name=("gradient", "gradient-sum"))] = Field(default=1, ge=0)
    """`gradient` and `gradient-sum`: number of gradient steps, the p."""
    schedule: FilterScheduleSettings = FilterScheduleSettings()
    """How beta or alpha changes."""

    @property
    def parameter(self) -> float:
        """What the schedule changes, at first; 0 for filters without a parameter."""
        return {"ridge": self.beta, "gradient": self.alpha, "gradient-sum": self.alpha}.get(
            self.name, 0.0
        )

    @model_validator(mode="after")
    def _possible(self) -> FilterSettings:
        schedule = self.schedule
        if schedule.name != "constant" and self.parameter == 0:
            raise ValueError(
                f"filter '{self.name}' has no parameter that 'schedule' could change: set 'schedule.name: constant'"
            )
        if schedule.name != "constant" and schedule.least > self.parameter:
            raise ValueError(
                f"'schedule.least' ({schedule.least:g}) must not exceed the parameter ({self.parameter:g})"
            )
        if self.name == "ridge" and schedule.name in ("reversed", "cyclic") and schedule.least == 0:
            raise ValueError(
                f"'schedule.name: {schedule.name}' takes beta down to 'schedule.least', which must be above 0"
            )
        return self
