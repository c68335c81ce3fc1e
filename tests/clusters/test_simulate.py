"""The simulation of scaling against cases worked out by hand."""

import json
from pathlib import Path

import pytest

from clusters import simulate
from clusters.simulate import Cluster, Stage, parts, span, stages
from rayd.recipes import resolve

COSTS = json.loads((Path(__file__).parents[2] / "clusters" / "simulate.json").read_text())


@pytest.mark.parametrize(
    ("items", "workers", "taking", "seconds"),
    [
        ([], 3, 1.0, 0.0),
        ([2.0], 1, 0.0, 2.0),
        ([2.0] * 3, 3, 0.0, 2.0),  # one item a worker
        ([2.0] * 2, 5, 0.0, 2.0),  # more workers than items
        ([2.0] * 4, 2, 0.0, 4.0),
        ([2.0] * 5, 2, 0.0, 6.0),
        ([1.0, 1.0, 1.0, 3.0], 2, 0.0, 4.0),  # the longest comes last
        ([1.0] * 4, 4, 1.0, 5.0),  # they wait in line for the driver
        ([1.0] * 2, 1, 1.0, 4.0),  # nobody works while the driver is busy
    ],
)
def test_items_over_workers(items, workers, taking, seconds):
    assert span(items, workers, taking) == pytest.approx(seconds)


def found(stage: Stage, workers: int, per_node: int = 1, network: float = 1.0) -> dict[str, float]:
    return {
        name: seconds
        for name, seconds in parts(stage, Cluster(workers, per_node, network)).items()
        if seconds
    }


def test_one_item_a_worker_is_all_computing():
    assert found(Stage("s", [2.0] * 4), 4) == {"computing": 2.0}


def test_more_workers_than_items_idle():
    assert found(Stage("s", [2.0] * 2), 8) == pytest.approx({"computing": 0.5, "items": 1.5})


def test_what_all_need_crosses_the_link_once_a_node():
    # 8 workers on 4 nodes, the driver's own has it already: 3 x 10 bytes at 2 a second
    stage = Stage("s", [1.0] * 8, broadcast=10.0)
    assert found(stage, 8, per_node=2, network=2.0) == pytest.approx(
        {"computing": 1.0, "broadcast": 15.0}
    )
    assert found(stage, 8, per_node=8, network=2.0) == pytest.approx({"computing": 1.0})


def test_results_of_other_nodes_cross_the_link():
    # two items of 4 bytes, half of them from elsewhere: 2 bytes each, one after the other
    assert found(Stage("s", [1.0] * 2, result=4.0), 2) == pytest.approx(
        {"computing": 1.0, "results": 4.0}
    )


def test_rounds_and_the_driver_alone():
    assert found(Stage("s", [1.0], rounds=5, alone=3.0), 1) == pytest.approx(
        {"computing": 5.0, "driver": 3.0}
    )


def test_items_are_those_of_the_engine():
    work = {stage.name: stage for stage in stages(resolve(simulate.RECIPE), COSTS)}
    assert len(work["squeeze"].items) == 5
    assert len(work["measure"].items) == 5 * 128
    assert len(work["score"].items) == 1000
    assert len(work["synthesize"].items) == 125
    assert len(work["relabel"].items) == 24
    assert work["relabel"].result == 13 * 20_000_000
    one_block = {
        stage.name: stage
        for stage in stages(resolve(simulate.RECIPE, {"synthesis": {"block": None}}), COSTS)
    }
    assert one_block["synthesize"].rounds == resolve(simulate.RECIPE).synthesis.steps


def test_shards_send_the_classes_that_they_hold():
    recipe = resolve(simulate.RECIPE)
    folders, shuffled = (
        next(stage for stage in stages(recipe, COSTS, shuffled=one) if stage.name == "measure")
        for one in (False, True)
    )
    assert sum(folders.items) == pytest.approx(sum(shuffled.items))
    assert shuffled.result == COSTS["bytes"]["statistics"]
    # each class once, and those that a shard's end cuts in two twice: 1,000 classes and at most 127
    # cuts
    assert 1.0 <= folders.result * 128 / COSTS["bytes"]["statistics"] <= 1.127
    assert folders.taking / folders.result == pytest.approx(shuffled.taking / shuffled.result)


def test_faster_workers_leave_the_driver_and_decoding_as_they_are():
    recipe = resolve(simulate.RECIPE)
    slow, fast = (
        {stage.name: stage for stage in stages(recipe, COSTS, speedup)} for speedup in (1.0, 1e9)
    )
    assert fast["look"] == slow["look"]
    assert fast["measure"].kind == "decoding"
    assert fast["measure"].taking == slow["measure"].taking


def test_the_table_names_a_bottleneck_at_each_size(capsys):
    simulate.main(["ipc=1", "--speedup", "100"])
    printed = capsys.readouterr().out.splitlines()
    assert COSTS["source"] in printed[0]
    assert [line.split()[0] for line in printed[-9:]] == [str(size) for size in simulate.SIZES]
    assert printed[-9].split()[-3] == "1.00"
    kinds = {"computing", "decoding", "items", "broadcast", "results", "driver"}
    assert {line.split()[-1] for line in printed[-9:]} <= kinds
