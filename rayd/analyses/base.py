"""Common parts of analyses: the subject, a set with its real data, and the result, a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rayd import networks, recipes, seeding, shown
from rayd.analyses import check_free, files
from rayd.artifacts import write_bytes, write_json
from rayd.config import NetworkSettings, Recipe, validate
from rayd.data import ImageData, ImageSet
from rayd.distilled import Distilled, load
from rayd.engine.progress import Progress
from rayd.engine.reading import normalized_as, read
from rayd.errors import ArtifactError
from rayd.evaluation.report import Report
from rayd.names import expanded
from rayd.pictures import as_png, data_url
from rayd.training.fitting import fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "analyses"
"""Folder of a run's analyses."""
PALETTE = (
    "#1f77b4",
    "#d9730d",
    "#3a8f4d",
    "#c03a2b",
    "#7d5ba6",
    "#8c6239",
    "#d66ba0",
    "#6f6f6f",
    "#a3a51f",
    "#1f9fb0",
)
"""Colours of classes, and of the sets that are compared."""


@dataclass(frozen=True)
class Options:
    """Settings of an analysis; None uses the analysis' own default."""

    network: str | Mapping[str, Any] | None = None
    """Architecture; by default the first one that the recipe evaluates."""
    seed: int = 0
    """Seed of all draws."""
    images: int | None = None
    """Maximum number of real images, the same number of every class; 0 for all."""
    steps: int = 300
    """Optimizer steps of networks that are trained for an analysis."""
    how: str | None = None
    """Variant of the analysis, such as `umap`."""


@dataclass(frozen=True)
class Analysis:
    """A picture with its numbers and an explanation."""

    name: str
    """Name of the analysis."""
    title: str
    """Heading."""
    explanation: str
    """Explanation of the picture, in a sentence or two."""
    picture: Image.Image = field(repr=False)
    """The chart, RGB."""
    lines: tuple[str, ...]
    """The findings as text, at most 80 characters each."""
    numbers: Mapping[str, Any]
    """The findings as plain JSON values."""

    def text(self) -> str:
        """Format for a terminal."""
        return "\n".join([self.title, *self.lines])

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values, without the picture."""
        return {"name": self.name, "title": self.title, **self.numbers}

    def html(self) -> str:
        """A page that needs no other file."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("rayd.analyses", "."),
            autoescape=True,
            trim_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        template = environment.get_template("analysis.html.j2")
        return template.render(analysis=self, source=data_url(self.picture))

    def _repr_html_(self) -> str:
        # the title contains the name of a recipe, which may come from an untrusted card
        image = f'<img alt="{escape(self.title)}" src="{data_url(self.picture)}">'
        return image + shown.preformatted("\n".join(self.lines))

    def plot(self) -> Figure:
        """The picture as a matplotlib `Figure`."""
        from rayd.drawing import image_figure

        return image_figure(self.picture)

    def write(self, folder: str | Path, overwrite: bool = False) -> tuple[Path, ...]:
        """Write `<name>.png`, `<name>.html` and `<name>.json`.

        Returns:
            The files.

        Raises:
            OutputError: one of them exists and `overwrite` is False.
        """
        folder = expanded(folder)
        check_free(folder, self.name, overwrite)
        paths = files(folder, self.name)
        picture, page, numbers = paths
        write_bytes(picture, as_png(self.picture))
        write_bytes(page, self.html().encode())
        write_json(numbers, self.to_json())
        return paths


