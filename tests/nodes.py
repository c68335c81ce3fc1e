"""Clusters on this machine whose nodes join and are lost, in tests and in the middle of every stage
of a run.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from rayd.config import Recipe
from rayd.engine import distill, driver
from rayd.engine.progress import Progress
from rayd.engine.stages import measure
from rayd.engine.worker import Worker
from rayd.training import stored_labels

QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 300,
    "health_check_failure_threshold": 3,
}
STAGES = ("squeeze", "measure", "synthesize", "relabel")
"""Stages in which nodes join and are lost."""
PAUSE = 0.3
"""Additional seconds of a piece of work until the nodes of its stage have changed."""
LIMIT = 240.0
"""Seconds within which a node must be working, or gone."""


@contextmanager
def several_nodes() -> Iterator[Cluster]:
    """A head node without workers, to which this process is connected."""
    ray.shutdown()
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK_TO_NOTICE}
    )
    ray.init(address=made.address, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@dataclass(frozen=True)
class Notes:
    """Log of the workers' progress, in a directory that all nodes share."""

    directory: Path

    def work(self, stage: str) -> None:
        """Record a finished piece of work, with a delay as long as the nodes of the stage have not
        changed.
        """
        node = self.directory / stage / ray.get_runtime_context().get_node_id()
        node.parent.mkdir(parents=True, exist_ok=True)
        with node.open("a") as pieces:
            pieces.write(".")
        if not self._changed(stage).exists():
            time.sleep(PAUSE)

    def pieces(self, stage: str) -> dict[str, int]:
        """Number of pieces of a stage that each node has done."""
        return {node.name: node.stat().st_size for node in (self.directory / stage).glob("[!.]*")}

    def change(self, stage: str) -> None:
        """Record that the nodes of a stage have changed."""
        self._changed(stage).touch()

    def _changed(self, stage: str) -> Path:
        return self.directory / stage / ".changed"


class Noted(Worker):
    """A worker that records its node."""

    def __init__(self, notes: Notes, *arguments: Any):
        super().__init__(*arguments)
        self._notes = notes

    def squeeze(self, *arguments: Any) -> Iterator[Any]:
        for event in super().squeeze(*arguments):
            self._notes.work("squeeze")
            yield event

    def measure(self, *arguments: Any) -> Any:
        return self._done("measure", super().measure(*arguments))

    def compute(self, *arguments: Any) -> Any:
        return self._done("synthesize", super().compute(*arguments))

    def label(self, *arguments: Any) -> Any:
        return self._done("relabel", super().label(*arguments))

    def _done(self, stage: str, result: Any) -> Any:
        self._notes.work(stage)
        return result


@dataclass(frozen=True)
class Move:
    """A node that joined and one that was lost during a stage."""

    stage: str
    """In which stage."""
    joined: str
    """Node that joined."""
    lost: str
    """Node that was lost."""
    by_joined: int
    """Number of pieces of the stage's work that the new node had done when the other one was lost.
    """
    by_lost: int
    """Number of pieces that the lost node had done."""
    seconds: float
    """Seconds from the start of the new node until the old one was known to be gone."""


def finely_cut(patch: pytest.MonkeyPatch) -> None:
    """Small shards and chunks, so that digits make many pieces."""
    patch.setattr(measure, "SHARD", 32)
    patch.setattr(stored_labels, "CHUNK_EPOCHS", 1)


def moved_about(recipe: Recipe, out: Path, cache: Path) -> list[Move]:
    """Run a recipe, with at least three workers, on two nodes of one worker each beside the head.

    In the middle of each of `STAGES` another node joins, works, and then the oldest one is lost.
    """
    notes = Notes(out.parent / f"{out.name}-notes")
    with several_nodes() as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "Worker", partial(Noted, notes))
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        run = _Thread(
            lambda: distill.distill(recipe, out, cache=cache, progress=Progress(quiet=True))
        )
        moves = [_move(run, cluster, nodes, notes, stage, out) for stage in STAGES]
        run.join()
    assert all(notes.pieces(move.stage)[move.lost] == move.by_lost for move in moves), (
        "A node that was lost went on working."
    )
    return moves


def _move(
    run: _Thread, cluster: Cluster, nodes: list[Any], notes: Notes, stage: str, out: Path
) -> Move:
    """Add a node in the middle of a stage, let it work, and lose the oldest one."""
    run.until(
        lambda: {node.node_id for node in nodes} <= notes.pieces(stage).keys(),
        f"both nodes work at {stage}",
    )
    began = time.monotonic()
    nodes.append(cluster.add_node(num_cpus=1))
    old = nodes.pop(0).node_id
    new = nodes[-1].node_id
    run.until(lambda: new in notes.pieces(stage), f"the new node works at {stage}")
    before = notes.pieces(stage)[new]
    cluster.remove_node(
        next(node for node in cluster.worker_nodes if node.node_id == old), allow_graceful=False
    )
    run.until(lambda: old not in _alive(), "the old node is gone")
    assert stage not in finished(out), f"{stage} was over before its node was gone."
    move = Move(stage, new, old, before, notes.pieces(stage)[old], time.monotonic() - began)
    notes.change(stage)
    return move


def finished(directory: Path) -> list[str]:
    """The stages of a run that came to their end."""
    metrics = directory / "metrics.jsonl"
    lines: Sequence[str] = metrics.read_text().splitlines() if metrics.exists() else ()
    return [entry["stage"] for entry in map(json.loads, lines) if entry.get("finished")]


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


class _Thread:
    """A run beside the one who watches it."""

    def __init__(self, target: Callable[[], Any]):
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(target,), daemon=True)
        self._thread.start()

    def _run(self, target: Callable[[], Any]) -> None:
        try:
            target()
        except BaseException as error:
            self._error = error

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Wait for a condition while the run goes on."""
        limit = time.monotonic() + LIMIT
        while not reached():
            if not self._thread.is_alive():
                self.join()
                raise AssertionError(f"The run ended before {what}.")
            assert time.monotonic() < limit, f"Waited {LIMIT:g} s in vain: {what}."
            time.sleep(0.1)

    def join(self) -> None:
        """Wait for the end of the run."""
        self._thread.join()
        if self._error is not None:
            raise self._error
