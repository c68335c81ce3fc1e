r"""Class-incremental learning: groups of classes arrive in turn, and a memory keeps a few images.

The protocol of Zhao and Bilen (WACV 2023), after GDumb (Prabhu et al., ECCV 2020): the classes, in
an order drawn for each of several runs, are cut into equal steps. In each step only the images of
its classes are available, and a budget of images per class is added to the memory: distilled,
selected or drawn. A fresh network is then trained on the memory alone, and tested on the test
images of all classes seen so far.

- A method distils the classes of one step at a time, as a separate data set, so that no later class
  affects an earlier memory. Its images are kept as 8-bit pixels, like real ones (values out of
  range are clipped), and normalised together.
- Teachers (of EDC, for example) would know the classes of one step only, so networks are trained on
  the memory under hard labels.
- `random` and `herding` choose real images. `whole` keeps all of them, as an upper bound.
- Class orders and students are seeded by their numbers from 0, for all methods, so that differences
  are paired.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from rayd import devices, recipes, seeding
from rayd.artifacts import write_bytes
from rayd.config import EvaluationSettings, Recipe
from rayd.data import ImageData, ImageSet
from rayd.data.selection import select
from rayd.engine.distill import distill
from rayd.engine.progress import Progress
from rayd.engine.reading import read
from rayd.errors import ConfigError, OutputError
from rayd.evaluation.student import StudentResult, train
from rayd.names import expanded
from rayd.training.sets import TrainingSet

BASELINES = ("random", "herding", "whole")
"""Memories that need no distillation."""


@dataclass(frozen=True)
class Curve:
    """Accuracies of one kind of memory after each step."""

    method: str
    """Name of the recipe that fills the memory, or of a baseline."""
    classes: tuple[int, ...]
    """Number of classes seen after each step."""
    accuracies: tuple[tuple[float, ...], ...]
    """Test accuracy over the classes seen: a row for each step, with a value for each order and
    student.
    """

    @property
    def means(self) -> tuple[float, ...]:
        """Mean accuracy after each step."""
        return tuple(fmean(row) for row in self.accuracies)

    @property
    def stds(self) -> tuple[float, ...]:
        """Sample standard deviation over orders and students after each step; 0 for one value."""
        return tuple(stdev(row) if len(row) > 1 else 0.0 for row in self.accuracies)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Scenario:
    """Parts of an experiment that all memories share."""

    recipe: Recipe
    data: ImageData
    steps: tuple[npt.NDArray[np.int64], ...]
    order: int

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """All classes, in order of arrival."""
        return np.concatenate(self.steps)


def learn(
    recipe: Recipe,
    out: str | Path,
    *,
    steps: int = 5,
    orders: int = 3,
    methods: Sequence[str] = ("distilled", "random"),
    data_root: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Curve, ...]:
    """Compare memories by learning groups of classes one after another.

    Args:
        recipe: data, budget per class, method of `distilled`, and the protocol of the students
            (`evaluation`, of which the first network, `seeds` and hard labels are used); its
            `resources` apply to all distillations.
        out: directory of the distillations, one run for each order and step.
        steps: number of groups; must divide the number of classes.
        orders: number of class orders.
        methods: memories to compare: `distilled`, `random`, `herding`, `whole`, or the name of
            another recipe, or its file.
        data_root: folder of named data that is searched first.
        cache: store of finished work that runs share.
        progress: where progress is shown.

    Raises:
        ConfigError: the steps do not divide the classes, or leave one class to a distillation, a
            memory is unknown, two have the same name, or there is no memory or order.
        OutputError: the directory holds distillations of other steps or data.
    """
    if not methods or orders < 1:
        raise ConfigError(
            "Memories are compared over at least one order of the classes. "
            f"Got {len(methods)} memories and {orders} orders."
        )
    out = expanded(out)
    progress = progress or Progress()
    data = read(recipe.data, data_root, cache, progress)
    makers = _makers(recipe, methods)
    _check_steps(steps, data, makers)
    accuracies: dict[str, list[list[float]]] = {}
    for method in makers:
        accuracies[method] = [[] for _ in range(steps)]
    for order in range(orders):
        drawn = class_order(data.classes, order)
        scenario = _Scenario(recipe, data, tuple(np.split(drawn, steps)), order)
        for method, maker in makers.items():
            memory: list[tuple[Tensor, Tensor]] = []
            for step in range(steps):
                memory.append(_remembered(scenario, step, method, maker, out, data_root, cache))
                for seed in range(recipe.evaluation.seeds):
                    accuracy = _tested(scenario, step, memory, seed, method)
                    accuracies[method][step].append(accuracy)
                progress.log(
                    f"continual: {method}, order {order}, step {step + 1} of {steps}: "
                    f"{accuracies[method][step][-1]:.3f}"
                )
    size = data.classes // steps
    seen = tuple(size * (step + 1) for step in range(steps))
    return tuple(
        Curve(method, seen, tuple(map(tuple, rows))) for method, rows in accuracies.items()
    )


def _makers(recipe: Recipe, methods: Sequence[str]) -> dict[str, Recipe | None]:
    """The recipe that fills each memory, by the memory's name; None for a baseline.

    Raises:
        ConfigError: a memory is unknown, or two have the same name.
    """
    makers = {_name(method): _recipe_of(method, recipe) for method in dict.fromkeys(methods)}
    if len(makers) < len(set(methods)):
        raise ConfigError(
            "Memories are named after their recipes or files, whose names must differ. "
            f"Got {', '.join(methods)}."
        )
    return makers


def _check_steps(steps: int, data: ImageData, makers: Mapping[str, Recipe | None]) -> None:
    """Refuse numbers of steps that do not fit the classes and memories.

    Raises:
        ConfigError: they do not divide the classes, or leave one class to a distillation.
    """
    if steps < 1 or data.classes % steps:
        raise ConfigError(
            f"'steps' must divide the {data.classes} classes of '{data.name}'. Got {steps} instead."
        )
    distilling = [method for method, maker in makers.items() if maker is not None]
    if distilling and steps == data.classes:
        raise ConfigError(
            f"A distillation needs at least two classes. Got {steps} steps of one class each for "
            f"the memory '{distilling[0]}': take fewer steps."
        )


def class_order(classes: int, number: int) -> npt.NDArray[np.int64]:
    """Order of the classes with a number: NumPy's permutation with that seed.

    >>> class_order(5, 0)
    array([2, 0, 1, 3, 4])
    """
    order: npt.NDArray[np.int64] = np.random.RandomState(number).permutation(classes)
    return order.astype(np.int64)


def _name(method: str) -> str:
    """Name of a memory in tables and folders; for a recipe's file, the file name without suffix."""
    return Path(method).stem if method.endswith((".yaml", ".yml")) else method


