"""Features of real and synthetic images in the plane: do synthetic ones lie among real ones?

Features are the input of the classifier of a network that was trained on real images. In a t-SNE or
UMAP picture only distances between neighbours are meaningful, not those between clusters. A number
that does not depend on the picture is reported with it: the share of real images whose nearest
synthetic image, in feature space, is of the same class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rayd.analyses.base import PALETTE, Analysis, Subject
from rayd.data.images import ImageShape
from rayd.errors import ConfigError, unknown
from rayd.networks import FeatureExtractor, LayerRole

METHODS = ("tsne", "umap", "pca")
"""Ways to embed; `umap` needs the package umap-learn."""
SHOWN = 10
"""Maximum number of classes to draw."""


@torch.no_grad()
def features(network: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Inputs of a network's classifier.

    Args:
        network: any module with a linear classifier; used in its current mode.
        images: network input (n, C, H, W).
        batch_size: images of a forward pass.

    Returns:
        (n, d), float32 on the CPU.

    Raises:
        ConfigError: the network has no linear layer.
    """
    extractor = FeatureExtractor(network, {LayerRole.FEATURES}, ImageShape(*images.shape[1:]))
    device = next(network.parameters()).device
    parts = []
    for part in torch.split(images, batch_size):
        (found,) = extractor(part.to(device)).layers[LayerRole.FEATURES]
        parts.append(found.float().cpu())
    return torch.cat(parts)


def check_available(how: str) -> None:
    """Refuse an embedding that is unknown or whose package is missing, before computing features.

    Raises:
        ConfigError: it is.
    """
    if how not in METHODS:
        raise ConfigError(unknown("embedding", how, list(METHODS)))
    if how == "umap":
        _umap_class()


def embed(points: Tensor, how: str = "tsne", seed: int = 0) -> Tensor:
    """Embed points in the plane.

    Args:
        points: (n, d), at least three; finite.
        how: `tsne` (scikit-learn), `umap` (umap-learn) or `pca`.
        seed: of the embedding's draws.

    Returns:
        (n, 2), float32.

    Raises:
        ConfigError: the method is unknown, its package is missing, or there are too few points.
        ValueError: points are no rows of finite numbers.
    """
    check_available(how)
    if points.ndim != 2 or not points.is_floating_point():
        raise ValueError(
            f"Points must be rows of floating-point numbers (n, d). Got {tuple(points.shape)} of "
            f"{points.dtype} instead."
        )
    if not points.isfinite().all():
        raise ValueError("Points must be finite. Got NaN or infinity.")
    if len(points) < 3:
        raise ConfigError(f"An embedding needs at least 3 points. Got {len(points)}.")
    values = points.detach().cpu().double().numpy()
    if how == "umap":
        return _tensor(_umap(values, seed))
    from sklearn.decomposition import PCA

    # distances of the leading components are close to those of all, in a fraction of the time
    leading = min(50, *values.shape)
    reduced = PCA(leading, random_state=seed).fit_transform(values)
    if how == "pca":
        return _tensor(reduced[:, :2])
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(values) - 1) / 3)
    method = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    return _tensor(method.fit_transform(reduced))


def covered(real: Tensor, labels: Tensor, synthetic: Tensor, theirs: Tensor) -> float:
    """Share of real points whose nearest synthetic point has the same label.

    Args:
        real: features (n, d).
        labels: class indices (n,).
        synthetic: features (m, d).
        theirs: class indices (m,).
    """
    nearest = torch.cdist(real.double(), synthetic.double()).argmin(1)
    return float((theirs[nearest] == labels).double().mean())


def analyse(subject: Subject) -> Analysis:
    """Embed real and synthetic images; compare their coverage with that of random images."""
    how = subject.options.how or "tsne"
    check_available(how)
    real, labels = subject.sample()
    network = subject.fitted(real, labels)
    found = features(network, real)
    synthetic = features(network, subject.distilled.images)
    theirs = subject.distilled.hard_labels
    shares = {"distilled": covered(found, labels, synthetic, theirs)}
    drawn = [subject.random(seed) for seed in range(5)]
    each = [covered(found, labels, features(network, x), y) for x, y in drawn]
    shares["random"] = float(np.mean(each))
    subject.progress.log(f"{len(found) + len(synthetic):,} features are embedded by {_name(how)}")
    points = embed(torch.cat([found, synthetic]), how, subject.options.seed)
    picture = chart(
        points[: len(found)],
        labels,
        points[len(found) :],
        theirs,
        subject.distilled.class_names,
        title=f"{subject.title}: features by {_name(how)}",
    )
    # all of them are embedded, but there are no more colours that can be distinguished
    drawn_classes = ""
    if subject.distilled.classes > SHOWN:
        drawn_classes = f" Of {subject.distilled.classes} classes, the first {SHOWN} are drawn."
    return Analysis(
        name="embedding",
        title=f"Features of real and synthetic images: {subject.title}",
        explanation=(
            f"{len(real)} real images (dots) and the synthetic ones (stars), as the last features "
            f"of a {subject.network.label} trained on the real ones, embedded by {_name(how)}."
            f"{drawn_classes} Synthetic images that represent their class lie in or near the "
            "middle of its cloud."
        ),
        picture=picture,
        lines=(
            "real images whose nearest synthetic image is of their class:",
            f"  distilled     {shares['distilled']:.3f}",
            f"  random        {shares['random']:.3f}  (real images of the same number, 5 draws)",
        ),
        numbers={"covered": shares, "real_images": len(real), "embedding": how},
    )


def chart(
    real: Tensor,
    labels: Tensor,
    synthetic: Tensor,
    theirs: Tensor,
    names: Sequence[str],
    title: str = "",
) -> Image.Image:
    """Draw embedded real points as dots and synthetic ones as stars, coloured by class.

    Args:
        real: (n, 2).
        labels: class indices (n,).
        synthetic: (m, 2).
        theirs: class indices (m,).
        names: of the classes; the first `SHOWN` are drawn.
        title: heading.
    """
    from rayd.drawing import as_image, new_figure, styled

    # the more stars, the smaller, so that they do not hide each other
    size = float(np.clip(9000 / max(len(theirs), 1), 25, 220))
    with styled():
        figure = new_figure(820, 640)
        axes = figure.subplots()
        for label, name in enumerate(names[:SHOWN]):
            colour = PALETTE[label % len(PALETTE)]
            dots = real[labels == label]
            axes.scatter(dots[:, 0], dots[:, 1], s=12, color=colour, alpha=0.5, linewidths=0)
            stars = synthetic[theirs == label]
            axes.scatter(
                stars[:, 0],
                stars[:, 1],
                s=size,
                color=colour,
                marker="*",
                edgecolors="black",
                linewidths=0.8,
                label=name,
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(title)
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.legend(loc="outside right upper", frameon=False, title="class")
        return as_image(figure)


def _umap_class() -> Any:
    try:
        from umap import UMAP  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigError(
            "This embedding needs umap-learn: pip install umap-learn; 'tsne' and 'pca' need no "
            "further package."
        ) from error
    return UMAP


def _umap(values: Any, seed: int) -> Any:
    neighbours = min(15, len(values) - 1)
    method = _umap_class()(n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return method.fit_transform(values)


def _name(how: str) -> str:
    return {"tsne": "t-SNE", "umap": "UMAP", "pca": "principal components"}[how]


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
