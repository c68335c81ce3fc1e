"""Ctrl-C while workers of Ray run, as a terminal sends it: to the whole group of processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rayd.interrupts import STOPPED
from tests.engine.test_lost_head import SETTINGS


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0005, 0.3], ids=["at once", "while Ray ends"])
def test_a_second_interrupt_while_workers_run_is_one_sentence(tmp_path, pause):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rayd", "distill", *SETTINGS, "--workers", "2"]
    with subprocess.Popen(
        [*command, "--out", str(out)], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        until = time.monotonic() + 120
        while not list(out.glob("checkpoints/step-*")):
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
        os.killpg(running.pid, signal.SIGINT)
        time.sleep(pause)
        os.killpg(running.pid, signal.SIGINT)
        _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in told
    assert told.splitlines()[-1] == f"rayd: {STOPPED}"
