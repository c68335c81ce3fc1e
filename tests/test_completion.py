"""Completion of the command line: what a shell offers at Tab."""

import os
import shutil
import subprocess
import sys
import time

import pytest

import tuning
from rayd import completion, recipes
from rayd.config import Recipe, parse_overrides


def words(completed):
    return [word for word, _ in completed]


def test_names_are_completed(monkeypatch):
    assert words(completion.recipes("dm-dig")) == [
        name for name in recipes.names() if name.startswith("dm-dig")
    ]
    assert set(words(completion.spaces("edc"))) <= set(tuning.names())
    assert words(completion.spaces("edc"))
    assert {"cifar10", "cifar100"} <= set(words(completion.data("cif")))
    assert "digits" in words(completion.data(""))


def test_settings_are_completed_with_their_values():
    assert "synthesis.optimizer=" in words(completion.overrides("synthesis."))
    assert words(completion.overrides("synthesis.optimizer")) == [
        f"synthesis.optimizer={name}"
        for name in completion.settings()["synthesis.optimizer"].choices
    ]
    assert words(completion.overrides("synthetic.kind=l")) == ["synthetic.kind=lowrank"]
    assert words(completion.overrides("observers.trained=")) == [
        "observers.trained=true",
        "observers.trained=false",
    ]
    assert "data=cifar10" in words(completion.overrides("data=cif"))
    assert "method=edc" in words(completion.overrides("method=e"))
    assert not completion.overrides("no.such=")
    told = dict(completion.overrides("synthesis."))
    assert all(told.values()), "every setting says what it is"


def test_a_unique_key_is_not_ended_by_a_space():
    """A shell ends its only offer with one, and a value could not be typed."""
    assert words(completion.overrides("synthesis.steps")) == [
        "synthesis.steps=",
        "synthesis.steps=1000",
    ]


def test_bash_takes_an_equals_sign_for_a_word():
    kinds = words(completion.overrides("=", ["synthetic.kind"]))
    assert {"pixels", "partitioned", "lowrank"} <= set(kinds)
    assert words(completion.overrides("low", ["ipc=1", "synthetic.kind", "="])) == ["lowrank"]


def test_settings_of_a_recipe_are_those_of_its_method():
    assert "terms.moments.alpha=" in words(completion.overrides("terms.mom", recipe="edc-digits"))
    assert not completion.overrides("terms.mom", recipe="digits")
    assert completion.overrides("synthesis.", recipe="no-such-recipe")


def test_every_offered_key_is_a_setting():
    tree = Recipe.model_fields
    for key in completion.settings():
        assert key.partition(".")[0] in tree
        parse_overrides([f"{key}=1"])


def test_completion_is_quick_and_imports_no_torch():
    program = (
        "import sys, rayd.completion as c; c.overrides('synthesis.', recipe='edc-digits');"
        "c.recipes('d'); c.data('c'); c.spaces('e'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    began = time.process_time()
    completion.overrides("synthesis.", recipe="edc-digits")
    assert time.process_time() - began < 1.0


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder on the PATH with a program `rayd`."""
    program = tmp_path / "bin" / "rayd"
    program.parent.mkdir()
    start = "import sys; sys.argv[0] = 'rayd'; from rayd.__main__ import main; main()"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{start}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_after_the_installation(path):
    """The installed script is read by bash, and its function called as at Tab."""
    subprocess.run(["rayd", "--install-completion", "bash"], check=False, capture_output=True)
    script = path / ".bash_completions" / "rayd.sh"
    if not script.exists():  # the shell is detected, where it takes no name
        shown = subprocess.run(
            ["bash", "-c", "rayd --install-completion"], check=True, capture_output=True, text=True
        )
        assert script.exists(), shown.stdout
    call = (
        f"source {script}; COMP_WORDS=(rayd distill digits synthetic.kind = low); COMP_CWORD=5; "
        'COMPREPLY=(); _rayd_completion rayd; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lowrank"], done.stderr
