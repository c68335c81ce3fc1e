"""Loss terms on plain tensors: use them in any torch loop, with features of any network.

Each term has an object form, whose arguments are its settings, and a functional form:

    loss = rayd.terms.MeanMatching()(real, synthetic, real_labels, labels)
    loss = rayd.terms.mean_matching(real, synthetic, real_labels, labels)

These classes are those of `rayd.objectives` and give the same numbers; they can be terms of an own
method, too. Like there, a value is unweighted: `weight` is the factor in a method's objective.

Symbols in this module:

    N, M    real and synthetic images          C       classes
    d       dimension of a feature vector      h, w    height and width of a map
    c       channels of a map
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from rayd import objectives
from rayd.config.choices import LayerRole
from rayd.objectives.terms import Batch, Context, RealStatistics, Term

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rayd.networks import Observation

__all__ = [
    "AttentionMatching",
    "Calibration",
    "Centralization",
    "CharacteristicFunctionMatching",
    "ClassAware",
    "CovarianceMatching",
    "CrossEntropy",
    "CurriculumFilterMatching",
    "Densification",
    "Flatness",
    "GradientMatching",
    "MeanMatching",
    "MomentMatching",
    "NormalizationMatching",
    "RidgeRegression",
    "SpectralFilterMatching",
    "StatisticMatching",
    "Term",
    "attention_matching",
    "calibration",
    "centralization",
    "characteristic_function_matching",
    "class_aware",
    "covariance_matching",
    "cross_entropy",
    "curriculum_filter_matching",
    "densification",
    "flatness",
    "gradient_matching",
    "mean_matching",
    "moment_matching",
    "normalization_matching",
    "ridge_regression",
    "spectral_filter_matching",
    "statistic_matching",
]

Features: TypeAlias = "Tensor | Sequence[Tensor] | Mapping[str, Tensor | Sequence[Tensor]]"
"""A tensor with samples first; a sequence of them, one a layer; or these by layer role, for terms
that read layers of several roles.
"""


class _ComparesStatistics:
    """Call of terms that compare statistics of real and synthetic features."""

    specs: Any
    layer_roles: Any
    optional: Any

    def __call__(
        self,
        real: Any,
        synthetic: Any,
        real_labels: Any = None,
        labels: Any = None,
        *,
        classes: int | None = None,
        generator: torch.Generator | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """The unweighted value, a scalar, differentiable in `synthetic`.

        Args:
            real: features of real images, which get no gradient; or what `measure` returned.
            synthetic: features of synthetic images, of the same shape but for their number.
            real_labels: class indices (N,) of the real images; absent with measured statistics.
            labels: class indices (M,) of the synthetic images.
            classes: number of classes; by default the largest label and one. Give it in a loop on
                a GPU, where finding it waits for the device.
            generator: makes the draws of terms that draw; by default torch's global one.
            context: what a term may depend on besides, such as its memory between calls.

        Raises:
            TypeError: an argument is missing, or a layer role must be named.
        """
        if _is_observation(synthetic):
            # a call of the engine, by position: statistics, observation, labels, context
            return super().__call__(real, synthetic, real_labels, labels)  # type: ignore[misc, no-any-return]
        if labels is None:
            raise TypeError(f"{type(self).__name__} needs the labels of the synthetic images.")
        statistics = real
        if not _is_measured(real):
            if real_labels is None:
                raise TypeError(f"{type(self).__name__} needs the labels of the real images.")
            if classes is None:
                classes = 1 + int(max(real_labels.max(), labels.max()))
            statistics = self._sampled(real, real_labels, classes, generator)
            counts = real_labels.bincount(minlength=classes)
        else:
            classes, counts = _counts(statistics)
        if context is None:
            context = Context(generator=_draws(generator), class_counts=counts, blocks=1, memory={})
        seen = self._observed(synthetic, classes)
        return super().__call__(statistics, seen, labels, context)  # type: ignore[misc, no-any-return]

    def measure(
        self,
        batches: Iterable[tuple[Any, Tensor]],
        *,
        classes: int,
        generator: torch.Generator | None = None,
    ) -> RealStatistics:
        """Statistics of real features over many batches, accumulated in float64.

        Args:
            batches: pairs of features and class indices (N,). A length scale that is a median of
                distances is taken of the first batch.
            classes: number of classes.
            generator: makes the draws of terms that draw.

        Returns:
            What a call takes in place of real features.
        """
        import torch

        total: dict[Any, Any] = {}
        with torch.no_grad():
            for features, labels in batches:
                seen = self._observed(features, classes)
                for spec in self.specs:
                    if spec not in total:
                        total[spec] = _empty(spec, seen, classes, generator)
                    spec.update(total[spec], seen, labels)
            return {
                spec: tuple(layer.to(dtype=torch.float32) for layer in layers)
                for spec, layers in total.items()
            }

    def _sampled(
        self, real: Any, labels: Tensor, classes: int, generator: torch.Generator | None
    ) -> RealStatistics:
        """Statistics of one real batch, in its own precision."""
        import torch

        if not self.specs:
            return {}
        with torch.no_grad():
            seen = self._observed(real, classes)
            statistics = {}
            for spec in self.specs:
                empty = _empty(spec, seen, classes, generator)
                first = seen.layers[spec.layer_role]
                if first:
                    empty = tuple(layer.to(first[0].device, first[0].dtype) for layer in empty)
                part = spec.of(seen, labels, empty)
                statistics[spec] = part
            return statistics

    def _observed(self, features: Any, classes: int) -> Observation:
        """Tensors as the output of a network."""
        from torch import Tensor

        from rayd.networks import Observation

        roles = {spec.layer_role for spec in self.specs} | set(self.layer_roles)
        if not isinstance(features, Mapping):
            if len(roles) != 1:
                names = " and ".join(f"'{role.value}'" for role in sorted(roles))
                raise TypeError(
                    f"{type(self).__name__} reads layers of several roles: give a mapping with "
                    f"{names}. Got {type(features).__name__} instead."
                )
            features = {next(iter(roles)): features}
        layers: dict[LayerRole, tuple[Tensor, ...]] = dict.fromkeys(roles, ())
        for name, given in features.items():
            layers[LayerRole(name)] = (given,) if isinstance(given, Tensor) else tuple(given)
        missing = [role.value for role in roles - set(self.optional) if not layers[role]]
        if missing:
            raise TypeError(f"{type(self).__name__} got no features of '{missing[0]}'.")
        first = next(tensor for tensors in layers.values() for tensor in tensors)
        return Observation(first.new_zeros(len(first), classes), layers, first)


class _OfLogits:
    """Call of terms that read logits and labels."""

    def __call__(
        self, logits: Any, labels: Any, _labels: Any = None, _context: Any = None, **given: Any
    ) -> Tensor:
        """The unweighted value, a scalar, differentiable in the logits.

        Args:
            logits: of a trained network on the synthetic images, (M, C).
            labels: class indices (M,).
            given: facts of the network, such as its `accuracy`; two more positions are the engine's.
        """
        if _is_observation(labels):
            return super().__call__(logits, labels, _labels, _context)  # type: ignore[misc, no-any-return]
        seen = _observation(logits=logits)
        return super().__call__({}, seen, labels, Context(**given))  # type: ignore[misc, no-any-return]


class MeanMatching(_ComparesStatistics, objectives.MeanMatching):  # type: ignore[misc]
    """Squared distances of class means, summed over classes (DM).

    Features are vectors (N, d), or maps (N, c, h, w), which are flattened.

    >>> import torch
    >>> real = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    >>> synthetic = torch.tensor([[0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    >>> loss = MeanMatching()(real, synthetic, torch.tensor([0, 0, 1]), torch.tensor([0, 1]))
    >>> loss.item()
    5.0
    """


class AttentionMatching(_ComparesStatistics, objectives.AttentionMatching):  # type: ignore[misc]
    """Squared distances of class means of normalised attention maps (DataDAM).

    Features are the outputs (N, c, h, w) of all blocks of a network, in order; as in the paper, the
    last one is left out.

    >>> import torch
    >>> maps = [torch.rand(4, 3, 8, 8), torch.rand(4, 6, 4, 4)]
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> AttentionMatching()(maps, maps, labels, labels).item()
    0.0
    """


class NormalizationMatching(_ComparesStatistics, objectives.NormalizationMatching):  # type: ignore[misc]
    """Distances of means and of variances, channel by channel, over all images (SRe2L).

    Features are the inputs (N, c, h, w) of normalisation layers, one a layer.

    >>> import torch
    >>> maps = [torch.rand(4, 3, 8, 8), torch.rand(4, 6, 4, 4)]
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> NormalizationMatching()(maps, maps, labels, labels).item() < 1e-4
    True
    """


class MomentMatching(_ComparesStatistics, objectives.MomentMatching):  # type: ignore[misc]
    """Distances of means and of variances of inputs of normalisations and convolutions (EDC).

    Features are a mapping from `bn_inputs` (may be missing) and `conv_inputs` to maps
    (N, c, h, w), one a layer. With `momentum` above 0 a `context` that is given again keeps
    the smoothed statistics.

    >>> import torch
    >>> maps = {"conv_inputs": [torch.rand(4, 3, 8, 8)], "bn_inputs": [torch.rand(4, 6, 8, 8)]}
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> MomentMatching(momentum=0, drop=0)(maps, maps, labels, labels).item() < 1e-5
    True
    """


class CovarianceMatching(_ComparesStatistics, objectives.CovarianceMatching):  # type: ignore[misc]
    """Squared distances of local covariances, class by class (IID).

    Features are the last maps (N, c, h, w) of a network; a class needs two images.

    >>> import torch
    >>> maps = torch.rand(4, 3, 2, 2)
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> CovarianceMatching()(maps, maps, labels, labels).item()
    0.0
    """


class StatisticMatching(_ComparesStatistics, objectives.StatisticMatching):  # type: ignore[misc]
    """Distances of a statistic of your own: a subclass of `rayd.statistics.Statistic`.

    Features are those that its transform takes: with `Flat`, vectors (N, d) or maps.

    >>> import torch
    >>> features = torch.rand(8, 5)
    >>> labels = torch.arange(8) % 2
    >>> StatisticMatching(of="Moments")(features, features, labels, labels).item()
    0.0
    """


class Centralization(_ComparesStatistics, objectives.Centralization):
    """Squared distances of features from the centres of their classes (IID).

    Features are vectors (N, d). Real ones count with `centre="real"` alone; else give None.

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

            # no statistic of real features is compared: any will do
            real = synthetic[:1].detach() if not self.specs else None
            real_labels = torch.zeros(1, dtype=torch.long, device=synthetic.device)
            if real is None:
                raise TypeError("Centralization(centre='real') needs features of real images.")
        return super().__call__(real, synthetic, real_labels, labels, **options)


class CharacteristicFunctionMatching(  # type: ignore[misc]
    _ComparesStatistics, objectives.CharacteristicFunctionMatching
):
    """Distances of characteristic functions, class by class (NCFM, CSDM).

    Features are vectors (N, d). Frequencies are drawn by `generator`, at every call unless the real
    side was measured.

    >>> import torch
    >>> features = torch.rand(8, 5)
    >>> labels = torch.arange(8) % 2
    >>> term = CharacteristicFunctionMatching(scale=1.0, frequencies=64)
    >>> term(features, features, labels, labels).item() < 1e-4
    True
    """


class SpectralFilterMatching(_ComparesStatistics, objectives.SpectralFilterMatching):  # type: ignore[misc]
    """Distances of filtered correlations of features, and of signals through the filter (UniDD).

    Features are inputs (N, c, h, w) of convolutions, one a layer, or with `layers="features"`
    vectors (N, d).

    >>> import torch
    >>> features = torch.rand(8, 5)
    >>> labels = torch.arange(8) % 2
    >>> term = SpectralFilterMatching(layers="features")
    >>> term(features, features, labels, labels).item() < 1e-4
    True
    """


class CurriculumFilterMatching(_ComparesStatistics, objectives.CurriculumFilterMatching):  # type: ignore[misc]
    """`SpectralFilterMatching` with a ridge that falls from block to block (CFM).

    The block is told by `context=Context(block=..., blocks=..., memory=...)`.

    >>> import torch
    >>> features = torch.rand(8, 5)
    >>> labels = torch.arange(8) % 2
    >>> term = CurriculumFilterMatching(layers="features")
    >>> term(features, features, labels, labels).item() < 1e-4
    True
    """


class CrossEntropy(_OfLogits, objectives.CrossEntropy):  # type: ignore[misc]
    """Cross-entropy of a trained network's logits (M, C) with class indices (M,).

    >>> import torch
    >>> round(CrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
    1.3863
    """


class Calibration(_OfLogits, objectives.Calibration):  # type: ignore[misc]
    """Cross-entropy of logits (M, C) and class indices (M,), over classes, as in NCFM.

    >>> import torch
    >>> bool(Calibration()(torch.zeros(2, 4), torch.tensor([0, 3])) > 0)
    True
    """


class ClassAware(_OfLogits, objectives.ClassAware):  # type: ignore[misc]
    """`Calibration` times the accuracy of the network on real images (CSDM).

    The accuracy is given with the call, a fraction.

    >>> import torch
    >>> bool(ClassAware()(torch.zeros(2, 4), torch.tensor([0, 3]), accuracy=0.9) > 0)
    True
    """


class Flatness(objectives.Flatness):
    """Divergence of logits (M, C) from those of the moving average of the images (EDC).

    >>> import torch
    >>> logits = torch.rand(2, 4)
    >>> round(Flatness()(logits, logits).item(), 6)
    0.0
    """

    def __call__(
        self, logits: Any, average_logits: Any, labels: Any = None, context: Any = None
    ) -> Tensor:
        """The unweighted value, a scalar, differentiable in the logits.

        Args:
            logits: of a trained network on the images, (M, C).
            average_logits: the same of the moving average of the images; gets no gradient.
            labels: has no effect; as the engine calls terms.
            context: as the engine gives it.
        """
        if _is_observation(average_logits):
            return super().__call__(logits, average_logits, labels, context)
        context = Context(average_logits=lambda: average_logits)
        return super().__call__({}, _observation(logits=logits), logits, context)


class Densification(objectives.Densification):
    """Divergence of the spectra of the images of each class from softer ones (GVBSM).

    >>> import torch
    >>> images = torch.rand(4, 3, 8, 8)
    >>> bool(Densification()(images, torch.tensor([0, 0, 1, 1])) >= 0)
    True
    """

    def __call__(  # type: ignore[override]
        self, images: Any, labels: Any, _labels: Any = None, _context: Any = None
    ) -> Tensor:
        """The unweighted value, a scalar, differentiable in the images.

        Args:
            images: normalised, (M, channels, h, w).
            labels: class indices (M,).
        """
        if _is_observation(labels):
            return super().__call__(images, labels, _labels, _context)
        return super().__call__({}, _observation(images=images), labels, Context())


class GradientMatching(objectives.GradientMatching):
    """Distances of the gradients that real and synthetic images give a network (DC).

    >>> import torch
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> images = torch.rand(4, 1, 2, 2)
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> GradientMatching()(images, images, labels, labels, network=network).item() < 1e-2
    True
    """

    def __call__(  # type: ignore[override]
        self,
        real: Any,
        synthetic: Any,
        real_labels: Any,
        labels: Any,
        *,
        network: nn.Module | None = None,
    ) -> Tensor:
        """The unweighted value, a scalar, differentiable in the synthetic images.

        Args:
            real: normalised real images (N, channels, h, w), of every class among `labels` one.
            synthetic: normalised synthetic images (M, channels, h, w).
            real_labels: class indices (N,).
            labels: class indices (M,).
            network: maps images to logits; stays as it is.
        """
        if _is_observation(synthetic):
            return super().__call__(real, synthetic, real_labels, labels)
        if network is None:
            raise TypeError("GradientMatching needs the network whose gradients are compared.")
        batch = Batch(real, real_labels, _no_look)
        seen = _observation(images=synthetic)
        return super().__call__({}, seen, labels, Context(network=network, batch=batch))


class RidgeRegression(objectives.RidgeRegression):
    """Loss on real features of a ridge regression that was fitted to synthetic ones (FRePo).

    >>> import torch
    >>> features = torch.eye(4)
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> right = RidgeRegression()(features, features, labels, labels)
    >>> wrong = RidgeRegression()(features, features, labels, 1 - labels)
    >>> bool(right < wrong)
    True
    """

    def __call__(  # type: ignore[override]
        self,
        real: Any,
        synthetic: Any,
        real_labels: Any,
        labels: Any,
        *,
        classes: int | None = None,
    ) -> Tensor:
        """The unweighted value, a scalar, differentiable in features and soft labels.

        Args:
            real: feature vectors (N, d).
            synthetic: feature vectors (M, d).
            real_labels: class indices (N,).
            labels: class indices (M,), or learned ones (M, C).
            classes: number of classes; by default that of learned labels, or the largest index
                and one.
        """
        if _is_observation(synthetic):
            return super().__call__(real, synthetic, real_labels, labels)
        if classes is None:
            learned = labels.is_floating_point()
            classes = 1 + int(real_labels.max()) if not learned else labels.shape[1]
            classes = classes if learned else max(classes, 1 + int(labels.max()))

        def look() -> Observation:
            return _observation(features=real, classes=classes)

        seen = _observation(features=synthetic, classes=classes)
        # a batch is there for its labels and features alone; no network is asked
        context = Context(network=_NO_NETWORK, batch=Batch(real, real_labels, look))
        return super().__call__({}, seen, labels, context)


_NO_NETWORK: Any = object()


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


def _functional(term: type[Any], name: str, calls: tuple[str, ...]) -> Any:
    """The function of a term: arguments of its call, then its settings by keyword."""

    def function(*tensors: Any, **options: Any) -> Tensor:
        given = {key: options.pop(key) for key in calls if key in options}
        value: Tensor = term(**options)(*tensors, **given)
        return value

    function.__name__ = name
    function.__qualname__ = name
    function.__doc__ = (
        f"Functional form of `{term.__name__}`: its tensors, then its settings by keyword."
    )
    return function


_COMPARED = ("real_labels", "labels", "classes", "generator", "context")

attention_matching = _functional(AttentionMatching, "attention_matching", _COMPARED)
calibration = _functional(Calibration, "calibration", ("labels",))
centralization = _functional(Centralization, "centralization", _COMPARED)
characteristic_function_matching = _functional(
    CharacteristicFunctionMatching, "characteristic_function_matching", _COMPARED
)
class_aware = _functional(ClassAware, "class_aware", ("labels", "accuracy"))
covariance_matching = _functional(CovarianceMatching, "covariance_matching", _COMPARED)
cross_entropy = _functional(CrossEntropy, "cross_entropy", ("labels",))
curriculum_filter_matching = _functional(
    CurriculumFilterMatching, "curriculum_filter_matching", _COMPARED
)
densification = _functional(Densification, "densification", ("labels",))
flatness = _functional(Flatness, "flatness", ("average_logits",))
gradient_matching = _functional(
    GradientMatching, "gradient_matching", ("real_labels", "labels", "network")
)
moment_matching = _functional(MomentMatching, "moment_matching", _COMPARED)
normalization_matching = _functional(NormalizationMatching, "normalization_matching", _COMPARED)
ridge_regression = _functional(
    RidgeRegression, "ridge_regression", ("real_labels", "labels", "classes")
)
spectral_filter_matching = _functional(
    SpectralFilterMatching, "spectral_filter_matching", _COMPARED
)
statistic_matching = _functional(StatisticMatching, "statistic_matching", _COMPARED)


def _is_observation(value: Any) -> bool:
    """Whether a term is called by the engine, on the output of an observer."""
    return hasattr(value, "layers") and hasattr(value, "logits")


def _is_measured(real: Any) -> bool:
    """Whether these are statistics, not features by layer role."""
    return isinstance(real, Mapping) and not any(isinstance(key, str) for key in real)


def _counts(statistics: RealStatistics) -> tuple[int, Any]:
    """Number of classes, and images of each, of measured statistics."""
    for layers in statistics.values():
        for layer in layers:
            count: Any = getattr(layer, "count", None)
            if count is not None and len(count) > 1:
                return len(count), count
    return 1, None


def _empty(
    spec: Any, seen: Observation, classes: int, generator: torch.Generator | None
) -> tuple[Any, ...]:
    """Neutral elements of a statistic, for the layers of an observation."""
    import torch

    shapes = [tuple(layer.shape[1:]) for layer in seen.layers[spec.layer_role]]
    if not spec.draws:
        empty = spec.empty(classes, shapes)
    else:
        resolved = spec.resolved([seen]) if shapes else ()
        empty = spec.empty(classes, shapes, generator or torch.default_generator, resolved)
    home = seen.images.device
    return tuple(layer.to(home) for layer in empty)


def _draws(generator: torch.Generator | None) -> Any:
    """Generators by purpose, as terms take them."""
    import torch

    return lambda purpose: generator or torch.default_generator


def _no_look() -> Any:
    raise RuntimeError("Gradients are of images; features of them are not at hand.")


def _observation(
    logits: Any = None, images: Any = None, features: Any = None, classes: int = 1
) -> Observation:
    """The output of a network, of what is known of it."""
    from rayd.networks import Observation

    layers: dict[LayerRole, tuple[Tensor, ...]] = {}
    if features is not None:
        layers[LayerRole.FEATURES] = (features,)
    if logits is None:
        first = features if features is not None else images
        logits = first.new_zeros(len(first), classes)
    return Observation(logits, layers, logits if images is None else images)
