"""Content of the page of a run: gathered from its directory, in any state of the run."""

from __future__ import annotations

import io
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from rayd import recipes, remote
from rayd.config import Recipe
from rayd.data.summary import DataSummary
from rayd.distilled import Distilled, load
from rayd.engine.rundir import RunDirectory
from rayd.engine.runlog import logged
from rayd.engine.stages.blocks import SHEET_TAG
from rayd.engine.status import METRICS, Status, status
from rayd.errors import ArtifactError, RaydError
from rayd.evaluation.matrix import words_of
from rayd.evaluation.published import own_recipe
from rayd.evaluation.report import Report, SetResult
from rayd.evaluation.report_text import ReportText
from rayd.evaluation.run_report import report_of
from rayd.page import charts
from rayd.page.confusion import confusions_of
from rayd.page.page import Picture, environment, seconds, size
from rayd.page.page import write as write_page
from rayd.pictures import contact_sheet
from rayd.recipes.difference import differences

FILE = "report.html"
"""Name of the page in the directory of its run."""
FRAMES = 24
"""Maximum number of pictures of the synthesis on a page."""


@dataclass(frozen=True)
class StageRow:
    """A stage of the run."""

    name: str
    """Its name."""
    state: str
    """`waiting`, `running`, `done`, `cached`, or how the run ended if it ended in this stage."""
    seconds: float | None
    """Its duration, summed over all processes of the run; None if it did nothing."""
    memory: int | None
    """Peak memory by its end in bytes; None in logs of older versions."""
    gpu_memory: int | None
    """The same for GPU memory."""


@dataclass(frozen=True)
class RunPage:
    """Everything that the page shows; parts that a run does not have are empty."""

    directory: Path
    """The run's."""
    status: Status
    """Its state."""
    recipe: Recipe
    """The recipe of the run."""
    distilled: Distilled | None
    """The result."""
    report: Report | None
    """Its accuracies."""
    frames: Sequence[Picture]
    """Contact sheets over the synthesis, in order of steps."""
    grid: Picture | None
    """Contact sheet of the result."""
    base: str | None
    """The built-in recipe that the run is based on."""
    changes: Mapping[str, tuple[Any, Any]]
    """Settings that differ from the built-in recipe's: its value and the run's."""
    own: Mapping[str, tuple[Any, Any]]
    """Settings that differ from the method's defaults: the default and the recipe's value."""
    stages: Sequence[StageRow]
    """The stages, in order."""
    curves: Sequence[str] = field(default_factory=tuple)
    """Charts of values that the synthesis logged."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, where they are known."""
        return () if self.distilled is None else self.distilled.class_names


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
    page = render(folder)
    return write_page(to if to is not None else folder / FILE, page)


def render(directory: Path) -> str:
    """The page of a run as HTML."""
    page = gather(directory)
    results = page.report.results if page.report is not None else ()
    names = page.class_names
    few = 0 < len(names) <= charts.MOST_CLASSES
    return (
        environment()
        .get_template("run.html.j2")
        .render(
            page=page,
            state=_state(page.status),
            facts=_facts(page),
            results=[(words_of(result, results), result) for result in results],
            accuracies=charts.accuracies(charts.bars_of(results)) if results else None,
            score_lines=[] if page.report is None else ReportText(page.report).score_lines(),
            classes=charts.classes(by_class(results), names) if results and few else None,
            confusions=confusions_of(results, names),
            has_tail=any(result.tail_accuracy is not None for result in results),
            has_paper=any(result.paper for result in results),
            has_memory=any(stage.memory for stage in page.stages),
            has_gpu_memory=any(stage.gpu_memory for stage in page.stages),
            frames=[(frame.step, frame.source) for frame in page.frames],
            storage=[] if page.distilled is None else storage(page.distilled),
            base=page.base,
            fraction=lambda part: "" if part is None else f"{part:.3f}",
            command=command(page.recipe, page.directory, page.base, page.changes),
        )
    )


