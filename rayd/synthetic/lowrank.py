r"""Low-rank images: products of small matrices with factors shared by several images (LS-MTT).

Every channel x (H, W) of an image is

    x = U Sigma V^T        U (H, r)        Sigma (r, r), full        V^T (r, W)

There are k mapper sets. Each has a U and a V^T for every channel, shared by all m images of the
set; each image has its own bases Sigma. Image i belongs to set i // m, and there are k m images.
Everything is learned, including soft labels.

What is stored, in numbers, with C channels and L classes (the paper's Table 2):

    mappers  k C (H r + r W)        bases  k m C r^2        labels  k m L, where they are soft

There is no released code. **What the paper leaves open, and what was chosen:**

- Initialisation. The factors are the least-squares approximation of real images by alternating
  least squares (Jieping Ye, "Generalized Low Rank Approximations of Matrices", Machine Learning
  2005): U are the r leading eigenvectors of sum_i x_i V V^T x_i^T, V those of
  sum_i x_i^T U U^T x_i, computed alternately, starting from V of the stacked images; then
  Sigma_i = U^T x_i V. For a single image, this is its truncated singular value decomposition.
- Images that share a set: consecutive ones, which are mostly of one class when sorted by class. (On
  ten sets of twelve digits, rank 2, 0.23 of the variance remains, but 0.37 with mixed classes.)
- k and m for a budget: see `choose`.
- Labels are logits, whose softmax is the label, as in DATM (Guo et al., ICLR 2024).

As images share parameters, mapper sets are separable, but images are not.

**Step sizes.** The gradient of a basis is that of its image, projected; the gradient of U or V is
multiplied by the basis, and a step along it moves the image by its square, for all m images of the
set: in normalised space, where images have variance 1, up to H W m times as far. So under SGD the
step size of U and V is that of the bases divided by H W m, unless `synthesis.learning_rates` sets
another one. With the same step size for all, images leave their range by hundreds of times its
width, to which networks with instance normalisation are insensitive. On digits (recipe `digits`,
rank 3, 1,000 steps, three distillations, accuracy on a validation split; k = 3, m = 18):

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
from rayd.synthetic.base import SyntheticSet, check_labels

ROUNDS = 5
"""Number of rounds of alternating least squares."""
SET_WEIGHT = 0.35
"""Exponent of the number of mapper sets in the objective of `choose`."""
UNUSED = 0.004
"""Fraction of a budget that may remain unused; see `choose`."""


class LowRankFactors(NamedTuple):
    """Factors of low-rank images."""

    left: Tensor
    """U of every mapper set and channel (k, C, H, r)."""
    right: Tensor
    """V^T of every mapper set and channel (k, C, r, W)."""
    bases: Tensor
    """Sigma of every image and channel (k m, C, r, r)."""


class LowRank(SyntheticSet):
    """Images as products of factors, with fixed hard labels or learned soft labels.

    >>> left, right = torch.rand(1, 3, 8, 2), torch.rand(1, 3, 2, 8)
    >>> images = LowRank(left, right, torch.rand(4, 3, 2, 2), torch.tensor([0, 0, 1, 1]))
    >>> batch, labels = images.batch()
    >>> batch.shape, images.sharing
    (torch.Size([4, 3, 8, 8]), 4)
    """

    labels: Tensor

    def __init__(self, left: Tensor, right: Tensor, bases: Tensor, labels: Tensor):
        """Initialise from factors.

        Args:
            left: U (k, C, H, r).
            right: V^T (k, C, r, W).
            bases: Sigma (k m, C, r, r).
            labels: class indices (k m,), fixed, or logits (k m, classes), learned.

        Raises:
            ConfigError: the sets have different numbers of images, or the shapes are inconsistent.
        """
        super().__init__()
        shapes = [tuple(factor.shape) for factor in (left, right, bases)]
        fit = all(len(shape) == 4 for shape in shapes)
        if fit:
            sets, channels, _, rank = shapes[0]
            expected = [(sets, channels, rank), (channels, rank, rank)]
            fit = [shapes[1][:3], shapes[2][1:]] == expected
        if not fit:
            raise ConfigError(
                "Factors must be (k, C, H, r), (k, C, r, W) and (k m, C, r, r). "
                f"Got {', '.join(map(str, shapes))} instead."
            )
        count = len(bases)
        if not count or count % sets or len(labels) != count:
            raise ConfigError(
                "Mapper sets must have the same number of images each, and images a label each. "
                f"Got {sets} sets, {count} images and {len(labels)} labels instead."
            )
        check_labels(labels, count)
        self.left = nn.Parameter(left.detach().clone().float())
        self.right = nn.Parameter(right.detach().clone().float())
        self.bases = nn.Parameter(bases.detach().clone().float())
        if labels.is_floating_point():
            self.labels = nn.Parameter(labels.detach().clone().float())
        else:
            self.register_buffer("labels", labels.detach().clone().long())

    def __len__(self) -> int:
        """Number of images, k m."""
        return len(self.bases)

    @property
    def sharing(self) -> int:
        """Number of images per mapper set, m."""
        return len(self.bases) // len(self.left)

    def batch(self, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W), and class indices (n,) or rows of probabilities (n, classes)."""
        labels = self.labels if indices is None else self.labels[indices]
        return self._decoded(indices), labels.softmax(1) if labels.is_floating_point() else labels

    def _decoded(self, indices: Tensor | None) -> Tensor:
        if indices is None:
            # set by set, so that gradients of shared factors are matrix products without scattering
            bases = self.bases.view(len(self.left), self.sharing, *self.bases.shape[1:])
            images = torch.einsum("kchr,kmcrs,kcsw->kmchw", self.left, bases, self.right)
            return images.flatten(0, 1)
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
        """Move the bases of images outside the range to the least-squares fit of the clamped image.

        That is one round of alternating projections, onto the range and onto the images that the
        mappers can represent while they are fixed: the excess shrinks with each call but need not
        vanish.
        """
        images = self._decoded(None)
        clamped = images.clamp(lower, upper)
        outside = (clamped != images).flatten(1).any(1)
        left = torch.linalg.pinv(self.left).repeat_interleave(self.sharing, 0)
        right = torch.linalg.pinv(self.right).repeat_interleave(self.sharing, 0)
        self.bases[outside] = left[outside] @ clamped[outside] @ right[outside]

    @property
    def samples(self) -> Tensor:
        """Labels (k,) of the first image of each mapper set."""
        first = self.labels[:: self.sharing]
        return first.argmax(1) if first.is_floating_point() else first

    def part(self, indices: Tensor) -> Self:
        """Extract mapper sets with their images."""
        rows = self._images_of(indices)
        return type(self)(
            self.left[indices], self.right[indices], self.bases[rows], self.labels[rows]
        )

    @torch.no_grad()
    def put(self, indices: Tensor, part: Self) -> None:
        """Overwrite mapper sets, with their images and soft labels."""
        self.left[indices] = part.left.to(self.left.device)
        self.right[indices] = part.right.to(self.right.device)
        rows = self._images_of(indices)
        self.bases[rows] = part.bases.to(self.bases.device)
        if self.labels.is_floating_point():
            self.labels[rows] = part.labels.to(self.labels.device)

    def _images_of(self, sets: Tensor) -> Tensor:
        """Indices of the images of mapper sets."""
        every = torch.arange(self.sharing, device=sets.device)
        return (sets[:, None] * self.sharing + every).flatten()

    @property
    def implied(self) -> frozenset[str]:
        """Hard labels, if they are those of `spread`."""
        if self.labels.is_floating_point():
            return frozenset()
        expected = spread(len(self), int(self.labels.max()) + 1)
        regular = torch.equal(self.labels, expected.to(self.labels.device))
        return frozenset({"labels"}) if regular else frozenset()