def _recipe_of(method: str, recipe: Recipe) -> Recipe | None:
    """The recipe that fills a memory; None for a baseline."""
    if method in BASELINES:
        return None
    return recipe if method == "distilled" else recipes.resolve(method)


def _remembered(
    scenario: _Scenario,
    step: int,
    method: str,
    maker: Recipe | None,
    out: Path,
    data_root: Path | None,
    cache: Path | None,
) -> tuple[Tensor, Tensor]:
    """Network input and labels that a step adds to the memory; labels index the class order."""
    train = scenario.data.train
    labels = scenario.steps[step]
    first = len(labels) * step
    normalization = scenario.data.normalization
    rows = [train.class_index[label] for label in labels]
    if maker is None and method == "whole":
        pixels = torch.from_numpy(np.asarray(train.images[np.concatenate(rows)]))
        counts = torch.tensor([len(part) for part in rows])
        return normalization(pixels), first + torch.arange(len(labels)).repeat_interleave(counts)
    own = _only(train, labels)
    if maker is None:
        draws = seeding.generator(scenario.order, "continual memory", step)
        chosen = select(method, own, scenario.recipe.ipc, normalization, draws)
        inputs = normalization(torch.from_numpy(np.asarray(own.images[chosen])))
        return inputs, first + torch.from_numpy(own.labels[chosen])

    folder = out / f"{method}-order{scenario.order}-step{step}"
    archive = _archive(folder.with_suffix(".npz"), scenario.data, labels)
    run = distill(
        _on(maker, archive, scenario),
        folder,
        data_root=data_root,
        cache=cache,
        resume=True,
        progress=Progress(quiet=True),
    )
    # each step has its own normalisation: the memory is kept as pixels and normalised together
    pixels = run.distilled.pixels()
    if pixels.shape[1] != scenario.data.shape.channels:
        # no image of the step has a colour, so they were read as greyscale
        pixels = pixels.expand(-1, scenario.data.shape.channels, -1, -1)
    return normalization(pixels), first + run.distilled.hard_labels


def _on(maker: Recipe, archive: Path, scenario: _Scenario) -> Recipe:
    """The recipe that distils the classes of one step."""
    real = scenario.recipe.data
    # the archive has the images that the other memories select from: nothing is left out twice
    update: dict[str, Any] = {
        "name": str(archive),
        "classes": None,
        "imbalance": 1.0,
        "train": None,
        "validation": None,
        "test": None,
        "stream": None,
        "image_size": real.image_size,
        "copies": real.copies,
    }
    if scenario.data.validation is not None:
        update["validation_fraction"] = 0.0
    settings = maker.data.model_copy(update=update)
    evaluation = maker.evaluation.model_copy(
        update={"seeds": 1, "epochs": 1, "baselines": (), "comparisons": ()}
    )
    changed = {
        "data": settings,
        "evaluation": evaluation,
        "ipc": scenario.recipe.ipc,
        # workers and threads are those of the given recipe, for all memories
        "resources": scenario.recipe.resources,
        "paper": None,
    }
    return maker.model_copy(update=changed)


