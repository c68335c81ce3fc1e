"""Trajectory matching: three ways to its gradient against slow references, their memory, and
problems with closed forms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from rayd.config import DataSettings, NetworkSettings
from rayd.data import ImageShape, load
from rayd.data.augmentation import augmentation
from rayd.networks import build
from rayd.networks.flat import FlatNetwork
from rayd.objectives.trajectory import InnerStep, Segment, inner_steps, trajectory_loss, useful
from tests.draws import seeded

CLASSES = 3
COUNT = 7
SHAPE = ImageShape(2, 8, 8)
DSA = "color_crop_cutout_flip_scale_rotate"
OPERATIONS = tuple(DSA.split("_"))
STEP_SIZE = 0.3


def network() -> nn.Module:
    return build(NetworkSettings(name="convnet", depth=2, width=3), SHAPE, CLASSES, seed=0).double()


def segment_of(student: FlatNetwork, seed: int = 1) -> Segment:
    start = student.vector()
    return Segment(
        start, start + 0.1 * torch.randn(start.shape, generator=seeded(seed), dtype=start.dtype)
    )


def leaves(seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Images, logits of labels, logarithm of the step size."""
    draws = seeded(seed)
    images = torch.randn(COUNT, *SHAPE, generator=draws, dtype=torch.float64)
    logits = torch.randn(COUNT, CLASSES, generator=draws, dtype=torch.float64)
    return (
        images.requires_grad_(),
        logits.requires_grad_(),
        torch.tensor(STEP_SIZE, dtype=torch.float64).log().requires_grad_(),
    )


def steps_of(count: int, strategy: str | None = DSA, seed: int = 3) -> tuple[InnerStep, ...]:
    return inner_steps(COUNT, 3, count, SHAPE[1:], seeded(seed), augmentation(strategy))


def every_operation() -> tuple[InnerStep, ...]:
    """A step for each operation of DSA, on batches that overlap."""
    draws = seeded(4)
    rows = [torch.randperm(COUNT, generator=draws)[:3] for _ in OPERATIONS]
    drawn = [augmentation(name).draw(draws, 3, *SHAPE[1:]) for name in OPERATIONS]
    return tuple(InnerStep(some, operations) for some, operations in zip(rows, drawn, strict=True))


def gradients_of(
    way: str, steps: Sequence[InnerStep], labels: str = "soft"
) -> tuple[Tensor, list[Tensor]]:
    student = FlatNetwork(network())
    images, logits, log_step = leaves()
    given = logits.softmax(1) if labels == "soft" else logits.argmax(1)
    loss = trajectory_loss(
        student, segment_of(student), steps, images, given, log_step.exp(), way=way
    )
    by = [images, logits, log_step] if labels == "soft" else [images, log_step]
    return loss.detach(), list(torch.autograd.grad(loss, by))


def unrolled(steps: Sequence[InnerStep], labels: str = "soft") -> tuple[Tensor, list[Tensor]]:
    """The loss and its gradient as MTT finds them: parameter by parameter, step by step, through
    everything.
    """
    plain = network()
    images, logits, log_step = leaves()
    segment = segment_of(FlatNetwork(plain))
    sizes = [parameter.numel() for parameter in plain.parameters()]
    names = [name for name, _ in plain.named_parameters()]
    cut = zip(segment.start.split(sizes), plain.parameters(), strict=True)
    now = [part.clone().view_as(parameter).requires_grad_() for part, parameter in cut]
    for step in steps:
        seen = images[step.rows]
        for operation in step.operations:
            seen = operation(seen)
        said = functional_call(plain, dict(zip(names, now, strict=True)), (seen,)).log_softmax(1)
        meant = logits[step.rows].softmax(1)
        if labels == "hard":
            meant = nn.functional.one_hot(logits[step.rows].argmax(1), CLASSES).double()
        loss = -(meant * said).sum(1).mean()
        moves = torch.autograd.grad(loss, now, create_graph=True)
        now = [old - log_step.exp() * move for old, move in zip(now, moves, strict=True)]
    end = torch.cat([part.reshape(-1) for part in now])
    loss = (end - segment.target).pow(2).sum() / (segment.start - segment.target).pow(2).sum()
    return loss.detach(), list(
        torch.autograd.grad(
            loss, [images, logits, log_step] if labels == "soft" else [images, log_step]
        )
    )


