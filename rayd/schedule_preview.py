"""Preview of scheduled quantities of a run: step sizes, filters, curricula.

`rayd show RECIPE --schedule` prints it, and draws it with `--png`. The values are those of
`rayd.schedules`, which the engine uses, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from rayd import methods, schedules
from rayd.config import FilterSettings, Recipe, TrainingSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 240
"""Maximum number of values of a curve."""
SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Progress at which text shows values."""
WIDTH = 30
"""Characters of a curve in text."""
BLOCKS = "▁▂▃▄▅▆▇█"
PANEL = (360, 220)
"""Size of a subplot in pixels."""
ACROSS = 2


@dataclass(frozen=True)
class Curve:
    """A quantity over the course of a run."""

    title: str
    """The quantity, with its setting."""
    unit: str
    """Unit of the horizontal axis: steps, blocks or epochs."""
    positions: tuple[float, ...]
    """Steps, blocks or epochs, rising."""
    values: tuple[float, ...]
    """The quantity at each position; the upper end of a range."""
    lower: tuple[float, ...] | None = None
    """The lower end of a range; None for a single value."""

    @property
    def varies(self) -> bool:
        """Whether it changes at all."""
        ends = [*self.values, *(self.lower or self.values)]
        return min(ends) != max(ends)

    def text(self) -> str:
        """A few lines: the curve in characters, and some of its values.

        >>> print(Curve("step size", "steps", (0, 1, 2), (1.0, 0.5, 0.0)).text())
        step size
          ████████▅▅▅▅▅▅▅▅▅▅▅▅▅▅▁▁▁▁▁▁▁▁  1, 0.5, 0 at 0, 1 and 2 steps
        """
        least = min(self.values)
        span = max(self.values) - least
        line = ""
        for place in range(WIDTH):
            value = self.values[self._nearest(place / (WIDTH - 1))]
            level = (value - least) / span if span else 0.5
            line += BLOCKS[round(level * (len(BLOCKS) - 1))]
        chosen = list(dict.fromkeys(self._nearest(progress) for progress in SHOWN))
        if not self.varies:
            return f"{self.title}\n  {self._value(0)} throughout"
        values = ", ".join(self._value(index) for index in chosen)
        *places, last = [f"{self.positions[index]:,.0f}" for index in chosen]
        return f"{self.title}\n  {line}  {values} at {', '.join(places)} and {last} {self.unit}"

    def _nearest(self, progress: float) -> int:
        """Index of the position at a share of the course."""
        return round(progress * (len(self.positions) - 1))

    def _value(self, index: int) -> str:
        upper = f"{self.values[index]:.4g}"
        return upper if self.lower is None else f"{self.lower[index]:.4g}-{upper}"


def curves(recipe: Recipe) -> list[Curve]:
    """Everything that a recipe schedules, including constant quantities."""
    found = [*_synthesis(recipe), *_filters(recipe), *_starts(recipe)]
    found += [_training(name, settings) for name, settings in _trainings(recipe)]
    return found


def text(recipe: Recipe) -> str:
    """All curves of a recipe as text, those that change first."""
    found = sorted(curves(recipe), key=lambda curve: not curve.varies)
    return "\n".join(curve.text() for curve in found)


