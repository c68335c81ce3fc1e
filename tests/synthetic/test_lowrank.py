"""Low-rank images: what they decode to, what they cost, where they start, and how far they can be
cut apart.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rayd.config import NetworkSettings, SynthesisSettings
from rayd.data import ImageShape
from rayd.data.augmentation import augmentation
from rayd.engine.synthesizer import optimizer
from rayd.errors import ConfigError
from rayd.networks import build
from rayd.networks.flat import FlatNetwork
from rayd.objectives.trajectory import Segment, inner_steps, trajectory_loss
from rayd.synthetic.learned_step_size import WithLearnedStepSize
from rayd.synthetic.lowrank import LowRank, LowRankFactors, choose, fit, random_factors, spread
from tests.draws import seeded

SHAPE = ImageShape(3, 8, 6)
CIFAR = ImageShape(3, 32, 32)
TABLE = [
    (4, 15, 22, 11_520, 15_840, 3_300, 30_660),
    (8, 4, 30, 6_144, 23_040, 1_200, 30_384),
    (12, 4, 12, 9_216, 20_736, 480, 30_432),
    (16, 3, 9, 9_216, 20_736, 270, 30_222),
]
"""The paper's Table 2: rank, sets, bases of each; numbers of mappers, bases, labels, and all."""


def factors(
    sets: int = 3, sharing: int = 4, rank: int = 2, shape: ImageShape = SHAPE, seed: int = 0
) -> LowRankFactors:
    return random_factors(sets * sharing, sets, rank, shape, seeded(seed))


def soft(count: int, classes: int = 5) -> Tensor:
    return torch.randn(count, classes, generator=seeded(1))


def learned(**changes) -> LowRank:
    made = factors(**changes)
    return LowRank(*made, soft(len(made.bases)))


def product(made: LowRank, image: int) -> Tensor:
    """One image, channel by channel."""
    group = image // made.sharing
    channels = range(made.left.shape[1])
    return torch.stack(
        [made.left[group, c] @ made.bases[image, c] @ made.right[group, c] for c in channels]
    )


def test_images_are_products_of_their_set_s_factors_and_their_own():
    made = learned()
    images, labels = made.batch()
    assert images.shape == (12, *SHAPE)
    torch.testing.assert_close(images, torch.stack([product(made, image) for image in range(12)]))
    torch.testing.assert_close(labels, made.labels.softmax(1))


def test_some_images_are_those_of_all_in_value_and_gradient():
    made = learned()
    rows = torch.tensor([7, 0, 11, 4, 5])
    weights = torch.randn(len(rows), *SHAPE, generator=seeded(2))
    every = made.batch()[0][rows]
    some = made.batch(rows)[0]
    torch.testing.assert_close(some, every)
    torch.testing.assert_close(made.batch(rows)[1], made.batch()[1][rows])
    parameters = (made.left, made.right, made.bases)
    mine, theirs = (
        torch.autograd.grad((images * weights).sum(), parameters) for images in (some, every)
    )
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("rank", "sets", "sharing", "mappers", "bases", "labels", "total"), TABLE)
def test_storage_is_that_of_the_paper_s_table(rank, sets, sharing, mappers, bases, labels, total):
    made = random_factors(sets * sharing, sets, rank, CIFAR, seeded())
    storage = LowRank(*made, soft(sets * sharing, 10)).storage()
    assert storage.numbers["left"] + storage.numbers["right"] == mappers
    assert (storage.numbers["bases"], storage.numbers["labels"]) == (bases, labels)
    assert sum(storage.numbers.values()) == total
    assert storage.total_bytes == 4 * total


def test_hard_labels_are_kept_and_free_where_they_are_spread_evenly():
    made = factors(sharing=3)
    even = LowRank(*made, spread(9, 4))
    assert even.batch()[1].tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert "labels" not in even.storage().numbers
    assert [name for name, _ in even.named_parameters()] == ["left", "right", "bases"]
    assert (
        LowRank(*made, torch.tensor([0, 0, 0, 0, 0, 1, 2, 3, 3])).storage().numbers["labels"] == 9
    )


