"""DCC, IDC and CAFE: losses against loops in float64, what they declare, and runs on digits."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rayd import methods, networks
from rayd.config import NetworkSettings
from rayd.data.images import ImageShape
from rayd.engine.distill import distill
from rayd.engine.progress import Progress
from rayd.errors import RunError
from rayd.networks import FeatureExtractor
from rayd.objectives import Batch, Context, GradientMatching
from rayd.objectives.discrimination import Discrimination, LayerMeanMatching
from rayd.recipes import assemble
from tests.conftest import tiny
from tests.runs import steps_of

SHAPE = ImageShape(2, 8, 8)
CLASSES = 3


def convnet() -> nn.Module:
    settings = NetworkSettings(name="convnet", width=4, depth=2)
    return networks.build(settings, SHAPE, CLASSES, seed=1).double().eval()


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    return torch.randn(count, *SHAPE, generator=draws, dtype=torch.float64), labels


REAL = images(12, seed=0)
OURS = images(5, seed=1)


def seen_by(network: nn.Module, term) -> tuple[FeatureExtractor, Context]:
    roles = term.layer_roles | {spec.layer_role for spec in term.specs}
    extractor = FeatureExtractor(network, roles, SHAPE)
    batch = Batch(*REAL, lambda: extractor(REAL[0]))
    return extractor, Context(network=network, batch=batch)


def matrices(network: nn.Module, batch: Tensor, labels: Tensor) -> list[Tensor]:
    """Gradients of the mean loss of images by the parameters of more than one dimension."""
    loss = functional.cross_entropy(network(batch), labels)
    wanted = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    return list(torch.autograd.grad(loss, wanted))


def by_class(network: nn.Module, batch: Tensor, labels: Tensor) -> list[list[Tensor]]:
    return [matrices(network, batch[labels == c], labels[labels == c]) for c in range(CLASSES)]


def cosine(real: list[Tensor], ours: list[Tensor]) -> float:
    total = 0.0
    for one, other in zip(real, ours, strict=True):
        for row, mine in zip(one.flatten(1), other.flatten(1), strict=True):
            total += 1 - float(row @ mine / (row.norm() * mine.norm() + 1e-6))
    return total


def entries(power: int):
    def apart(real: list[Tensor], ours: list[Tensor]) -> float:
        pairs = zip(real, ours, strict=True)
        return sum(float((a - b).abs().pow(power).sum()) for a, b in pairs)

    return apart


@pytest.mark.parametrize(
    ("distance", "reference"),
    [("cosine", cosine), ("squared", entries(2)), ("absolute", entries(1))],
)
@pytest.mark.parametrize("classes", ["each", "together"])
def test_gradient_loss_is_that_of_the_formula(distance, reference, classes):
    network = convnet()
    term = GradientMatching(distance=distance, classes=classes)
    extractor, context = seen_by(network, term)
    value = term({}, extractor(OURS[0]), OURS[1], context)
    sides = [by_class(network, *REAL), by_class(network, *OURS)]
    if classes == "together":
        sums = [[sum(parts) for parts in zip(*side, strict=True)] for side in sides]
        expected = reference(*sums)
    else:
        expected = sum(reference(*pair) for pair in zip(*sides, strict=True))
    # the term's logits are in float32
    assert float(value.detach()) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01


def test_convolutions_may_be_compared_alone():
    """As in IDC's code, which leaves the classifier out."""
    network = convnet()
    term = GradientMatching(distance="squared", layers="convolutions")
    extractor, context = seen_by(network, term)
    value = term({}, extractor(OURS[0]), OURS[1], context)
    pairs = list(zip(by_class(network, *REAL), by_class(network, *OURS), strict=True))
    assert [gradient.ndim for gradient in pairs[0][0]] == [4, 4, 2]
    expected = sum(entries(2)(real[:2], ours[:2]) for real, ours in pairs)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-4)
    flat = networks.build(NetworkSettings(name="mlp", width=4), SHAPE, CLASSES, seed=1).double()
    extractor, context = seen_by(flat, term)
    with pytest.raises(RunError, match="set it to all"):
        term({}, extractor(OURS[0]), OURS[1], context)


def test_first_steps_of_first_networks_are_compared_class_by_class():
    """DCC's warm-up: 2 networks of 4 steps each, 3 of which belong to it."""
    network = convnet()
    warm_up = {"networks": 2, "steps": 3, "per_network": 4}
    term = GradientMatching(classes="together", warm_up=warm_up)
    extractor, context = seen_by(network, term)
    sides = [by_class(network, *REAL), by_class(network, *OURS)]
    each = sum(cosine(*pair) for pair in zip(*sides, strict=True))
    together = cosine(*([sum(parts) for parts in zip(*side, strict=True)] for side in sides))
    for step in range(12):
        now = dataclasses.replace(context, step=step)
        value = float(term({}, extractor(OURS[0]), OURS[1], now).detach())
        expected = each if step in (0, 1, 2, 4, 5, 6) else together
        assert value == pytest.approx(expected, rel=1e-4)