@dataclass(frozen=True, eq=False)
class Subject:
    """A distilled set with its recipe, and with its real data on demand."""

    directory: Path
    """Directory of the run or set."""
    distilled: Distilled
    """The set."""
    options: Options = Options()
    """Settings of the analysis."""
    others: tuple[Subject, ...] = ()
    """Sets that it is compared with."""
    data_root: Path | None = None
    """Folder of named data that is searched first."""
    cache: Path | None = None
    """Store of finished work that runs share."""
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))
    """Display of progress."""

    @classmethod
    def at(cls, directory: str | Path, **rest: Any) -> Subject:
        """Load the set of a run directory, a distilled set or an export."""
        return cls(expanded(directory), load(directory), **rest)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the set.

        Raises:
            ArtifactError: the card does not hold it.
        """
        config = self.distilled.card.get("config")
        if not isinstance(config, Mapping):
            raise ArtifactError(
                f"'{self.directory}' cannot be analysed: its card holds no recipe ('config')."
            )
        return recipes.restore(config, where="the card's recipe")

    @cached_property
    def data(self) -> ImageData:
        """The real data that the set was distilled from."""
        found = read(self.recipe.data, self.data_root, self.cache, self.progress)
        return normalized_as(self.distilled, found)

    @cached_property
    def report(self) -> Report | None:
        """The evaluation of the set; None if there is none."""
        return Report.kept(self.directory)

    @property
    def title(self) -> str:
        """Recipe, data and budget."""
        card = self.distilled.card
        name = card.get("recipe") or self.directory.name
        return f"{name}, {len(self.distilled)} images"

    @property
    def network(self) -> NetworkSettings:
        """The architecture that is analysed.

        Raises:
            ConfigError: the options hold settings that no architecture has.
        """
        chosen = self.options.network
        if chosen is None:
            return self.recipe.evaluation.networks[0]
        given = {"name": chosen} if isinstance(chosen, str) else chosen
        return validate(NetworkSettings, given, "the network to analyse", "network")

    def build(self, seed: int = 0) -> nn.Module:
        """A fresh network; `seed` is combined with that of the options."""
        return networks.build(
            self.network,
            self.distilled.shape,
            self.distilled.classes,
            seed=seeding.derive(self.options.seed, "analysis network", seed),
        )

    def fitted(self, images: Tensor, labels: Tensor, seed: int = 0) -> nn.Module:
        """A network that was trained on images (n, C, H, W), in eval mode."""
        options = self.options
        network = self.build(seed)
        self.progress.log(
            f"training a {self.network.label} on {len(images):,} images for {options.steps:,} steps"
        )
        return fit(network, images, labels, steps=options.steps, seed=options.seed)

    def sample(
        self, split: ImageSet | None = None, default: int = 1000, purpose: str = "sample"
    ) -> tuple[Tensor, Tensor]:
        """Real images as network input with their class indices, the same number of every class.

        Args:
            split: images to draw from; by default the training split.
            default: maximum number of images if the options do not set it.
            purpose: key of the draw: the same images for the same purpose and seed.
        """
        images = self.data.train if split is None else split
        most = default if self.options.images is None else self.options.images
        rows = sampled(images, most or len(images), self.options.seed, purpose)
        pixels = torch.from_numpy(np.asarray(images.images[rows]))
        return self.data.normalization(pixels), torch.from_numpy(images.labels[rows])

    def random(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Random real images, as many of each class as the set has.

        That exceeds the budget if a stored image decodes to several, as in partitioned and low-rank
        sets. Images of a class that has too few are repeated, as in the baseline `random`.
        """
        labels = self.distilled.hard_labels
        train = self.data.train
        draws = seeding.generator(self.options.seed, "analysis random", seed)
        chosen = []
        for label, rows in enumerate(train.class_index):
            count = int((labels == label).sum())
            drawn = torch.randperm(len(rows), generator=draws)[:count].numpy()
            chosen.append(np.resize(rows[drawn], count))
        rows = np.concatenate(chosen)
        pixels = torch.from_numpy(np.asarray(train.images[rows]))
        return self.data.normalization(pixels), torch.from_numpy(train.labels[rows])


def sampled(images: ImageSet, most: int, seed: int, purpose: str) -> np.ndarray[Any, Any]:
    """Rows of at most `most` images, the same number of every class where there are enough."""
    if most >= len(images):
        return np.arange(len(images))
    each = max(1, most // images.classes)
    draws = seeding.generator(seed, "analysis", purpose)
    chosen = []
    for rows in images.class_index:
        chosen.append(rows[torch.randperm(len(rows), generator=draws)[:each].numpy()])
    return np.concatenate(chosen)
