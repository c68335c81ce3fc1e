r"""Images as products of small matrices, with factors that several of them share (LS-MTT, "low-rank
space").

Every channel x (H, W) of an image is

    x = U Sigma V^T        U (H, r)        Sigma (r, r), full        V^T (r, W)

There are k mapper sets. Each has a U and a V^T for every channel, which all m images of the set
share; the bases Sigma are each image's own. Image i belongs to set i // m, and there are k m
images. Everything is learned, soft labels too.

What is stored, in numbers, with C channels and L classes (the paper's Table 2):

    mappers  k C (H r + r W)        bases  k m C r^2        labels  k m L, where they are soft

There is no released code. **What the paper leaves open, and what was chosen:**

- Start. From real images the factors are their best approximation in the sense of least squares, as
  alternating least squares finds it (Jieping Ye, "Generalized Low Rank Approximations of Matrices",
  Machine Learning 2005): U are the r leading eigenvectors of sum_i x_i V V^T x_i^T, V those of
  sum_i x_i^T U U^T x_i, each made from the other in turn, from V of the stacked images on; then
  Sigma_i = U^T x_i V. Of a single image, this is its truncated singular value decomposition.
- Which images share a set: those that follow each other; sorted by class, they are mostly of one
  class. (On ten sets of twelve digits, rank 2, what is left of the variance is then 0.23, but 0.37
  with classes mixed.)
- k and m for a budget: see `choose`.
- Labels are logits, whose softmax is learned from, as in DATM (Guo et al., ICLR 2024).

Images share parameters, so what can be cut apart are mapper sets, not images.

**Step sizes.** The gradient by a basis is that of its image, projected; the one by U or V is
multiplied by the basis, and a step along it moves the image by its square, for all m images of the
set: in normalised space, where images have a variance of 1, up to H W m times as far. So under SGD
the step size of U and V is that of the bases divided by H W m, unless `synthesis.learning_rates`
names another one. With one step size for all, images leave their range by hundreds of times its
width, which networks with instance normalisation do not notice. On digits (recipe `digits`, rank 3,
1,000 steps, three distillations, accuracy on a validation split; k = 3, m = 18):

    left, right    bases    accuracy             pixels, of a range from 0 to 1
    1              1        0.914 0.902 0.906    -476 to 785
    1 / H W        1        0.901 0.900 0.885    -1.8 to 3.4
    1 / H W m      1        0.926 0.915 0.908    -0.9 to 1.9
    0.005          3        0.919 0.923 0.891    -1.2 to 2.4
    0              1        0.850                -1.5 to 1.6
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Generator, Tensor, nn

from rayd.data.images import ImageShape
from rayd.errors import ConfigError
from rayd.synthetic.base import SyntheticSet

ROUNDS = 5
"""Times that the factors of real images are made from each other."""
SET_WEIGHT = 0.35
"""How much a mapper set is worth beside an image, as an exponent; see `choose`."""
UNUSED = 0.004
"""Share of a budget that may be left over; see `choose`."""


class Factors(NamedTuple):
    """What images are products of."""

    left: Tensor
    """U of every mapper set and channel (k, C, H, r)."""
    right: Tensor
    """V^T of every mapper set and channel (k, C, r, W)."""
    bases: Tensor
    """Sigma of every image and channel (k m, C, r, r)."""


class LowRank(SyntheticSet):
    """Images as products of factors; hard labels, or soft ones, which are learned."""

    labels: Tensor

    def __init__(self, left: Tensor, right: Tensor, bases: Tensor, labels: Tensor):
        """Start from factors.

        Args:
            left: U (k, C, H, r).
            right: V^T (k, C, r, W).
            bases: Sigma (k m, C, r, r).
            labels: class indices (k m,), which stay, or logits (k m, classes), which are learned.

        Raises:
            ConfigError: the images are not as many to each set, or the factors do not fit each
                other.
        """
        super().__init__()
        (sets, channels, _, rank) = left.shape
        count = len(bases)
        if right.shape[:3] != (sets, channels, rank) or bases.shape[1:] != (channels, rank, rank):
            shapes = ", ".join(str(tuple(factor.shape)) for factor in (left, right, bases))
            raise ConfigError(
                f"Factors must be (k, C, H, r), (k, C, r, W) and (k m, C, r, r). Got {shapes} instead."
            )
        if not count or count % sets or len(labels) != count:
            raise ConfigError(
                f"Mapper sets must have the same number of images each, and images a label each. Got {sets} sets, {count} "
                f"images and {len(labels)} labels instead."
            )
        self.left, self.right, self.bases = (
            nn.Parameter(part.detach().clone().float()) for part in (left, right, bases)
        )
        if labels.is_floating_point():
            self.labels = nn.Parameter(labels.detach().clone().float())
        else:
            self.register_buffer("labels", labels.detach().clone().long())

    def __len__(self) -> int:
        """Number of images, k m."""
        return len(self.bases)

    @property
    def sharing(self) -> int:
        """Images of a mapper set, m."""
        return len(self.bases) // len(self.left)

    def batch(self, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W), and class indices (n,) or rows of probabilities (n, classes)."""
        labels = self.labels if indices is None else self.labels[indices]
        return self._decoded(indices), labels.softmax(1) if labels.is_floating_point() else labels

    def _decoded(self, indices: Tensor | None) -> Tensor:
        if indices is None:
            # set by set, so that the gradients of shared factors are sums of matrix products and
            # need no scattering
            bases = self.bases.view(len(self.left), self.sharing, *self.bases.shape[1:])
            return torch.einsum("kchr,kmcrs,kcsw->kmchw", self.left, bases, self.right).flatten(
                0, 1
            )
        sets = indices // self.sharing
        return self.left[sets] @ self.bases[indices] @ self.right[sets]

    @property
    def step_scales(self) -> dict[str, float]:
        """1 / (H W m) for the mappers; see "Step sizes" above."""
        pixels = self.left.shape[2] * self.right.shape[3]
        scale = 1 / (pixels * self.sharing)
        return {"left": scale, "right": scale}

    @torch.no_grad()
    def clip(self, lower: Tensor, upper: Tensor) -> None:
        """Move the bases of images that leave the range to where they are nearest to the clamped
        image, the mappers staying.

        That is one round of alternating projections onto the range and onto the images that the
        mappers can make: what remains outside of it shrinks from call to call, but need not vanish.
        """
        images = self._decoded(None)
        clamped = images.clamp(lower, upper)
        outside = (clamped != images).flatten(1).any(1)
        left, right = (
            torch.linalg.pinv(part).repeat_interleave(self.sharing, 0)
            for part in (self.left, self.right)
        )
        self.bases[outside] = left[outside] @ clamped[outside] @ right[outside]

    @property
    def samples(self) -> Tensor:
        """Labels (k,) of the first images of the mapper sets, which is what can be cut apart."""
        first = self.labels[:: self.sharing]
        return first.argmax(1) if first.is_floating_point() else first

    def part(self, indices: Tensor) -> Self:
        """Some mapper sets, with their images."""
        rows = self._images_of(indices)
        return type(self)(
            self.left[indices], self.right[indices], self.bases[rows], self.labels[rows]
        )

    @torch.no_grad()
    def put(self, indices: Tensor, part: Self) -> None:
        """Overwrite some mapper sets, their images, and the soft labels of these."""
        self.left[indices] = part.left.to(self.left.device)
        self.right[indices] = part.right.to(self.right.device)
        rows = self._images_of(indices)
        self.bases[rows] = part.bases.to(self.bases.device)
        if self.labels.is_floating_point():
            self.labels[rows] = part.labels.to(self.labels.device)

    def _images_of(self, sets: Tensor) -> Tensor:
        """Indices of the images of some mapper sets."""
        every = torch.arange(self.sharing, device=sets.device)
        return (sets[:, None] * self.sharing + every).flatten()

    @property
    def implied(self) -> frozenset[str]:
        """Hard labels are free where they are those of `spread`."""
        if self.labels.is_floating_point():
            return frozenset()
        regular = torch.equal(
            self.labels, spread(len(self), int(self.labels.max()) + 1).to(self.labels.device)
        )
        return frozenset({"labels"}) if regular else frozenset()


