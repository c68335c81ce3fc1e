"""Rank correlations of networks against values worked out by hand."""

import pytest

import rayd
from rayd.applications.ranking import SMALL, chart, rankings, text
from rayd.config import NetworkSettings
from rayd.data import ImageShape
from rayd.errors import ConfigError
from rayd.networks import build
from tests.evaluation.test_report import build as report
from tests.evaluation.test_report import student

WHOLE = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}
OURS = {"a": 0.5, "b": 0.6, "c": 0.4, "d": 0.3}
RANDOM = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}


def evaluated(**sets: dict[str, float]):
    return report(
        *(
            (name, student(accuracy, network=network))
            for name, accuracies in sets.items()
            for network, accuracy in accuracies.items()
        )
    )


def test_rank_correlations_by_hand():
    """One swap of neighbours: rho = 1 - 6 * 2 / (4 * 15), tau = (5 - 1) / 6."""
    ours, random = rankings(evaluated(distilled=OURS, random=RANDOM, whole=WHOLE))
    assert (ours.set, random.set) == ("distilled", "random")
    assert ours.spearman == pytest.approx(0.8)
    assert ours.kendall == pytest.approx(4 / 6)
    assert random.spearman == pytest.approx(-1)
    assert "distilled         4    +0.800   +0.667" in text([ours, random])
    assert chart([ours, random]).size == (640, 400)


def test_applications_are_reached_from_the_package():
    assert rayd.applications.ranking.rankings is rankings
    assert callable(rayd.applications.continual.learn)


def test_equal_accuracies_have_no_order():
    (ours,) = rankings(evaluated(distilled=dict.fromkeys(WHOLE, 0.1), whole=WHOLE))
    assert ours.spearman is None
    assert ours.kendall is None


def test_a_ranking_needs_networks_and_the_whole_set():
    with pytest.raises(ConfigError, match="Got 0; name more"):
        rankings(evaluated(distilled=OURS))


@pytest.mark.parametrize("network", SMALL, ids=str)
def test_small_networks_fit_small_images(network):
    assert build(NetworkSettings.model_validate(network), ImageShape(1, 8, 8), 10, seed=0)