def spread(count: int, classes: int) -> Tensor:
    """Class indices (count,), sorted, with the images distributed evenly over the classes.

    >>> spread(7, 3).tolist()
    [0, 0, 0, 1, 1, 2, 2]
    """
    return torch.arange(count) * classes // count


def fit(images: Tensor, sets: int, rank: int) -> LowRankFactors:
    """Compute the factors that best approximate images.

    Args:
        images: normalised (k m, C, H, W); every m consecutive ones share a mapper set.
        sets: number k of mapper sets, which divides the number of images.
        rank: r, at most the images' shorter side.

    Returns:
        U and V^T, where U and V have orthonormal columns, and the bases.

    Raises:
        ConfigError: the rank exceeds a side, or the sets do not divide the images.
    """
    _check_rank(rank, ImageShape(*images.shape[1:]))
    if len(images) % sets:
        raise ConfigError(
            "The number of images must be a multiple of that of mapper sets. "
            f"Got {len(images)} and {sets} instead."
        )
    # (k, C, m, H, W)
    grouped = images.double().reshape(sets, -1, *images.shape[1:]).transpose(1, 2)
    right = _leading(grouped.mT, rank)
    for _ in range(ROUNDS):
        left = _leading(grouped @ right.unsqueeze(2), rank)
        right = _leading(grouped.mT @ left.unsqueeze(2), rank)
    bases = left.mT.unsqueeze(2) @ grouped @ right.unsqueeze(2)
    flat_bases = bases.transpose(1, 2).flatten(0, 1)
    return LowRankFactors(
        left=left.to(images.dtype),
        right=right.mT.to(images.dtype),
        bases=flat_bases.to(images.dtype),
    )