def spread(count: int, classes: int) -> Tensor:
    """Class indices (count,), sorted, of as even a number of images of each class as can be.

    >>> spread(7, 3).tolist()
    [0, 0, 0, 1, 1, 2, 2]
    """
    return torch.arange(count) * classes // count


def fit(images: Tensor, sets: int, rank: int) -> Factors:
    """The factors that come nearest to some images.

    Args:
        images: normalised (k m, C, H, W); every m that follow each other share a mapper set.
        sets: k, which divides the number of images.
        rank: r, at most the images' shorter side.

    Returns:
        U and V with orthonormal columns, and the bases.

    Raises:
        ConfigError: the rank exceeds a side, or the sets do not divide the images.
    """
    _check_rank(rank, ImageShape(*images.shape[1:]))
    if len(images) % sets:
        raise ConfigError(
            f"The number of images must be a multiple of that of mapper sets. Got {len(images)} and {sets} instead."
        )
    # (k, C, m, H, W)
    grouped = images.double().reshape(sets, -1, *images.shape[1:]).transpose(1, 2)
    right = _leading(grouped.mT, rank)
    for _ in range(ROUNDS):
        left = _leading(grouped @ right.unsqueeze(2), rank)
        right = _leading(grouped.mT @ left.unsqueeze(2), rank)
    bases = left.mT.unsqueeze(2) @ grouped @ right.unsqueeze(2)
    return Factors(
        *(part.to(images.dtype) for part in (left, right.mT, bases.transpose(1, 2).flatten(0, 1)))
    )


