"""Terms that compare statistics of real and synthetic features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayd import objectives
from rayd.config.choices import LayerRole
from rayd.terms import checking
from rayd.terms.calling import COMPARED, ComparesStatistics, functional

if TYPE_CHECKING:
    from torch import Tensor


class MeanMatching(ComparesStatistics, objectives.MeanMatching):  # type: ignore[misc]
    """Squared distances of class means, summed over classes (DM).

    Features are vectors (N, d), or maps (N, c, h, w), which are flattened.

    >>> import torch
    >>> real = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    >>> synthetic = torch.tensor([[0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    >>> loss = MeanMatching()(real, synthetic, torch.tensor([0, 0, 1]), torch.tensor([0, 1]))
    >>> loss.item()
    5.0
    """


def mean_matching(
    real: Any, synthetic: Any, real_labels: Tensor, labels: Tensor, *, classes: int | None = None
) -> Tensor:
    """Functional form of `MeanMatching`.

    >>> import torch
    >>> features = torch.eye(2)
    >>> mean_matching(features, -features, torch.arange(2), torch.arange(2)).item()
    8.0
    """
    return MeanMatching()(real, synthetic, real_labels, labels, classes=classes)


class AttentionMatching(ComparesStatistics, objectives.AttentionMatching):  # type: ignore[misc]
    """Squared distances of class means of normalised attention maps (DataDAM).

    Features are the outputs (N, c, h, w) of all blocks of a network, in order; as in the paper, the
    last one is left out.

    >>> import torch
    >>> maps = [torch.rand(4, 3, 8, 8), torch.rand(4, 6, 4, 4)]
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> AttentionMatching()(maps, maps, labels, labels).item()
    0.0
    """


attention_matching = functional(AttentionMatching, "attention_matching", COMPARED)


class NormalizationMatching(ComparesStatistics, objectives.NormalizationMatching):  # type: ignore[misc]
    """Distances of means and of variances, channel by channel, over all images (SRe2L).

    Features are the inputs (N, c, h, w) of normalisation layers, one tensor per layer.

    >>> import torch
    >>> maps = [torch.rand(4, 3, 8, 8), torch.rand(4, 6, 4, 4)]
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> NormalizationMatching()(maps, maps, labels, labels).item() < 1e-4
    True
    """


normalization_matching = functional(NormalizationMatching, "normalization_matching", COMPARED)


class MomentMatching(ComparesStatistics, objectives.MomentMatching):  # type: ignore[misc]
    """Distances of means and of variances of inputs of normalisations and convolutions (EDC).

    Features are a mapping from `bn_inputs` (may be missing) and `conv_inputs` to maps
    (N, c, h, w), one per layer. With `momentum` above 0, the `context` keeps the smoothed
    statistics if it is passed again.

    >>> import torch
    >>> maps = {"conv_inputs": [torch.rand(4, 3, 8, 8)], "bn_inputs": [torch.rand(4, 6, 8, 8)]}
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> MomentMatching(momentum=0, drop=0)(maps, maps, labels, labels).item() < 1e-5
    True
    """


moment_matching = functional(MomentMatching, "moment_matching", COMPARED)


class CovarianceMatching(ComparesStatistics, objectives.CovarianceMatching):  # type: ignore[misc]
    """Squared distances of local covariances, class by class (IID).

    Features are the last maps (N, c, h, w) of a network; a class needs two images.

    >>> import torch
    >>> maps = torch.rand(4, 3, 2, 2)
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> CovarianceMatching()(maps, maps, labels, labels).item()
    0.0
    """


covariance_matching = functional(CovarianceMatching, "covariance_matching", COMPARED)


class StatisticMatching(ComparesStatistics, objectives.StatisticMatching):  # type: ignore[misc]
    """Distances of a statistic of your own: a subclass of `rayd.statistics.Statistic`.

    Features are those that its transform takes: with `Flat`, vectors (N, d) or maps.

    >>> import torch
    >>> features = torch.rand(8, 5)
    >>> labels = torch.arange(8) % 2
    >>> StatisticMatching(of="Moments")(features, features, labels, labels).item()
    0.0
    """


statistic_matching = functional(StatisticMatching, "statistic_matching", COMPARED)


class Centralization(ComparesStatistics, objectives.Centralization):
    """Squared distances of features from the centres of their classes (IID).

    Features are vectors (N, d). Real ones are used only with `centre="real"`; otherwise, pass None.

    >>> import torch
    >>> features = torch.tensor([[0.0], [2.0], [5.0]])
    >>> Centralization()(None, features, labels=torch.tensor([0, 0, 1])).item()
    2.0
    """

    def __call__(  # type: ignore[override]
        self,
        real: Any,
        synthetic: Any,
        real_labels: Any = None,
        labels: Any = None,
        **options: Any,
    ) -> Tensor:
        """See `MeanMatching`."""
        if real is None and labels is not None:
            import torch

            if self.specs:
                raise TypeError("Centralization(centre='real') needs features of real images.")
            # statistics of real features are not used, so any will do
            given = self._layers(synthetic)[LayerRole.FEATURES][0]
            real = checking.vectors(given, "Features of Centralization")[:1].detach()
            real_labels = torch.zeros(1, dtype=torch.long, device=real.device)
        return super().__call__(real, synthetic, real_labels, labels, **options)


centralization = functional(Centralization, "centralization", COMPARED)


class CharacteristicFunctionMatching(  # type: ignore[misc]
    ComparesStatistics, objectives.CharacteristicFunctionMatching
):
    """Distances of characteristic functions, class by class (NCFM, CSDM).

    Features are vectors (N, d). Frequencies are drawn with `generator` in every call, unless the
    real side was measured.

    >>> import torch
    >>> features = torch.rand(8, 5)
    >>> labels = torch.arange(8) % 2
    >>> term = CharacteristicFunctionMatching(scale=1.0, frequencies=64)
    >>> term(features, features, labels, labels).item() < 1e-4
    True
    """


characteristic_function_matching = functional(
    CharacteristicFunctionMatching, "characteristic_function_matching", COMPARED
)


class SpectralFilterMatching(ComparesStatistics, objectives.SpectralFilterMatching):  # type: ignore[misc]
    """Distances of filtered correlations of features, and of signals through the filter (UniDD).

    Features are inputs (N, c, h, w) of convolutions, one per layer, or with
    `layers="features"` vectors (N, d).

    >>> import torch
    >>> features = torch.rand(8, 5)
    >>> labels = torch.arange(8) % 2
    >>> term = SpectralFilterMatching(layers="features")
    >>> term(features, features, labels, labels).item() < 1e-4
    True
    """


spectral_filter_matching = functional(SpectralFilterMatching, "spectral_filter_matching", COMPARED)


class CurriculumFilterMatching(ComparesStatistics, objectives.CurriculumFilterMatching):  # type: ignore[misc]
    """`SpectralFilterMatching` with a ridge that decreases from block to block (CFM).

    The block is given by `context=Context(block=..., blocks=..., memory=...)`.

    >>> import torch
    >>> features = torch.rand(8, 5)
    >>> labels = torch.arange(8) % 2
    >>> term = CurriculumFilterMatching(layers="features")
    >>> term(features, features, labels, labels).item() < 1e-4
    True
    """


curriculum_filter_matching = functional(
    CurriculumFilterMatching, "curriculum_filter_matching", COMPARED
)
