"""Cluster files: what Ray, KubeRay and bash would refuse is found here, in the files and in broken
copies of them.
"""

import copy
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.main import get_command

from rayd.cli import app
from rayd.config import parse_overrides
from rayd.recipes import resolve

CLUSTERS = Path(__file__).parents[2] / "clusters"
RAY_UP = ("aws", "gcp", "on-premise")
KUBERAY = ("kuberay-cluster", "kuberay-job")
SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay-schema.yaml").read_text())

Tree = dict[str, Any]


def read(name: str) -> Tree:
    content: Tree = yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())
    return content


def broken(tree: Tree, breaking: Callable[[Tree], object]) -> Tree:
    tree = copy.deepcopy(tree)
    breaking(tree)
    return tree


def rename(tree: Tree, old: str, new: str) -> None:
    tree[new] = tree.pop(old)


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_takes_its_files(name):
    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", RAY_UP)
@pytest.mark.parametrize("breaking", [
    lambda tree: rename(tree, "file_mounts", "file_mount"),
    lambda tree: rename(tree, "provider", "providers"),
    lambda tree: tree["auth"].update(ssh_usr="ubuntu"),
    lambda tree: tree.update(idle_timeout_minutes="ten"),
])  # fmt: skip
def test_ray_up_refuses_broken_copies(name, breaking):
    with pytest.raises(Exception, match=r"file_mount|provider|ssh_usr|ten"):
        validate_config(prepare_config(broken(read(name), breaking)))


@pytest.mark.parametrize("name", ["aws", "gcp"])
@pytest.mark.parametrize(("breaking", "sentence"), [
    (lambda tree: tree.update(head_node_type="haed"), "head_node_type"),
    (lambda tree: tree["available_node_types"]["gpu"].update(min_workers=9), "min_workers"),
    (lambda tree: tree["available_node_types"]["gpu"].update(resources={"CPU": "8"}), "8"),
])  # fmt: skip
def test_ray_up_refuses_node_types_that_cannot_be(name, breaking, sentence):
    with pytest.raises(Exception, match=sentence):
        validate_config(prepare_config(broken(read(name), breaking)))


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_would_take_the_manifests(name):
    jsonschema.validate(read(name), SCHEMA)


def cluster(tree: Tree) -> Tree:
    spec: Tree = tree["spec"]
    found: Tree = spec.get("rayClusterSpec", spec)
    return found


def pod(tree: Tree) -> Tree:
    found: Tree = cluster(tree)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("name", KUBERAY)
@pytest.mark.parametrize("breaking", [
    lambda tree: tree.update(apiVersion="ray.io/v2"),
    lambda tree: rename(cluster(tree), "headGroupSpec", "headGroup"),
    lambda tree: cluster(tree)["workerGroupSpecs"][0].update(maxReplicas="8"),
    lambda tree: cluster(tree)["workerGroupSpecs"][0].pop("groupName"),
    lambda tree: cluster(tree)["headGroupSpec"].update(rayStartParams={"num-cpus": 0}),
    lambda tree: cluster(tree).update(authOptions={"mode": "tokens"}),
    lambda tree: pod(tree).update(gpus=1),
    lambda tree: pod(tree)["resources"]["limits"].update(memory="32 GB"),
    lambda tree: pod(tree)["volumeMounts"][0].pop("mountPath"),
])  # fmt: skip
def test_kubernetes_would_refuse_broken_copies(name, breaking):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken(read(name), breaking), SCHEMA)


def test_mounts_of_the_manifests_are_volumes_of_theirs():
    for name in KUBERAY:
        groups = [cluster(read(name))["headGroupSpec"], *cluster(read(name))["workerGroupSpecs"]]
        for spec in (group["template"]["spec"] for group in groups):
            mounted = {
                mount["name"]
                for container in [*spec.get("initContainers", []), *spec["containers"]]
                for mount in container["volumeMounts"]
            }
            assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_both_manifests_describe_the_same_cluster():
    assert cluster(read("kuberay-cluster")) == cluster(read("kuberay-job"))


def test_the_slurm_script_is_bash():
    subprocess.run(["bash", "-n", str(CLUSTERS / "slurm.sh")], check=True)


