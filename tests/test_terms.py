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


CONVOLUTIONS = {"momentum": 0.0, "drop": 0.0, "alpha": 0.5}
COMPARED = {
    "mean": (rayd.terms.MeanMatching(), "vectors"),
    "attention": (rayd.terms.AttentionMatching(), "layers"),
    "normalizations": (rayd.terms.NormalizationMatching(), "layers"),
    "moments": (rayd.terms.MomentMatching(**CONVOLUTIONS), "roles"),
    "covariance": (rayd.terms.CovarianceMatching(), "maps"),
    "statistic": (rayd.terms.StatisticMatching(), "vectors"),
    "centralization": (rayd.terms.Centralization(), "vectors"),
    "real centres": (rayd.terms.Centralization(centre="real"), "vectors"),
    "frequencies": (
        rayd.terms.CharacteristicFunctionMatching(scale=1.0, frequencies=16),
        "vectors",
    ),
    "filter": (rayd.terms.SpectralFilterMatching(layers="features"), "vectors"),
    "curriculum": (rayd.terms.CurriculumFilterMatching(layers="features"), "vectors"),
}
"""Terms that compare, and the form of the features that they are given below."""


def _features(form, count, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.rand(count, 4, generator=generator, dtype=dtype)
    maps = torch.rand(count, 3, 4, 4, generator=generator, dtype=dtype)
    forms = {
        "vectors": vectors,
        "maps": maps,
        "layers": [maps, maps[:, :2, :2, :2].contiguous()],
        "roles": {"conv_inputs": [maps], "bn_inputs": [maps.flip(1)]},
    }
    return forms[form]


def _each(features, change):
    if isinstance(features, torch.Tensor):
        return change(features)
    if isinstance(features, list):
        return [change(layer) for layer in features]
    return {role: [change(layer) for layer in layers] for role, layers in features.items()}


def _drawn(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", COMPARED)
def test_measured_and_sampled_statistics_give_the_same_value(name):
    """In float32 and float64, of classes of unequal size; int32 labels are indices, too."""
    term, form = COMPARED[name]
    real_labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    labels = torch.arange(6) % CLASSES
    for dtype in (torch.float32, torch.float64):
        real = _features(form, 10, dtype)
        synthetic = _features(form, 6, dtype, seed=1)
        halves = [
            (_each(real, lambda layer, rows=rows: layer[rows]), real_labels[rows].int())
            for rows in (slice(0, 7), slice(7, 10))
        ]
        measured = term.measure(halves, classes=CLASSES, generator=_drawn())
        whole = term(real, synthetic, real_labels, labels, classes=CLASSES, generator=_drawn())
        again = term(measured, synthetic, labels=labels.int())
        assert whole.dtype == again.dtype == dtype
        assert whole > 0
        torch.testing.assert_close(whole, again, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", COMPARED)
def test_gradients_of_float64_features_are_exact(name):
    term, form = COMPARED[name]
    real = _features(form, 9)
    labels = torch.arange(6) % CLASSES
    leaf = _features("vectors" if form == "vectors" else "maps", 6, seed=1).requires_grad_()

    def value(leaf):
        given = leaf
        if form == "layers":
            given = [leaf, leaf[:, :2, :2, :2]]
        elif form == "roles":
            given = {"conv_inputs": [leaf], "bn_inputs": [leaf.flip(1)]}
        return term(real, given, torch.arange(9) % CLASSES, labels, generator=_drawn())

    assert torch.autograd.gradcheck(value, leaf)


@pytest.mark.parametrize("name", ["RidgeRegression", "GradientMatching"])
def test_batch_terms_keep_float64(name):
    labels = torch.arange(4) % 2
    real = _features("vectors", 6)
    synthetic = _features("vectors", 4, seed=1)
    keywords = {}
    if name == "GradientMatching":
        keywords["network"] = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(4, 2)
        ).double()
        real, synthetic = (one.reshape(-1, 1, 2, 2) for one in (real, synthetic))
    term = getattr(rayd.terms, name)()

    def value(leaf):
        return term(real, leaf, torch.arange(6) % 2, labels, **keywords)

    assert torch.autograd.gradcheck(value, synthetic.requires_grad_())


@pytest.mark.parametrize("name", COMPARED)
def test_half_precision_is_summed_in_float32(name):
    """Values of bfloat16 features are those of the same numbers in float64."""
    term, form = COMPARED[name]
    labels = torch.arange(6) % CLASSES
    values = []
    rounded = [_features(form, count, torch.bfloat16, seed=count) for count in (9, 6)]
    for dtype in (torch.bfloat16, torch.float64):
        real, synthetic = (_each(one, lambda layer, to=dtype: layer.to(to)) for one in rounded)
        values.append(term(real, synthetic, torch.arange(9) % 3, labels, generator=_drawn()))
    assert values[0].dtype == torch.float32
    torch.testing.assert_close(values[0].double(), values[1], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", COMPARED)
def test_what_is_not_finite_gives_no_finite_value(name):
    """A loss of NaN that reads as 0 would be the best of all."""
    term, form = COMPARED[name]
    labels = torch.arange(6) % CLASSES
    real = _features(form, 9)
    broken = _each(
        _features(form, 6, seed=1), lambda layer: layer.index_fill(0, labels[:1], torch.nan)
    )
    arguments = (real, broken, torch.arange(9) % CLASSES, labels)
    if name in ("filter", "curriculum"):
        with pytest.raises(rayd.errors.RaydError, match="no longer finite"):
            term(*arguments)
    else:
        assert term(*arguments, generator=_drawn()).isnan()


LABELS = torch.arange(6) % CLASSES
UNFIT_LABELS = {
    "floats": (LABELS.float(), TypeError, "class indices, a tensor of integers"),
    "truths": (LABELS > 0, TypeError, "class indices, a tensor of integers"),
    "rows": (torch.eye(CLASSES)[LABELS], TypeError, "class indices, a tensor of integers"),
    "column": (LABELS[:, None], ValueError, r"class indices \(6,\), one per image"),
    "too few": (LABELS[:5], ValueError, r"Got int64 \(5,\)"),
    "one": (LABELS[:1], ValueError, r"Got int64 \(1,\)"),
    "negative": (LABELS - 1, ValueError, "Got -1 to 1"),
    "list": (LABELS.tolist(), TypeError, "must be a tensor. Got list"),
    "array": (LABELS.numpy(), TypeError, "must be a tensor. Got ndarray"),
}


@pytest.mark.parametrize("kind", UNFIT_LABELS)
def test_unfit_labels_are_refused_by_all_terms(kind, network):
    unfit, error, words = UNFIT_LABELS[kind]
    for term, form in COMPARED.values():
        features = _features(form, 6)
        with pytest.raises(error, match=words):
            term(features, features, LABELS, unfit, classes=CLASSES)
        with pytest.raises(error, match=words):
            term.measure([(features, unfit)], classes=CLASSES)
    images = torch.rand(6, *SHAPE)
    logits = torch.rand(6, CLASSES)
    with pytest.raises(error, match=words):
        rayd.terms.gradient_matching(images, images, LABELS, unfit, network=network)
    with pytest.raises(error, match=words):
        rayd.terms.gradient_matching(images, images, unfit, LABELS, network=network)
    with pytest.raises(error, match=words):
        rayd.terms.ridge_regression(logits, logits, unfit, LABELS)
    for term in (rayd.terms.Calibration(), rayd.terms.ClassAware()):
        with pytest.raises(error, match=words):
            term(logits, unfit)
    with pytest.raises(error, match=words):
        rayd.terms.densification(images, unfit)


def test_labels_beyond_the_classes_are_refused():
    vectors = torch.rand(6, 4)
    term = rayd.terms.MeanMatching()
    measured = term.measure([(vectors, LABELS)], classes=CLASSES)
    with pytest.raises(ValueError, match=r"from 0 to 2. Got 1 to 3"):
        term(measured, vectors, labels=LABELS + 1)
    with pytest.raises(ValueError, match=r"from 0 to 1. Got 0 to 2"):
        term(vectors, vectors, LABELS, LABELS, classes=2)
    with pytest.raises(ValueError, match=r"from 0 to 2. Got 1 to 3"):
        rayd.terms.calibration(torch.rand(6, CLASSES), LABELS + 1)
    with pytest.raises(ValueError, match=r"real image of every class among the synthetic ones.*2"):
        rayd.terms.gradient_matching(
            torch.rand(4, 1, 2, 2),
            torch.rand(6, 1, 2, 2),
            torch.arange(4) % 2,
            LABELS,
            network=torch.nn.Flatten(),
        )


@pytest.mark.parametrize("name", COMPARED)
def test_unfit_features_are_refused(name):
    term, form = COMPARED[name]
    features = _features(form, 6)
    for change, error, words in [
        (lambda layer: layer.flatten(1)[:, 0], ValueError, "must be .*vectors"),
        (lambda layer: (layer * 255).long(), TypeError, "of floating-point numbers. Got int64"),
        (lambda layer: layer.numpy(), TypeError, "of floating-point numbers. Got ndarray"),
        (lambda layer: layer[:0], ValueError, "at least one image"),
    ]:
        unfit = _each(features, change)
        labels = LABELS[: 0 if words == "at least one image" else 6]
        with pytest.raises(error, match=words):
            term(features, unfit, LABELS, labels, classes=CLASSES)
    if term.specs and form == "vectors":
        for narrow in (features[:, :1], features[:, :3]):
            with pytest.raises(ValueError, match="of the shape of real ones"):
                term(features, narrow, LABELS, LABELS, classes=CLASSES)


def test_maps_of_other_sizes_are_refused_where_places_count():
    maps = torch.rand(6, 3, 4, 4)
    with pytest.raises(ValueError, match=r"maps of the size of real ones. Got 8 and 16"):
        rayd.terms.covariance_matching(maps, maps[:, :, :2], LABELS, LABELS)
    # moments by channel do not depend on the number of places
    layers = [maps[:, :, :2].contiguous()]
    assert rayd.terms.normalization_matching([maps], layers, LABELS, LABELS).isfinite()
    with pytest.raises(ValueError, match=r"as many layers 'bn_inputs'.* Got 1 and 2"):
        rayd.terms.normalization_matching([maps, maps], [maps], LABELS, LABELS)


def test_a_class_without_real_images_has_no_real_centre():
    features = torch.tensor([[0.0], [3.0], [7.0]])
    term = rayd.terms.Centralization(centre="real")
    given = (features[:2], features, torch.tensor([0, 1]), torch.tensor([0, 1, 2]))
    assert term(*given) == 0
    exponential = rayd.terms.Centralization(centre="real", form="exponential")
    assert exponential(*given) == 2


def test_probabilities_are_labels_of_the_cross_entropy_alone():
    logits = torch.rand(6, CLASSES)
    rows = torch.eye(CLASSES)[LABELS]
    expected = functional.cross_entropy(logits, LABELS)
    torch.testing.assert_close(rayd.terms.cross_entropy(logits, rows), expected)
    with pytest.raises(ValueError, match=r"or rows of numbers \(6, 3\)"):
        rayd.terms.cross_entropy(logits, LABELS.float())
    with pytest.raises(ValueError, match="logits of equal shape"):
        rayd.terms.flatness(logits, logits[:, :1])
    with pytest.raises(ValueError, match=r"tensors use compare='logits'"):
        rayd.terms.flatness(logits, logits, compare="statistics")


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


def test_images_and_networks_that_do_not_fit_have_no_gradients():
    images = torch.rand(4, 1, 2, 2)
    labels = torch.tensor([0, 0, 1, 1])
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    matched = rayd.terms.gradient_matching
    with pytest.raises(ValueError, match=r"of the same shape\. Got \(1, 2, 2\) and \(3, 2, 2\)"):
        matched(images, torch.rand(4, 3, 2, 2), labels, labels, network=network)
    with pytest.raises(ValueError, match=r"more than 5 classes.*Got \(2, 2\) instead"):
        matched(images, images, 5 * labels, 5 * labels, network=network)
    with pytest.raises(TypeError, match=r"a torch module\. Got str"):
        matched(images, images, labels, labels, network="convnet")
    # the network is left as it was
    assert not network._forward_hooks
    assert matched(images, images, labels, labels, network=network) < 1e-2


def test_class_aware_needs_an_accuracy_that_is_a_fraction():
    """Without one the term would be zero, and with percents a hundred times too large."""
    logits = torch.zeros(2, 4)
    labels = torch.tensor([0, 3])
    with pytest.raises(TypeError, match=r"accuracy=0\.9"):
        rayd.terms.class_aware(logits, labels)
    with pytest.raises(ValueError, match=r"a fraction, 0 to 1\. Got 90"):
        rayd.terms.class_aware(logits, labels, accuracy=90)
    as_tensor = rayd.terms.class_aware(logits, labels, accuracy=torch.tensor(0.5))
    assert as_tensor == rayd.terms.class_aware(logits, labels, accuracy=0.5)


def test_unknown_layer_roles_are_named():
    maps = [torch.rand(4, 3, 8, 8)]
    labels = torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"'bn_inputs' and 'conv_inputs'\. Got 'bn' instead"):
        rayd.terms.moment_matching({"bn": maps}, {"bn": maps}, labels, labels)


def test_features_of_inference_mode_are_measured_and_compared():
    """torch does not count changes of such tensors, by which derived values are kept."""
    term = rayd.terms.MeanMatching()
    labels = torch.arange(6) % 2
    features = torch.rand(6, 5)
    with torch.inference_mode():
        real = features.clone()
        real_labels = labels.clone()
        measured = term.measure([(real, real_labels)], classes=2)
    synthetic = torch.rand(6, 5, requires_grad=True)
    loss = term(measured, synthetic, labels=labels)
    loss.backward()
    assert synthetic.grad.abs().sum() > 0
    wanted = term(features, synthetic, labels, labels)
    assert term(real, synthetic, real_labels, labels) == wanted
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_class_counts_are_on_the_host(monkeypatch):
    """As the engine's are: a term that computes with them there fails where they are on a GPU."""
    seen = []
    sizes = torch.arange(2)
    monkeypatch.setattr("rayd.derived.class_sizes", lambda labels, classes: sizes)
    monkeypatch.setattr("rayd.derived.on_host", lambda tensor: seen.append(tensor) or tensor)
    labels = torch.arange(6) % 2
    rayd.terms.mean_matching(torch.rand(6, 5), torch.rand(6, 5), labels, labels)
    assert any(tensor is sizes for tensor in seen)


@pytest.mark.parametrize("statistic", ["Covariance", "CharacteristicFunction"])
def test_a_statistic_without_a_distance_is_refused(statistic):
    labels = torch.arange(6) % 2
    with pytest.raises(rayd.RaydError, match=f"'{statistic}' cannot be matched"):
        rayd.terms.statistic_matching(
            torch.rand(6, 5), torch.rand(6, 5), labels, labels, of=statistic
        )
