"""Commands that compute nothing start at once: they import neither torch nor what takes longer
still.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from rayd.data import ImageShape, Standardization
from rayd.distilled import Distilled
from rayd.engine.rundir import MARK

SLOW = (
    "torchvision", "torch._dynamo", "sklearn", "ray", "optuna", "pandas", "tensorboard", "matplotlib"
)  # fmt: skip
"""What no command may import that computes nothing."""
PROGRAM = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from rayd.cli import main

ends = []
for arguments in json.loads(sys.argv[1]):
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as error:
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code or 0
    ends.append({"code": code, "out": out.getvalue(), "error": error.getvalue(), "modules": list(sys.modules)})
print(json.dumps(ends))
"""
"""Runs commands one after another, and says of each how it ended and what has been imported by
then.
"""

ANSWERS = [
    (["--help"], "rayd distill digits"),
    (["--version"], "0."),
    (["recipes"], "edc-config"),
    (["recipes", "--json"], "edc-cifar10-ipc10"),
    (["recipes", "edc-cifar10-ipc10"], "method: edc"),
    (["recipes", "digits", "--diff", "csdm-digits"], "dm -> csdm"),
    (["cite", "ncfm-digits"], "wang2025ncfm"),
    (["data", "list"], "cifar10"),
    (["status", "RUN"], "finished"),
    (["distill", "--help"], "--resume"),
]
"""Commands that need no torch, and what they print."""
REFUSALS = [
    (["recipes", "dgits"], "did you mean 'digits'"),
    (["cite", "dgits"], "Unknown recipe"),
    (["distill", "digits", "ipcc=5"], "did you mean 'ipc'?"),
    (["distill", "digits", "ipc=none"], "Setting 'ipc'"),
    (["distill", "digits", "method=dn"], "Unknown method"),
    (["distill", "edc-digits", "terms.moments.alhpa=1"], "did you mean 'terms.moments.alpha'?"),
    (["distill", "digits", "terms.maen.weight=1"], "Unknown term"),
    (["tune", "edc-digits", "terms.maen.weight=1"], "Unknown term"),
    (
        ["distill", "csdm-digits", "terms.characteristic_function.kernel=gausian"],
        "characteristic_function.kernel'",
    ),
    (["plan", "digits", "synthesis.stepz=3"], "did you mean 'synthesis.steps'?"),
    (["tune", "edc-digits", "ipcc=5"], "did you mean 'ipc'?"),
    (["tune", "edc-digitz"], "Unknown space"),
    (["status", "nowhere"], "holds no run"),
]
"""Mistakes that are found without torch, and the sentence for them."""
WITH_TORCH = [
    (["show", "RUN"], "10 images of 1x8x8"),
    (["distill", "digits", "evaluation.networks=[convnett]"], "did you mean 'convnet'?"),
    (["distill", "digits", "evaluation.augmentation=flipp"], "flipp"),
    (["distill", "digits", "ipc=9999"], "must not exceed the smallest class"),
    (["plan", "digits", "observers.networks.norm=odd"], "norm"),
]
"""Commands that torch has a part in, and what they print."""


def _line(value: object) -> str:
    """The name of a case: its command line."""
    return " ".join(value) if isinstance(value, list) else ""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], dict]:
    """How every command ended, by its arguments."""
    folder = tmp_path_factory.mktemp("startup")
    run = folder / "run"
    (run / "distilled").mkdir(parents=True)
    (run / "config.yaml").write_text(MARK)
    (run / "status.json").write_text(json.dumps({"state": "finished", "stage": None}))
    normalization = Standardization(torch.tensor([0.5]), torch.tensor([0.25]))
    names = tuple(map(str, range(10)))
    Distilled(torch.zeros(10, *ImageShape(1, 8, 8)), torch.arange(10), names, normalization).save(
        run / "distilled"
    )

    wanted = [arguments for arguments, _ in (*ANSWERS, *REFUSALS, *WITH_TORCH)]
    given = [[str(run) if word == "RUN" else word for word in arguments] for arguments in wanted]
    environment = {
        **os.environ,
        "RAYD_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(given)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["run"]
    return dict(zip(map(tuple, wanted), json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("arguments", "words"), ANSWERS, ids=_line)
def test_answers_without_torch(ends, arguments, words):
    end = ends[tuple(arguments)]
    assert end["code"] == 0, end["error"]
    assert words in end["out"]
    assert not {"torch", *SLOW} & set(end["modules"])


@pytest.mark.parametrize(("arguments", "words"), REFUSALS, ids=_line)
def test_refuses_without_torch(ends, arguments, words):
    end = ends[tuple(arguments)]
    assert end["code"] == 2
    assert words in end["error"]
    assert len(end["error"].splitlines()) == 1
    assert not {"torch", *SLOW} & set(end["modules"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    WITH_TORCH,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_needs_torch_alone(ends, arguments, words):
    end = ends[tuple(arguments)]
    assert words in end["out"] + end["error"]
    assert not set(SLOW) & set(end["modules"])


def test_every_public_name_exists():
    program = "import rayd; print([name for name in rayd.__all__ if getattr(rayd, name) is None])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_package_imports_almost_nothing():
    program = "import sys, rayd; print(sum(name.partition('.')[0] not in sys.stdlib_module_names for name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 20