def gather(directory: Path) -> RunPage:
    """Read a run; parts that are missing or damaged are left out."""
    state = status(directory)
    recipe = RunDirectory(directory).recipe()
    distilled = optional(load, directory)
    lines = _logged(directory / METRICS)
    base = own_recipe(recipe)
    is_known = base.name in recipes.names()
    frames = _frames(directory / "tensorboard")
    grid = None
    if distilled is not None:
        grid = Picture.of(contact_sheet(distilled), _last_step(lines))
        if frames:
            # the log may end before the last step
            earlier = [frame for frame in frames if frame.step != grid.step]
            frames = [*earlier, grid]
    points = _series(lines)
    return RunPage(
        directory=directory,
        status=state,
        recipe=recipe,
        distilled=distilled,
        report=report_of(directory, skip_damaged=True),
        frames=frames,
        grid=grid,
        base=base.name if is_known else None,
        changes=differences(base, recipe) if is_known else {},
        own=_own_settings(base),
        stages=_stages(state, lines),
        curves=charts.curves({name: {"": values} for name, values in points.items()}, "step"),
    )


def _last_step(lines: Sequence[Mapping[str, Any]]) -> int | None:
    """The last logged step of the synthesis."""
    steps = [line["step"] for line in lines if line["stage"] == "synthesize" and "step" in line]
    return max(steps, default=None)


def optional(read: Any, path: Path) -> Any:
    """The result of `read`, or None if the file is missing or damaged: the page shows the rest."""
    try:
        return read(path)
    except RaydError:
        return None


def by_class(results: Sequence[SetResult]) -> dict[str, Sequence[float | None]]:
    """Test accuracies of every class, by set, of the first network and tested epoch."""
    network = results[0].network
    epoch = results[0].epoch
    found: dict[str, Sequence[float | None]] = {}
    for result in results:
        if (result.network, result.epoch) == (network, epoch):
            # if later evaluations added other protocols, the first counts
            found.setdefault(words_of(result, results), result.per_class)
    return found


def _facts(page: RunPage) -> list[tuple[str, str]]:
    """Key figures of the run: name and value."""
    facts = []
    if page.report is not None and page.report.results:
        results = page.report.results
        first = results[0]
        names = {"distilled": "distilled", "random": "random images", "whole": "whole set"}
        for result in results:
            same = (result.network, result.epoch) == (first.network, first.epoch)
            if same and result.set in names and result.label_kind == first.label_kind:
                accuracy = f"{result.test_accuracy.mean:.3f}"
                split = "validation" if result.is_on_validation else "test"
                facts.append((f"{split} accuracy, {names.pop(result.set)}", accuracy))
    if page.distilled is not None:
        count = len(page.distilled)
        facts.append((size(page.distilled.storage.total_bytes), f"{count:,} images"))
    total = sum(stage.seconds or 0.0 for stage in page.stages)
    if total:
        facts.append(("computed in this run", seconds(total)))
    return facts


def _state(state: Status) -> str:
    """The state of an unfinished run in a sentence, without its full stop."""
    words = {
        "failed": "This run failed",
        "killed": "This run was killed",
        "interrupted": "This run was interrupted",
        "running": "This run is still going",
    }
    where = f" in stage {state.stage}" if state.stage else ""
    return words.get(state.state, f"This run is {state.state}") + where


def storage(distilled: Distilled) -> list[tuple[str, float, str]]:
    """Parts of a set's storage, their sum, and the whole training split: name, bytes, share."""
    parts = distilled.storage.bytes
    rows: list[tuple[str, float, str]] = [(part, count, "") for part, count in parts.items()]
    total = distilled.storage.total_bytes
    whole = _whole_bytes(distilled)
    if whole is None:
        return [*rows, ("total", total, "")]
    share = f"{100 * total / whole:.3g} % of the training split"
    return [*rows, ("total", total, share), ("whole training split, 8 bits", whole, "")]


def _whole_bytes(distilled: Distilled) -> int | None:
    """Bytes of the real training images at 8 bits per value; None if their number is unknown."""
    read = (distilled.card.get("data") or {}).get("read")
    if read is None:
        return None
    try:
        summary = DataSummary.from_json(read)
    except ArtifactError:
        return None
    if "train" not in summary.splits:
        return None
    return summary.splits["train"].count * math.prod(summary.image)


def _stages(state: Status, lines: Sequence[Mapping[str, Any]]) -> list[StageRow]:
    """The stages with their times and memory."""
    took: dict[str, float] = {}
    peaks: dict[tuple[str, str], int] = {}
    for line in lines:
        if "finished" not in line:
            continue
        name = line["stage"]
        took[name] = took.get(name, 0.0) + line["seconds"]
        for key in ("peak_memory", "peak_gpu_memory"):
            if isinstance(line.get(key), int):
                peaks[name, key] = max(peaks.get((name, key), 0), line[key])
    rows = []
    for name, known in state.stages.items():
        is_over = known == "running" and state.state not in ("running", "finished")
        rows.append(
            StageRow(
                name=name,
                state=state.state if is_over else known,
                seconds=took.get(name),
                memory=peaks.get((name, "peak_memory")),
                gpu_memory=peaks.get((name, "peak_gpu_memory")),
            )
        )
    return rows


