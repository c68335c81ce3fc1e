"""DM's declarations, and that its measured and sampled modes are the same objective."""

import pytest
import torch

from rayd import methods, networks
from rayd.config import NetworkSettings
from rayd.data import load
from rayd.engine.observer import DatasetInfo, Observer
from rayd.errors import ConfigError
from rayd.objectives import Context, MeanMatching
from tests.conftest import tiny


def test_terms_and_needs():
    method = methods.build(tiny())
    assert [term.name for term in method.terms] == ["mean"]
    assert [need.key for need in method.specs()] == ["features.flat.Moments"]


def test_an_unknown_method_or_term_names_the_nearest():
    with pytest.raises(ConfigError, match="Unknown method 'dn'; did you mean 'dm'"):
        methods.get("dn")
    with pytest.raises(
        ConfigError, match="Unknown term 'means' in method 'dm'; did you mean 'mean'"
    ):
        tiny(terms={"means": {"weight": 1}})


@pytest.mark.parametrize("returned", [None, MeanMatching(), [MeanMatching]])
def test_an_objective_that_is_no_tuple_of_terms_is_refused(monkeypatch, returned):
    """A forgotten `return` or comma, or a class in place of its object."""
    monkeypatch.setattr(methods.get("dm"), "objective", classmethod(lambda cls, recipe: returned))
    with pytest.raises(ConfigError, match="'objective' of method 'dm' must return a tuple of"):
        tiny()


def observer() -> tuple[Observer, DatasetInfo]:
    data = load(tiny().data)
    network = networks.build(
        NetworkSettings(name="convnet", width=4, depth=2), data.shape, data.classes, seed=1
    )
    return Observer(
        network, methods.build(tiny()), DatasetInfo.of(data), torch.device("cpu"), "float32"
    ), DatasetInfo.of(data)


def test_measured_and_sampled_statistics_of_the_same_images_agree():
    looking, facts = observer()
    data = load(tiny().data)
    images = data.train.images[:100]
    labels = data.train.labels[:100]
    (measured,) = looking.measure(images, labels, batch_size=7)["features.flat.Moments"]
    normalised = facts.normalization(torch.from_numpy(images))
    (need,) = methods.build(tiny()).specs()
    (sampled,) = looking.sample(normalised, torch.from_numpy(labels), chunk=33)[need]
    torch.testing.assert_close(sampled.mean.double(), measured["mean"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sampled.count.double(), measured["count"])


def test_the_loss_is_zero_on_the_real_images_themselves():
    looking, facts = observer()
    data = load(tiny().data)
    labels = torch.from_numpy(data.train.labels)
    images = facts.normalization(torch.from_numpy(data.train.images))
    loss, terms = looking.compare(
        looking.sample(images, labels, 10_000), images, labels, {"mean": Context()}
    )
    assert terms["mean"] == loss
    assert float(loss) < 1e-10


def test_the_weight_scales_the_loss():
    data = load(tiny().data)
    facts = DatasetInfo.of(data)
    images = facts.normalization(torch.from_numpy(data.train.images[:50]))
    labels = torch.from_numpy(data.train.labels[:50])
    losses = []
    for weight in (1.0, 3.0):
        network = networks.build(
            NetworkSettings(name="convnet", width=4, depth=2), data.shape, data.classes, seed=1
        )
        method = methods.build(tiny(terms={"mean": {"weight": weight}}))
        looking = Observer(network, method, facts, torch.device("cpu"), "float32")
        losses.append(
            looking.compare(
                looking.sample(images.flip(3), labels, 99), images, labels, {"mean": Context()}
            )[0]
        )
    torch.testing.assert_close(losses[1], 3 * losses[0])
