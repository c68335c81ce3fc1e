"""A head that goes away: one sentence within seconds, and checkpoints to go on from."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rayd.engine.status import status

SETTINGS = [
    "digits",
    "synthesis.steps=50000",
    "synthesis.checkpoint_every=50",
    "observers.pool=2",
    "evaluation.seeds=1",
    "evaluation.epochs=2",
    "evaluation.baselines=[]",
    "resources.cpus_per_worker=0.5",
]


def descendants(parent: int) -> dict[int, str]:
    """Names of the processes that descend from one."""
    table = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,ppid=,args="], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    rows = [line.split(None, 2) for line in table]
    found = {parent: ""}
    for _ in rows:
        grown = {int(pid): args for pid, above, args in rows if int(above) in found}
        if grown.keys() <= found.keys():
            break
        found |= grown
    return found


@pytest.mark.chaos
@pytest.mark.slow
def test_a_lost_head_is_told_in_one_sentence_within_seconds(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rayd", "distill"]
    with subprocess.Popen(
        [*command, *SETTINGS, "--workers", "1", "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        until = time.monotonic() + 120
        while not list(out.glob("checkpoints/step-*")):
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
        family = descendants(running.pid)
        servers = [pid for pid, args in family.items() if "gcs_server" in args.partition(" ")[0]]
        assert len(servers) == 1, family
        pid = servers[0]
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        _, told = running.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert running.returncode == 1
    (last,) = [line for line in told.splitlines() if line.startswith("rayd: ")]
    assert "The head of the Ray cluster" in last
    assert "--resume continues" in last
    assert "task_manager.cc" not in told
    assert status(out).state in ("failed", "killed")
    # what --resume continues from; that it does is tested where drivers are killed
    assert list(out.glob("checkpoints/step-*"))