def _only(images: ImageSet, labels: npt.NDArray[np.int64]) -> ImageSet:
    """The images of some classes, renumbered in the given order."""
    rows = np.concatenate([images.class_index[label] for label in labels])
    numbers = np.concatenate(
        [np.full(len(images.class_index[label]), place) for place, label in enumerate(labels)]
    )
    names = tuple(images.class_names[label] for label in labels)
    return ImageSet(np.asarray(images.images[rows]), numbers.astype(np.int64), names)


def _archive(path: Path, data: ImageData, labels: npt.NDArray[np.int64]) -> Path:
    """Write the splits of a step as a data set, once.

    Args:
        path: of the file.
        data: the real images.
        labels: classes of the step, in order.

    Raises:
        OutputError: the file holds other images, such as those of another number of steps.
    """
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    arrays: dict[str, Any] = {}
    for name, split in splits.items():
        if split is not None:
            images = _only(split, labels)
            arrays[f"x_{name}"] = np.asarray(images.images).transpose(0, 2, 3, 1)
            arrays[f"y_{name}"] = images.labels
    arrays["class_names"] = np.array([data.train.class_names[label] for label in labels])
    if not path.exists():
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_bytes(path, content.getvalue())
    elif not _holds(path, arrays):
        raise OutputError(
            f"'{path}' holds the images of other classes or data than those of this step, left by "
            "an experiment with another number of steps or other data; choose another --out."
        )
    return path


def _holds(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether an archive consists of exactly these arrays."""
    try:
        with np.load(path) as archive:
            return set(archive.files) == set(arrays) and all(
                np.array_equal(archive[name], array) for name, array in arrays.items()
            )
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _tested(
    scenario: _Scenario, step: int, memory: Sequence[tuple[Tensor, Tensor]], seed: int, name: str
) -> float:
    """Accuracy of a fresh network, trained on the memory, on all classes seen."""
    seen = np.concatenate(scenario.steps[: step + 1])
    recipe = scenario.recipe
    training = TrainingSet(
        torch.cat([images for images, _ in memory]),
        torch.cat([labels for _, labels in memory]),
        scenario.data.normalization,
        name,
    )
    network = recipe.evaluation.networks[0]
    settings: EvaluationSettings = recipe.evaluation.model_copy(
        update={
            "loss": "cross-entropy",
            "hard_weight": 0.0,
            "epoch": ("last",),
            "learning_rate": network.learning_rate or recipe.evaluation.learning_rate,
        }
    )
    test = TrainingSet.from_images(_only(scenario.data.test, seen), scenario.data.normalization)
    with devices.thread_limit(devices.threads(recipe.resources)):
        events = train(
            training,
            network,
            settings,
            shape=scenario.data.shape,
            classes=len(seen),
            seed=seed,
            epochs=settings.epochs_on(name),
            device=devices.choose(recipe.resources),
            test=test,
        )
        results = [event for event in events if isinstance(event, StudentResult)]
    return results[0].test_accuracy


def text(curves: Sequence[Curve]) -> str:
    """Format accuracies after each step as a table."""
    width = max(len("memory"), *(len(curve.method) for curve in curves))
    heads = [f"{count} classes" for count in curves[0].classes]
    lines = ["  ".join(["memory".ljust(width), *(head.rjust(13) for head in heads)])]
    for curve in curves:
        pairs = zip(curve.means, curve.stds, strict=True)
        cells = [f"{mean:.3f} ± {std:.3f}" for mean, std in pairs]
        lines.append("  ".join([curve.method.ljust(width), *cells]))
    count = len(curves[0].accuracies[0])
    lines.append(f"test accuracy over all classes seen; ± over {count} orders and students")
    return "\n".join(lines)


def chart(curves: Sequence[Curve], title: str = "") -> Image.Image:
    """Draw accuracy over the number of classes seen, a line for each memory."""
    from rayd.drawing import as_image, new_figure, styled

    with styled():
        figure = new_figure(560, 380)
        axes = figure.subplots()
        for curve in curves:
            axes.errorbar(
                curve.classes, curve.means, curve.stds, marker="o", capsize=2, label=curve.method
            )
        axes.set_xticks(curves[0].classes)
        axes.set_xlabel("classes seen")
        axes.set_ylabel("test accuracy")
        axes.set_ylim(0, 1)
        axes.legend(frameon=False)
        axes.set_title(title)
        return as_image(figure)
