"""UniDD and CFM: what they declare, how their filters move, and whose objective each filter is."""

from __future__ import annotations

from math import cos, pi
from typing import Any

import pytest
import torch
from torch import Tensor

from rayd import methods, networks
from rayd.config import NetworkSettings, Recipe
from rayd.data import load
from rayd.engine.observer import DatasetInfo, Observer
from rayd.errors import ConfigError
from rayd.methods import Method
from rayd.networks import FeatureExtractor, LayerRole, Observation
from rayd.objectives import Context, RealStatistics, SpectralFilterMatching
from rayd.objectives.factors import Filters
from rayd.objectives.filters import AllPass, GradientStep, GradientSum, LowPass, Ridge
from rayd.recipes import assemble

NEEDS = ["conv_path.channels.LabelCorrelation", "conv_path.channels.pooled.Covariance"]


def recipe(method: str, **overrides: Any) -> Recipe:
    return assemble({"name": "cell", "method": method, "data": {"name": "digits"}}, overrides)


def filters(method: str, context: Context, **settings: Any) -> Filters:
    built = methods.build(recipe(method, terms={"spectral_filter": settings}))
    (term,) = [one for one in built.terms if isinstance(one, SpectralFilterMatching)]
    found: Filters = term.filters(context)
    return found


@pytest.mark.parametrize("name", ["unidd", "cfm"])
def test_declarations(name):
    method = methods.build(recipe(name))
    assert {term.name: method.weight(term) for term in method.terms} == {
        "cross_entropy": 1.0,
        "spectral_filter": 0.1,
    }
    assert [need.key for need in method.specs()] == NEEDS
    assert (method.layer_roles(), method.optional_layer_roles()) == (
        {LayerRole.CONV_PATH},
        frozenset(),
    )
    assert method.needs_trained_observers
    assert methods.get(name).sequential == (name == "cfm")
    assert "bo2026unidd" in method.citation
    with pytest.raises(ConfigError, match=r"observers\.trained"):
        recipe(name, observers={"trained": False})


@pytest.mark.parametrize("name", ["unidd", "cfm"])
def test_defaults_are_those_of_cifar_and_read_back(name):
    chosen = recipe(name)
    assert (chosen.synthetic.init, chosen.synthesis.steps, chosen.synthesis.learning_rate) == (
        "real",
        1000,
        0.25,
    )
    assert (chosen.synthesis.momentum, chosen.synthesis.second_momentum, chosen.synthesis.clip) == (
        0.5,
        0.9,
        True,
    )
    transform = chosen.synthesis.transform
    assert (transform.crop, transform.flip, transform.roll) == ((0.08, 1.0), True, 4)
    evaluation = chosen.evaluation
    assert (evaluation.loss, evaluation.temperature, evaluation.mix, chosen.labels.kind) == (
        "kl",
        20.0,
        "cutmix",
        "online",
    )
    assert (evaluation.schedule.name, evaluation.schedule.stretch) == ("cosine", 2.0)
    assert assemble(chosen.model_dump(mode="json")) == chosen


def test_the_ridge_of_cfm_falls_from_block_to_block_and_stays_within_each():
    for block in range(10):
        expected = pytest.approx(0.1 * (1 + cos(pi * block / 10)) / 2)
        for progress in (0.0, 0.9):
            now = filters("cfm", Context(block=block, blocks=10, progress=progress))
            assert isinstance(now.matrix, Ridge)
            assert (now.matrix.beta, now.signal) == (expected, now.matrix)
    assert filters("cfm", Context(progress=0.7)) == Filters(Ridge(0.1), Ridge(0.1))


def test_the_ridge_can_fall_within_a_block_and_no_further_than_to_a_least():
    schedule = {"over": "steps", "least": 0.02}
    now = [
        filters("cfm", Context(block=3, blocks=4, progress=t), filter={"schedule": schedule}).matrix
        for t in (0, 0.5)
    ]
    assert [ridge.beta for ridge in now] == pytest.approx([0.1, 0.06])