def assert_equal(mine: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-9) -> None:
    """Equal to a tolerance relative to the largest entry of each."""
    for one, other in zip(mine, theirs, strict=True):
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())
        assert float(other.abs().max()) > 0


@pytest.mark.parametrize("way", ["full", "reverse"])
@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("steps", [steps_of(1), steps_of(8), steps_of(5, None), every_operation()])
def test_the_gradient_is_that_of_the_unrolled_steps(way, labels, steps):
    loss, gradients = gradients_of(way, steps, labels)
    expected, reference = unrolled(steps, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert_equal(gradients, reference)


def test_every_operation_of_dsa_lets_the_gradient_through():
    steps = every_operation()
    assert len({type(operation) for step in steps for operation in step.operations}) == len(
        OPERATIONS
    )


def truncated_formula(steps: Sequence[InnerStep]) -> tuple[list[Tensor], Tensor]:
    """TESLA's formula, printed term by printed term, by images and logits of labels; and G."""
    student = FlatNetwork(network())
    segment = segment_of(student)
    images, logits, log_step = leaves()
    alpha = float(log_step.detach().exp())
    apart = (segment.start - segment.target).square().sum()
    vector = segment.start
    made = []
    for step in steps:
        point = vector.detach().requires_grad_()
        loss = cross_entropy(
            student(point, step.view(images[step.rows])), logits[step.rows].softmax(1)
        )
        made.append(torch.autograd.grad(loss, point, create_graph=True)[0])
        vector = vector - alpha * made[-1].detach()
    total = torch.stack([each.detach() for each in made]).sum(0)
    factor = 2 / apart * (alpha * (segment.target - segment.start) + alpha**2 * total)
    sums = [torch.zeros_like(images), torch.zeros_like(logits)]
    for each in made:
        for kept, part in zip(
            sums,
            torch.autograd.grad(each, [images, logits], factor, retain_graph=True),
            strict=True,
        ):
            kept += part
    by_alpha = -2 / apart * total @ (segment.start - alpha * total - segment.target)
    return [*sums, by_alpha * alpha], total


@pytest.mark.parametrize("steps", [steps_of(1), steps_of(8)])
def test_the_truncated_gradient_is_tesla_s_formula(steps):
    assert_equal(gradients_of("truncated", steps)[1], truncated_formula(steps)[0], 1e-12)


def test_truncated_and_exact_gradients_coincide_for_one_step_only():
    assert_equal(
        gradients_of("truncated", steps_of(1))[1], gradients_of("reverse", steps_of(1))[1], 1e-12
    )
    for truncated, exact in zip(
        gradients_of("truncated", steps_of(2))[1],
        gradients_of("reverse", steps_of(2))[1],
        strict=True,
    ):
        assert float((truncated - exact).norm()) > 1e-3 * float(exact.norm())


@pytest.mark.parametrize("way", ["full", "reverse"])
def test_gradcheck(way):
    student = FlatNetwork(
        nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.GroupNorm(2, 2), nn.Softplus(), nn.Flatten(), nn.Linear(8, 2)
        ).double()
    )
    draws = seeded()
    segment = segment_of(student)
    images = torch.randn(4, 1, 4, 4, generator=draws, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(4, 2, generator=draws, dtype=torch.float64, requires_grad=True)
    steps = inner_steps(4, 3, 4, (4, 4), draws, augmentation("color_flip"))

    def loss(images: Tensor, logits: Tensor, step_size: Tensor) -> Tensor:
        return trajectory_loss(
            student, segment, steps, images, logits.softmax(1), step_size, way=way
        )

    assert torch.autograd.gradcheck(
        loss, (images, logits, torch.tensor(0.5, dtype=torch.float64, requires_grad=True))
    )


def test_the_gradient_scales_with_what_is_made_of_the_loss_and_is_found_twice_alike():
    student = FlatNetwork(network())
    images, logits, log_step = leaves()
    loss = trajectory_loss(
        student, segment_of(student), steps_of(3), images, logits.softmax(1), log_step.exp()
    )
    (once,) = torch.autograd.grad(loss, images, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, images)
    torch.testing.assert_close(thrice, 3 * once)


def test_images_that_no_step_saw_get_gradient_zero():
    steps = (InnerStep(torch.tensor([5, 1])), InnerStep(torch.tensor([1, 2])))
    _, (by_images, by_labels, _) = gradients_of("reverse", steps)
    assert (
        by_images.flatten(1).any(1).tolist()
        == by_labels.any(1).tolist()
        == [row in (1, 2, 5) for row in range(COUNT)]
    )


def test_a_loss_without_gradient_is_the_same():
    student = FlatNetwork(network())
    images, logits, log_step = leaves()
    with torch.no_grad():
        values = [
            trajectory_loss(
                student,
                segment_of(student),
                steps_of(4),
                images,
                logits.softmax(1),
                log_step.exp(),
                way=way,
            )
            for way in ("reverse", "full", "truncated")
        ]
    assert all(not value.requires_grad for value in values)
    torch.testing.assert_close(
        torch.stack(values), unrolled(steps_of(4))[0].expand(3), rtol=1e-12, atol=0
    )


def test_a_student_that_stays_is_at_one_and_one_that_arrives_at_zero():
    segment = segment_of(FlatNetwork(network()))
    assert segment.loss(segment.start) == 1
    assert segment.loss(segment.target) == 0


@pytest.mark.parametrize(
    ("way", "thrown_away", "kept"), [("full", 6, 6), ("reverse", 6, 12), ("truncated", 6, 12)]
)
def test_a_step_is_computed_once_for_the_loss_and_once_more_for_its_gradient(
    way, thrown_away, kept
):
    flat = FlatNetwork(network())
    calls = []

    def student(vector: Tensor, images: Tensor) -> Tensor:
        calls.append(len(images))
        return flat(vector, images)

    images, logits, log_step = leaves()
    loss = trajectory_loss(
        student, segment_of(flat), steps_of(6), images, logits.softmax(1), log_step.exp(), way=way
    )
    assert len(calls) == thrown_away
    loss.backward()
    assert len(calls) == kept


def test_the_sweep_takes_at_most_1_6_times_the_arithmetic_of_full_unrolling():
    student = FlatNetwork(
        build(NetworkSettings(name="convnet", width=16), ImageShape(3, 16, 16), 10, seed=0)
    )
    draws = seeded()
    images = torch.randn(8, 3, 16, 16, generator=draws)
    logits = torch.randn(8, 10, generator=draws)
    steps = inner_steps(8, None, 6, (16, 16), draws, augmentation("flip"))
    step_size = torch.tensor(0.01)
    leaves = [tensor.requires_grad_() for tensor in (images, logits, step_size)]

    def operations(way: str) -> int:
        with FlopCounterMode(display=False) as counted:
            loss = trajectory_loss(
                student, segment_of(student), steps, images, logits.softmax(1), step_size, way=way
            )
            torch.autograd.grad(loss, leaves)
        return counted.get_total_flops()

    full = operations("full")
    assert full < operations("reverse") < 1.6 * full
    assert operations("truncated") < operations("reverse")


def most_allocated(run: Callable[[], Any]) -> int:
    """Most bytes that tensors held at a time, above those that they held before, as torch's CPU
    allocator tells it.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    told = [
        (event.start_ns(), event.nbytes())
        for event in seen.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    level = most = 0
    for _, change in sorted(told, key=lambda one: one[0]):
        level += change
        most = max(most, level)
    return most


@pytest.mark.parametrize("way", ["reverse", "truncated", "full"])
def test_memory_does_not_grow_with_the_steps_beyond_their_vectors(way):
    student = FlatNetwork(
        build(NetworkSettings(name="convnet", width=8), ImageShape(1, 16, 16), 10, seed=0)
    )
    segment = segment_of(student)
    draws = seeded()
    images = torch.randn(40, 1, 16, 16, generator=draws, requires_grad=True)
    logits = torch.randn(40, 10, generator=draws, requires_grad=True)
    step_size = torch.tensor(0.01, requires_grad=True)

    def peak(count: int) -> int:
        steps = inner_steps(40, 40, count, (16, 16), seeded(), augmentation("flip"))

        def run() -> None:
            loss = trajectory_loss(
                student, segment, steps, images, logits.softmax(1), step_size, way=way
            )
            torch.autograd.grad(loss, (images, logits, step_size))

        run()
        return most_allocated(run)

    few = peak(5)
    many = peak(40)
    if way == "full":
        assert many > 5 * few
    else:
        assert many < 1.2 * few
        assert many - few < 1.2 * 35 * student.size * 4


class TestClosedForms:
    def test_one_step_of_a_linear_classifier_from_zero_is_solved_by_its_weights(self):
        """theta_1 = alpha / n sum_i (y_i - 1 / C) x_i^T, so with one image a class, X = (C / alpha)
        W arrives at centred W.
        """
        student = FlatNetwork(
            nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES, bias=False)).double()
        )
        weights = torch.randn(CLASSES, 6, generator=seeded(), dtype=torch.float64)
        weights -= weights.mean(0)
        segment = Segment(torch.zeros(student.size, dtype=torch.float64), weights.flatten())
        steps = inner_steps(CLASSES, None, 1, (2, 3), seeded())
        alpha = torch.tensor(0.5, dtype=torch.float64)
        images = torch.zeros(CLASSES, 1, 2, 3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([images], lr=30.0)
        for _ in range(200):
            optimizer.zero_grad()
            loss = trajectory_loss(student, segment, steps, images, torch.arange(CLASSES), alpha)
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < 1e-20
        torch.testing.assert_close(
            images.detach().flatten(1), CLASSES / 0.5 * weights, rtol=1e-8, atol=1e-8
        )

    def test_steps_of_linear_regression_are_solved_by_the_least_squares_of_their_labels(self):
        """theta_N = M^N theta_0 + 2 alpha / n sum_j M^j X^T y, with M = I - 2 alpha / n X^T X:
        affine in the labels y.
        """
        count = 4
        wide = 6
        taken = 7
        alpha = 0.2
        draws = seeded()
        images = torch.randn(count, 1, 2, 3, generator=draws, dtype=torch.float64)
        rows = images.flatten(1)
        start, target = torch.randn(2, wide, generator=draws, dtype=torch.float64)
        step = torch.eye(wide, dtype=torch.float64) - 2 * alpha / count * rows.T @ rows
        powers = [torch.linalg.matrix_power(step, power) for power in range(taken + 1)]
        by_labels = 2 * alpha / count * torch.stack(powers[:taken]).sum(0) @ rows.T
        solution = torch.linalg.lstsq(by_labels, (target - powers[taken] @ start)[:, None]).solution
        least = (powers[taken] @ start + by_labels @ solution[:, 0] - target).square().sum() / (
            start - target
        ).square().sum()

        student = FlatNetwork(nn.Sequential(nn.Flatten(), nn.Linear(wide, 1, bias=False)).double())
        steps = inner_steps(count, None, taken, (2, 3), draws)
        labels = torch.zeros(count, 1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [labels],
            max_iter=100,
            tolerance_grad=1e-14,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = trajectory_loss(
                student,
                Segment(start, target),
                steps,
                images,
                labels,
                torch.tensor(alpha).double(),
                inner_loss=mse_loss,
            )
            loss.backward()
            return loss

        optimizer.step(closure)
        torch.testing.assert_close(closure().detach(), least, rtol=1e-10, atol=0)
        torch.testing.assert_close(labels.detach(), solution, rtol=1e-6, atol=1e-6)


class TestInnerSteps:
    def test_batches_are_cut_from_permutations(self):
        drawn = inner_steps(10, 4, 7, (8, 8), seeded())
        assert [len(step.rows) for step in drawn] == [4, 4, 2, 4, 4, 2, 4]
        first, second = (
            torch.cat([step.rows for step in drawn[at : at + 3]]).tolist() for at in (0, 3)
        )
        assert sorted(first) == sorted(second) == list(range(10))
        assert first != second

    @pytest.mark.parametrize("size", [None, 10, 11])
    def test_a_batch_of_all_images_is_in_order(self, size):
        assert [step.rows.tolist() for step in inner_steps(10, size, 2, (8, 8), seeded())] == [
            list(range(10))
        ] * 2

    def test_every_step_has_a_view_of_its_own_with_parameters_for_every_image(self):
        images = torch.randn(6, 3, 8, 8)
        drawn = inner_steps(6, 3, 4, (8, 8), seeded(), augmentation("scale"))
        views = [step.view(images[:3]) for step in drawn]
        assert all(
            torch.equal(view, step.view(images[:3]))
            for view, step in zip(views, drawn, strict=True)
        )
        assert not any(torch.equal(views[0], view) for view in views[1:])
        same = images[:1].expand(3, -1, -1, -1)
        assert not torch.equal(drawn[0].view(same)[0], drawn[0].view(same)[1])

    def test_the_generator_alone_decides(self):
        def rows(seed: int) -> list[list[int]]:
            return [
                step.rows.tolist()
                for step in inner_steps(10, 4, 5, (8, 8), seeded(seed), augmentation(DSA))
            ]

        assert rows(0) == rows(0)
        assert rows(0) != rows(1)


def test_divergence_is_a_loss_that_is_not_finite_or_above_its_limit():
    losses = torch.tensor([float("nan"), float("inf"), 1.01, 1.0, 1e9])
    assert useful(losses).tolist() == [False, False, True, True, True]
    assert useful(losses, 1.0).tolist() == [False, False, False, True, False]


def test_matching_a_few_experts_makes_ten_digits_worth_many():
    """A student that learns from ten matched images knows far more digits than one that learns from
    those they were.
    """
    data = load(DataSettings(name="digits"))
    spec = NetworkSettings(name="mlp", width=32)
    size = data.shape[1:]
    images, tests = (
        data.normalization(torch.from_numpy(part.images)) for part in (data.train, data.test)
    )
    labels, expected = (torch.from_numpy(part.labels) for part in (data.train, data.test))

    def student(seed: int) -> FlatNetwork:
        return FlatNetwork(build(spec, data.shape, 10, seed=seed))

    def after(
        start: Tensor, images: Tensor, labels: Tensor, step_size: float, steps: int, batch_size: int
    ) -> Tensor:
        vector = start
        for step in inner_steps(len(images), batch_size, steps, size, seeded()):
            vector = vector.detach().requires_grad_()
            loss = cross_entropy(network(vector, images[step.rows]), labels[step.rows])
            vector = vector - step_size * torch.autograd.grad(loss, vector)[0]
        return vector.detach()

    def accuracy(images: Tensor, labels: Tensor, step_size: float) -> float:
        ends = [
            after(student(seed).vector(), images, labels, step_size, 300, 10) for seed in (20, 21)
        ]
        return float(
            torch.cat([network(end, tests).argmax(1) == expected for end in ends]).float().mean()
        )

    network = student(0)
    segments = []
    for seed in range(3):
        now = student(seed).vector()
        for _ in range(4):
            then = after(now, images, labels, 0.05, 45, 64)
            segments.append(Segment(now, then))
            now = then
    chosen = images[[int((labels == digit).nonzero()[0]) for digit in range(10)]]
    learned = chosen.clone().requires_grad_()
    log_step = torch.tensor(0.05).log().requires_grad_()
    optimizer = torch.optim.SGD(
        [{"params": [learned], "lr": 2.0}, {"params": [log_step], "lr": 0.02}], momentum=0.5
    )
    draws = seeded()
    for _ in range(120):
        segment = segments[int(torch.randint(len(segments), (), generator=draws))]
        steps = inner_steps(10, None, 10, size, draws)
        optimizer.zero_grad()
        trajectory_loss(
            network, segment, steps, learned, torch.arange(10), log_step.exp()
        ).backward()
        nn.utils.clip_grad_norm_([learned, log_step], 5.0)
        optimizer.step()
    before = max(accuracy(chosen, torch.arange(10), step_size) for step_size in (0.05, 0.2))
    found = accuracy(learned.detach(), torch.arange(10), float(log_step.detach().exp()))
    assert found > before + 0.1
    assert found > 0.75
