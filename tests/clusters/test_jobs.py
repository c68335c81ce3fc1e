"""Jobs, from `ray job submit` to the exit code, on a head of their own that asks for a token."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rayd.engine.status import status

for part in ("aiohttp", "aiohttp_cors", "opencensus", "prometheus_client"):
    pytest.importorskip(part, reason="needs the cluster extra: pip install 'rayd[cluster]'")

CHECKOUT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
QUICK = [
    "synthesis.steps=2",
    "observers.pool=2",
    "evaluation.epochs=2",
    "evaluation.seeds=1",
    "evaluation.baselines=[]",
]

Head = tuple[str, dict[str, str]]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """The address of a dashboard, and the environment that its cluster lets in.

    It is not stopped by `ray stop`, which ends whatever else of Ray runs on this machine.
    """
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])),
    }
    environment.pop("RAY_ADDRESS", None)
    names = [
        "port",
        "dashboard-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "metrics-export-port",
    ]
    ports = dict(zip([*names, "ray-client-server-port"], free_ports(6), strict=True))
    place = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the path of a socket must be short
    command = [
        *RAY,
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        f"--temp-dir={place}",
        "--disable-usage-stats",
    ]
    command += [
        "--node-ip-address=127.0.0.1",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    with Path(place, "start.log").open("w") as said:
        starting = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        until = time.monotonic() + 200
        while "will now block" not in (told := Path(place, "start.log").read_text()):
            assert starting.poll() is None, told
            assert time.monotonic() < until, told
            time.sleep(0.5)
        yield address, environment
    finally:
        for pid in family(starting.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        starting.wait()
        shutil.rmtree(place, ignore_errors=True)


def family(parent: int) -> list[int]:
    """A process and all that descend from it."""
    table = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    parents = {int(pid): int(parent) for pid, parent in map(str.split, table)}
    found = [parent]
    for one in found:
        found += [pid for pid, its in parents.items() if its == one]
    return found


def submit(head: Head, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Submit a command of rayd from the root of the checkout."""
    address, environment = head
    runtime = json.dumps({"env_vars": {"RAYD_CACHE": os.environ["RAYD_CACHE"]}})
    command = [
        *RAY,
        "job",
        "submit",
        "--address",
        address,
        "--working-dir",
        str(CHECKOUT),
        "--runtime-env-json",
        runtime,
    ]
    command += ["--", sys.executable, "-m", "rayd", *arguments]
    return subprocess.run(
        command, env=environment | more, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_is_submitted_as_a_job(head, tmp_path):
    options = [
        "--address",
        "auto",
        "--workers",
        "2",
        "resources.cpus_per_worker=0.5",
        "resources.threads=1",
    ]
    done = submit(head, "distill", "digits", *QUICK, "--out", str(tmp_path / "run"), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 distilled images" in done.stdout
    assert "synthesize: 2/2 steps" in done.stdout
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert (tmp_path / "cache" / "measure").is_dir()
    assert status(tmp_path / "run").state == "finished"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_fails_says_why_and_ends_in_its_code(head):
    done = submit(head, "distill", "digitz")
    assert done.returncode == 1
    assert "Unknown recipe 'digitz'; did you mean 'digits'?" in done.stdout + done.stderr
    assert "exit code 2" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_without_the_token_is_not_taken(head):
    done = submit(head, "recipes", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()
