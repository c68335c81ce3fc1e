"""Jobs, from `ray job submit` or Ray's Python client to the exit code, on a head and a worker of
their own that ask for a token.
"""

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from rayd.engine.on_ray.health import crowding
from rayd.engine.status import status

for part in ("aiohttp", "aiohttp_cors", "opencensus", "prometheus_client"):
    pytest.importorskip(part, reason="needs the cluster extra: pip install 'rayd[cluster]'")

CHECKOUT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
PATIENCE = 600.0 * crowding()
"""Seconds that a job may take, more where others keep the machine busy."""
QUICK = [
    "synthesis.steps=2",
    "observers.pool=2",
    "evaluation.epochs=2",
    "evaluation.seeds=1",
    "evaluation.baselines=[]",
]

ON_PREMISE = yaml.safe_load((CHECKOUT / "clusters" / "on-premise.yaml").read_text())


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_command(which: str) -> list[str]:
    """The command that starts Ray on a node of `clusters/on-premise.yaml`, without what names a
    place there: ports, the autoscaler's file, and the head's address.
    """
    (line,) = (one for one in ON_PREMISE[f"{which}_start_ray_commands"] if "ray start" in one)
    words = shlex.split(line.partition("ray start")[2])
    places = ("--port=", "--object-manager-port=", "--autoscaling-config=", "--address=")
    return [*RAY, "start", "--block", *(word for word in words if not word.startswith(places))]


@dataclass(frozen=True)
class Head:
    """A cluster of a head and a worker."""

    dashboard: str
    """Address of the dashboard."""
    environment: dict[str, str]
    """Environment that the cluster lets in."""


@contextmanager
def started(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A node, until the block ends.

    It is not stopped by `ray stop`, which ends whatever else of Ray runs on this machine.
    """
    with log.open("w") as said:
        starting = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    try:
        until = time.monotonic() + PATIENCE / 3
        while "will now block" not in (told := log.read_text()):
            assert starting.poll() is None, told
            assert time.monotonic() < until, told
            time.sleep(0.5)
        yield
    finally:
        for pid in family(starting.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        starting.wait()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster that is started as `clusters/on-premise.yaml` starts one."""
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
        "ray-client-server-port",
    ]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    place = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the path of a socket must be short
    common = ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    of_head = ["--num-cpus=1", f"--temp-dir={place}"]
    of_head += [f"--{name}={port}" for name, port in ports.items()]
    agent = [f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
    # nodes on one machine share a directory unless told otherwise; the second would then replace
    # the files of a job that already runs on the first
    own = [f"--temp-dir={place}/w"]
    address = [f"--address=127.0.0.1:{ports['port']}", "--num-cpus=1", *agent, *own]
    try:
        with (
            started([*start_command("head"), *common, *of_head], environment, place / "head.log"),
            started([*start_command("worker"), *common, *address], environment, place / "w.log"),
        ):
            yield Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment)
    finally:
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
    runtime = json.dumps({"env_vars": {"RAYD_CACHE": os.environ["RAYD_CACHE"]}})
    command = [
        *RAY,
        "job",
        "submit",
        "--address",
        head.dashboard,
        "--working-dir",
        str(CHECKOUT),
        "--runtime-env-json",
        runtime,
    ]
    command += ["--", sys.executable, "-m", "rayd", *arguments]
    return subprocess.run(
        command,
        env=head.environment | more,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
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
@pytest.mark.timeout(2 * PATIENCE)
def test_a_job_that_fails_says_why_and_ends_in_its_code(head):
    done = submit(head, "distill", "digitz")
    assert done.returncode == 1
    assert "Unknown recipe 'digitz'; did you mean 'digits'" in done.stdout + done.stderr
    assert "exit code 2" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
def test_a_job_without_the_token_is_not_taken(head):
    done = submit(head, "recipes", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()


CLIENT = """
import sys, time
from ray.job_submission import JobSubmissionClient

client = JobSubmissionClient(sys.argv[1])
job = client.submit_job(entrypoint=sys.argv[2])
while not client.get_job_status(job).is_terminal():
    time.sleep(0.5)
print(client.get_job_status(job).value, client.get_job_info(job).driver_exit_code)
print(client.get_job_logs(job))
"""


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
def test_rays_python_client_submits_and_follows_a_run(head, tmp_path):
    """On both nodes: the head and the worker have a CPU each."""
    options = "--address auto --workers 2 resources.placement=spread resources.threads=1"
    # a cache of its own: what the other test has computed would not need a worker
    command = f"RAYD_CACHE={tmp_path}/cache {sys.executable} -m rayd distill digits"
    command += f" {shlex.join(QUICK)} {options} --out {tmp_path}/run"
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, head.dashboard, command],
        env=head.environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert done.stdout.splitlines()[0] == "SUCCEEDED 0", done.stdout + done.stderr
    assert "10 distilled images" in done.stdout
    assert len({worker["node_id"] for worker in status(tmp_path / "run").workers}) == 2
