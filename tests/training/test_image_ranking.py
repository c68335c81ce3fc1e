"""Scores of real images by how networks learn them, against a plain loop; and runs by them."""

import itertools
import json

import pytest
import torch
from torch import Tensor, nn

import rayd
from rayd.config import RankingSettings
from rayd.data import Standardization, load
from rayd.data.selection import select
from rayd.engine.distill import distill
from rayd.engine.job import Job
from rayd.engine.stages.rank import Rank
from rayd.engine.store import Store
from rayd.errors import ConfigError, RunError
from rayd.training.image_ranking import rank
from rayd.training.sets import TrainingSet
from tests.conftest import tiny
from tests.runs import QUIET

RANKING = {"network": {"name": "mlp", "width": 16}, "count": 2, "epochs": 3, "early": 2}


def toy() -> TrainingSet:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 3, 3), generator=draws, dtype=torch.uint8)
    labels = torch.randint(0, 3, (40,), generator=draws)
    # two equal images of different classes: one of them is always wrong
    images[1] = images[0]
    labels[:2] = torch.tensor([0, 1])
    return TrainingSet(
        images, labels, Standardization(torch.tensor([0.5]), torch.tensor([0.3])), "toy"
    )


class Recorder(nn.Module):
    """A linear network that keeps what it says in training mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(9, 3)
        self.said: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        logits = self.layer(images.flatten(1))
        if self.training:
            self.said.append((images.detach(), logits.detach()))
        return logits


def test_scores_are_those_of_the_definitions():
    training = toy()
    network = Recorder()
    settings = RankingSettings(epochs=12, early=12, batch_size=7, learning_rate=0.5)
    *progress, scores = rank(network, training, settings, seed=3, device=torch.device("cpu"))
    assert [event.epoch for event in progress] == list(range(1, 13))
    inputs = training.inputs(training.images)
    history: list[list[bool]] = [[] for _ in range(40)]
    for images, logits in network.said:
        for image, answer in zip(images, logits, strict=True):
            (same,) = (inputs == image).flatten(1).all(1).nonzero(as_tuple=True)
            for row in same.tolist():
                history[row].append(bool(answer.argmax() == training.labels[row]))
    for row in range(2, 40):
        turns = history[row]
        assert len(turns) == 12
        forgotten = sum(a and not b for a, b in itertools.pairwise(turns))
        assert scores["forgetting"][row] == (forgotten if any(turns) else 12)
    network.eval()
    wanted = nn.functional.one_hot(training.labels, 3)
    errors = (network(inputs).softmax(1) - wanted).norm(dim=1).detach()
    torch.testing.assert_close(scores["el2n"], errors)
    assert scores["el2n"][:2].max() > 0.5
    assert scores["forgetting"].max() > 0


def test_scores_of_a_network_that_diverged_are_refused():
    settings = RankingSettings(epochs=3, early=2, batch_size=7, learning_rate=1e20)
    with pytest.raises(
        RunError, match=r"diverged in epoch \d of 3; a smaller 'ranking.learning_rate"
    ):
        list(rank(Recorder(), toy(), settings, seed=3, device=torch.device("cpu")))


def test_selections_by_scores():
    data = load(tiny().data)
    scores = {"forgetting": torch.rand(len(data.train)), "el2n": torch.rand(len(data.train))}
    draws = torch.Generator()

    def chosen(how: str, count: int) -> list[list[int]]:
        rows = select(how, data.train, count, data.normalization, draws, scores)
        return rows.reshape(data.classes, count).tolist()

    for how in ("forgetting", "el2n"):
        for label, rows in enumerate(chosen(how, 3)):
            index = data.train.class_index[label]
            best = sorted(index.tolist(), key=lambda row: -float(scores[how][row]))
            assert rows == best[:3]
    for count in (1, 5, 60):
        for label, rows in enumerate(chosen("difficulty", count)):
            index = data.train.class_index[label].tolist()
            easy_first = sorted(index, key=lambda row: float(scores["el2n"][row]))
            first = easy_first.index(rows[0])
            assert rows == easy_first[first : first + count]
            assert first == count * (len(index) - count) // len(index)
    with pytest.raises(ConfigError, match="needs scores"):
        select("el2n", data.train, 1, data.normalization, draws)


@pytest.mark.parametrize("how", ["forgetting", "el2n", "difficulty"])
def test_run_starts_from_a_selection_by_scores(tmp_path, how):
    recipe = tiny(
        synthetic={"init": how},
        ranking=RANKING,
        synthesis={"steps": 0},
        evaluation={"baselines": []},
    )
    run = distill(recipe, tmp_path / "run", progress=QUIET)
    data = load(recipe.data)
    rank = Rank(Job(recipe, data, Store()))
    assert not rank.missing()
    rows = select(how, data.train, 1, data.normalization, torch.Generator(), rank.scores())
    expected = data.normalization(torch.from_numpy(data.train.images[rows]))
    torch.testing.assert_close(run.distilled.images, expected)
    scores = rank.scores()
    assert scores["el2n"].shape == (len(data.train),)
    parts = list(rank.results().values())
    assert len(parts) == 2
    assert not torch.equal(parts[0]["el2n"], parts[1]["el2n"])


def test_baselines_by_scores_are_judged_and_found_again(tmp_path):
    recipe = tiny(ranking=RANKING, evaluation={"baselines": ["random", "forgetting", "el2n"]})
    run = distill(recipe, tmp_path / "run", progress=QUIET)
    results = json.loads((run.directory / "evaluation.json").read_text())["results"]
    assert {one["set"] for one in results} == {"distilled", "random", "forgetting", "el2n"}


def test_ranking_is_in_the_key_of_a_set_that_starts_by_it_alone():
    plain = tiny()
    by_baseline = tiny(ranking=RANKING, evaluation={"baselines": ["el2n"]})
    assert by_baseline.identity() == plain.identity()
    with pytest.raises(ConfigError, match="'ranking' has no effect"):
        tiny(ranking=RANKING)
    by_errors = tiny(synthetic={"init": "el2n"})
    ranked = tiny(synthetic={"init": "el2n"}, ranking=RANKING)
    assert ranked.identity() != by_errors.identity()
    with pytest.raises(ConfigError, match=r"ranking\.early"):
        tiny(synthetic={"init": "el2n"}, ranking={"epochs": 3})


def test_baselines_by_scores_can_be_added_to_a_finished_set(tmp_path):
    run = distill(tiny(evaluation={"baselines": []}), tmp_path / "run", progress=QUIET)
    report = rayd.evaluate(
        run.distilled, quiet=True, evaluation={"baselines": ["difficulty"]}, ranking=RANKING
    )
    assert {result.set for result in report.results} == {"distilled", "difficulty"}
