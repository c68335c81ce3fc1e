"""Terms on plain tensors give the numbers that they give inside the engine."""

import subprocess
import sys
import time

import pytest
import torch
from torch.nn import functional

import rayd
from rayd import objectives
from rayd.config.choices import LayerRole
from rayd.data import ImageShape
from rayd.networks import FeatureExtractor
from rayd.networks.convnet import convnet
from rayd.objectives import Batch, Context

CLASSES = 3
SHAPE = ImageShape(3, 8, 8)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(12, *SHAPE, generator=generator)
    synthetic = torch.randn(6, *SHAPE, generator=generator)
    return real, synthetic, torch.arange(12) % CLASSES, torch.arange(6) % CLASSES


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return convnet(SHAPE, CLASSES, width=8, depth=2, norm="batch").eval()


def _extracted(network, images, roles):
    return FeatureExtractor(network, roles, SHAPE)(images)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("MeanMatching", {}),
        ("AttentionMatching", {"power": 2.0}),
        ("NormalizationMatching", {}),
        ("MomentMatching", {"momentum": 0.0, "drop": 0.3}),
        ("CovarianceMatching", {}),
        ("Centralization", {"centre": "real"}),
        ("CharacteristicFunctionMatching", {"frequencies": 32}),
        ("SpectralFilterMatching", {}),
        ("CurriculumFilterMatching", {}),
    ],
)
def test_same_value_and_gradient_as_inside_the_engine(name, settings, images, network):
    real, synthetic, real_labels, labels = images
    inside = getattr(objectives, name)(**settings)
    alone = getattr(rayd.terms, name)(**settings)
    roles = {spec.layer_role for spec in inside.specs} | inside.layer_roles
    theirs = _extracted(network, real, roles)

    def engine(images):
        seen = _extracted(network, images, roles)
        statistics = {}
        for spec in inside.specs:
            shapes = [layer.shape[1:] for layer in seen.layers[spec.layer_role]]
            draws = torch.Generator().manual_seed(1) if spec.draws else None
            resolved = spec.resolved([theirs]) if spec.data_dependent else None
            empty = spec.empty(CLASSES, shapes, draws, resolved)
            empty = tuple(layer.to(dtype=torch.float32) for layer in empty)
            statistics[spec] = spec.of(theirs, real_labels, empty)
        context = Context(
            generator=lambda purpose: torch.Generator().manual_seed(1),
            class_counts=real_labels.bincount(),
        )
        return inside(statistics, seen, labels, context)

    def library(images):
        seen = _extracted(network, images, roles).layers
        generator = torch.Generator().manual_seed(1)
        ours = {role.value: tensors for role, tensors in seen.items()}
        given = {role.value: tensors for role, tensors in theirs.layers.items()}
        return alone(given, ours, real_labels, labels, classes=CLASSES, generator=generator)

    results = []
    for loss in (engine, library):
        parameter = synthetic.clone().requires_grad_()
        value = loss(parameter)
        (gradient,) = torch.autograd.grad(value, parameter)
        results.append((value.detach(), gradient))
    assert results[0][0] > 0
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_terms_of_logits_and_images(images, network):
    real, synthetic, real_labels, labels = images
    logits = network(synthetic)
    expected = functional.cross_entropy(logits, labels)
    assert torch.equal(rayd.terms.CrossEntropy()(logits, labels), expected)
    assert torch.equal(rayd.terms.cross_entropy(logits, labels), expected)
    calibration = rayd.terms.calibration(logits, labels)
    assert torch.equal(rayd.terms.class_aware(logits, labels, accuracy=0.5), 0.5 * calibration)
    assert rayd.terms.flatness(logits, logits + torch.rand_like(logits)) > 0
    assert rayd.terms.densification(synthetic, labels) >= 0
    seen = _extracted(network, synthetic, {LayerRole.FEATURES})
    theirs = _extracted(network, real, {LayerRole.FEATURES})
    context = Context(network=network, batch=Batch(real, real_labels, lambda: theirs))
    for name in ("GradientMatching", "RidgeRegression"):
        inside = getattr(objectives, name)()({}, seen, labels, context)
        if name == "GradientMatching":
            alone = rayd.terms.gradient_matching(
                real, synthetic, real_labels, labels, network=network
            )
        else:
            features = [one.layers[LayerRole.FEATURES][0] for one in (theirs, seen)]
            alone = rayd.terms.ridge_regression(*features, real_labels, labels, classes=CLASSES)
        assert torch.equal(inside, alone), name


def test_measured_statistics_stand_for_all_real_features():
    features = torch.rand(20, 5)
    labels = torch.arange(20) % CLASSES
    synthetic = torch.rand(6, 5)
    term = rayd.terms.MeanMatching()
    halves = [(features[:10], labels[:10]), (features[10:], labels[10:])]
    measured = term.measure(halves, classes=CLASSES)
    whole = term(features, synthetic, labels, torch.arange(6) % CLASSES)
    again = term(measured, synthetic, labels=torch.arange(6) % CLASSES)
    torch.testing.assert_close(whole, again)


def test_a_term_of_the_library_can_be_a_term_of_a_method():
    assert isinstance(rayd.terms.MeanMatching(weight=2), objectives.Term)
    assert rayd.terms.MomentMatching().weight == objectives.MomentMatching().weight
    assert objectives.Term.registry["attention"] is objectives.AttentionMatching


def test_missing_arguments_are_named():
    with pytest.raises(TypeError, match="labels of the synthetic"):
        rayd.terms.MeanMatching()(torch.rand(2, 3), torch.rand(2, 3), torch.arange(2))
    with pytest.raises(TypeError, match="labels of the real"):
        rayd.terms.MeanMatching()(torch.rand(2, 3), torch.rand(2, 3), labels=torch.arange(2))
    with pytest.raises(TypeError, match="'bn_inputs' and 'conv_inputs'"):
        rayd.terms.MomentMatching()(torch.rand(2, 3), torch.rand(2, 3), *[torch.arange(2)] * 2)


def test_terms_are_imported_without_torch():
    program = "import rayd, sys; rayd.terms.MeanMatching(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_overhead_in_an_own_loop_is_small():
    """Against the same mathematics by hand, in processor time, with a network's passes."""
    torch.manual_seed(0)
    shape = ImageShape(3, 32, 32)
    network = convnet(shape, 10, width=32, depth=3)
    body = FeatureExtractor(network, {LayerRole.FEATURES}, shape)
    real = torch.randn(256, *shape)
    synthetic = torch.randn(100, *shape)
    real_labels = torch.arange(256) % 10
    labels = torch.arange(100) % 10
    with torch.no_grad():
        theirs = body(real).layers[LayerRole.FEATURES][0]
    term = rayd.terms.MeanMatching()

    def by_hand(ours):
        distance = 0.0
        for label in range(10):
            gap = theirs[real_labels == label].mean(0) - ours[labels == label].mean(0)
            distance = distance + gap.square().sum()
        return distance

    def by_library(ours):
        return term(theirs, ours, real_labels, labels, classes=10)

    def seconds(loss):
        began = time.process_time()
        for _ in range(2):
            images = synthetic.clone().requires_grad_()
            loss(body(images).layers[LayerRole.FEATURES][0]).backward()
        return time.process_time() - began

    seconds(by_hand)
    ratios = sorted(seconds(by_library) / seconds(by_hand) for _ in range(7))
    sys.stdout.write(f"library against the same maths by hand: {ratios[3]:.3f}\n")
    assert ratios[3] < 1.1, ratios