def _leading(matrices: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors (k, C, h, r) of matrices (k, C, m, h, w), concatenated."""
    vectors: Tensor = torch.linalg.eigh((matrices @ matrices.mT).sum(2)).eigenvectors
    return vectors[..., -rank:].flip(-1)


def random_factors(
    count: int, sets: int, rank: int, shape: ImageShape, draws: Generator
) -> LowRankFactors:
    """Draw factors of `count` images with pixels of, on average, mean 0 and variance 1.

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
    return LowRankFactors(
        left=left,
        right=right.mT,
        bases=bases * (shape.height * shape.width) ** 0.5 / rank,
    )


def choose(
    budget: int,
    rank: int,
    shape: ImageShape,
    classes: int,
    *,
    soft: bool = True,
    sets: int | None = None,
) -> tuple[int, int]:
    """Choose the number k of mapper sets and m of images per set for a storage budget.

    For any k, m is the largest that fits. More sets mean more diverse images, but fewer of them.
    The paper gives four choices (its Table 2) and no rule. This rule reproduces them: of those k
    that leave at most 0.4 % of the budget unused, or too little for two more images, it takes the
    one with the largest k m k^0.35 (any exponent from 0.339 to 0.361 reproduces the table;
    maximising the number of images would always give k = 1).

    Args:
        budget: number of stored values: bytes / 4, as they are float32.
        rank: r.
        shape: shape of an image.
        classes: number of classes, and minimum number of images.
        soft: whether labels are stored, one value per class.
        sets: k, if given.

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

    # more sets never allow for more images
    fewest = 1 if sets is None else sets
    if fewest * sharing(fewest) < classes:
        least = fewest * mapper + fewest * -(-classes // fewest) * image
        raise ConfigError(
            f"Low-rank images of rank {rank} with {fewest} mapper "
            f"{'set' if fewest == 1 else 'sets'} need at least {least} numbers ({4 * least} bytes) "
            f"for an image of each of {classes} classes. "
            f"Got {budget} ({4 * budget} bytes) instead."
        )
    if sets is not None:
        return sets, sharing(sets)
    best = (0, 0)
    for k in range(1, budget // mapper + 1):
        m = sharing(k)
        unused = budget - k * mapper - k * m * image
        if k * m < classes or unused >= max(2 * image, UNUSED * budget):
            continue
        if best == (0, 0) or _objective(k, m) > _objective(*best):
            best = (k, m)
    return best


def _objective(k: int, m: int) -> float:
    """The number of images, times a power of the number of mapper sets; see `choose`."""
    return float(k * m * k**SET_WEIGHT)


def _check_rank(rank: int, shape: ImageShape) -> None:
    if not 1 <= rank <= min(shape.height, shape.width):
        raise ConfigError(
            "The rank must be from 1 to the images' shorter side, "
            f"{min(shape.height, shape.width)}. Got {rank} instead."
        )