class TestChoose:
    @pytest.mark.parametrize(
        ("rank", "sets", "sharing", "total"), [(row[0], row[1], row[2], row[-1]) for row in TABLE]
    )
    def test_the_budget_of_an_image_a_class_buys_what_the_paper_s_table_has(
        self, rank, sets, sharing, total
    ):
        budget = 10 * 3 * 32 * 32
        assert choose(budget, rank, CIFAR, 10) == (sets, sharing)
        assert total <= budget
        assert choose(budget, rank, CIFAR, 10, sets=sets) == (sets, sharing)

    @pytest.mark.parametrize("rank", [1, 3, 8, 17, 32])
    @pytest.mark.parametrize("budget", [50_000, 307_200, 1_000_000])
    @pytest.mark.parametrize("soft_labels", [True, False])
    def test_what_is_bought_is_within_the_budget_and_next_to_nothing_is_left(
        self, rank, budget, soft_labels
    ):
        sets, sharing = choose(budget, rank, CIFAR, 10, soft=soft_labels)
        image = 3 * rank**2 + (10 if soft_labels else 0)
        used = sets * 3 * rank * 64 + sets * sharing * image
        assert used <= budget < used + max(2 * image, 0.004 * budget)
        assert sets * sharing >= 10

    def test_labels_that_cost_nothing_leave_room_for_more_images(self):
        assert (
            choose(30_720, 4, CIFAR, 10, soft=False, sets=15)[1]
            > choose(30_720, 4, CIFAR, 10, sets=15)[1]
        )

    def test_a_budget_below_an_image_a_class_is_refused_with_what_is_needed(self):
        needed = 3 * 8 * 64 + 10 * (3 * 64 + 10)
        assert choose(needed, 8, CIFAR, 10) == (1, 10)
        with pytest.raises(
            ConfigError,
            match=rf"rank 8 with 1 mapper set need at least {needed} numbers \({4 * needed} bytes\)",
        ):
            choose(needed - 1, 8, CIFAR, 10)
        with pytest.raises(ConfigError, match="with 3 mapper sets need at least"):
            choose(needed, 8, CIFAR, 10, sets=3)


@pytest.mark.parametrize("rank", [0, 7])
@pytest.mark.parametrize(
    "act",
    [
        lambda r: choose(10**6, r, SHAPE, 2),
        lambda r: fit(torch.rand(2, *SHAPE), 1, r),
        lambda r: factors(rank=r),
    ],
)
def test_a_rank_beyond_the_shorter_side_is_refused(rank, act):
    with pytest.raises(
        ConfigError, match=f"from 1 to the images' shorter side, 6. Got {rank} instead"
    ):
        act(rank)


def left_over(images: Tensor, made: LowRankFactors) -> float:
    """Squared distance of images from what their factors make of them, as a share."""
    decoded = LowRank(*made, spread(len(images), 2)).batch()[0].detach()
    return float((decoded - images).square().sum() / images.square().sum())


class TestFit:
    def test_it_is_exact_where_images_have_the_rank(self):
        images = learned().batch()[0].detach()
        assert left_over(images, fit(images, 3, 2)) < 1e-10
        assert left_over(images, fit(images, 3, 1)) > 1e-2
        full = torch.rand(4, *SHAPE)
        assert left_over(full, fit(full, 4, 6)) < 1e-10, "the rank of the shorter side"

    def test_columns_are_orthonormal(self):
        made = fit(torch.randn(6, *SHAPE), 2, 3)
        eye = torch.eye(3).expand(2, 3, 3, 3)
        torch.testing.assert_close(made.left.mT @ made.left, eye, atol=1e-5, rtol=0)
        torch.testing.assert_close(made.right @ made.right.mT, eye, atol=1e-5, rtol=0)

    def test_of_single_images_it_is_the_truncated_decomposition(self):
        images = torch.randn(4, *SHAPE, generator=seeded())
        u, s, v = torch.linalg.svd(images, full_matrices=False)
        best = (u[..., :2] * s[..., None, :2]) @ v[..., :2, :]
        torch.testing.assert_close(
            LowRank(*fit(images, 4, 2), spread(4, 2)).batch()[0].detach(),
            best,
            atol=1e-4,
            rtol=1e-4,
        )

    def test_it_is_better_than_stacked_decompositions_and_far_better_than_random_mappers(self):
        images = torch.randn(12, *SHAPE, generator=seeded())
        ours = left_over(images, fit(images, 3, 2))
        grouped = images.unflatten(0, (3, 4)).transpose(1, 2)
        rows = grouped.transpose(2, 3).flatten(3)
        columns = grouped.flatten(2, 3)

        def with_bases(left: Tensor, right: Tensor) -> float:
            bases = left.mT.unsqueeze(2) @ grouped @ right.mT.unsqueeze(2)
            return left_over(
                images, LowRankFactors(left, right, bases.transpose(1, 2).flatten(0, 1))
            )

        stacked = with_bases(
            torch.linalg.svd(rows)[0][..., :2], torch.linalg.svd(columns)[2][..., :2, :]
        )
        some = [factors(seed=seed) for seed in range(5)]
        assert ours < stacked
        assert all(stacked < with_bases(made.left, made.right) for made in some)

    def test_no_other_factors_near_by_are_better(self):
        """Stationary: the squared distance has no slope in any factor."""
        images = torch.randn(12, *SHAPE, generator=seeded()).double()

        def slopes(made: LowRankFactors) -> list[float]:
            learned = LowRank(*made, spread(12, 2)).double()
            distance = (learned.batch()[0] - images).square().sum()
            return [
                float(slope.norm())
                for slope in torch.autograd.grad(distance, list(learned.parameters()))
            ]

        assert all(
            near < 0.05 * far
            for near, far in zip(slopes(fit(images, 3, 2)), slopes(factors()), strict=True)
        )

    def test_sets_must_divide_the_images(self):
        with pytest.raises(
            ConfigError, match=r"must be a multiple of that of mapper sets\. Got 5 and 2 instead"
        ):
            fit(torch.rand(5, *SHAPE), 2, 2)


