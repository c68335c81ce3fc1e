"""What a page says of a run: gathered from its directory, whatever state the run is in."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from rayd import recipes, remote
from rayd.artifacts import write_bytes
from rayd.config import Recipe, flat
from rayd.distilled import DIRECTORY, Distilled, as_png, contact_sheet, load
from rayd.engine.rundir import RunDirectory
from rayd.engine.status import METRICS, Status, status
from rayd.errors import OutputError, RaydError
from rayd.evaluation.report import Report
from rayd.page import charts

FILE = "report.html"
"""Name of the page in the directory of its run."""
MARK = b'<meta name="generator" content="rayd">'
"""Tells pages of rayd from other files, which are not overwritten."""
WIDEST = 900
"""Pixels to which small contact sheets are enlarged, by whole factors."""
TAG = "synthetic images"
"""Name of the images in the run's TensorBoard log."""
FRAMES = 24
"""Most pictures of the synthesis on a page."""
RESULTS = frozenset({"name", "summary", "paper", "measured", "resources"})
"""Fields of a recipe in which a run does not differ from it."""


@dataclass(frozen=True)
class Picture:
    """An image in the page itself."""

    source: str
    """`data:` URL."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    step: int | None = None
    """Step of the synthesis."""


@dataclass(frozen=True)
class RunPage:
    """All that the page shows; what a run does not have is empty."""

    status: Status
    recipe: Recipe
    distilled: Distilled | None
    report: Report | None
    frames: Sequence[Picture]
    """Contact sheets over the synthesis, in order."""
    grid: Picture | None
    """Contact sheet of the result."""
    changes: Mapping[str, tuple[Any, Any]]
    """Settings that differ from the recipe's: its value and the run's."""
    stages: Sequence[tuple[str, str, float | None]]
    """Name, state and seconds of each stage."""
    curves: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Charts of logged values, by stage."""