def test_unidd_is_constant_unless_told_otherwise():
    assert {
        filters("unidd", Context(block=b, blocks=3, progress=b / 3)).matrix for b in range(3)
    } == {Ridge(0.1)}
    reversed_ = {
        "filter": {"name": "ridge", "beta": 1.0, "schedule": {"name": "reversed", "least": 0.5}}
    }
    found = [filters("unidd", Context(progress=t), **reversed_).matrix for t in (0, 0.5)]
    assert [ridge.beta for ridge in found] == pytest.approx([0.5, 0.75])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"filter": {"name": "all-pass"}}, Filters(AllPass(), AllPass())),
        (
            {"filter": {"name": "low-pass"}, "signal_filter": {"name": "all-pass"}},
            Filters(LowPass(), AllPass()),
        ),
        (
            {
                "filter": {"name": "gradient", "alpha": 0.5, "power": 3},
                "signal_filter": {"name": "gradient-sum", "alpha": 0.2},
            },
            Filters(GradientStep(0.5, 3), GradientSum(0.2, 1)),
        ),
        ({"filter": {"name": "ridge", "beta": 2.0}}, Filters(Ridge(2.0), Ridge(2.0))),
    ],
)
def test_every_filter_can_be_named(settings, expected):
    assert filters("unidd", Context(), **settings) == expected


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"filter": {"name": "high-pass"}}, "terms.spectral_filter.filter.name"),
        ({"filter": {"name": "low-pass"}}, "set 'schedule.name: constant'"),
        ({"filter": {"beta": 0}}, "terms.spectral_filter.filter.beta"),
        ({"filter": {"schedule": {"name": "reversed"}}}, "takes beta down to 'schedule.least'"),
        ({"signal": "labels"}, "terms.spectral_filter.signal"),
        ({"signal_weight": -1}, "terms.spectral_filter.signal_weight"),
        ({"updatng": False}, "did you mean 'terms.spectral_filter.updating'"),
    ],
)
def test_settings_of_the_term_are_checked(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        recipe("cfm", terms={"spectral_filter": settings})


def test_weights_that_leave_nothing_say_how_to_switch_the_term_off():
    with pytest.raises(ConfigError, match=r"terms\.spectral_filter\.weight: 0"):
        recipe("cfm", terms={"spectral_filter": {"filter_weight": 0, "signal_weight": 0}})


def convnet() -> torch.nn.Module:
    built = networks.build(
        NetworkSettings(name="convnet", width=4, depth=2, norm="batch"), (1, 8, 8), 10, seed=1
    )
    return built.eval().requires_grad_(False)


def looked_at(method: Method) -> tuple[RealStatistics, Observation, Tensor]:
    """Statistics of digits as the engine's observer measures them, and what the network sees of
    twenty other images.
    """
    data = load(method.recipe.data)
    facts = DatasetInfo.of(data)
    looking = Observer(convnet(), method, facts, torch.device("cpu"), "float32")
    states = looking.measure(data.train.images[:200], data.train.labels[:200], batch_size=64)
    real = {
        need: tuple(
            need.kind.statistic.from_state(state).to(dtype=torch.float32)
            for state in states[need.key]
        )
        for need in method.specs()
    }
    start = torch.randn(
        20, *data.shape, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    return (
        real,
        FeatureExtractor(convnet(), method.layer_roles(), data.shape)(start),
        torch.arange(20) % 10,
    )


def spectral(method: Method, context: Context) -> Tensor:
    (term,) = [term for term in method.terms if isinstance(term, SpectralFilterMatching)]
    return term(*looked_at(method), context)


@pytest.mark.parametrize(
    "change",
    [
        {"filter": {"beta": 0.5}},
        {"filter": {"name": "low-pass", "schedule": {"name": "constant"}}},
        {"filter": {"schedule": {"name": "constant"}}},
        {"filter": {"schedule": {"least": 0.05}}},
        {"filter": {"schedule": {"over": "steps"}}},
        {"signal_filter": {"name": "all-pass"}},
        {"filter_weight": 0.0},
        {"signal_weight": 0.5},
        {"signal": "mean"},
        {"layers": "features"},
        {"updating": False},
    ],
    ids=str,
)
def test_each_choice_counts_by_itself(change):
    """In the second of three blocks, with another set of images as the first."""
    values = []
    for settings in ({}, change):
        method = methods.build(recipe("cfm", terms={"spectral_filter": settings}))
        real, seen, labels = looked_at(method)
        (term,) = [term for term in method.terms if isinstance(term, SpectralFilterMatching)]
        memory: dict[str, Tensor] = {}
        before = Observation(
            seen.logits,
            {tap: tuple(2 * m for m in maps) for tap, maps in seen.layers.items()},
            seen.images,
        )
        term(real, before, labels, Context(memory=memory, blocks=3))
        value = term(real, seen, labels, Context(memory=memory, block=1, blocks=3, progress=0.2))
        (gradient,) = torch.autograd.grad(value, seen.images)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0
        values.append(float(value.detach()))
    assert values[0] != pytest.approx(values[1], rel=1e-4)


def test_cfm_without_its_curriculum_and_its_means_is_unidd_with_a_ridge():
    plain = {"filter": {"schedule": {"name": "constant"}}, "updating": False}
    context = Context(block=2, blocks=5, progress=0.5)
    ours, theirs = (
        spectral(methods.build(one), context)
        for one in (recipe("cfm", terms={"spectral_filter": plain}), recipe("unidd"))
    )
    assert torch.equal(ours, theirs)


def test_all_pass_on_features_is_distribution_matching():
    """The distance of the sums by class, of what the classifier reads: DM's means, weighted by how
    many images there are.
    """
    method = methods.build(
        recipe(
            "unidd",
            terms={"spectral_filter": {"filter": {"name": "all-pass"}, "layers": "features"}},
        )
    )
    real, seen, labels = looked_at(method)
    (features,) = seen.layers[LayerRole.FEATURES]
    flc = next(
        one for need in method.specs() if "LabelCorrelation" in need.key for one in real[need]
    )
    means = torch.stack([features[labels == c].mean(0) for c in range(10)])
    shares = torch.bincount(torch.from_numpy(load(method.recipe.data).train.labels[:200])) / 200
    expected = (shares.unsqueeze(1) * (flc.correlation / shares.unsqueeze(1)) - means / 10).norm()
    torch.testing.assert_close(spectral(method, Context()), expected, rtol=1e-5, atol=0)


def test_filters_of_the_real_side_are_their_own_where_given():
    step = {"name": "gradient", "alpha": 0.1, "power": 4}
    total = {"name": "gradient-sum", "alpha": 0.1, "power": 4}
    given = {
        "filter": step,
        "signal_filter": total,
        "real_filter": {**step, "power": 9},
        "real_signal_filter": {**total, "power": 9},
    }

    def both(**settings: Any) -> tuple[Filters, Filters]:
        built = methods.build(recipe("unidd", terms={"spectral_filter": settings}))
        (term,) = [one for one in built.terms if isinstance(one, SpectralFilterMatching)]
        return term.filters(Context()), term.real_filters(Context())

    assert both(**given) == (
        Filters(GradientStep(0.1, 4), GradientSum(0.1, 4)),
        Filters(GradientStep(0.1, 9), GradientSum(0.1, 9)),
    )
    del given["real_filter"], given["real_signal_filter"]
    assert both(**given) == (Filters(GradientStep(0.1, 4), GradientSum(0.1, 4)),) * 2
    assert both(real_filter=step)[1] == Filters(GradientStep(0.1, 4), GradientStep(0.1, 4))
