"""SRe2L, CDA, G-VBSM, RDED and EDC: what they declare, what can be switched, and their objectives
on real networks.
"""

from __future__ import annotations

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
from rayd.objectives import Context, RealStatistics
from rayd.recipes import assemble
from rayd.statistics import Moments

FAMILY = ("sre2l", "cda", "gvbsm", "rded", "edc")
HOOKS = [
    "bn_inputs.channels.Moments",
    "conv_inputs.channels.Moments",
    "conv_inputs.patches4.Moments",
]


def recipe(method: str, **overrides: Any) -> Recipe:
    return assemble({"name": "cell", "method": method, "data": {"name": "digits"}}, overrides)


def declared(method: Method) -> dict[str, float]:
    return {term.name: method.weight(term) for term in method.terms}


@pytest.mark.parametrize(
    ("name", "terms", "needs", "optional"),
    [
        ("sre2l", {"cross_entropy": 1.0, "moments": 0.01}, HOOKS[:1], set()),
        ("cda", {"cross_entropy": 1.0, "moments": 0.01}, HOOKS[:1], set()),
        (
            "gvbsm",
            {"cross_entropy": 1.0, "moments": 0.01, "densification": 1.0},
            HOOKS,
            {LayerRole.BN_INPUTS},
        ),
        ("rded", {}, [], set()),
        (
            "edc",
            {"cross_entropy": 1.0, "moments": 0.01, "flatness": 0.25},
            HOOKS,
            {LayerRole.BN_INPUTS},
        ),
    ],
)
def test_declarations(name, terms, needs, optional):
    method = methods.build(recipe(name))
    assert declared(method) == terms
    assert [need.key for need in method.specs()] == needs
    assert method.optional_layer_roles() == optional
    assert method.needs_trained_observers
    assert method.recipe.observers.trained
    assert method.averaging == (0.99 if name == "edc" else None)


@pytest.mark.parametrize("name", FAMILY)
def test_defaults_are_a_whole_recipe_that_reads_back(name):
    chosen = recipe(name)
    assert chosen.labels.kind == "online"
    assert chosen.synthesis.clip
    assert (chosen.synthesis.momentum, chosen.synthesis.second_momentum) == (0.5, 0.9)
    assert chosen.observers.augmentation is None
    assert (
        chosen.evaluation.optimizer,
        chosen.evaluation.learning_rate,
        chosen.evaluation.weight_decay,
    ) == (
        "adamw",
        1e-3,
        0.01,
    )
    assert assemble(chosen.model_dump(mode="json")) == chosen
    assert name in methods.names()
    assert methods.get(name).citation.startswith("@")


@pytest.mark.parametrize("name", FAMILY)
def test_untrained_observers_are_refused(name):
    with pytest.raises(ConfigError, match=r"observers\.trained"):
        recipe(name, observers={"trained": False})


def test_cda_is_sre2l_with_a_curriculum():
    plain, curriculum = (recipe(name).model_dump(exclude={"method"}) for name in ("sre2l", "cda"))
    assert {key for key in plain if plain[key] != curriculum[key]} == {"synthesis"}
    assert (
        curriculum["synthesis"]["curriculum"],
        curriculum["synthesis"]["transform"]["crop"],
    ) == ("cosine", (0.08, 1.0))


