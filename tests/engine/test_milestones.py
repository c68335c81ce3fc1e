"""Rungs: the set is looked at on its way, which changes nothing; and a synthesis that goes on from
another one's checkpoint.
"""

import pytest
import torch

from rayd.callbacks import Callbacks
from rayd.engine import checkpoint
from rayd.engine.distill import distill
from rayd.engine.milestones import Callback, Milestone, WarmStart
from rayd.errors import DataError
from tests.conftest import tiny
from tests.engine.test_decoupled import edc
from tests.engine.test_sequential import cfm
from tests.faults import Steps
from tests.runs import QUIET, bytes_of

STUDENT = {"seeds": 1, "epochs": 1, "baselines": []}
RECIPES = {
    "one block": lambda: tiny(evaluation=STUDENT),
    "in turn": lambda: cfm(evaluation=STUDENT),
    "side by side": lambda: edc(synthesis={"block": 10}, evaluation=STUDENT),
}


class Seen:
    """Looks, and remembers."""

    def __init__(self, fail_at: int = -1):
        self.fractions = []
        self.accuracies = []
        self.images = []
        self._fail_at = fail_at

    def __call__(self, rung: Milestone) -> None:
        self.fractions.append(rung.fraction)
        self.accuracies.append(rung.judge().results[0].test_accuracy.mean)
        self.images.append(rung.distilled.images.clone())
        if len(self.fractions) - 1 == self._fail_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", RECIPES)
def test_looking_changes_nothing(tmp_path, kind):
    distill(RECIPES[kind](), tmp_path / "plain", progress=QUIET)
    seen = Seen()
    run = distill(
        RECIPES[kind](),
        tmp_path / "watched",
        progress=QUIET,
        callback=Callback((1 / 3, 2 / 3), seen),
    )
    assert seen.fractions == pytest.approx([1 / 3, 2 / 3])
    assert bytes_of(tmp_path / "plain") == bytes_of(tmp_path / "watched")
    moved = [(images != run.distilled.images).flatten(1).any(1) for images in seen.images]
    if kind == "in turn":
        # of three blocks one is as it will be, then two
        assert [int(some.sum()) for some in moved] == [20, 10]
    else:
        assert all(some.all() for some in moved)
    assert all(0 <= accuracy <= 1 for accuracy in seen.accuracies)


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("rung", [0, 1])
def test_a_run_that_is_interrupted_while_it_is_looked_at_goes_on_there(
    tmp_path, monkeypatch, kind, rung
):
    whole = Seen()
    distill(
        RECIPES[kind](),
        tmp_path / "whole",
        progress=QUIET,
        callback=Callback((1 / 3, 2 / 3), whole),
    )
    with pytest.raises(KeyboardInterrupt):
        distill(
            RECIPES[kind](),
            tmp_path / "cut",
            progress=QUIET,
            callback=Callback((1 / 3, 2 / 3), Seen(fail_at=rung)),
        )
    seen = Seen()
    distill(
        RECIPES[kind](),
        tmp_path / "cut",
        resume=True,
        progress=QUIET,
        callback=Callback((1 / 3, 2 / 3), seen),
    )
    assert seen.fractions == whole.fractions[rung:]
    assert all(
        (now == then).all() for now, then in zip(seen.images, whole.images[rung:], strict=True)
    )
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "cut")


def test_students_on_the_way_share_the_workers(tmp_path):
    """Workers that synthesize are all that there are; students on the way are theirs too, and come
    to the same.
    """
    seen = {}
    for workers in (0, 1):
        seen[workers] = Seen()
        recipe = tiny(
            resources={"workers": workers, "threads": 1, "cpus_per_worker": 0.5}, evaluation=STUDENT
        )
        cache = tmp_path / f"cache{workers}"
        distill(
            recipe,
            tmp_path / str(workers),
            cache=cache,
            progress=QUIET,
            callback=Callback((0.5,), seen[workers]),
        )
    assert seen[0].accuracies == seen[1].accuracies


def test_labels_of_a_set_on_its_way_are_those_that_would_be_stored(tmp_path):
    kinds = {}
    for kind in ("online", "stored"):
        seen = Seen()
        recipe = edc(labels={"kind": kind, "seed": 0}, evaluation=STUDENT)
        distill(
            recipe,
            tmp_path / kind,
            progress=QUIET,
            callback=Callback((0.5,), seen),
            cache=tmp_path / f"cache-{kind}",
        )
        kinds[kind] = seen.accuracies
    assert kinds["online"] == kinds["stored"]


@pytest.mark.parametrize("kind", RECIPES)
def test_a_synthesis_goes_on_from_anothers_checkpoint(tmp_path, kind):
    """With its own settings from there on; what it becomes is kept apart from what it would have
    been from the start.
    """
    distill(
        RECIPES[kind](),
        tmp_path / "first",
        progress=QUIET,
        callback=Callback((2 / 3,), lambda rung: None),
    )
    with pytest.raises(KeyboardInterrupt):
        distill(
            RECIPES[kind](),
            tmp_path / "donor",
            progress=QUIET,
            callback=Callback((2 / 3,), Seen(fail_at=0)),
        )
    changed = RECIPES[kind]()
    synthesis = {"learning_rate": 0.007, "log_every": 1}
    changed = changed.model_copy(
        update={"synthesis": changed.synthesis.model_copy(update=synthesis)}
    )
    warm_start = WarmStart(tmp_path / "donor" / "checkpoints", ({"step": 1},))
    heir = Steps()
    distill(
        changed,
        tmp_path / "heir",
        progress=QUIET,
        warm_start=warm_start,
        callbacks=Callbacks([heir]),
    )
    fresh = Steps()
    distill(changed, tmp_path / "fresh", progress=QUIET, callbacks=Callbacks([fresh]))
    assert len(heir.made) == pytest.approx(len(fresh.made) / 3, abs=1)
    assert bytes_of(tmp_path / "heir") not in (
        bytes_of(tmp_path / "first"),
        bytes_of(tmp_path / "fresh"),
    )


def test_a_run_may_be_judged_on_the_validation_split(tmp_path, monkeypatch):
    """And then never looks at the test split."""
    recipe = tiny(data={"validation_fraction": 0.2})
    run = distill(recipe, tmp_path / "run", progress=QUIET, judged_on="validation")
    on_test = distill(recipe, tmp_path / "other", progress=QUIET)
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "other")
    assert run.report.results[0].protocol.endswith("judged on the validation split")
    assert run.report.results[0].test_accuracy != on_test.report.results[0].test_accuracy
    with pytest.raises(DataError, match=r"no validation split: set 'data.validation_fraction'"):
        distill(tiny(), tmp_path / "none", progress=QUIET, judged_on="validation")


def test_a_warm_start_is_taken_again_where_all_own_checkpoints_are_damaged(tmp_path):
    """From the initial set, the result would not be that of its key."""
    checkpoint.save_checkpoint(tmp_path / "donor", "donor", 4, {"set.images": torch.ones(2)})
    own = tmp_path / "own"
    for _ in range(2):
        checkpoint.adopt(tmp_path / "donor", own, "own")
        assert checkpoint.resumable(own, "own") == 4
        for path in own.iterdir():
            path.write_bytes(path.read_bytes()[:-1])
        assert checkpoint.resumable(own, "own") == 0
    checkpoint.save_checkpoint(own, "own", 6, {"set.images": torch.zeros(2)})
    checkpoint.adopt(tmp_path / "donor", own, "own")
    assert checkpoint.resumable(own, "own") == 6
