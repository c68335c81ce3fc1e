"""The simulation of scaling against cases worked out by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clusters import simulate
from clusters.simulate import Cluster, Line, Simulation, Stage, lines, span
from rayd.recipes import resolve
from rayd.training.stored_labels import chunks

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
        ([1.0] * 4, 4, 1.0, 5.0),  # they wait in line for the synthesizer
        ([1.0] * 2, 1, 1.0, 4.0),  # a worker's next item comes when its result was processed
    ],
)
def test_items_over_workers(items, workers, taking, seconds):
    assert span(items, workers, taking=taking) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("items", "workers", "sending", "returning", "seconds"),
    [
        ([2.0], 1, 1.0, 1.0, 4.0),
        ([2.0] * 3, 3, 1.0, 0.0, 5.0),  # the last is sent after two others
        ([2.0] * 3, 3, 0.0, 1.0, 5.0),  # all are done at 2, and return one by one
        ([4.0] * 4, 2, 1.0, 1.0, 14.0),  # the link is idle while both compute
    ],
)
def test_tasks_and_results_cross_the_link_one_by_one(items, workers, sending, returning, seconds):
    assert span(items, workers, sending, returning) == pytest.approx(seconds)


def found(
    stage: Stage, workers: int, per_node: int = 1, network: float = 1.0, between: float = 1.0
) -> dict[str, float]:
    parts = stage.parts(Cluster(workers, per_node, network, between))
    return {name: seconds for name, seconds in parts.items() if seconds}


def test_one_item_a_worker_is_all_computing():
    assert found(Stage("s", [2.0] * 4), 4) == {"computing": 2.0}


def test_more_workers_than_items_idle():
    assert found(Stage("s", [2.0] * 2), 8) == pytest.approx({"computing": 0.5, "items": 1.5})


def test_what_all_need_crosses_the_drivers_link_once_and_is_passed_on():
    # 10 bytes at 2 a second to the first of four nodes, then to a second, then to two more at 10
    stage = Stage("s", [1.0] * 8, broadcast=10.0)
    assert found(stage, 8, per_node=2, network=2.0, between=10.0) == pytest.approx(
        {"computing": 1.0, "broadcast": 5.0 + 2.0}
    )
    assert found(stage, 8, per_node=8, network=2.0) == pytest.approx(
        {"computing": 1.0, "broadcast": 5.0}
    )


def test_results_cross_the_link():
    assert found(Stage("s", [1.0] * 2, result=4.0), 2, network=2.0) == pytest.approx(
        {"computing": 1.0, "link": 4.0}
    )


def test_the_synthesizer_merges_and_the_driver_waits_for_nothing_else():
    stage = Stage("s", [1.0] * 2, taking=0.5, storage=2.0)
    assert found(stage, 2) == pytest.approx({"computing": 1.0, "synthesizer": 1.0, "storage": 2.0})


def test_what_workers_exchange_takes_time_in_every_round():
    assert found(Stage("s", [1.0], rounds=3, exchange=0.5), 1) == pytest.approx(
        {"computing": 3.0, "link": 1.5}
    )


def test_rounds_and_the_driver_alone():
    assert found(Stage("s", [1.0], rounds=5, alone=3.0), 1) == pytest.approx(
        {"computing": 5.0, "driver": 3.0}
    )


def test_workers_together_lose_what_they_cannot_divide():
    # two students of 4 s of work by two workers each, who need 3 s in place of 2
    stage = Stage("s", [3.0] * 2, together=2, shared=[2.0] * 2)
    assert found(stage, 4) == pytest.approx({"computing": 2.0, "together": 1.0})
    assert found(stage, 5) == pytest.approx({"computing": 1.6, "items": 0.4, "together": 1.0})


def stages(workers: int = 1, shuffled: bool = False, **overrides: Any) -> dict[str, Stage]:
    simulation = Simulation(resolve(simulate.RECIPE, overrides), COSTS, 300.0, shuffled)
    return {stage.name: stage for stage in simulation.stages(workers)}


def test_items_are_those_of_the_engine():
    recipe = resolve(simulate.RECIPE)
    work = stages()
    assert len(work["squeeze"].items) == 5
    assert len(work["measure"].items) == 128  # by a team of five observers
    assert len(work["score"].items) == 1000
    assert len(work["synthesize"].items) == 125
    assert len(work["relabel"].items) == len(
        chunks(recipe.evaluation.epochs, 10_000, 1000, "float16")
    )
    # distilled and random images, with soft and with hard labels, and as many bytes of real ones
    assert len(work["evaluate"].items) == 5 * 3
    assert stages(synthesis={"block": None})["synthesize"].rounds == recipe.synthesis.steps


def test_teams_are_smaller_where_there_are_more_workers():
    few, more, many = (stages(workers)["measure"] for workers in (1, 64, 256))
    assert [len(one.items) for one in (few, more, many)] == [128, 3 * 128, 5 * 128]
    assert sum(few.items) == pytest.approx(sum(many.items))
    assert few.result == pytest.approx(5 * many.result)


def test_students_are_shared_by_as_many_workers_as_end_soonest():
    sizes = [stages(workers)["evaluate"].together for workers in (1, 2, 8, 64, 256)]
    assert sizes == [1, 1, 2, 4, 8]
    assert stages(64, evaluation={"workers": 2})["evaluate"].together == 2
    # each step takes at least as long as its kernels are launched
    steps = 300 * 100
    assert min(stages(256)["evaluate"].items) >= steps * COSTS["seconds"]["launch"]


def test_a_step_of_one_task_exchanges_nothing():
    """The synthesizer is in the worker that computes it; parts of the images go to others."""
    whole = stages(8, synthesis={"block": None})["synthesize"]
    parts = stages(8, synthesis={"block": None, "split": 4})["synthesize"]
    assert whole.exchange == 0
    assert len(parts.items) == 4 * len(whole.items)
    assert sum(parts.items) == pytest.approx(sum(whole.items))
    size = 10_000 * simulate.IMAGE_BYTES
    # parameters once to all, and three gradients
    assert parts.exchange == pytest.approx(4 * size / COSTS["rates"]["store"])


def test_statistics_are_merged_and_written_beside_the_driver():
    work = stages(64)
    assert work["measure"].alone == 0
    assert work["measure"].taking == pytest.approx(
        COSTS["seconds"]["merge"] * work["measure"].result
    )
    assert work["measure"].storage == pytest.approx(
        5
        * COSTS["bytes"]["statistics"]
        * (1 / COSTS["rates"]["storage"] + COSTS["seconds"]["hash"])
    )
    # from the files each worker reads them
    assert work["synthesize"].storage == work["measure"].storage
    assert work["synthesize"].broadcast == COSTS["bytes"]["weights"]


def test_images_are_sent_once_and_written_while_students_train():
    stored, online = stages(), stages(labels={"kind": "online"})
    size = 10_000 * simulate.IMAGE_BYTES
    assert stored["relabel"].broadcast > size > stored["evaluate"].broadcast
    assert online["evaluate"].broadcast > size
    once = size * COSTS["seconds"]["hash"]
    checked = size * COSTS["seconds"]["check"] / COSTS["cluster"]["driver_cores"]
    assert stored["save"].alone == pytest.approx(checked + 2 * once)
    assert online["save"].alone == pytest.approx(checked + once)


def test_workers_together_exchange_batch_statistics():
    simulation = Simulation(resolve(simulate.RECIPE), COSTS, 300.0)
    seconds = COSTS["seconds"]
    alone, eight = (simulation._step(0.08, together) for together in (1, 8))
    assert alone == 0.08
    assert eight == pytest.approx(
        0.01 + 8 * seconds["sync"] + 2 * 7 / 8 * COSTS["bytes"]["student"] / COSTS["rates"]["gpus"]
    )


def test_every_cost_says_where_it_comes_from(capsys):
    simulate.main(["--sources"])
    lines_ = capsys.readouterr().out.splitlines()
    assert "not said" not in "".join(lines_)
    known = {
        f"{group}.{name}"
        for group in ("seconds", "bytes", "rates", "cluster")
        for name in COSTS[group]
    }
    assert {line.split()[0] for line in lines_} == {"speedup", *known} == set(COSTS["sources"])
    assert any("assumed" in line for line in lines_)
    assert any("measured" in line for line in lines_)


def test_shards_send_the_classes_that_they_hold():
    folders, shuffled = (stages(256, one)["measure"] for one in (False, True))
    assert sum(folders.items) == pytest.approx(sum(shuffled.items))
    assert shuffled.result == COSTS["bytes"]["statistics"]
    # each class once, and those that a shard's end cuts in two twice: 1,000 classes and at most 127
    # cuts
    assert 1.0 <= folders.result * 128 / COSTS["bytes"]["statistics"] <= 1.127
    assert folders.taking / folders.result == pytest.approx(shuffled.taking / shuffled.result)


def test_faster_workers_leave_the_driver_and_decoding_as_they_are():
    recipe = resolve(simulate.RECIPE)
    slow, fast = (
        {stage.name: stage for stage in Simulation(recipe, COSTS, speedup).stages()}
        for speedup in (1.0, 1e9)
    )
    assert fast["save"] == slow["save"]
    assert fast["measure"].kind == "decoding"
    assert fast["measure"].taking == slow["measure"].taking


def efficiencies(sizes: Sequence[int], costs: Any = COSTS) -> dict[int, tuple[Line, float]]:
    simulated = lines(Simulation(resolve(simulate.RECIPE), costs, 300.0), [1, *sizes])
    return {line.workers: (line, line.efficiency(simulated[0])) for line in simulated}


def test_a_slow_link_of_the_driver_is_named_as_a_loss():
    slow = {**COSTS, "rates": {**COSTS["rates"], "network": 1e7}}
    simulated = efficiencies([64], slow)
    (_, what), *_ = simulated[64][0].losses(simulated[1][0])
    assert what.endswith((": link", ": broadcast"))
    assert simulated[64][1] < efficiencies([64])[64][1]


def test_the_table_names_losses_at_each_size(capsys):
    simulate.main(["ipc=1", "--speedup", "100", "--network", "1e9"])
    printed = capsys.readouterr().out.splitlines()
    assert COSTS["source"] in printed[0]
    assert "1,000 MB/s" in printed[1]
    table = [line for line in printed if line.split()[:1] and line.split()[0].isdigit()]
    assert [line.split()[0] for line in table] == [str(size) for size in simulate.SIZES]
    assert "1.00" in table[0].split()
    causes = {"computing", "decoding", "items", "together", "broadcast", "link", "synthesizer"}
    causes |= {"storage", "driver"}
    named = {word.removesuffix(":") for line in table[1:] for word in line.replace(",", "").split()}
    assert named & causes
    assert "decodes all of its images once" in printed[-1]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [("nowhere.json", "'nowhere.json' holds no costs"), ("ipcc=1", "did you mean 'ipc'")],
)
def test_a_mistake_is_a_sentence(capsys, argument, sentence):
    with pytest.raises(SystemExit) as stop:
        simulate.main([argument])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