def test_rded_optimises_nothing():
    chosen = recipe("rded")
    assert (chosen.synthesis.steps, chosen.synthetic.init) == (0, "rded")
    assert chosen.evaluation.schedule.stretch == 2
    assert chosen.evaluation.clean_forward


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        (
            "edc",
            {"terms": {"moments": {"alpha": 1.5}}},
            "terms.moments.alpha.*less than or equal to 1",
        ),
        ("edc", {"terms": {"moments": {"momentum": 1.0}}}, "terms.moments.momentum.*less than 1"),
        ("edc", {"terms": {"flatness": {"decay": 1.0}}}, "terms.flatness.decay"),
        (
            "edc",
            {"terms": {"moments": {"category": "classes"}}},
            "terms.moments.category.*'class', 'instance' or 'batch'",
        ),
        ("edc", {"terms": {"moments": {"apha": 0.5}}}, "did you mean 'terms.moments.alpha'"),
        ("sre2l", {"terms": {"moments": {"alpha": 0.5}}}, "Unknown setting 'terms.moments.alpha'"),
        ("gvbsm", {"terms": {"moments": {"patch": 0}}}, "terms.moments.patch"),
        ("gvbsm", {"terms": {"moments": {"drop": -0.1}}}, "terms.moments.drop"),
        (
            "sre2l",
            {"terms": {"moments": {"first_layer_weight": -1.0}}},
            "terms.moments.first_layer_weight",
        ),
        ("rded", {"objective": {"anything": 1}}, "Unknown setting 'objective.anything'"),
        ("edc", {"objective": {"alfa": 1}}, "did you mean 'terms.moments.alpha'"),
        ("dm", {"terms": {"mean": {"alpha": 1}}}, "Unknown setting 'terms.mean.alpha'"),
    ],
)
def test_settings_of_terms_are_checked(name, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        recipe(name, **settings)


def test_a_weight_of_zero_takes_the_term_and_its_needs_away():
    method = methods.build(
        recipe("gvbsm", terms={"moments": {"weight": 0.0}, "densification": {"weight": 0.5}})
    )
    assert declared(method) == {"cross_entropy": 1.0, "densification": 0.5}
    assert method.specs() == ()
    assert method.layer_roles() == frozenset()


def test_a_term_that_is_switched_off_is_known_all_the_same():
    assert recipe("edc", terms={"densification": {"weight": 0.0}}) is not None
    with pytest.raises(
        ConfigError, match="Unknown term 'flattness' in method 'edc'; did you mean 'flatness'"
    ):
        recipe("edc", terms={"flattness": {"weight": 0.0}})


def test_without_flatness_no_average_is_kept():
    assert methods.build(recipe("edc", terms={"flatness": {"weight": 0}})).averaging is None
    assert methods.build(recipe("edc", terms={"flatness": {"decay": 0.9}})).averaging == 0.9


def small(name: str, **options: Any) -> torch.nn.Module:
    built = networks.build(NetworkSettings(name=name, **options), (1, 8, 8), 10, seed=1).eval()
    for module in built.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as training would leave it
            module.running_mean.normal_(generator=torch.Generator().manual_seed(0))
    return built.requires_grad_(False)


def convnet(norm: str) -> torch.nn.Module:
    return small("convnet", width=4, depth=2, norm=norm)


def looked_at(
    method: Method, network: torch.nn.Module
) -> tuple[RealStatistics, Observation, Tensor]:
    """Measured statistics of digits, and what the network sees of twenty other images."""
    data = load(method.recipe.data)
    images = data.normalization(torch.from_numpy(data.train.images[:200]))
    labels = torch.from_numpy(data.train.labels[:200])
    tapped = FeatureExtractor(
        network, method.layer_roles(), data.shape, optional=method.optional_layer_roles()
    )
    real: RealStatistics = {
        need: need.empty(data.classes, tapped.dimensions(need.layer_role))
        for need in method.specs()
    }
    for need in method.specs():
        need.update(tuple(real[need]), tapped(images), labels)
    real = {
        need: tuple(statistic.to(dtype=torch.float32) for statistic in layers)
        for need, layers in real.items()
    }
    start = torch.randn(
        20, *data.shape, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    return real, tapped(start), torch.arange(20) % 10


def total(method: Method, network: torch.nn.Module) -> tuple[float, dict[str, float]]:
    real, seen, labels = looked_at(method, network)
    context = Context(
        generator=lambda _: torch.Generator().manual_seed(0),
        average_logits=lambda: seen.logits.detach().flip(0),
    )
    values = {
        term.name: method.weight(term) * term(real, seen, labels, context) for term in method.terms
    }
    loss = torch.stack(list(values.values())).sum()
    (gradient,) = torch.autograd.grad(loss, seen.images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    return float(loss.detach()), {name: float(value.detach()) for name, value in values.items()}


@pytest.mark.parametrize("name", ["sre2l", "cda", "gvbsm", "edc"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_every_term_can_be_asked_of_real_networks(name, norm):
    method = methods.build(recipe(name))
    if norm == "instance" and name in ("sre2l", "cda"):
        with pytest.raises(ConfigError, match="Layer role 'bn_inputs' needs batch normalisation"):
            looked_at(method, convnet(norm))
        return
    _, values = total(method, convnet(norm))
    assert set(values) == set(declared(method))
    assert values["moments"] > 0


@pytest.mark.parametrize("name", ["gvbsm", "edc"])
def test_a_network_without_convolutions_is_refused(name):
    with pytest.raises(ConfigError, match="Layer role 'conv_inputs' needs convolutions"):
        looked_at(methods.build(recipe(name)), small("mlp"))


def test_sre2l_matches_what_normalisations_read():
    """The term by hand, from the hooks of the network itself."""
    network = convnet("batch")
    method = methods.build(recipe("sre2l", terms={"cross_entropy": {"weight": 0}}))
    real, seen, _ = looked_at(method, network)
    expected = 0.0
    for place, (maps, statistic) in enumerate(
        zip(seen.layers[LayerRole.BN_INPUTS], real[method.specs()[0]], strict=True)
    ):
        assert isinstance(statistic, Moments)
        everything = statistic.pooled()
        mean = maps.mean((0, 2, 3))
        variance = maps.var((0, 2, 3), unbiased=False)
        gap = (mean - everything.mean[0]).norm() + (variance - everything.variance[0]).norm()
        expected += (10 if place == 0 else 1) * float(gap.detach())
    assert total(method, network)[1]["moments"] == pytest.approx(0.01 * expected, rel=1e-5)


def test_edc_with_every_choice_undone_is_gvbsm():
    undone = {
        "terms": {
            "moments": {"alpha": 1.0, "drop": 0.4},
            "flatness": {"weight": 0.0},
            "densification": {"weight": 1.0},
        },
    }
    for norm in ("batch", "instance"):
        mine = total(methods.build(recipe("edc", **undone)), convnet(norm))
        assert mine == total(methods.build(recipe("gvbsm")), convnet(norm))


@pytest.mark.parametrize(
    "change",
    [
        {"terms": {"moments": {"alpha": 1.0}}},
        {"terms": {"moments": {"category": "instance"}}},
        {"terms": {"moments": {"category": "batch"}}},
        {"terms": {"moments": {"momentum": 0.0}}},
        {"terms": {"moments": {"drop": 0.99}}},
        {"terms": {"moments": {"patch": 2}}},
        {"terms": {"moments": {"first_layer_weight": 1.0}}},
        {"terms": {"flatness": {"temperature": 1.0}}},
        {"terms": {"flatness": {"direction": "average"}}},
        {"terms": {"flatness": {"weight": 0.5}}},
    ],
)
def test_each_choice_of_the_objective_counts_by_itself(change):
    """Seen through a network without batch normalisation, so that what is said of convolutions must
    reach convolutions.
    """
    changed, plain = (
        total(methods.build(recipe("edc", **some)), convnet("instance")) for some in (change, {})
    )
    assert changed != plain


@pytest.mark.parametrize(
    "change",
    [
        {"synthetic": {"init": "noise"}},
        {"synthetic": {"init": "rded"}},
        {"evaluation": {"schedule": {"stretch": 1.0}}},
        {"evaluation": {"schedule": {"name": "ssrs"}}},
        {"evaluation": {"batch_size": 100}},
        {"evaluation": {"average": None}},
        {"synthesis": {"transform": {"crop": [0.08, 1.0]}}},
        {"labels": {"networks": ["resnet18", "alexnet"]}},
    ],
)
def test_each_choice_of_the_recipe_can_be_undone_by_itself(change):
    (key,) = change
    changed = recipe("edc", **change)
    plain = recipe("edc")
    assert {
        name for name in Recipe.model_fields if getattr(changed, name) != getattr(plain, name)
    } == {key}


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_measured_statistics_are_met_by_the_real_images(norm):
    """Through the engine's observer, with and without normalisations to listen to."""
    method = methods.build(
        recipe(
            "edc",
            terms={
                "moments": {"momentum": 0.0},
                "cross_entropy": {"weight": 0},
                "flatness": {"weight": 0},
            },
        )
    )
    data = load(method.recipe.data)
    facts = DatasetInfo.of(data)
    looking = Observer(convnet(norm), method, facts, torch.device("cpu"), "float32")
    images = data.train.images[:100]
    labels = data.train.labels[:100]
    states = looking.measure(images, labels, batch_size=33)
    real = {
        need: tuple(
            need.kind.statistic.from_state(state).to(dtype=torch.float32)
            for state in states[need.key]
        )
        for need in method.specs()
    }
    assert len(real[method.specs()[0]]) == (2 if norm == "batch" else 0)
    normalised = facts.normalization(torch.from_numpy(images))
    loss, values = looking.compare(
        real, normalised, torch.from_numpy(labels), {"moments": Context()}
    )
    assert set(values) == {"moments"}
    assert float(loss) < 1e-4