def _leading(matrices: Tensor, rank: int) -> Tensor:
    """The columns (k, C, h, r) that span most of some matrices (k, C, m, h, w), side by side."""
    vectors: Tensor = torch.linalg.eigh((matrices @ matrices.mT).sum(2)).eigenvectors
    return vectors[..., -rank:].flip(-1)


def random_factors(
    count: int, sets: int, rank: int, shape: ImageShape, draws: Generator
) -> Factors:
    """Factors of `count` images of independent normal entries with, on average, mean 0 and variance
    1 of the pixels.

    U and V have orthonormal columns, drawn uniformly; the bases are normal.

    Raises:
        ConfigError: the rank exceeds a side.
    """
    _check_rank(rank, shape)
    left, right = (
        torch.linalg.qr(torch.randn(sets, shape.channels, side, rank, generator=draws))[0]
        for side in (shape.height, shape.width)
    )
    bases = torch.randn(count, shape.channels, rank, rank, generator=draws)
    return Factors(left, right.mT, bases * (shape.height * shape.width) ** 0.5 / rank)


def choose(
    budget: int,
    rank: int,
    shape: ImageShape,
    classes: int,
    *,
    soft: bool = True,
    sets: int | None = None,
) -> tuple[int, int]:
    """How many mapper sets, k, and images of each, m, a number of stored numbers buys.

    For any k, m is as large as can be. More sets mean images of more different kinds, but fewer of
    them. The paper gives four choices (its Table 2) and no rule. This one makes the same: of those
    k that leave over no more than 0.4 % of the budget, or too little for two more images, it takes
    the one with the greatest k m k^0.35 (any exponent from 0.339 to 0.361 gives the Table; the
    number of images alone would always take k = 1).

    Args:
        budget: numbers that may be stored: bytes / 4, as they are float32.
        rank: r.
        shape: of an image.
        classes: number of classes, and fewest images.
        soft: whether labels are stored, a number for each class.
        sets: k, where it is not to be chosen.

    Raises:
        ConfigError: the rank exceeds a side, or the budget is too small for an image of each class.

    >>> [choose(30_720, rank, ImageShape(3, 32, 32), 10) for rank in (4, 8, 12, 16)]
    [(15, 22), (4, 30), (4, 12), (3, 9)]
    """
    _check_rank(rank, shape)
    channels, height, width = shape
    mapper = channels * rank * (height + width)
    image = channels * rank**2 + (classes if soft else 0)

    def sharing(k: int) -> int:
        return max(0, (budget - k * mapper) // (k * image))

    # more sets never buy more images
    fewest = 1 if sets is None else sets
    if fewest * sharing(fewest) < classes:
        least = fewest * mapper + fewest * -(-classes // fewest) * image
        raise ConfigError(
            f"Low-rank images of rank {rank} with {fewest} mapper {'set' if fewest == 1 else 'sets'} need at least {least} "
            f"numbers ({4 * least} bytes) for an image of each of {classes} classes. Got {budget} ({4 * budget} bytes) instead."
        )
    if sets is not None:
        return sets, sharing(sets)
    buying = [(k, sharing(k)) for k in range(1, budget // mapper + 1) if k * sharing(k) >= classes]
    frugal = [
        (k, m)
        for k, m in buying
        if budget - k * mapper - k * m * image < max(2 * image, UNUSED * budget)
    ]
    return max(frugal, key=lambda pair: pair[0] * pair[1] * pair[0] ** SET_WEIGHT)


def _check_rank(rank: int, shape: ImageShape) -> None:
    if not 1 <= rank <= min(shape.height, shape.width):
        raise ConfigError(
            f"The rank must be from 1 to the images' shorter side, {min(shape.height, shape.width)}. Got {rank} instead."
        )