def write(directory: str | Path, to: Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        directory: of the run, finished or not.
        to: file to be written; by default `report.html` in the directory.

    Returns:
        The file.

    Raises:
        RaydError: the directory holds no run, or the page cannot be written.
    """
    folder = remote.local(directory)
    path = to if to is not None else folder / FILE
    if path.exists() and not (path.is_file() and MARK in path.read_bytes()[:1000]):
        raise OutputError(
            f"'{path}' exists already and is no page of rayd; choose another file with --to."
        )
    try:
        write_bytes(path, render(folder).encode())
    except OSError as error:
        raise OutputError(f"Cannot write '{path}': {error.strerror}.") from error
    return path


def render(directory: Path) -> str:
    """The page of a run as HTML."""
    page = _gather(directory)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rayd.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    report = page.report
    results = report.results if report is not None else ()
    names = page.distilled.class_names if page.distilled is not None else ()
    return environment.get_template("run.html.j2").render(
        page=page,
        accuracies=charts.accuracies(results) if results else None,
        classes=charts.classes(results, names)
        if results and 0 < len(names) <= charts.MOST_CLASSES
        else None,
        results=results,
        seconds=_seconds,
        size=_size,
        command=_command(page),
    )


def _gather(directory: Path) -> RunPage:
    """Read a run; parts that are missing or damaged are left out."""
    state = status(directory)
    recipe = RunDirectory(directory).recipe()
    distilled = _optional(load, directory)
    report = _optional(Report.kept, directory)
    set_folder = directory / DIRECTORY
    if report is not None and set_folder.is_dir():
        of_set = _optional(Report.kept, set_folder)
        report = report if of_set is None else report.merge(of_set)
    lines = list(_logged(directory / METRICS))
    took = {line["stage"]: line["seconds"] for line in lines if line.get("finished")}
    return RunPage(
        status=state,
        recipe=recipe,
        distilled=distilled,
        report=report,
        frames=_frames(directory / "tensorboard"),
        grid=_picture(contact_sheet(distilled)) if distilled is not None else None,
        changes=_changes(recipe),
        stages=[(name, what, took.get(name)) for name, what in state.stages.items()],
        curves={stage: charts.curves(points, "step") for stage, points in _series(lines).items()},
    )


def _optional(read: Any, path: Path) -> Any:
    """What is read, or None where it is missing or damaged: the page shows the rest."""
    try:
        return read(path)
    except RaydError:
        return None


def _logged(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of the log that can be read."""
    remote.bring(path)
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            # the last line of a run that was killed
            continue
        if isinstance(content, dict) and isinstance(content.get("stage"), str):
            yield content


def series(directory: Path) -> dict[str, list[tuple[float, float]]]:
    """Logged values of a run's synthesis over its steps, by name; empty where none was logged."""
    return _series(list(_logged(directory / METRICS))).get("synthesize", {})


def _series(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Values over steps, by stage and name; a quantity that does not vary has no curve."""
    found: dict[str, dict[str, dict[float, float]]] = {}
    for line in lines:
        step = line.get("step")
        if line["stage"] != "synthesize" or not isinstance(step, int | float):
            continue
        for name, value in line.items():
            if name in ("stage", "step", "seconds", "finished") or not _is_finite(value):
                continue
            # steps that were repeated after a resume replace the earlier ones
            found.setdefault(line["stage"], {}).setdefault(name, {})[float(step)] = float(value)
    return {
        stage: {
            name: sorted(points.items())
            for name, points in values.items()
            if len(points) > 1 and len(set(points.values())) > 1
        }
        for stage, values in found.items()
    }


def _is_finite(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def _changes(recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """How a run's settings differ from those of the built-in recipe of its name."""
    if recipe.name not in recipes.names():
        return {}
    own = flat(recipe.model_dump(mode="json", exclude=set(RESULTS)))
    base = flat(recipes.resolve(recipe.name).model_dump(mode="json", exclude=set(RESULTS)))
    changes = {
        key: (base.get(key), own.get(key))
        for key in sorted(own.keys() | base.keys())
        if base.get(key) != own.get(key)
    }
    # what the machine chose for a setting that leaves it the choice is no difference
    return {key: pair for key, pair in changes.items() if pair[0] != "auto"}


def _frames(folder: Path) -> list[Picture]:
    """Contact sheets that the run logged for TensorBoard, evenly chosen, in order of steps."""
    if not folder.is_dir():
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # all images, no other kind of event
    reader = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 1})
    reader.Reload()
    if TAG not in reader.Tags()["images"]:
        return []
    by_step = {event.step: event.encoded_image_string for event in reader.Images(TAG)}
    steps = sorted(by_step)
    if len(steps) > FRAMES:
        chosen = {steps[round(index * (len(steps) - 1) / (FRAMES - 1))] for index in range(FRAMES)}
        steps = sorted(chosen)
    return [_picture(Image.open(io.BytesIO(by_step[step])), step) for step in steps]


def _picture(image: Image.Image, step: int | None = None) -> Picture:
    """An image for the page; small ones are enlarged without blurring."""
    factor = max(1, WIDEST // max(image.width, image.height))
    return Picture(
        source=f"data:image/png;base64,{base64.b64encode(as_png(image)).decode()}",
        width=image.width * factor,
        height=image.height * factor,
        step=step,
    )


def _command(page: RunPage) -> str:
    """The command that repeats the run elsewhere."""
    words = [f"rayd distill {page.recipe.name}"]
    if page.recipe.name not in recipes.names():
        words = ["rayd distill config.yaml"]
    words += [f"{key}={json.dumps(value)}" for key, (_, value) in page.changes.items()]
    return " ".join([*words, "--out runs/again"])


def _seconds(value: float | None) -> str:
    """A duration in words."""
    if value is None:
        return ""
    if value < 90:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"


def _size(value: float) -> str:
    """A number of bytes in words."""
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