def test_random_images_look_like_normalised_ones():
    made = random_factors(400, 20, 4, CIFAR, seeded())
    images = LowRank(*made, spread(400, 10)).batch()[0].detach()
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.var()) - 1) < 0.05
    assert torch.equal(made.left, random_factors(400, 20, 4, CIFAR, seeded()).left)
    assert not torch.equal(made.left, random_factors(400, 20, 4, CIFAR, seeded(1)).left)


class TestClip:
    LOWER = torch.full((1, 3, 1, 1), -1.0)
    UPPER = torch.full((1, 3, 1, 1), 1.5)

    def test_images_within_the_range_stay_to_the_bit_and_mappers_always(self):
        made = learned()
        with torch.no_grad():
            made.bases[:4] *= 1e-3
        before = [parameter.detach().clone() for parameter in made.parameters()]
        made.clip(self.LOWER, self.UPPER)
        left, right, bases, labels = before
        assert torch.equal(made.bases[:4], bases[:4])
        assert not torch.equal(made.bases[4:], bases[4:])
        assert torch.equal(made.left, left)
        assert torch.equal(made.right, right)
        assert torch.equal(made.labels, labels)

    def test_others_come_as_near_to_the_clamped_image_as_the_mappers_can(self):
        made = learned()
        with torch.no_grad():
            made.left += 0.3 * torch.randn(
                made.left.shape, generator=seeded()
            )  # no longer orthonormal
        clamped = made.batch()[0].detach().clamp(self.LOWER, self.UPPER)
        made.clip(self.LOWER, self.UPPER)
        distance = (made.batch()[0] - clamped).square().sum()
        (slope,) = torch.autograd.grad(distance, made.bases)
        assert float(distance.detach()) > 0.1
        assert float(slope.abs().max()) < 1e-4

    def test_what_is_outside_shrinks_from_call_to_call(self):
        def outside() -> float:
            images = made.batch()[0].detach()
            return float((images - images.clamp(self.LOWER, self.UPPER)).square().sum())

        made = learned()
        found = []
        for _ in range(30):
            found.append(outside())
            made.clip(self.LOWER, self.UPPER)
        assert all(after < before for before, after in pairwise(found))
        assert found[-1] < 0.02 * found[0]

    def test_images_of_full_rank_are_clamped(self):
        made = learned(rank=6, shape=ImageShape(3, 6, 6))
        clamped = made.batch()[0].detach().clamp(self.LOWER, self.UPPER)
        made.clip(self.LOWER, self.UPPER)
        torch.testing.assert_close(made.batch()[0].detach(), clamped, atol=1e-5, rtol=0)


