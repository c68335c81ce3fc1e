"""Draw the picture at the head of the README: real images, distilled images and accuracies.

rayd distill digits --out runs/digits
python docs/overview.py runs/digits .github/overview.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from sklearn.datasets import load_digits

import rayd
from rayd.drawing import as_image, new_figure, styled
from rayd.evaluation.report import Report

COLUMNS = 16
"""Number of real images shown per class."""


def grid(axes: Axes, images: npt.NDArray[np.float64], title: str) -> None:
    """Show images (classes, columns, H, W), a row for each class."""
    classes, columns, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=images.max())
    sheet = padded.transpose(0, 2, 1, 3).reshape(classes * (height + 1), columns * (width + 1))
    axes.imshow(sheet[:-1, :-1], cmap="gray", interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()


def main(directory: Path, path: Path) -> None:
    """Draw the picture of a run on digits."""
    digits = load_digits()
    classes = np.unique(digits.target)
    real = np.stack([digits.images[digits.target == label][:COLUMNS] for label in classes])
    distilled = rayd.load(directory).pixels().numpy()[:, None, 0]
    report = Report.kept(directory)
    assert report is not None
    shown = {"distilled": "10 distilled", "random": "10 random", "whole": "all 1,438"}
    accuracies = {row.set: row.test_accuracy for row in report.results if row.set in shown}
    with styled():
        figure = new_figure(960, 300)
        left, middle, right = figure.subplots(1, 3, width_ratios=[3, 0.7, 2.2])
        grid(left, real, "1,438 real images …")
        grid(middle, distilled, "… into 10")
        means = [accuracies[name].mean for name in shown]
        right.barh(range(3), means, color=["#1f4e9c", "#aaaaaa", "#555555"], height=0.6)
        for place, mean in enumerate(means):
            right.text(mean + 0.01, place, f"{mean:.2f}", va="center")
        right.set_yticks(range(3), shown.values())
        right.invert_yaxis()
        right.set_xlim(0, 1.12)
        right.set_title("test accuracy of networks trained on …")
        right.grid(visible=False)
        as_image(figure).save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
