"""Terms of synthetic images only: of the logits of a trained network, or of the images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rayd import objectives
from rayd.objectives.terms import Context
from rayd.terms import checking
from rayd.terms.calling import OfLogits, functional, is_observation, observation_of

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(OfLogits, objectives.CrossEntropy):  # type: ignore[misc]
    """Cross-entropy of a trained network's logits (M, C) with class indices (M,), or rows of
    probabilities (M, C).

    >>> import torch
    >>> round(CrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
    1.3863
    """

    takes_probabilities: ClassVar[bool] = True


cross_entropy = functional(CrossEntropy, "cross_entropy", ("labels",))


class Calibration(OfLogits, objectives.Calibration):  # type: ignore[misc]
    """Cross-entropy of logits (M, C) and class indices (M,), summed over classes, as in NCFM.

    >>> import torch
    >>> bool(Calibration()(torch.zeros(2, 4), torch.tensor([0, 3])) > 0)
    True
    """


calibration = functional(Calibration, "calibration", ("labels",))


class ClassAware(OfLogits, objectives.ClassAware):
    """`Calibration` times the accuracy of the network on real images (IDM).

    The accuracy is an argument of the call, a fraction.

    >>> import torch
    >>> bool(ClassAware()(torch.zeros(2, 4), torch.tensor([0, 3]), accuracy=0.9) > 0)
    True
    """

    def __call__(  # type: ignore[override]
        self, logits: Any, labels: Any, _labels: Any = None, _context: Any = None, **given: Any
    ) -> Tensor:
        """As for `CrossEntropy`, with class indices and `accuracy`, a number or a scalar tensor.

        Raises:
            TypeError: logits or labels are not tensors of the right kind, or there is no accuracy.
            ValueError: shapes are inconsistent, a label is out of range, or the accuracy is not
                a fraction.
        """
        value: Tensor = super().__call__(logits, labels, _labels, _context, **given)
        if is_observation(labels):
            return value
        accuracy = given.get("accuracy")
        if accuracy is None:
            raise TypeError(
                "ClassAware needs the network's accuracy on real images, a fraction: accuracy=0.9."
            )
        # the value of a tensor on a device is not checked, as that would wait for the device
        if isinstance(accuracy, int | float) and not 0 <= accuracy <= 1:
            raise ValueError(
                f"The 'accuracy' of ClassAware must be a fraction, 0 to 1. Got {accuracy} instead."
            )
        return value


class_aware = functional(ClassAware, "class_aware", ("labels", "accuracy"))


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
            logits: logits of a trained network on the images, (M, C).
            average_logits: logits of the moving average of the images; get no gradient.
            labels: passed only by the engine.
            context: passed only by the engine.

        Raises:
            TypeError: logits are not tensors of floating-point numbers.
            ValueError: they differ in shape, or `compare` is `statistics`.
        """
        if is_observation(average_logits):
            return super().__call__(logits, average_logits, labels, context)
        if self.compare == "statistics":
            raise ValueError(
                "Flatness(compare='statistics') reads the layers of a network, which needs a run: for "
                "tensors use compare='logits', or MomentMatching of the layers' inputs."
            )
        logits = checking.logits(logits)
        average = checking.logits(average_logits, "Logits of the average")
        if average.shape != logits.shape:
            raise ValueError(
                "Flatness compares logits of equal shape. Got "
                f"{tuple(logits.shape)} and {tuple(average.shape)} instead."
            )
        context = Context(average_logits=lambda: average)
        return super().__call__({}, observation_of(logits=logits), logits, context)


flatness = functional(Flatness, "flatness", ("average_logits",))


class Densification(objectives.Densification):
    """Divergence of the spectra of the images of each class from softened ones (G-VBSM).

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
            images: normalised images (M, channels, h, w).
            labels: class indices (M,).

        Raises:
            TypeError: images or labels are not tensors of the right kind.
            ValueError: shapes are inconsistent, or a label is out of range.
        """
        if is_observation(labels):
            return super().__call__(images, labels, _labels, _context)
        images = checking.images(images, "Images")
        labels = checking.indices(labels, len(images), None, "Labels")
        return super().__call__({}, observation_of(images=images), labels, Context())


densification = functional(Densification, "densification", ("labels",))
