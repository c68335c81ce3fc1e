"""CSDM and NCFM: what they declare, how settings become a need and a term, and the objective on a
real network.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from rayd import methods, networks
from rayd.config import NetworkSettings, Recipe
from rayd.data import load
from rayd.errors import ConfigError
from rayd.methods import Method
from rayd.networks import FeatureExtractor, LayerRole, Observation
from rayd.objectives import Context, RealStatistics, StatisticSpec
from rayd.recipes import assemble
from rayd.statistics import (
    AtFrequencies,
    ByClass,
    CharacteristicFunction,
    Flat,
    Frequencies,
    Moments,
    Normalized,
)

KERNELS = ["gaussian", "laplace", "isotropic-laplace", "matern", "rational-quadratic", "linear"]


def csdm(**settings: Any) -> Method:
    return methods.build(recipe(terms=distance(**settings)))


def distance(**settings: Any) -> dict[str, Any]:
    """Settings of the term of both methods."""
    return {"characteristic_function": settings}


def recipe(method: str = "csdm", data: dict[str, Any] | None = None, **overrides: Any) -> Recipe:
    return assemble(
        {"name": "cell", "method": method, "data": {"name": "digits", **(data or {})}}, overrides
    )


def test_declarations():
    method = csdm()
    assert {term.name: method.weight(term) for term in method.terms} == {
        "characteristic_function": 300.0
    }
    (need,) = method.specs()
    assert need == StatisticSpec(
        LayerRole.FEATURES, Flat(), AtFrequencies(Frequencies("gaussian", "median", 1024))
    )
    assert not method.needs_trained_observers
    assert method.citation.startswith("@")


def test_defaults_are_a_whole_recipe_that_reads_back():
    chosen = recipe()
    assert (
        chosen.terms["characteristic_function"].model_dump()["head_amplitude_weight"],
        chosen.terms["characteristic_function"].model_dump()["split"],
        chosen.terms["characteristic_function"].model_dump()["root"],
    ) == (
        0.8,
        "median",
        False,
    )
    assert assemble(chosen.model_dump(mode="json")) == chosen


@pytest.mark.parametrize("kernel", KERNELS)
def test_settings_become_a_need(kernel):
    drawn = {} if kernel == "linear" else {"scale": 2.0, "frequencies": 9}
    own = {"matern": {"smoothness": 2.5}, "rational-quadratic": {"mixture": 3.0}}.get(kernel, {})
    (need,) = csdm(kernel=kernel, normalize=True, **drawn, **own).specs()
    assert need.transform == Normalized(Flat())
    if kernel == "linear":
        assert need.kind == ByClass(Moments)
    else:
        assert need.kind == AtFrequencies(Frequencies(kernel, 2.0, 9, **own))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"scale": 0},
            r"'terms.characteristic_function.scale'.* a finite number above 0, or 'median'. Got 0 ",
        ),
        (
            {"kernel": "linear", "split": "uniform", "head_amplitude_weight": 1},
            "leaves classes with nothing to match",
        ),
        (
            {"kernel": "linear", "head_amplitude_weight": 1},
            "'split: median' a 'head_amplitude_weight' of 1 leaves",
        ),
        ({"kernel": "linear", "head_amplitude_weight": 0}, "leaves classes with nothing to match"),
        ({"kernel": "matern", "smoothness": 0.1}, "smoothness.* 0.25"),
        ({"scale": float("inf")}, "a length is a finite number above 0, or 'median'"),
        (
            {"scale": -1.5},
            r"'terms.characteristic_function.scale'.* a finite number above 0, or 'median'. Got -1.5 ",
        ),
        (
            {"scale": "mean"},
            r"'terms.characteristic_function.scale'.* a finite number above 0, or 'median'. Got 'mean' ",
        ),
        (
            {"scale": True},
            r"'terms.characteristic_function.scale'.* a finite number above 0, or 'median'. Got True ",
        ),
        (
            {"frequencies": 0},
            r"'terms.characteristic_function.frequencies'.* greater than or equal to 1. Got 0 ",
        ),
        (
            {"head_amplitude_weight": 1.1},
            r"'terms.characteristic_function.head_amplitude_weight'.* less than or equal to 1. Got 1.1 ",
        ),
        (
            {"head_amplitude_weight": -0.1},
            r"'terms.characteristic_function.head_amplitude_weight'.* greater than or equal to 0. Got -0.1 ",
        ),
        (
            {"kernel": "rbf"},
            r"'terms.characteristic_function.kernel'.* 'rational-quadratic' or 'linear'. Got 'rbf' ",
        ),
        (
            {"split": "size"},
            r"'terms.characteristic_function.split'.* 'rank' or 'continuous'. Got 'size' ",
        ),
        (
            {"smoothness": 0},
            r"'terms.characteristic_function.smoothness'.* greater than or equal to 0.25. Got 0 ",
        ),
        ({"kernl": "laplace"}, r"did you mean 'terms.characteristic_function.kernel'"),
    ],
)
def test_settings_of_the_term_are_checked(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        csdm(**settings)


def convnet() -> torch.nn.Module:
    return (
        networks.build(NetworkSettings(name="convnet", width=4, depth=2), (1, 8, 8), 10, seed=1)
        .eval()
        .requires_grad_(False)
    )


def looked_at(
    method: Method, network: torch.nn.Module
) -> tuple[RealStatistics, Observation, Tensor, Observation, Tensor]:
    """Statistics of real digits, what the network sees of them, and what it sees of other
    images.
    """
    data = load(method.recipe.data)
    images = data.normalization(torch.from_numpy(data.train.images))
    labels = torch.from_numpy(data.train.labels)
    tapped = FeatureExtractor(
        network, method.layer_roles(), data.shape, optional=method.optional_layer_roles()
    )
    seen = tapped(images)
    real = {}
    for need in method.specs():
        statistics = need.empty(
            data.classes,
            tapped.dimensions(need.layer_role),
            torch.Generator().manual_seed(0),
            need.resolved([seen]),
        )
        need.update(statistics, seen, labels)
        real[need] = tuple(statistic.to(dtype=torch.float32) for statistic in statistics)
    start = torch.randn(
        20, *data.shape, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    return real, seen, labels, tapped(start), torch.arange(20) % 10


def value(method: Method, real: RealStatistics, seen: Observation, labels: Tensor) -> Tensor:
    context = Context(generator=lambda _: torch.Generator().manual_seed(0))
    return torch.stack(
        [method.weight(term) * term(real, seen, labels, context) for term in method.terms]
    ).sum()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("normalize", "root"), [(False, False), (True, True)])
def test_real_images_are_at_distance_zero_and_others_are_drawn_to_them(kernel, normalize, root):
    method = csdm(
        kernel=kernel,
        normalize=normalize,
        root=root,
        **({} if kernel == "linear" else {"frequencies": 64}),
    )
    real, theirs, their_labels, ours, our_labels = looked_at(method, convnet())
    apart = value(method, real, ours, our_labels)
    assert float(value(method, real, theirs, their_labels)) < 1e-3 * float(apart.detach())
    (gradient,) = torch.autograd.grad(apart, ours.images)
    assert torch.isfinite(gradient).all()
    assert gradient.flatten(1).norm(dim=1).min() > 0


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": "laplace"},
        {"scale": 3.0},
        {"frequencies": 65},
        {"normalize": True},
        {"head_amplitude_weight": 0.7},
        {"split": "continuous"},
        {"split": "uniform"},
        {"factor": 1.0},
        {"root": True},
        {"over_classes": "sum"},
    ],
)
def test_each_setting_counts_by_itself(change):
    values = []
    for objective in ({}, change):
        method = csdm(**{"frequencies": 64, **objective})
        real, _, _, ours, our_labels = looked_at(method, convnet())
        values.append(float(value(method, real, ours, our_labels).detach()))
    assert values[0] != pytest.approx(values[1], rel=1e-4)


def test_head_and_tail_are_told_by_the_real_side():
    """Digits 0 to 4 are head. With weight 0 they count phase alone, with weight 1 the others do."""
    gradients = []
    for weight in (0.0, 1.0):
        method = methods.build(
            recipe(
                data={"imbalance": 20.0},
                terms={
                    "characteristic_function": {"head_amplitude_weight": weight, "frequencies": 64}
                },
            )
        )
        real, _, _, ours, our_labels = looked_at(method, convnet())
        (need,) = method.specs()
        assert real[need][0].state()["count"].diff().max() < 0
        (gradient,) = torch.autograd.grad(value(method, real, ours, our_labels), ours.images)
        gradients.append(gradient)
    plain = methods.build(
        recipe(
            data={"imbalance": 20.0},
            terms={
                "characteristic_function": {
                    "split": "uniform",
                    "head_amplitude_weight": 0.0,
                    "frequencies": 64,
                }
            },
        )
    )
    real, _, _, ours, our_labels = looked_at(plain, convnet())
    (phase_alone,) = torch.autograd.grad(value(plain, real, ours, our_labels), ours.images)
    head = our_labels < 5
    torch.testing.assert_close(gradients[0][head], phase_alone[head])
    torch.testing.assert_close(gradients[1][~head], phase_alone[~head])
    assert not torch.allclose(gradients[1][head], phase_alone[head])


def test_the_linear_kernel_without_classes_is_dm():
    """Up to the mean over classes and the weight."""
    linear = csdm(kernel="linear", split="uniform", head_amplitude_weight=0.5)
    dm = methods.build(recipe("dm"))
    real, _, _, ours, our_labels = looked_at(linear, convnet())
    assert linear.specs() == dm.specs()
    torch.testing.assert_close(
        value(linear, real, ours, our_labels) / 300 * 10, value(dm, real, ours, our_labels)
    )


def test_ncfm_declares_what_the_paper_has():
    method = methods.build(recipe("ncfm"))
    assert {term.name: method.weight(term) for term in method.terms} == {
        "characteristic_function": 300.0,
        "calibration": 1.0,
    }
    (need,) = method.specs()
    assert need == StatisticSpec(
        LayerRole.LAST_MAP,
        Normalized(Flat()),
        AtFrequencies(Frequencies("gaussian", 1.0, 4096)),
    )
    chosen = method.recipe
    assert (chosen.observers.trained, chosen.observers.pool, chosen.squeeze.epochs) == (
        True,
        20,
        60,
    )
    assert (chosen.synthetic.kind, chosen.synthetic.factor, chosen.synthesis.clip) == (
        "partitioned",
        2,
        True,
    )
    assert chosen.labels.kind == "hard"
    assert assemble(chosen.model_dump(mode="json")) == chosen
    assert method.citation.startswith("@")


def test_ncfm_needs_trained_observers():
    with pytest.raises(ConfigError, match=r"observers\.trained"):
        recipe("ncfm", observers={"trained": False})


def test_ncfms_sampling_network_needs_frequencies():
    with pytest.raises(ConfigError, match="'sampling_network' needs frequencies to weight"):
        methods.build(
            recipe(
                "ncfm",
                terms={"characteristic_function": {"kernel": "linear", "sampling_network": True}},
            )
        )


def test_ncfms_loss_is_the_size_of_the_difference():
    """With a = 1/2 the square root is |phi_r - phi_s| / sqrt(2), summed over classes, 300 times;
    and the cross-entropy, each class's mean summed over classes.
    """
    method = methods.build(recipe("ncfm", terms={"characteristic_function": {"frequencies": 64}}))
    real, _, _, ours, our_labels = looked_at(method, convnet())
    (need,) = method.specs()
    (theirs,) = real[need]
    (mine,) = need.of(ours, our_labels, real[need])
    assert isinstance(theirs, CharacteristicFunction)
    assert isinstance(mine, CharacteristicFunction)
    sizes = torch.complex(theirs.real - mine.real, theirs.imaginary - mine.imaginary).abs()
    entropies = torch.nn.functional.cross_entropy(ours.logits, our_labels, reduction="none")
    calibration = sum(entropies[our_labels == label].mean() for label in our_labels.unique())
    expected = 300 * (sizes / 2**0.5).mean(1).sum() + calibration
    torch.testing.assert_close(value(method, real, ours, our_labels), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("classes", [4, 10])
def test_ncfms_images_move_as_far_in_an_iteration_as_in_the_released_code(classes):
    """2 C steps of AdamW of 0.004, two of which have a gradient for an image, against one step."""
    gradient = torch.randn(
        classes, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    theirs = torch.zeros_like(gradient, requires_grad=True)
    optimizer = torch.optim.AdamW([theirs], lr=0.004, weight_decay=0.0)
    iterations = 500
    for _ in range(iterations):
        for label in (*range(classes), *range(classes)):
            theirs.grad = torch.zeros_like(gradient)
            theirs.grad[label] = gradient[label]
            optimizer.step()
    pace = float(theirs.detach().abs().mean()) / iterations
    assert pace == pytest.approx(0.008 * classes**0.5, rel=0.05)
    if classes == 10:
        assert recipe("ncfm").synthesis.learning_rate == pytest.approx(pace, rel=0.05)


def test_ncfms_sampling_network_can_be_switched_on():
    plain, against = (
        methods.build(
            recipe("ncfm", terms={"characteristic_function": {"frequencies": 64, **sampling}})
        )
        for sampling in ({}, {"sampling_network": True, "sampling_rate": 0.01})
    )
    real, _, _, ours, our_labels = looked_at(plain, convnet())
    context = Context(generator=lambda _: torch.Generator().manual_seed(0))
    (distance,) = (term for term in against.terms if term.name == "characteristic_function")
    climbed = [float(distance(real, ours, our_labels, context).detach()) for _ in range(40)]
    (level,) = (term for term in plain.terms if term.name == "characteristic_function")
    assert climbed[-1] > 1.02 * climbed[0]
    assert climbed[-1] > 1.02 * float(level(real, ours, our_labels, Context()).detach())


def test_csdm_with_ncfms_settings_is_ncfms_distance():
    names = (
        "scale",
        "frequencies",
        "normalize",
        "head_amplitude_weight",
        "split",
        "factor",
        "root",
        "over_classes",
    )
    ncfm = methods.build(recipe("ncfm", terms={"characteristic_function": {"frequencies": 64}}))
    settings = ncfm.recipe.terms["characteristic_function"].model_dump()
    same = csdm(**{name: settings[name] for name in names})
    (a,), (b,) = (
        [term for term in method.terms if term.name == "characteristic_function"]
        for method in (ncfm, same)
    )
    assert a.model_copy(update={"layers": "features"}) == b
    (need,) = b.specs
    assert need == dataclasses.replace(a.specs[0], layer_role=LayerRole.FEATURES)
