"""Calls of terms outside the engine: on features, labels and logits as plain tensors.

The engine calls a term with an observer's statistics of the real images and its output on the
synthetic ones. The classes here compute both from tensors that `rayd.terms.checking` has validated,
and forward calls of the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from rayd.config.choices import LayerRole
from rayd.objectives.terms import Context, RealStatistics
from rayd.terms import checking

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rayd.networks import Observation


class Measured(dict[Any, Any]):
    """Statistics of real features by specification, as returned by `measure`."""

    def __init__(self, statistics: Mapping[Any, Any], class_counts: Tensor):
        """Statistics, and the number of images of each class (C,), which not all statistics
        contain.
        """
        super().__init__(statistics)
        self.class_counts = class_counts


COMPARED = ("real_labels", "labels", "classes", "generator", "context")
"""Arguments of a call of `ComparesStatistics` that may be given by keyword."""


class ComparesStatistics:
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

        Features are a tensor with samples first; a sequence of tensors, one per layer; or a mapping
        of these by layer role, for terms that read layers of several roles.

        Args:
            real: features of real images, which get no gradient; or the result of `measure`.
            synthetic: features of synthetic images, of the same shape apart from their number.
            real_labels: class indices (N,) of the real images; None with measured statistics.
            labels: class indices (M,) of the synthetic images.
            classes: number of classes; by default the largest label plus one. Pass it in a loop on
                a GPU, where determining it waits for the device.
            generator: for terms that draw random values; by default torch's global one.
            context: everything else that a term may depend on, such as its memory between calls.

        Raises:
            TypeError: an argument is missing or not a tensor of the right kind, or a layer role
                must be named.
            ValueError: shapes are inconsistent, there are no images, or a label is out of range.
        """
        from rayd.derived import class_sizes, on_host

        if is_observation(synthetic):
            # a call of the engine, by position: statistics, observation, labels, context
            return super().__call__(real, synthetic, real_labels, labels)  # type: ignore[misc, no-any-return]
        if labels is None:
            raise TypeError(f"{type(self).__name__} needs the labels of the synthetic images.")
        ours = self._layers(synthetic)
        images = checking.layers(ours, self)
        labels = checking.indices(labels, images, None, "Labels of the synthetic images")
        statistics = real
        if not _is_measured(real):
            if real_labels is None:
                raise TypeError(f"{type(self).__name__} needs the labels of the real images.")
            theirs = self._layers(real)
            real_labels = checking.indices(
                real_labels, checking.layers(theirs, self), classes, "Labels of the real images"
            )
            if classes is None:
                classes = 1 + max(checking.largest(real_labels), checking.largest(labels))
            statistics = self._sampled(theirs, real_labels, classes, generator)
            # on the host, as in the engine: terms derive a few factors from them
            counts = on_host(class_sizes(real_labels, classes))
        else:
            measured, counts = _counts(statistics)
            classes = measured or classes or 1 + checking.largest(labels)
        labels = checking.indices(labels, images, classes, "Labels of the synthetic images")
        checking.comparable(statistics, ours, self)
        if context is None:
            context = Context(generator=_draws(generator), class_counts=counts, blocks=1, memory={})
        seen = self._observed(ours, classes)
        return super().__call__(_as_precise(statistics, seen), seen, labels, context)  # type: ignore[misc, no-any-return]

    def measure(
        self,
        batches: Iterable[tuple[Any, Tensor]],
        *,
        classes: int,
        generator: torch.Generator | None = None,
    ) -> RealStatistics:
        """Accumulate statistics of real features over many batches, in float64.

        Args:
            batches: pairs of features and class indices (N,). A length scale that is a median of
                distances is computed on the first batch.
            classes: number of classes.
            generator: for terms that draw random values.

        Returns:
            Statistics in float32, which a call takes in place of real features.

        Raises:
            TypeError: features or labels are not tensors of the right kind.
            ValueError: shapes are inconsistent, or a label is out of range.
        """
        import torch

        total: dict[Any, Any] = {}
        # statistics measured in `torch.inference_mode` are used with autograd outside of it
        with torch.inference_mode(False), torch.no_grad():
            counts = torch.zeros(classes, dtype=torch.long)
            for features, labels in batches:
                given = self._layers(features)
                images = checking.layers(given, self)
                labels = checking.indices(labels, images, classes, "Labels of the real images")
                counts += labels.bincount(minlength=classes).cpu()
                seen = self._observed(given, classes)
                device = seen.images.device
                if device.type == "mps":  # it has no float64
                    labels = labels.cpu()
                    given = {role: tuple(map(_on_host, layers)) for role, layers in given.items()}
                    seen = self._observed(given, classes)
                if total:
                    checking.comparable(total, given, self)
                for spec in self.specs:
                    if spec not in total:
                        total[spec] = _empty(spec, seen, classes, generator)
                    spec.update(total[spec], seen, labels)
            if not counts.any():
                raise ValueError(f"{type(self).__name__} cannot measure an empty set of images.")
            kept = {}
            for spec, layers in total.items():
                kept[spec] = tuple(layer.to(device, torch.float32) for layer in layers)
        return Measured(kept, counts)

    def _sampled(
        self,
        real: Mapping[LayerRole, tuple[Tensor, ...]],
        labels: Tensor,
        classes: int,
        generator: torch.Generator | None,
    ) -> RealStatistics:
        """Statistics of one real batch, in its own precision or at least float32."""
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
                    wide = torch.promote_types(first[0].dtype, torch.float32)
                    empty = tuple(layer.to(first[0].device, wide) for layer in empty)
                part = spec.of(seen, labels, empty)
                statistics[spec] = part
            return statistics

    def _layers(self, features: Any) -> dict[LayerRole, tuple[Tensor, ...]]:
        """Features by layer role."""
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
            several = isinstance(given, list | tuple)
            if name not in list(LayerRole):
                names = " and ".join(f"'{role.value}'" for role in sorted(roles))
                raise ValueError(
                    f"Features of {type(self).__name__} must be named for their layer role, "
                    f"{names}. Got '{name}' instead."
                )
            layers[LayerRole(name)] = tuple(given) if several else (given,)
        missing = [role.value for role in roles - set(self.optional) if not layers[role]]
        if missing:
            raise TypeError(f"{type(self).__name__} got no features of '{missing[0]}'.")
        return layers

    def _observed(
        self, layers: Mapping[LayerRole, tuple[Tensor, ...]], classes: int
    ) -> Observation:
        """Wrap features as the output of a network."""
        import torch

        from rayd.networks import Observation

        first = next(tensor for tensors in layers.values() for tensor in tensors)
        wide = torch.promote_types(first.dtype, torch.float32)
        return Observation(first.new_zeros(len(first), classes, dtype=wide), dict(layers), first)


