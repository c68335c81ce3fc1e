"""Images of several runs side by side, to show the effect of filters, terms or other settings.

Every run is a column of the same classes; its caption lists the settings in which it differs from
the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from rayd.analyses.base import Analysis, Subject
from rayd.config import flat
from rayd.distilled import Distilled
from rayd.errors import ArtifactError

CLASSES = 10
"""Maximum number of classes to draw, a row each."""
EACH = 3
"""Maximum number of images per class and run."""
SETTINGS = 5
"""Maximum number of settings in a caption."""
WIDE = 30
"""Maximum number of characters per line of a caption; more would run into the next caption."""
APART = ("name", "summary", "paper", "measured", "resources")
"""Fields of a recipe that do not change its images."""


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Settings in which configurations differ: for each configuration, its values by dotted key.

    >>> differences([{"ipc": 1, "seed": 0}, {"ipc": 1, "seed": 1}])
    [{'seed': 0}, {'seed': 1}]
    """
    leaves = []
    for config in configs:
        compared = {key: value for key, value in config.items() if key not in APART}
        leaves.append(flat(compared))
    keys = sorted(set().union(*leaves))
    varying = []
    for key in keys:
        values = [one.get(key) for one in leaves]
        if any(value != values[0] for value in values):
            varying.append(key)
    found = []
    for one in leaves:
        found.append({key: one.get(key) for key in varying})
    return found


def analyse(subject: Subject) -> Analysis:
    """Draw the first images of each class of a run and of the others.

    Raises:
        ArtifactError: the runs have other classes than the first one.
    """
    runs = [subject, *subject.others]
    for run in subject.others:
        if run.distilled.class_names != subject.distilled.class_names:
            raise ArtifactError(
                "Images side by side need runs of the same classes, in the same order. Got "
                f"{_few(subject.distilled)} in '{subject.directory}', and {_few(run.distilled)} in "
                f"'{run.directory}'."
            )
    configs = [run.recipe.model_dump(mode="json") for run in runs]
    varying = differences(configs)
    captions = []
    for run, own in zip(runs, varying, strict=True):
        words = [run.recipe.name, *(f"{key}={value}" for key, value in own.items())]
        captions.append("\n".join(_cut(word) for word in words[: 1 + SETTINGS]))
    accuracies = [_accuracy(run) for run in runs]
    lines = []
    for run, own, accuracy in zip(runs, varying, accuracies, strict=True):
        known = "" if accuracy is None else f"  test accuracy {accuracy:.3f}"
        lines.append(f"{run.directory}{known}")
        lines += [f"  {key}: {value}" for key, value in own.items()]
    captions = [
        caption if accuracy is None else f"{caption}\naccuracy {accuracy:.3f}"
        for caption, accuracy in zip(captions, accuracies, strict=True)
    ]
    names = [run.recipe.name for run in runs]
    return Analysis(
        name="images",
        title=f"Images of {', '.join(dict.fromkeys(names))}",
        explanation=(
            f"The first images of {_drawn(subject.distilled)}, a column for each run; captions say "
            f"up to {SETTINGS} of the settings in which the runs differ."
        ),
        picture=chart([run.distilled for run in runs], captions),
        lines=tuple(lines),
        numbers={
            "runs": [
                {"directory": str(run.directory), "settings": own, "test_accuracy": accuracy}
                for run, own, accuracy in zip(runs, varying, accuracies, strict=True)
            ]
        },
    )


def chart(sets: Sequence[Distilled], captions: Sequence[str]) -> Image.Image:
    """Draw images of the same classes of several sets, a panel for each."""
    from rayd.drawing import as_image, new_figure, styled

    names = sets[0].class_names[:CLASSES]
    counts = [int(one.hard_labels.bincount().max()) for one in sets]
    each = min(EACH, max(counts))
    lines = max(caption.count("\n") + 1 for caption in captions)
    with styled():
        figure = new_figure(max(240, 190 * len(sets)) + 90, 56 * len(names) + 20 * lines + 20)
        grid = figure.subplots(1, len(sets), squeeze=False)[0]
        for place, (axes, distilled, caption) in enumerate(zip(grid, sets, captions, strict=True)):
            panel = mosaic(distilled, len(names), each)
            axes.imshow(panel, interpolation="nearest", cmap="gray", vmin=0, vmax=255)
            axes.set_title(caption, fontsize=8)
            axes.grid(visible=False)
            axes.set_xticks([])
            side = panel.shape[0] / len(names)
            if place == 0:
                axes.set_yticks([side * (row + 0.5) for row in range(len(names))], names)
            else:
                axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
        return as_image(figure)


def mosaic(distilled: Distilled, classes: int, each: int) -> np.ndarray[Any, Any]:
    """Images of the first classes as one array (rows, columns[, 3]), uint8.

    White lines separate the images; the row of a class with fewer than `each` is padded with white.
    """
    labels = distilled.hard_labels
    _, height, width = distilled.shape
    gap = max(1, height // 16)
    colours = 3 if distilled.shape.channels == 3 else 1
    size = (classes * (height + gap), each * (width + gap), colours)
    canvas = np.full(size, 255, dtype=np.uint8)
    for label in range(classes):
        rows = (labels == label).nonzero().squeeze(1)[:each]
        for place, pixels in enumerate(_pixels(distilled, rows)):
            top = label * (height + gap)
            left = place * (width + gap)
            canvas[top : top + height, left : left + width] = pixels[..., :colours]
    return canvas[..., 0] if colours == 1 else canvas


def _pixels(distilled: Distilled, rows: Tensor) -> np.ndarray[Any, Any]:
    if not len(rows):
        return np.empty((0,), dtype=np.uint8)
    return distilled.pixels_of(rows).permute(0, 2, 3, 1).numpy()


def _few(distilled: Distilled) -> str:
    """Number and first names of a set's classes."""
    names = ", ".join(distilled.class_names[:3])
    return f"{distilled.classes} ({names}, ...)" if distilled.classes > 3 else names


def _drawn(distilled: Distilled) -> str:
    """Description of the classes that are drawn."""
    if distilled.classes <= CLASSES:
        return "each class"
    return f"the first {CLASSES} of {distilled.classes} classes"


def _cut(line: str) -> str:
    return line if len(line) <= WIDE else f"{line[: WIDE - 1]}…"


def _accuracy(run: Subject) -> float | None:
    """Accuracy of the distilled set in the run's report."""
    results = () if run.report is None else run.report.results
    return next((one.test_accuracy.mean for one in results if one.set == "distilled"), None)
