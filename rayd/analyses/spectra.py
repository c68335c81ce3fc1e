"""Spectra of feature correlations of real and synthetic images, layer by layer.

For a method that matches correlations through a filter (CFM, UniDD), the spectra are those in its
own observers, with the filter's response (`rayd.engine.spectra_of_run`). For other methods, they
are those in a network trained on real images: a set that lacks the small eigenvalues lacks detail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rayd import methods
from rayd.analyses.base import Analysis, Subject
from rayd.data.images import ImageShape
from rayd.engine import spectra_of_run
from rayd.errors import ArtifactError, ConfigError
from rayd.layer_spectra import LayerSpectrum, chart, spectra
from rayd.networks import FeatureExtractor, LayerRole
from rayd.statistics import Covariance

WAYS = ("filter", "features")
"""Observers of the run with its filter; a network trained for the analysis."""
NAMES = 56
"""Maximum number of characters of a layer's name in the table."""


@torch.no_grad()
def covariances(
    network: nn.Module, images: Tensor, batch_size: int = 250
) -> tuple[list[str], list[Covariance]]:
    """Covariances, over images and positions, of the inputs of a network's convolutions.

    Args:
        network: any network with convolutions; used in its current mode.
        images: network input (n, C, H, W).
        batch_size: images of a forward pass.

    Returns:
        Names of the layers, and a covariance for each (with one row, for all classes).

    Raises:
        ConfigError: the network has no convolutions.
    """
    shape = ImageShape(*images.shape[1:])
    extractor = FeatureExtractor(network, {LayerRole.CONV_PATH}, shape)
    device = next(network.parameters()).device
    total: list[Covariance] = []
    for part in torch.split(images, batch_size):
        maps = extractor(part.to(device)).layers[LayerRole.CONV_PATH]
        found = []
        for layer in maps:
            vectors = layer.flatten(2).transpose(1, 2).cpu().double()
            found.append(Covariance.of_all(vectors))
        pairs = zip(total, found, strict=True)
        total = [one.merge(other) for one, other in pairs] if total else found
    return extractor.layers(LayerRole.CONV_PATH), total


def missing(layer: LayerSpectrum, share: float = 0.01) -> float:
    """Share of directions, by rank, whose synthetic variance is below `share` of the real one.

    Directions without real variance are not counted.
    """
    known = layer.real > 1e-9 * layer.real.max()
    if not bool(known.any()):
        return 0.0
    lacking = layer.synthetic[known] < share * layer.real[known]
    return float(lacking.double().mean())


def analyse(subject: Subject) -> Analysis:
    """Draw the spectra of real and synthetic features, with the filter of a method that has one."""
    how = subject.options.how
    if how is not None and how not in WAYS:
        raise ConfigError(f"Spectra are drawn of {' or '.join(WAYS)}. Got '{how}' instead.")
    if how is None:
        how = "filter" if _has_filter(subject) else "features"
    elif how == "filter" and not _has_filter(subject):
        raise ArtifactError(
            "There are no spectra to show of the run's filter: "
            f"method '{subject.recipe.method}' matches no measured feature correlations, as cfm and "
            "unidd do; 'features' draws those of a network trained for the analysis."
        )
    if how == "filter":
        found = spectra_of_run.of_distilled(
            subject.distilled, subject.data_root, subject.cache, subject.progress
        )
        return Analysis(
            name="spectra",
            title=f"Spectra and filter: {subject.title}",
            explanation=(
                "Eigenvalues of the correlations of features, by rank, of real and synthetic "
                "images in the run's observers, and the response of its filter (dashed, relative "
                "to its largest)."
            ),
            picture=found.chart(),
            lines=table(found.layers),
            numbers={"how": how, "layers": plain(found.layers)},
        )
    real, labels = subject.sample()
    network = subject.fitted(real, labels)
    names, theirs = covariances(network, real)
    _, ours = covariances(network, subject.distilled.images)
    layers = spectra(names, theirs, ours)
    return Analysis(
        name="spectra",
        title=f"Spectra of features: {subject.title}",
        explanation=(
            f"Eigenvalues of the covariance of the inputs of a {subject.network.label}'s "
            f"convolutions, by rank, over {len(real)} real images it was trained on and over the "
            "synthetic ones: low frequencies, common to all images, on the left, detail on the "
            "right."
        ),
        picture=chart(layers, title=subject.title),
        lines=table(layers),
        numbers={"how": how, "layers": plain(layers)},
    )


def table(layers: Sequence[LayerSpectrum]) -> tuple[str, ...]:
    """Format the share of missing directions, a line for each layer."""
    width = min(max(len("layer"), *(len(layer.name) for layer in layers)), NAMES)
    lines = [f"{'layer':<{width}}  directions  lacking"]
    for layer in layers:
        name = layer.name[-width:]
        lines.append(f"{name:<{width}}  {len(layer.real):>10}  {missing(layer):>7.2f}")
    lines.append("lacking: share with less than a hundredth of the real variance, by rank")
    return tuple(lines)


def plain(layers: Sequence[LayerSpectrum]) -> list[dict[str, Any]]:
    """Convert spectra to plain JSON values."""
    return [
        {
            "name": layer.name,
            "real": layer.real.tolist(),
            "synthetic": layer.synthetic.tolist(),
            "lacking": missing(layer),
        }
        for layer in layers
    ]


def _has_filter(subject: Subject) -> bool:
    try:
        spectra_of_run.term_of(methods.build(subject.recipe))
    except ArtifactError:
        return False
    return True