def test_layers_are_compared_by_class():
    network = convnet()
    term = LayerMeanMatching()
    extractor, context = seen_by(network, term)
    (spec,) = term.specs
    statistics = spec.empty(CLASSES, extractor.dimensions(spec.layer_role))
    spec.update(statistics, extractor(REAL[0]), REAL[1])
    value = term({spec: statistics}, extractor(OURS[0]), OURS[1], context)
    expected = 0.0
    sides = []
    for batch, labels in (REAL, OURS):
        first = network.get_submodule("features")[:4](batch)
        second = network.get_submodule("features")[4:](first)
        sides.append(([first.flatten(1), second.flatten(1)], labels))
    for layer in range(2):
        for label in range(CLASSES):
            real, ours = (maps[layer][labels == label].mean(0) for maps, labels in sides)
            expected += float((real - ours).square().sum().detach())
    assert float(value.detach()) == pytest.approx(expected, rel=1e-9)


def test_discrimination_is_the_cross_entropy_of_products_with_centres():
    network = convnet()
    term = Discrimination()
    extractor, context = seen_by(network, term)
    start = OURS[0].clone().requires_grad_()
    value = term({}, extractor(start), OURS[1], context)
    features = [network.get_submodule("features")(side[0]).flatten(1) for side in (REAL, OURS)]
    losses = []
    for feature, label in zip(features[0], REAL[1], strict=True):
        products = [
            float((feature @ features[1][OURS[1] == c].mean(0)).detach()) for c in range(CLASSES)
        ]
        losses.append(float(-torch.tensor(products).double().log_softmax(0)[label]))
    assert float(value.detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert torch.autograd.grad(value, start)[0].abs().sum() > 0


def test_declarations():
    def built(name: str, **settings: object):
        return methods.build(assemble({"method": name, "data": "digits", "ipc": 10, **settings}))

    (term,) = built("dcc").terms
    assert (term.distance, term.classes) == ("cosine", "together")
    assert (term.warm_up.networks, term.warm_up.steps, term.warm_up.per_network) == (250, 10, 10)
    assert built("dcc").recipe.observers.model_pool.push_every == 10
    few = methods.build(assemble({"method": "dcc", "data": "digits", "ipc": 1}))
    assert few.recipe.observers.model_pool.train_epochs == 5
    assert few.terms[0].warm_up.per_network == few.recipe.observers.model_pool.push_every == 10
    (term,) = built("idc").terms
    assert (term.distance, term.classes, term.layers) == ("squared", "each", "convolutions")
    idc = built("idc").recipe
    assert (idc.synthetic.expansion, idc.observers.model_pool.source) == (4, "real")
    # 0.005 for ten images a class, in pixels of deviation 1/4
    assert idc.synthesis.learning_rate == pytest.approx(0.005 / 0.25**2)
    # 2,000 networks of 100 steps, which learn from 2,000 images in batches of 64 between them
    assert idc.synthesis.steps == 2_000 * idc.observers.model_pool.push_every
    assert idc.observers.model_pool.train_steps == -(-2_000 // 64)
    cafe = built("cafe")
    assert {term.name: term.weight for term in cafe.terms} == {
        "layer_means": 1.0,
        "discrimination": 0.01,
    }
    assert cafe.recipe.observers.model_pool.source == "synthetic"


@pytest.mark.parametrize(("name", "rate"), [("dcc", 1.0), ("idc", 0.05), ("cafe", 1.0)])
def test_run_lowers_the_loss(tmp_path, name, rate):
    pool = {"push_every": None, "start": 1, "capacity": 1, "lifetime": None}
    learning = {"train_steps": 1, "train_epochs": None, "learning_rate": 1e-6}
    recipe = tiny(
        method=name,
        real="sampled",
        observers={
            "networks": {"name": "convnet", "width": 8, "depth": 2},
            "augmentation": None,
            "real_batch": 200,
            "pool": 1,
            "per_step": 1,
            "model_pool": {**pool, **learning},
        },
        synthesis={"steps": 30, "learning_rate": rate, "log_every": 5},
        evaluation={"baselines": [], "epochs": 1, "seeds": 1},
    )
    run = distill(recipe, tmp_path / "run", progress=Progress(quiet=True))
    losses = [line["loss"] for line in steps_of(run.directory)]
    assert losses[-1] < losses[0]
