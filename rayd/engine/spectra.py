"""Spectra of a finished set: what its observers hear of it, beside what they once measured of the
real images.

Nothing is measured or trained here: all comes from the store, or it is said that it is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from PIL import Image

from rayd import devices, methods
from rayd.config import Recipe, prune
from rayd.data import ImageData
from rayd.distilled import Distilled
from rayd.engine import measure, squeeze
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.observer import DatasetInfo
from rayd.engine.observers import Observers
from rayd.engine.pool import LocalPool, WorkerPool
from rayd.engine.progress import Progress
from rayd.engine.reading import read
from rayd.engine.store import Store
from rayd.errors import ArtifactError, DataError
from rayd.methods import Method
from rayd.objectives import Context, SpectralFilterMatching
from rayd.recipes import assemble
from rayd.spectrum import LayerSpectrum, chart, spectra
from rayd.statistics import Covariance
from rayd.synthetic import blocks


def from_distilled(
    distilled: Distilled,
    data_root: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Image.Image:
    """The chart of a distilled set that was saved.

    Args:
        distilled: the set.
        data_root: where named data are looked for first.
        cache: root of the store that the run used.
        progress: where the reading of data is shown.

    Raises:
        ArtifactError: the set does not say how it was made, no filter did, or the store has lost
            what was measured.
    """
    config = distilled.card.get("config")
    if not isinstance(config, Mapping):
        raise ArtifactError(
            "The distilled set has no spectra: its card does not say how it was made."
        )
    recipe = assemble(prune(Recipe, config), where="the card's recipe")
    method = methods.build(recipe)
    term_of(method)
    return picture(
        recipe,
        method,
        read(recipe.data, data_root, cache, progress or Progress()),
        Store(cache),
        distilled,
    )


def term_of(method: Method) -> SpectralFilterMatching:
    """The term of a method that compares correlations through a filter.

    Raises:
        ArtifactError: it has none.
    """
    term = next((term for term in method.terms if isinstance(term, SpectralFilterMatching)), None)
    if term is None:
        filtering = [
            name
            for name in methods.names()
            if any(
                isinstance(one, SpectralFilterMatching)
                for one in methods.get(name).objective(method.recipe)
            )
        ]
        raise ArtifactError(
            f"There are no spectra to show: they are those of feature correlations, which method '{method.name}' "
            f"neither measures nor matches; {' and '.join(filtering)} do. Without --spectrum the set itself is shown."
        )
    if method.recipe.real == "sampled":
        raise ArtifactError(
            "There are no spectra to show: with 'real: sampled' nothing of the real images was measured."
        )
    return term


def drawn_of(method: Method) -> bool:
    """Whether there are spectra to draw; see `term_of`."""
    try:
        term_of(method)
    except ArtifactError:
        return False
    return True


def picture(
    recipe: Recipe,
    method: Method,
    data: ImageData,
    store: Store,
    distilled: Distilled,
    pool: WorkerPool | None = None,
) -> Image.Image:
    """Spectra of every layer that each observer listens to, and the filter at the end of the
    synthesis.

    Args:
        recipe: the run.
        method: its method.
        data: the real data.
        store: where statistics and weights are kept.
        distilled: the set.
        pool: hosts `Worker`, whose devices this process may not have; absent: computed in this
            process.

    Raises:
        ArtifactError: see `from_distilled`.
        DataError: the real data are not those that it was distilled from.
    """
    term = term_of(method)
    group = method.group_of(term)
    known = distilled.card.get("data", {}).get("fingerprint", data.fingerprint)
    if known != data.fingerprint:
        raise DataError(
            f"The set was distilled from other data than '{recipe.data.name}' holds now: fingerprint {known[:12]} wanted, "
            f"{data.fingerprint[:12]} found."
        )
    found = {
        network_id: _real(recipe, data, store, network_id, term)
        for network_id in network_ids(recipe, group)
    }
    for network_id in [network_id for network_id, real in found.items() if real is None]:
        raise ArtifactError(
            f"There are no spectra to show: what observer {network_id.label} learned or measured "
            f"of '{data.name}' is not in the store '{store.root}' (any more); `--cache` names "
            "another store, and running the recipe again measures again."
        )
    if pool is None:
        here = recipe.resources.model_copy(update={"workers": 0, "gpus_per_worker": 0.0})
        pool = LocalPool(here, Observers, recipe, DatasetInfo.of(data), devices.choose(here))
    images = pool.share((distilled.images, distilled.hard_labels))
    states = {network_id: _weights(recipe, data, store, network_id) for network_id in found}
    items = [
        (network_id, None if state is None else pool.share(state), images, term.distance.matrices)
        for network_id, state in states.items()
    ]
    layers: list[LayerSpectrum] = []
    for (network_id, real), (names, synthetic) in zip(
        found.items(), pool.map("hear", items), strict=True
    ):
        names = [f"{network_id.label}: {name}" for name in names] if len(found) > 1 else names
        layers += spectra(names, real or (), cast(tuple[Covariance, ...], synthetic))
    title = f"{recipe.name}: {method.name} on {data.name}, {len(distilled)} images"
    return chart(layers, term.filters(_end(recipe, distilled)).matrix, title=title)


def _real(
    recipe: Recipe,
    data: ImageData,
    store: Store,
    network_id: NetworkId,
    term: SpectralFilterMatching,
) -> tuple[Covariance, ...] | None:
    """What a member measured, or None; a trained one that is gone counts as absent too."""
    trained = recipe.network_group(network_id.group).trained
    if trained and _weights(recipe, data, store, network_id) is None:
        return None
    return cast(
        tuple[Covariance, ...] | None,
        measure.kept(recipe, data, store, term.distance.matrices, network_id),
    )


def _weights(
    recipe: Recipe, data: ImageData, store: Store, network_id: NetworkId
) -> dict[str, torch.Tensor] | None:
    if not recipe.network_group(network_id.group).trained:
        return None
    one = squeeze.found(recipe, data, store, network_id)
    return None if one is None else one.state


def _end(recipe: Recipe, distilled: Distilled) -> Context:
    """The last step of the last block."""
    units = distilled.hard_labels[:: recipe.synthetic.expansion]
    count = len(blocks(units, recipe.synthesis.block, recipe.synthesis.order))
    return Context(progress=1 - 1 / max(recipe.synthesis.steps, 1), block=count - 1, blocks=count)
