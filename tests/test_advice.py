"""A command line that was refused is told the right form, as a command to copy."""

import pytest
import typer

from rayd.cli import app
from rayd.cli.advice import corrected


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("distil digits", "rayd distill digits"),
        ("distill digits --ipc 5", "rayd distill digits ipc=5"),
        ("distill digits --ipc=5 --out x", "rayd distill digits ipc=5 --out x"),
        ("distill digits ipc 5", "rayd distill digits ipc=5"),
        ("distill digits --synthesis.steps 7", "rayd distill digits synthesis.steps=7"),
        ("distill digits --learning-rate 2", None),
        ("distill digits --steps 7", "rayd distill digits synthesis.steps=7"),
        ("plan edc-cifar10-ipc10 --ipc 1", "rayd plan edc-cifar10-ipc10 ipc=1"),
        ("distil digits --ipc 5", "rayd distill digits ipc=5"),
        ("tune dm-digits --ipc 5 --samples 3", "rayd tune dm-digits ipc=5 --samples 3"),
        ("--version", None),
        ("xyzzy digits", None),
        ("data list", None),
        ("distill digits ipc=5 --out runs/a", None),
        ("distill digits --out ipc 5", None),
    ],
)
def test_refused_command_lines_are_corrected(given, meant):
    assert corrected(given.split(), typer.main.get_command(app)) == meant


def test_values_stay_one_word():
    words = ["distill", "digits", "--evaluation.networks", "[mlp, convnet]"]
    found = corrected(words, typer.main.get_command(app))
    assert found == "rayd distill digits 'evaluation.networks=[mlp, convnet]'"