@pytest.mark.parametrize(
    "path",
    sorted(p for p in CLUSTERS.iterdir() if p.suffix in {".yaml", ".sh"}),
    ids=lambda p: p.name,
)
def test_submit_lines_are_commands_of_rayd(path):
    """What the head of every file tells to type is an invocation that the command line takes."""
    text = path.read_text()
    lines = " ".join(
        line.removeprefix("#").strip().removesuffix("\\")
        for line in text.splitlines()
        if line.startswith("#   ")
    )
    if path.name == "kuberay-job.yaml":
        lines = read("kuberay-job")["spec"]["entrypoint"]
    words = shlex.split(lines, comments=False)
    begin = words.index("distill")
    arguments = words[begin + 1 : words.index("--out", begin) + 2]
    command = get_command(app).commands["distill"]  # type: ignore[attr-defined]
    parsed = command.make_context("distill", arguments).params
    resolve(parsed["recipe"], parse_overrides(parsed["overrides"] or []))
    assert str(parsed["to"]).startswith(("/mnt/rayd/", "/shared/"))


def test_the_data_of_a_run_are_fetched_before_it():
    """A fresh file system is empty, and a run on data that are not there ends at once."""
    for name in RAY_UP:
        text = (CLUSTERS / f"{name}.yaml").read_text()
        assert (
            0 < text.index("data fetch cifar10 --data-root /mnt/rayd/data") < text.index("distill")
        )
    for name in KUBERAY:
        head = cluster(read(name))["headGroupSpec"]["template"]["spec"]
        (fetching,) = head["initContainers"]
        assert fetching["command"] == ["rayd", "data", "fetch", "cifar10"]
        (running,) = head["containers"]
        assert fetching["image"] == running["image"]
        assert fetching["env"][0] in running["env"]
    command = get_command(app).commands["data"].commands["fetch"]  # type: ignore[attr-defined]
    assert (
        command.make_context("fetch", ["cifar10", "--data-root", "/mnt"]).params["name"]
        == "cifar10"
    )
    assert resolve("edc-cifar10-ipc10").data.name == "cifar10"


CONSTRAINTS = dict(
    line.split("==")
    for line in (CLUSTERS / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def test_all_nodes_install_the_same_versions():
    for name in RAY_UP:
        commands = " ".join(read(name)["setup_commands"])
        assert "-c " in commands
        assert "clusters/constraints.txt" in commands
        assert "--torch-backend=auto" in commands
    dockerfile = (CLUSTERS / "Dockerfile").read_text()
    assert "-c /home/ray/rayd/clusters/constraints.txt" in dockerfile
    assert f"rayproject/ray:{CONSTRAINTS['ray']}-" in dockerfile
    for name in KUBERAY:
        assert cluster(read(name))["rayVersion"] == CONSTRAINTS["ray"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RAY_UP)
def test_what_nodes_install_can_be_resolved(name, tmp_path):
    """The install command of each file finds versions of everything, without the choice of torch's
    build, which depends on a node's driver.
    """
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv: pip install uv")
    (line,) = (one for one in read(name)["setup_commands"] if "uv pip install" in one)
    words = shlex.split(line.replace("$HOME/rayd-checkout", str(CLUSTERS.parent)))
    begin = words.index("-e")
    assert words[:begin] == [
        "~/uv/bin/uv",
        "pip",
        "install",
        "--python",
        "~/venv/bin/python",
        "--torch-backend=auto",
    ]
    command = [
        uv,
        "pip",
        "install",
        "--dry-run",
        "--target",
        str(tmp_path),
        "--python-version",
        "3.11",
    ]
    done = subprocess.run([*command, *words[begin:]], capture_output=True, text=True, check=False)
    if "dns error" in done.stderr:
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stderr
    for package in ("ray", "torch"):
        assert f"+ {package}=={CONSTRAINTS[package]}" in done.stderr


def test_nothing_from_the_network_is_run_unseen():
    for path in CLUSTERS.iterdir():
        if path.is_file() and path.suffix in {"", ".yaml", ".sh"}:
            text = path.read_text()
            assert "| sh" not in text
            assert "| bash" not in text


def test_runs_outlive_the_terminal_that_submitted_them():
    for name in RAY_UP:
        assert f"ray submit --tmux clusters/{name}.yaml" in (CLUSTERS / f"{name}.yaml").read_text()


def test_pods_may_write_to_their_volumes():
    for name in KUBERAY:
        groups = [cluster(read(name))["headGroupSpec"], *cluster(read(name))["workerGroupSpecs"]]
        for group in groups:
            assert group["template"]["spec"]["securityContext"] == {"fsGroup": 1000}


def test_the_image_takes_no_environment_and_no_runs_along():
    ignored = (CLUSTERS.parent / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)
