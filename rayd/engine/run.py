"""A finished run, as returned to the caller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rayd import shown
from rayd.config import Recipe
from rayd.distilled import Distilled
from rayd.evaluation.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Run:
    """A finished run."""

    directory: Path
    """Directory of the run."""
    recipe: Recipe
    """The resolved recipe."""
    distilled: Distilled
    """The result."""
    report: Report
    """Its evaluation."""
    synthesis_seconds: float
    """Duration of the synthesis in seconds, in whichever run computed it."""

    def __repr__(self) -> str:
        return shown.short(
            "Run", self.directory, recipe=self.recipe.name, images=len(self.distilled)
        )

    def _repr_html_(self) -> str:
        """The images and the report, in a notebook."""
        return shown.distilled_html(self.distilled) + shown.report_html(self.report)

    def plot(self) -> Figure:
        """Draw the logged values of the synthesis as a matplotlib `Figure`, one subplot each.

        Raises:
            ArtifactError: nothing was logged, for example because the set came from the store.
        """
        return shown.run_figure(self.directory)
