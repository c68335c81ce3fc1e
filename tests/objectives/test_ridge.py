"""Ridge regression in both forms, against a filter, a solver and a descent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayd.errors import RunError
from rayd.networks import LayerRole, Observation
from rayd.objectives import Batch, Context, RidgeRegression
from rayd.objectives.filters import Ridge
from rayd.objectives.ridge import (
    centred_targets,
    label_margin,
    predictions,
    regression_loss,
    regression_targets,
    ridge_of,
)
from tests.draws import normal


@pytest.mark.parametrize(("count", "dimension"), [(4, 7), (7, 4), (5, 5)])
@pytest.mark.parametrize("relative", [1e-6, 0.1])
def test_both_forms_are_the_formula_and_a_ridge_filter(count, dimension, relative):
    real = normal(9, dimension)
    synthetic = normal(count, dimension, seed=1)
    targets = normal(count, 3, seed=2)
    kernel = synthetic @ synthetic.T
    strength = relative * kernel.trace() / count
    torch.testing.assert_close(ridge_of(synthetic, relative), strength)
    found = predictions(real, synthetic, targets, relative)
    formula = (
        real
        @ synthetic.T
        @ torch.linalg.solve(kernel + strength * torch.eye(count, dtype=torch.float64), targets)
    )
    torch.testing.assert_close(found, formula, rtol=1e-8, atol=1e-8)
    matrix = synthetic.T @ synthetic / count
    signal = synthetic.T @ targets / count
    filtered = real @ Ridge(float(strength) / count)(matrix) @ signal
    torch.testing.assert_close(found, filtered, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("count", [3, 6])
def test_gradcheck(count):
    real = normal(5, 4)
    synthetic = normal(count, 4, seed=1)
    targets = normal(count, 3, seed=2)
    inputs = tuple(tensor.requires_grad_() for tensor in (real, synthetic, targets))
    assert torch.autograd.gradcheck(lambda *given: predictions(*given, relative=0.05), inputs)
    assert torch.autograd.gradcheck(
        regression_loss, (real.detach()[:, :3].requires_grad_(), normal(5, 3, seed=4))
    )


def test_alike_images_are_no_trouble_in_float32():
    """Twenty equal images: a kernel matrix of rank 1, whose rounding in float32 is above the
    ridge.
    """
    synthetic = normal(1, 64).float().expand(20, 64).clone().requires_grad_()
    found = predictions(
        normal(9, 64, seed=1).float(), synthetic, regression_targets(torch.arange(20) % 10, 10)
    )
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert torch.autograd.grad(found.square().sum(), synthetic)[0].isfinite().all()


def test_images_that_say_nothing_and_ridges_that_are_none_are_refused():
    with pytest.raises(ValueError, match="finite and not all zero"):
        predictions(normal(2, 3), torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="'relative' ridge must be above 0"):
        predictions(normal(2, 3), normal(2, 3), torch.zeros(2, 2), relative=0.0)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_targets_are_centred_and_scaled(classes):
    targets = regression_targets(torch.arange(classes), classes).double()
    torch.testing.assert_close(
        targets.sum(1), torch.zeros(classes, dtype=torch.float64), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        targets.diagonal() - targets.roll(1, 1).diagonal(),
        torch.full((classes,), (10 / classes) ** 0.5).double(),
    )
    real = centred_targets(torch.arange(classes), classes).double()
    torch.testing.assert_close(real, torch.eye(classes).double() - 1 / classes)


def test_the_loss_is_half_the_squared_distance_and_the_margin_is_cut():
    predicted = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    targets = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert float(regression_loss(predicted, targets)) == pytest.approx((5 + 4) / 4)
    learned = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.1, 0.3, 0.2, 0.0]])
    assert float(label_margin(learned)) == pytest.approx(-(0.25 + 0.1) / 2)


def test_descent_on_the_images_teaches_the_regression():
    """Four synthetic points learn to predict a linear rule that they knew nothing of."""
    real = normal(200, 3)
    rule = normal(3, 2, seed=1)
    synthetic = normal(4, 3, seed=2).requires_grad_()
    targets = normal(4, 2, seed=3).requires_grad_()
    optimizer = torch.optim.Adam([synthetic, targets], lr=0.05)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = regression_loss(predictions(real, synthetic, targets), real @ rule)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    assert losses[-1] < 1e-3 * losses[0]


def regressed(real: Tensor, synthetic: Tensor, labels: Tensor, **settings: float) -> Tensor:
    """The term's value for features of three classes in turn."""

    def seen(features: Tensor) -> Observation:
        return Observation(
            torch.zeros(len(features), 3), {LayerRole.FEATURES: (features,)}, features
        )

    batch = Batch(real, torch.arange(len(real)) % 3, lambda: seen(real))
    context = Context(network=torch.nn.Identity(), batch=batch)
    return RidgeRegression(**settings)({}, seen(synthetic), labels, context)


def test_the_term_compares_what_is_predicted_of_the_real_batch():
    real = normal(12, 5).float()
    synthetic = normal(6, 5, seed=1).float()
    labels = torch.arange(6) % 3
    predicted = predictions(real, synthetic, regression_targets(labels, 3), 0.1)
    expected = regression_loss(predicted, centred_targets(torch.arange(12) % 3, 3))
    torch.testing.assert_close(regressed(real, synthetic, labels, relative_ridge=0.1), expected)


def test_soft_labels_are_learned_and_keep_their_margin():
    real = normal(12, 5).float()
    synthetic = normal(6, 5, seed=1).float()
    labels = torch.arange(6) % 3
    soft = torch.eye(3)[labels].requires_grad_()
    value = regressed(real, synthetic, soft, relative_ridge=0.1)
    margin = label_margin(regression_targets(labels, 3))
    torch.testing.assert_close(
        value, regressed(real, synthetic, labels, relative_ridge=0.1) + margin
    )
    assert torch.autograd.grad(value, soft)[0].abs().sum() > 0


def test_features_that_are_not_finite_end_the_run_with_a_sentence():
    with pytest.raises(RunError, match=r"Lower synthesis\.learning_rate"):
        regressed(normal(12, 5).float(), torch.full((6, 5), float("nan")), torch.arange(6) % 3)
    nothing = torch.full((12, 5), float("nan"))
    with pytest.raises(RunError, match=r"Lower observers\.model_pool\.learning_rate"):
        regressed(nothing, nothing[:6], torch.arange(6) % 3)