class TestParts:
    def test_whole_sets_can_be_cut_out_and_put_back(self):
        made = learned()
        assert made.samples.tolist() == made.batch()[1][[0, 4, 8]].argmax(1).tolist()
        sets = torch.tensor([2, 0])
        rows = torch.tensor([8, 9, 10, 11, 0, 1, 2, 3])
        part = made.part(sets)
        torch.testing.assert_close(part.batch()[0], made.batch(rows)[0])
        with torch.no_grad():
            for parameter in part.parameters():
                parameter += 1
        before = made.batch()[0].detach()
        made.put(sets, part)
        torch.testing.assert_close(made.batch(rows)[0], part.batch()[0])
        torch.testing.assert_close(made.batch(rows)[1], part.batch()[1])
        torch.testing.assert_close(made.batch()[0].detach()[4:8], before[4:8])


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({}, {"left": 2 / 60, "right": 2 / 60, "bases": 2.0}),
        (
            {"learning_rates": {"left": 0.5, "bases": 3.0}},
            {"left": 0.5, "right": 2 / 60, "bases": 3.0},
        ),
        ({"optimizer": "adam"}, {"left": 2.0, "right": 2.0, "bases": 2.0}),
    ],
)
def test_mappers_take_smaller_steps_under_sgd(settings, rates):
    """By the pixels of all images that share one, 5 x 3 x 4: they move so much further; Adam's
    steps have one size.
    """
    factors = LowRankFactors(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 2, 4), torch.ones(5, 1, 2, 2))
    learned = LowRank(*factors, torch.arange(5) % 2)
    for one, prefix in ((learned, ""), (WithLearnedStepSize(learned, 0.1), "learned.")):
        made = optimizer(one, SynthesisSettings(learning_rate=2.0, **settings))
        names = {id(parameter): name for name, parameter in one.named_parameters()}
        found = {names[id(group["params"][0])]: group["lr"] for group in made.param_groups}
        assert {name: found[prefix + name] for name in rates} == pytest.approx(rates)


def test_factors_that_do_not_fit_are_refused():
    left, right, bases = factors()
    with pytest.raises(
        ConfigError, match=r"Got \(3, 3, 8, 2\), \(2, 3, 2, 6\), \(12, 3, 2, 2\) instead"
    ):
        LowRank(left, right[:2], bases, soft(12))
    with pytest.raises(ConfigError, match="Got 3 sets, 11 images and 11 labels instead"):
        LowRank(left, right, bases[:11], soft(11))


def trajectory_of(made: WithLearnedStepSize, way: str = "reverse") -> Tensor:
    student = FlatNetwork(
        build(NetworkSettings(name="convnet", depth=2, width=3), SHAPE, 5, seed=0).double()
    )
    start = student.vector()
    segment = Segment(
        start, start + 0.1 * torch.randn(start.shape, generator=seeded(), dtype=start.dtype)
    )
    steps = inner_steps(
        len(made),
        5,
        8,
        SHAPE[1:],
        seeded(3),
        augmentation("color_crop_cutout_flip_scale_rotate"),
    )
    return trajectory_loss(student, segment, steps, *made.batch(), made.step_size, way=way)


def test_trajectories_are_matched_by_factors_labels_and_step_size_with_the_gradient_of_full_unrolling():
    made = WithLearnedStepSize(learned(), 0.3).double()
    names, parameters = zip(*made.named_parameters(), strict=True)
    assert sorted(names) == [
        "learned.bases",
        "learned.labels",
        "learned.left",
        "learned.right",
        "log_step_size",
    ]
    swept, unrolled = (
        torch.autograd.grad(trajectory_of(made, way), parameters) for way in ("reverse", "full")
    )
    for mine, theirs in zip(swept, unrolled, strict=True):
        assert float((mine - theirs).abs().max()) < 1e-9 * float(theirs.abs().max())


def test_the_slope_along_the_gradient_is_its_length():
    made = WithLearnedStepSize(learned(), 0.3).double()
    gradients = torch.autograd.grad(trajectory_of(made), list(made.parameters()))
    length = torch.stack([gradient.norm() for gradient in gradients]).norm()
    moved = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, gradient in zip(made.parameters(), gradients, strict=True):
                parameter += sign * 1e-5 / length * gradient
            moved.append(float(trajectory_of(made)))
    assert (moved[0] - moved[1]) / 2e-5 == pytest.approx(float(length), rel=1e-6)
