"""The network that weighs frequencies climbs, from one call to the next, and never leaves the
memory that it is given.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rayd.networks import LayerRole, Observation
from rayd.objectives import CharacteristicFunctionDistance, Context, StatisticSpec
from rayd.objectives.frequency_network import FrequencyAdversary, FrequencyNetwork, State, ascend
from rayd.statistics import AtFrequencies, CharacteristicFunction, Flat, Frequencies, Moments
from tests.draws import seeded

NUMBER = 40
DIMENSION = 6
FREQUENCIES = Frequencies(number=NUMBER).draw(DIMENSION, torch.Generator().manual_seed(1)).float()
GAPS = FREQUENCIES[:, 0].square() + 0.01


def network(seed: int = 0, **options: float) -> FrequencyNetwork:
    built = FrequencyNetwork(DIMENSION, **options)
    built.draw(seeded(seed))
    return built


@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "isotropic-laplace"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_weights_are_a_distribution_that_spares_no_frequency(kernel, scale):
    frequencies = Frequencies(kernel, scale, NUMBER).draw(DIMENSION, seeded()).float()
    weights = network(spread=1.5)(frequencies).detach()
    assert weights.shape == (NUMBER,)
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights.max() / weights.min()) <= math.exp(3) * 1.001
    assert len(weights.unique()) == NUMBER
    torch.testing.assert_close(network(spread=1.5)(frequencies * 7).detach(), weights)


def test_the_generator_decides_the_start():
    assert torch.equal(network(1)(FREQUENCIES), network(1)(FREQUENCIES))
    assert not torch.equal(network(1)(FREQUENCIES), network(2)(FREQUENCIES))
    for layer in (
        stage
        for stage in network().requires_grad_(False).stages
        if isinstance(stage, torch.nn.Linear)
    ):
        assert float(layer.weight.abs().max()) <= layer.in_features**-0.5
        assert float(layer.weight.std()) == pytest.approx((3 * layer.in_features) ** -0.5, rel=0.3)


def test_a_step_goes_uphill():
    climbing = network()
    optimizer = torch.optim.Adam(climbing.parameters(), 1e-3)
    with torch.no_grad():
        expected = [float(climbing(FREQUENCIES) @ GAPS)]
    gaps = GAPS.clone().requires_grad_()
    for _ in range(100):
        expected.append(float(ascend(climbing, optimizer, FREQUENCIES, gaps) @ GAPS))
    assert all(later > earlier for earlier, later in itertools.pairwise(expected))
    assert expected[-1] > 1.5 * float(GAPS.mean())
    assert gaps.grad is None


def test_the_gradient_is_that_of_the_weighted_sum():
    """A step of plain descent with rate 1 changes parameters by the gradient of sum w gap / mean
    gap.
    """
    moved = network()
    start = network()
    ascend(moved, torch.optim.SGD(moved.parameters(), 1.0), FREQUENCIES, GAPS)
    gain = (start(FREQUENCIES) * GAPS).sum() / GAPS.mean()
    for after, before, gradient in zip(
        moved.parameters(),
        start.parameters(),
        torch.autograd.grad(gain, list(start.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(after, before + gradient)


def steps(
    count: int, memory: State | None = None, adversary: FrequencyAdversary | None = None
) -> tuple[Tensor, State]:
    memory = memory or {}
    weights = torch.empty(0)
    for _ in range(count):
        weights, memory = (adversary or FrequencyAdversary()).step(
            FREQUENCIES, GAPS, memory, seeded
        )
    return weights, memory


def test_an_interrupted_climb_goes_on_where_it_was():
    """From memory alone, momenta included: through a copy, as a checkpoint would make."""
    straight, end = steps(9)
    _, half = steps(4)
    resumed, again = steps(5, {name: tensor.clone() for name, tensor in half.items()})
    assert torch.equal(straight, resumed)
    assert end.keys() == again.keys()
    assert all(torch.equal(end[name], again[name]) for name in end)
    assert not any(tensor.requires_grad for tensor in end.values())


def test_the_memory_that_is_given_is_not_changed():
    _, memory = steps(2)
    before = {name: tensor.clone() for name, tensor in memory.items()}
    steps(3, memory)
    assert all(torch.equal(memory[name], before[name]) for name in before)


def test_only_the_first_step_draws():
    def refuse() -> torch.Generator:
        raise AssertionError("drawn again")

    _, memory = steps(1)
    FrequencyAdversary().step(FREQUENCIES, GAPS, memory, refuse)


def test_without_gradient_mode_it_climbs_all_the_same():
    with torch.no_grad():
        torch.testing.assert_close(steps(3)[0], steps(3)[0], rtol=0, atol=0)
        assert not torch.equal(steps(3)[0], steps(1)[0])


def test_no_gap_moves_nothing_to_infinity():
    weights, _ = FrequencyAdversary().step(FREQUENCIES, torch.zeros(NUMBER), {}, seeded)
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize("name", ["learning_rate", "width", "spread"])
def test_arguments_out_of_range(name):
    with pytest.raises(ValueError, match=f"'{name}' of FrequencyAdversary must be above 0. Got 0"):
        FrequencyAdversary(**{name: 0})


NEED = StatisticSpec(LayerRole.FEATURES, Flat(), AtFrequencies(Frequencies(number=NUMBER)))


def look(features: Tensor) -> Observation:
    return Observation(features, {LayerRole.FEATURES: (features,)}, features)


def sides() -> tuple[dict[StatisticSpec, tuple[CharacteristicFunction, ...]], Tensor, Tensor]:
    labels = torch.arange(30) % 3
    statistics = NEED.empty(3, [(DIMENSION,)], seeded())
    NEED.update(statistics, look(torch.randn(30, DIMENSION, generator=seeded(2))), labels)
    real = tuple(statistic.to(dtype=torch.float32) for statistic in statistics)
    return (
        {NEED: real},
        torch.randn(6, DIMENSION, generator=seeded(3)) + 0.5,
        torch.arange(6) % 3,
    )


def test_the_term_weighs_frequencies_by_a_network_that_climbs():
    real, ours, labels = sides()
    against = CharacteristicFunctionDistance(NEED, adversary=FrequencyAdversary(learning_rate=0.01))
    alike = CharacteristicFunctionDistance(NEED)
    context = Context(generator=lambda _: seeded())
    values = [float(against(real, look(ours), labels, context)) for _ in range(60)]
    assert values[-1] > 1.2 * values[0]
    assert values[-1] > 1.2 * float(alike(real, look(ours), labels, Context()))
    assert all("layer0." in name for name in context.memory)
    # the same again, step by step from the memory
    kept: State = {}
    repeated = []
    for _ in range(60):
        once = Context(generator=lambda _: seeded(), memory=dict(kept))
        repeated.append(float(against(real, look(ours), labels, once)))
        kept = dict(once.memory)
    assert repeated == values


def test_the_synthesis_does_not_see_through_the_weights():
    """Its gradient is that of the weighted sum with weights as they are."""
    real, ours, labels = sides()
    leaf = ours.requires_grad_()
    context = Context(generator=lambda _: seeded())
    (gradient,) = torch.autograd.grad(
        CharacteristicFunctionDistance(NEED, adversary=FrequencyAdversary())(
            real, look(leaf), labels, context
        ),
        leaf,
    )
    (synthetic,) = NEED.of(look(leaf), labels, real[NEED])
    rebuilt = FrequencyNetwork(DIMENSION)
    rebuilt.load_state_dict(
        {
            name.removeprefix("layer0.network."): t
            for name, t in context.memory.items()
            if name.startswith("layer0.network.")
        }
    )
    weights = rebuilt(real[NEED][0].frequencies).detach()
    difference = (real[NEED][0].real - synthetic.real).square() + (
        real[NEED][0].imaginary - synthetic.imaginary
    ).square()
    (expected,) = torch.autograd.grad((difference @ weights).mean(), leaf)
    torch.testing.assert_close(gradient, expected)


def test_minimum_and_maximum_meet_where_the_samples_agree():
    """Free features against an adversary: the distance at its weights falls all the same."""
    real, ours, labels = sides()
    features = ours.repeat(5, 1).requires_grad_()
    labels = labels.repeat(5)
    with torch.no_grad():
        features += 0.1 * torch.randn(features.shape, generator=seeded(4))
    optimizer = torch.optim.Adam([features], 0.05)
    term = CharacteristicFunctionDistance(NEED, adversary=FrequencyAdversary())
    context = Context(generator=lambda _: seeded())
    values = []
    for _ in range(200):
        optimizer.zero_grad()
        value = term(real, look(features), labels, context)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.05 * values[0]


def test_means_have_no_frequencies_to_weigh():
    with pytest.raises(ValueError, match=r"needs frequencies to weight. Got Moments"):
        CharacteristicFunctionDistance(
            StatisticSpec(LayerRole.FEATURES, Flat(), Moments), adversary=FrequencyAdversary()
        )