def figure(recipe: Recipe) -> Figure:
    """A figure with a subplot for each quantity that varies, or for each quantity if none does."""
    from rayd.drawing import new_figure, styled

    found = curves(recipe)
    shown = [curve for curve in found if curve.varies] or found
    across = min(ACROSS, len(shown))
    down = ceil(len(shown) / across)
    with styled():
        drawn = new_figure(PANEL[0] * across, PANEL[1] * down + 30)
        drawn.suptitle(recipe.name)
        grid = drawn.subplots(down, across, squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        for axes, curve in zip(grid.flat, shown, strict=False):
            _draw(axes, curve)
        return drawn


def _draw(axes: Any, curve: Curve) -> None:
    """Draw a curve, or the band of a range."""
    colour = "#1f4e9c"
    axes.plot(curve.positions, curve.values, color=colour)
    if curve.lower is not None:
        axes.plot(curve.positions, curve.lower, color=colour)
        axes.fill_between(curve.positions, curve.lower, curve.values, alpha=0.2, color=colour)
    elif min(curve.values) >= 0:
        axes.set_ylim(bottom=0)
    axes.set_title(curve.title)
    axes.set_xlabel(curve.unit)


def _places(count: int) -> list[int]:
    """Indices 0 to `count`; an even selection if there are many."""
    if count <= POINTS:
        return list(range(count + 1))
    return [round(index * count / POINTS) for index in range(POINTS + 1)]


def _synthesis(recipe: Recipe) -> Iterator[Curve]:
    """Step size of the images, and the curriculum of crops."""
    settings = recipe.synthesis
    if settings.steps == 0:
        return
    places = _places(settings.steps)
    progress = [place / settings.steps for place in places]
    factors = [schedules.step_size_factor(settings.schedule, share) for share in progress]
    rates = tuple(settings.learning_rate * factor for factor in factors)
    yield _curve("step size of the images (synthesis)", "steps", places, rates)
    if settings.transform.crop is not None:
        least = [
            schedules.crop_floor(
                settings.curriculum, settings.transform.crop[0], share, settings.curriculum_end
            )
            for share in progress
        ]
        yield _curve("least area of a crop (synthesis.curriculum)", "steps", places, least)


def _filters(recipe: Recipe) -> Iterator[Curve]:
    """Parameters of spectral filters."""
    for term in methods.build(recipe).terms:
        for name in type(term).model_fields:
            settings = getattr(term, name)
            if not isinstance(settings, FilterSettings) or not settings.parameter:
                continue
            schedule = settings.schedule
            symbol = "beta" if settings.name == "ridge" else "alpha"
            title = f"{symbol} of the filter (terms.{term.name}.{name})"
            count = recipe.synthesis.steps if schedule.over == "steps" else recipe.ipc
            places = _places(count)
            values = [
                schedules.filter_parameter(schedule, settings.parameter, place / count)
                for place in places
            ]
            yield _curve(title, schedule.over, places, values)


def _starts(recipe: Recipe) -> Iterator[Curve]:
    """Expert epochs that students start from."""
    objective = methods.build(recipe).trajectory_objective
    if objective is None or recipe.synthesis.steps == 0:
        return
    places = _places(recipe.synthesis.steps)
    ranges = [objective.starts(min(place, recipe.synthesis.steps - 1)) for place in places]
    yield Curve(
        title="expert epochs to start from (objective.start)",
        unit="steps",
        positions=tuple(map(float, places)),
        values=tuple(float(each.stop - 1) for each in ranges),
        lower=tuple(float(each.start) for each in ranges),
    )


def _trainings(recipe: Recipe) -> Iterator[tuple[str, TrainingSettings]]:
    """The trainings of networks that a run has."""
    method = methods.build(recipe)
    if any(recipe.network_group(group).trained for group in method.groups):
        yield "observers (squeeze)", recipe.squeeze
    if method.trajectory_objective is not None:
        yield "experts (experts)", recipe.experts
    yield "students (evaluation)", recipe.evaluation


def _training(name: str, settings: TrainingSettings) -> Curve:
    """Step size of networks over their epochs."""
    epochs = settings.epochs
    places = [place for place in _places(epochs) if place < epochs] or [0]
    rates = [
        settings.learning_rate
        * schedules.learning_rate_factor(settings.schedule, place, max(1, epochs))
        for place in places
    ]
    return _curve(f"step size of {name}", "epochs", places, rates)


def _curve(title: str, unit: str, places: Sequence[float], values: Sequence[float]) -> Curve:
    return Curve(title, unit, tuple(map(float, places)), tuple(map(float, values)))
