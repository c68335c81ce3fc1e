"""Maximum mean discrepancy against loops over pairs, its link to spectral distances, and a run."""

import math

import pytest
import torch
from torch import Tensor, nn

from rayd import methods, networks
from rayd.config import NetworkSettings
from rayd.engine.distill import distill
from rayd.engine.progress import Progress
from rayd.errors import ConfigError
from rayd.networks import FeatureExtractor, LayerRole
from rayd.objectives import Context, KernelDiscrepancy
from rayd.objectives.kernel_discrepancy import discrepancy
from rayd.objectives.terms import Batch
from rayd.recipes import assemble
from rayd.statistics import CharacteristicFunction, Frequencies
from tests.conftest import tiny
from tests.draws import normal
from tests.runs import steps_of

SHAPE = (1, 8, 8)
FORMS = {
    "gaussian": lambda d: math.exp(-float(d.square().sum()) / 2),
    "laplace": lambda d: math.exp(-float(d.abs().sum())),
    "isotropic-laplace": lambda d: math.exp(-float(d.norm())),
    "matern": lambda d: (
        (1 + math.sqrt(3) * float(d.norm())) * math.exp(-math.sqrt(3) * float(d.norm()))
    ),
    "rational-quadratic": lambda d: 1 / (1 + float(d.square().sum()) / 2),
}
"""Kernels of length 1 at a difference of two vectors, with the default exponents."""


def by_pairs(name: str, length: float, real: Tensor, synthetic: Tensor) -> float:
    """The formula, one pair after another."""

    def mean(one: Tensor, other: Tensor) -> float:
        values = [FORMS[name]((x - y) / length) for x in one for y in other]
        return sum(values) / len(values)

    return mean(real, real) + mean(synthetic, synthetic) - 2 * mean(real, synthetic)


@pytest.mark.parametrize("name", FORMS)
def test_value_and_gradient_are_those_of_the_formula(name):
    kernel = Frequencies(name, 1.7)
    real = normal(7, 3, seed=0)
    synthetic = normal(4, 3, seed=1).requires_grad_()
    value = discrepancy(kernel, real, synthetic)
    assert float(value.detach()) == pytest.approx(by_pairs(name, 1.7, real, synthetic.detach()))
    assert torch.autograd.gradcheck(lambda ours: discrepancy(kernel, real, ours), synthetic)
    equal = real.clone().requires_grad_()
    at_zero = discrepancy(kernel, real, equal)
    assert abs(float(at_zero.detach())) < 1e-12
    assert torch.autograd.grad(at_zero, equal)[0].isfinite().all()


@pytest.mark.parametrize("name", FORMS)
def test_spectral_distance_estimates_it(name):
    kernel = Frequencies(name, 2.0, number=60_000)
    real = normal(6, 3, seed=0)
    synthetic = normal(4, 3, seed=1) + 0.5
    frequencies = kernel.draw(3, torch.Generator().manual_seed(2))
    sides = [
        CharacteristicFunction.of(
            side.unsqueeze(1), torch.zeros(len(side), dtype=torch.long), 1, frequencies
        )
        for side in (real, synthetic)
    ]
    gap = (sides[0].real - sides[1].real).square() + (
        sides[0].imaginary - sides[1].imaginary
    ).square()
    exact = float(discrepancy(kernel, real, synthetic))
    assert float(gap.mean()) == pytest.approx(exact, abs=0.01)


def observed(seed: int, count: int) -> tuple[FeatureExtractor, Tensor, Tensor]:
    settings = NetworkSettings(name="convnet", width=4, depth=1)
    network: nn.Module = networks.build(settings, SHAPE, 3, seed=0).eval()
    images = normal(count, *SHAPE, seed=seed).float()
    return FeatureExtractor(network, [LayerRole.FEATURES], SHAPE), images, torch.arange(count) % 3


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("over", ["mean", "sum"])
def test_term_compares_classes(normalize, over):
    extractor, images, labels = observed(0, 12)
    _, ours, classes = observed(1, 5)
    term = KernelDiscrepancy(scale=4.0, normalize=normalize, over_classes=over)
    batch = Batch(images, labels, lambda: extractor(images))
    context = Context(batch=batch, network=extractor.network)
    value = term({}, extractor(ours), classes, context)
    features = []
    for side in (images, ours):
        (layer,) = extractor(side).layers[LayerRole.FEATURES]
        layer = layer.detach().double()
        features.append(layer / layer.norm(dim=1, keepdim=True) if normalize else layer)
    parts = [
        by_pairs("gaussian", 4.0, features[0][labels == c], features[1][classes == c])
        for c in range(3)
    ]
    expected = sum(parts) if over == "sum" else sum(parts) / 3
    assert float(value.detach()) == pytest.approx(expected, rel=1e-4)


def test_settings():
    base = {"method": "dm", "data": "digits", "real": "sampled"}
    method = methods.build(assemble({**base, "terms": {"kernel_discrepancy": {"weight": 1}}}))
    assert [term.name for term in method.terms] == ["mean", "kernel_discrepancy"]
    with pytest.raises(ConfigError, match="half-integer"):
        assemble({**base, "terms": {"kernel_discrepancy": {"kernel": "matern", "smoothness": 1}}})
    with pytest.raises(ConfigError, match="real: sampled"):
        assemble({**base, "real": "measured", "terms": {"kernel_discrepancy": {}}})


def test_run_lowers_the_loss(tmp_path):
    recipe = tiny(
        method="dm",
        real="sampled",
        terms={"mean": {"weight": 0}, "kernel_discrepancy": {"kernel": "laplace"}},
        observers={"real_batch": 16, "pool": 1},
        synthesis={"steps": 40, "learning_rate": 1.0, "log_every": 10},
        evaluation={"baselines": []},
    )
    run = distill(recipe, tmp_path / "run", progress=Progress(quiet=True))
    lines = steps_of(run.directory)
    losses = [line["loss"] for line in lines if "kernel_discrepancy" in line]
    assert losses[-1] < losses[0]