def _logged(path: Path) -> list[dict[str, Any]]:
    """The readable lines of the log."""
    remote.bring(path)
    return logged(path)


def series(directory: Path) -> dict[str, list[tuple[float, float]]]:
    """Logged values of a run's synthesis over its steps, by name; empty if none were logged."""
    return _series(_logged(directory / METRICS))


def _series(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Values over the steps of the synthesis, by name.

    Constant quantities have no curve, nor do duplicates: the only term of an objective equals its
    loss.
    """
    found: dict[str, dict[float, float]] = {}
    for line in lines:
        step = line.get("step")
        if line["stage"] != "synthesize" or not isinstance(step, int | float):
            continue
        for name, value in line.items():
            if name in ("stage", "step", "seconds", "finished") or not _is_finite(value):
                continue
            # steps that were repeated after a resume replace the earlier ones
            found.setdefault(name, {})[float(step)] = float(value)

    curves: dict[str, list[tuple[float, float]]] = {}
    for name, values in found.items():
        points = sorted(values.items())
        if len(points) > 1 and len(set(values.values())) > 1 and points not in curves.values():
            curves[name] = points
    return curves


def _is_finite(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def _own_settings(recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Settings of a recipe that differ from its method's defaults: the default and the value."""
    least = {
        "name": recipe.name,
        "method": recipe.method,
        "ipc": recipe.ipc,
        "data": {"name": recipe.data.name},
    }
    try:
        return differences(recipes.assemble(least), recipe)
    except RaydError:
        # the defaults of a method need not be a complete recipe
        return {}


def _frames(folder: Path) -> list[Picture]:
    """Contact sheets that the run logged for TensorBoard: an even selection, in order of steps."""
    images = logged_pictures(folder)
    steps = sorted(images)
    if len(steps) > FRAMES:
        chosen = {steps[round(index * (len(steps) - 1) / (FRAMES - 1))] for index in range(FRAMES)}
        steps = sorted(chosen)
    return [Picture.of(Image.open(io.BytesIO(images[step])), step) for step in steps]


def logged_pictures(folder: Path) -> dict[int, bytes]:
    """PNG files of the contact sheets in a run's TensorBoard log, by step."""
    if not folder.is_dir():
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # all images, no other kind of event
    reader = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 1})
    reader.Reload()
    if SHEET_TAG not in reader.Tags()["images"]:
        return {}
    return {event.step: event.encoded_image_string for event in reader.Images(SHEET_TAG)}


def command(
    recipe: Recipe, directory: Path, base: str | None, changes: Mapping[str, tuple[Any, Any]]
) -> str:
    """The command that repeats a run elsewhere.

    Args:
        recipe: of the run.
        directory: of the run, whose copy of the recipe is used if settings cannot express all of
            it.
        base: the built-in recipe that the run is based on; None for none.
        changes: settings that differ from it, as returned by `differences`.
    """
    words = ["rayd", "distill", str(directory / "config.yaml")]
    if base is not None:
        none = recipes.ineffective(recipe)
        settings = {}
        for key, (_, value) in changes.items():
            if not any(key == other or key.startswith(f"{other}.") for other in none):
                settings[key] = value
        if _repeats(recipe, base, settings):
            given = [f"{key}={_exact(value)}" for key, value in settings.items()]
            words = ["rayd", "distill", base, *given]
    return shlex.join([*words, "--out", f"runs/{recipe.name}-again"])


def _repeats(recipe: Recipe, base: str, settings: Mapping[str, Any]) -> bool:
    """Whether a built-in recipe with other settings is the recipe of a run.

    It is not if the run has the recipe's value of a setting that a protocol among the settings
    would change.
    """
    try:
        return not differences(recipes.resolve(base, settings), recipe)
    except RaydError:
        return False


def _exact(setting: Any) -> str:
    """Format a setting for the command line."""
    return setting if isinstance(setting, str) else json.dumps(setting)