class OfLogits:
    """Call of terms that read logits and labels."""

    takes_probabilities: ClassVar[bool] = False
    """Whether labels may be rows of probabilities (M, C), too."""

    def __call__(
        self, logits: Any, labels: Any, _labels: Any = None, _context: Any = None, **given: Any
    ) -> Tensor:
        """The unweighted value, a scalar, differentiable in the logits.

        Args:
            logits: logits of a trained network on the synthetic images, (M, C).
            labels: class indices (M,).
            given: properties of the network, such as its `accuracy`; two further positional
                arguments are reserved for the engine.

        Raises:
            TypeError: logits or labels are not tensors of the right kind.
            ValueError: shapes are inconsistent, or a label is out of range.
        """
        if is_observation(labels):
            return super().__call__(logits, labels, _labels, _context)  # type: ignore[misc, no-any-return]
        seen = observation_of(logits=checking.logits(logits))
        checked = checking.learned_or_indices if self.takes_probabilities else checking.indices
        images, classes = seen.logits.shape
        labels = checked(labels, images, classes, "Labels")
        return super().__call__({}, seen, labels, Context(**given))  # type: ignore[misc, no-any-return]


def functional(term: type[Any], name: str, calls: tuple[str, ...]) -> Any:
    """The functional form of a term.

    Args:
        term: class of the term.
        name: name of the function.
        calls: arguments of the term's call that may be given by keyword; other keywords are its
            settings.
    """

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


def is_observation(value: Any) -> bool:
    """Whether a term is called by the engine, on the output of an observer."""
    return hasattr(value, "layers") and hasattr(value, "logits")


def observation_of(
    logits: Any = None, images: Any = None, features: Any = None, classes: int = 1
) -> Observation:
    """The output of a network, from its known parts."""
    from rayd.networks import Observation

    layers: dict[LayerRole, tuple[Tensor, ...]] = {}
    if features is not None:
        layers[LayerRole.FEATURES] = (features,)
    if logits is None:
        first = features if features is not None else images
        logits = first.new_zeros(len(first), classes)
    return Observation(logits, layers, logits if images is None else images)


def _is_measured(real: Any) -> bool:
    """Whether these are statistics, not features by layer role."""
    return isinstance(real, Mapping) and not any(isinstance(key, str) for key in real)


def _counts(statistics: RealStatistics) -> tuple[int | None, Any]:
    """Number of classes, and images of each, of measured statistics; None if unknown."""
    if isinstance(statistics, Measured):
        return len(statistics.class_counts), statistics.class_counts
    for layers in statistics.values():
        for layer in layers:
            count: Any = getattr(layer, "count", None)
            if count is not None and count.ndim and len(count) > 1:
                return len(count), count
    return None, None


def _as_precise(statistics: RealStatistics, seen: Observation) -> RealStatistics:
    """Convert statistics to the precision of the synthetic features, if necessary."""
    wide = seen.logits.dtype
    found: dict[Any, Any] = {}
    for spec, layers in statistics.items():
        fields = [tensor.dtype for layer in layers for tensor in layer.state().values()]
        fits = all(dtype == wide or not dtype.is_floating_point for dtype in fields)
        found[spec] = layers if fits else tuple(layer.to(dtype=wide) for layer in layers)
    return found


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
    # MPS has no float64: they are moved there once they are in the precision of the features
    return tuple(layer if home.type == "mps" else layer.to(home) for layer in empty)


def _on_host(layer: Tensor) -> Tensor:
    return layer.cpu()


def _draws(generator: torch.Generator | None) -> Any:
    """Generators by purpose, in the form that terms take."""
    import torch

    return lambda purpose: generator or torch.default_generator
