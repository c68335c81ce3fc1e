"""Spectra of feature correlations of a finished set and of the real images.

They are drawn on demand (`rayd show DIR --spectrum`). Nothing is measured or trained for them:
statistics of real images are read from the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from PIL import Image

from rayd import devices, methods
from rayd.config import Recipe
from rayd.distilled import Distilled
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.pool import LocalPool
from rayd.engine.progress import Progress
from rayd.engine.reading import normalized_as, read
from rayd.engine.stages.measure import Measure
from rayd.engine.stages.squeeze import Squeeze
from rayd.engine.store import Store
from rayd.errors import ArtifactError
from rayd.layer_spectra import LayerSpectrum, chart, spectra
from rayd.methods import Method
from rayd.objectives import Context, SpectralFilterMatching
from rayd.objectives.filters import Filter
from rayd.recipes import restore
from rayd.statistics import Covariance
from rayd.synthetic import blocks


@dataclass(frozen=True)
class RunSpectra:
    """Spectra of all layers that a run's observers recorded, with its filter."""

    layers: tuple[LayerSpectrum, ...]
    """Spectra of real and synthetic images."""
    filter: Filter
    """The filter at the end of the synthesis."""
    title: str
    """Recipe, method, data and size of the set."""

    def chart(self) -> Image.Image:
        """Draw the spectra, a subplot for each layer."""
        return chart(self.layers, self.filter, title=self.title)


def from_distilled(
    distilled: Distilled,
    data_root: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Image.Image:
    """The chart of a saved distilled set; arguments and errors are those of `of_distilled`."""
    return of_distilled(distilled, data_root, cache, progress).chart()


def of_distilled(
    distilled: Distilled,
    data_root: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> RunSpectra:
    """Compute the spectra of a saved distilled set.

    Args:
        distilled: the set.
        data_root: where named data are searched first.
        cache: root of the store that the run used.
        progress: where the reading of data is shown.

    Raises:
        ArtifactError: the card holds no recipe, its method has no spectral filter, or the store
            lacks the measured statistics.
        DataError: the set was distilled from other real data.
    """
    config = distilled.card.get("config")
    if not isinstance(config, Mapping):
        raise ArtifactError(
            "The distilled set has no spectra: its card holds no recipe ('config')."
        )
    recipe = restore(config, where="the card's recipe")
    term_of(methods.build(recipe))
    data = read(recipe.data, data_root, cache, progress or Progress())
    data = normalized_as(distilled, data)
    return _of_job(Job(recipe, data, Store(cache)), distilled)


def term_of(method: Method) -> SpectralFilterMatching:
    """The term of a method that matches feature correlations through a spectral filter.

    Raises:
        ArtifactError: there is none.
    """
    term = next((term for term in method.terms if isinstance(term, SpectralFilterMatching)), None)
    if term is None:
        filtering = []
        for name in methods.names():
            terms = methods.get(name).objective(method.recipe)
            if any(isinstance(candidate, SpectralFilterMatching) for candidate in terms):
                filtering.append(name)
        raise ArtifactError(
            "There are no spectra to show: they are those of feature correlations, which method "
            f"'{method.name}' neither measures nor matches; {' and '.join(filtering)} do. "
            "'rayd analyse DIR spectra' draws those of a network trained for it."
        )
    if method.recipe.real == "sampled":
        raise ArtifactError(
            "There are no spectra to show: with 'real: sampled' real images are not measured."
        )
    return term


def _of_job(job: Job, distilled: Distilled) -> RunSpectra:
    """Spectra of all recorded layers, and the filter at the end of the synthesis."""
    recipe = job.recipe
    data = job.data
    term = term_of(job.method)
    group = job.method.group_of(term)
    networks = network_ids(recipe, group)
    squeeze = Squeeze(job, networks if recipe.network_group(group).trained else ())
    trained = squeeze.results()
    measure = Measure(job)
    real: dict[NetworkId, tuple[Covariance, ...]] = {}
    for network_id in networks:
        is_lost = network_id in squeeze.networks and network_id not in trained
        kept = None if is_lost else measure.kept(network_id, term.distance.matrices)
        if kept is None:
            raise ArtifactError(
                "There are no spectra to show: the weights or statistics of observer "
                f"{network_id.label} on '{data.name}' are not in the store '{job.store.root}'; "
                "`--cache` names another store, and running the recipe again measures again."
            )
        real[network_id] = cast(tuple[Covariance, ...], kept)
    # a set is small: starting workers would take longer than computing its spectra
    here = recipe.resources.model_copy(update={"workers": 0, "gpus_per_worker": 0.0})
    pool = LocalPool(here, ObserverTasks, recipe, DatasetInfo.of(data), devices.choose(here))
    images = pool.share((distilled.images, distilled.hard_labels))
    items = []
    for network_id in networks:
        weights = pool.share(trained[network_id].state) if network_id in trained else None
        items.append((network_id, weights, images, term.distance.matrices))
    layers: list[LayerSpectrum] = []
    for network_id, (names, synthetic) in zip(networks, pool.map("record", items), strict=True):
        if len(networks) > 1:
            names = [f"{network_id.label}: {name}" for name in names]
        layers += spectra(names, real[network_id], cast(tuple[Covariance, ...], synthetic))
    title = f"{recipe.name}: {job.method.name} on {data.name}, {len(distilled)} images"
    return RunSpectra(tuple(layers), term.filters(_end(recipe, distilled)).matrix, title)


def _end(recipe: Recipe, distilled: Distilled) -> Context:
    """The last step of the last block."""
    units = distilled.hard_labels[:: recipe.synthetic.expansion]
    count = len(blocks(units, recipe.synthesis.block, recipe.synthesis.order))
    return Context(progress=1 - 1 / max(recipe.synthesis.steps, 1), block=count - 1, blocks=count)
