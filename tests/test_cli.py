"""The command line: every command, machine-readable output, and one sentence for a mistake."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import rayd
from rayd import cli, recipes
from rayd.applications import slimming
from rayd.cli import main
from rayd.cli.printing import check_picture
from rayd.errors import ConfigError, OutputError
from rayd.interrupts import STOPPED
from tests.faults import Interrupting
from tuning import space

QUICK = [
    "synthesis.steps=6",
    "observers.pool=2",
    "observers.networks.width=8",
    "evaluation.networks=[{name: convnet, depth: 2, width: 8}]",
    "evaluation.epochs=2",
    "evaluation.whole_epochs=1",
    "evaluation.seeds=1",
]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    code = stop.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "distill",
                "digits",
                *QUICK,
                "--out",
                str(folder / "run"),
                "--cache",
                str(folder / "cache"),
                "--quiet",
            ]
        )
    assert not stop.value.code
    return folder / "run"


def test_recipes_are_listed_and_printed_whole(capsys):
    code, text, _ = run(capsys, "recipes", "--all")
    assert code == 0
    assert "dm-cifar10-ipc10" in text
    assert "0.489" in text
    _, document, _ = run(capsys, "recipes", "--json")
    assert {"digits", "dm-cifar10-ipc1"} <= {recipe["name"] for recipe in json.loads(document)}
    _, whole, _ = run(capsys, "recipes", "digits")
    assert "learning_rate: 1.0" in whole
    assert "validation_fraction" in whole


@pytest.mark.parametrize("columns", ["60", "80", "100", "150"])
def test_recipe_list_fits_the_width_and_breaks_no_name(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    _, text, _ = run(capsys, "recipes", "--all")
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:]] == recipes.names()
    assert max(map(len, lines)) <= int(columns)
    if int(columns) >= 150:
        assert any(line.endswith("…") for line in lines)


def test_recipe_list_in_a_pipe_is_whole(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    _, text, _ = run(capsys, "recipes", "--all")
    assert recipes.resolve("digits").summary in text


@pytest.mark.parametrize("columns", ["60", "80", "100", "150"])
def test_families_of_recipes_have_a_line_each(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    _, text, _ = run(capsys, "recipes")
    table, _, hint = text.partition("\n\n")
    families = recipes.families()
    assert [line.split()[0] for line in table.splitlines()[1:]] == list(families)
    assert sum(int(line.split()[1]) for line in table.splitlines()[1:]) == len(recipes.names())
    assert max(map(len, text.splitlines())) <= int(columns)
    assert "rayd recipes FAMILY" in " ".join(hint.split())


@pytest.mark.parametrize(
    ("arguments", "holds"),
    [
        (["--method", "edc"], lambda recipe: recipe.method == "edc"),
        (["--data", "svhn"], lambda recipe: recipe.data.name == "svhn"),
        (
            ["--method", "dm", "--measured"],
            lambda recipe: recipe.method == "dm" and recipe.measured,
        ),
        (["mtt"], lambda recipe: recipes.find(recipe.name).stem == "mtt"),
        # also the name of a recipe
        (["digits", "--all"], lambda recipe: recipes.find(recipe.name).stem == "digits"),
    ],
)
def test_recipes_are_filtered(capsys, arguments, holds):
    wanted = [name for name in recipes.names() if holds(recipes.resolve(name))]
    assert 0 < len(wanted) < 50
    _, text, _ = run(capsys, "recipes", *arguments)
    assert [line.split()[0] for line in text.splitlines()[1:]] == wanted
    _, document, _ = run(capsys, "recipes", *arguments, "--json")
    assert [recipe["name"] for recipe in json.loads(document)] == wanted


def test_filters_without_a_recipe_say_so(capsys):
    code, _, error = run(capsys, "recipes", "--method", "edcc")
    assert (code, "did you mean 'edc'?" in error) == (2, True)
    code, text, _ = run(capsys, "recipes", "--method", "kip", "--data", "imagenette")
    assert (code, text) == (0, "No recipe matches: 'rayd recipes --all' lists all of them.\n")


def test_a_recipe_is_printed_below_its_results(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, text, _ = run(capsys, "recipes", "edc-imagenet-1k-ipc40")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert "#   0.574          resnet18      EDC, Table 16" in comments
    assert any("points above RDED; EDC, Table 2" in line for line in comments)
    assert max(map(len, comments)) <= 80
    assert yaml.safe_load(text) == yaml.safe_load(
        recipes.resolve("edc-imagenet-1k-ipc40").to_yaml()
    )
    _, text, _ = run(capsys, "recipes", "dm-cifar10-ipc10")
    assert "#   0.491 ± 0.003  random images 0.311" in text


def test_help_shows_an_example_of_every_command(capsys):
    code, text, _ = run(capsys, "--help")
    assert code == 0
    for command in (
        "recipes",
        "plan",
        "distill",
        "status",
        "evaluate",
        "compare",
        "show",
        "export",
        "tune",
        "doctor",
        "cite",
        "data",
    ):
        assert f"$ rayd {command}" in text
    _, text, _ = run(capsys, "distill", "--help")
    assert "Example: rayd distill digits" in text


def test_brackets_in_names_of_data_are_no_markup(capsys, tmp_path):
    folder = tmp_path / "old[red]"
    folder.mkdir()
    np.savez(folder / "photos[1].npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.arange(2))
    _, text, _ = run(capsys, "data", "list", "--data-root", str(folder))
    assert "photos[1]" in text
    assert "old[red]" in "".join(text.split())


def test_a_home_that_the_shell_leaves_is_found(capsys, tmp_path, monkeypatch):
    """Shells expand `~` at the beginning of a word, not in `--out=~/x`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slimming, "slim_run", lambda *_, **__: ())
    monkeypatch.setattr(slimming, "chart", lambda *_: Image.new("L", (1, 1)))
    monkeypatch.setattr(slimming, "text", lambda _: "")
    run(capsys, "apply", "slimming", "set", "--out=~/slim")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slim"]
    picture = tmp_path / "slim" / "slimming.png"
    with pytest.raises(OutputError, match="exists already"):
        check_picture(Path("~") / picture.relative_to(tmp_path), False)


def test_data_are_listed(capsys):
    _, document, _ = run(capsys, "data", "list", "--json")
    known = {entry["name"]: entry for entry in json.loads(document)}
    assert known["digits"]["found"]
    assert known["cifar10"]["found"] is None
    assert "rayd data fetch cifar10" in known["cifar10"]["how"]


def test_plan_tells_time_cache_memory_and_disk(capsys, finished, tmp_path):
    _, document, _ = run(capsys, "plan", "digits", *QUICK, "--json")
    plan = json.loads(document)
    assert [stage["stage"] for stage in plan["stages"]] == ["measure", "synthesize", "evaluate"]
    assert "2 of 2 observers" in plan["stages"][0]["work"]
    assert plan["seconds"] > 0
    assert plan["memory"]["step"] > 0
    assert plan["memory"]["student"] > 0
    _, cached, _ = run(capsys, "plan", "digits", *QUICK, "--cache", str(finished.parent / "cache"))
    assert "0 of 2 observers" in cached
    assert "2 cached" in " ".join(cached.split())
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_json_of_a_run_is_its_report(capsys, finished, tmp_path):
    arguments = [
        "--out",
        str(tmp_path / "run"),
        "--cache",
        str(finished.parent / "cache"),
        "--json",
    ]
    code, document, _ = run(capsys, "distill", "digits", *QUICK, *arguments)
    assert code == 0
    assert json.loads(document) == json.loads((tmp_path / "run" / "evaluation.json").read_text())


def test_a_set_whose_directory_is_read_only_is_not_evaluated_in_vain(capsys, finished, monkeypatch):
    monkeypatch.setattr("rayd.engine.rundir.writable", lambda path: False)
    monkeypatch.setattr("rayd.engine.evaluate.evaluate_distilled", None)
    code, _, error = run(capsys, "evaluate", str(finished))
    assert code == 2
    assert "The directory of the set" in error
    assert "cannot be written" in error


def test_one_network_may_be_named_alone(finished, monkeypatch):
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "rayd.engine.evaluate.evaluate_distilled", lambda distilled, tree, *_: asked.append(tree)
    )
    for networks in ("mlp", ["mlp"], {"name": "mlp"}, [{"name": "mlp"}]):
        rayd.evaluate(finished, networks=networks)
    names = [
        [one if isinstance(one, str) else one["name"] for one in tree["evaluation"]["networks"]]
        for tree in asked
    ]
    assert names == [["mlp"]] * 4


def test_evaluate_adds_to_the_report(capsys, finished):
    more = ["--network", "mlp", "--seeds", "1", "evaluation.baselines=[random]", "--quiet"]
    code, text, _ = run(
        capsys, "evaluate", str(finished), *more, "--cache", str(finished.parent / "cache")
    )
    assert code == 0
    assert "mlp" in text
    report = json.loads((finished / "evaluation.json").read_text())
    assert {(r["set"], r["network"]) for r in report["results"]} >= {
        ("distilled", "mlp"),
        ("distilled", "convnet-d2-w8"),
    }


def test_status_tells_how_a_run_goes(capsys, finished):
    code, text, _ = run(capsys, "status", str(finished))
    assert code == 0
    assert "finished" in text
    assert "stage    evaluate" in text
    _, document, _ = run(capsys, "status", str(finished), "--json")
    assert json.loads(document)["state"] == "finished"


def test_a_run_is_continued_by_its_directory_alone(capsys, finished):
    """Neither the recipe nor its settings are given again, and nothing is done twice."""
    before = (finished / "distilled" / "data.safetensors").read_bytes()
    cache = ["--cache", str(finished.parent / "cache"), "--json"]
    forms = [
        ["--resume", str(finished)],
        [str(finished), "--resume"],
        ["--resume", "--out", str(finished)],
    ]
    forms.append(["digits", *QUICK, "--resume", "--out", str(finished)])
    for form in forms:
        code, document, error = run(capsys, "distill", *form, *cache)
        assert code == 0, error
        assert json.loads(document) == json.loads((finished / "evaluation.json").read_text())
        assert "synthesize: done before" in error
    assert (finished / "distilled" / "data.safetensors").read_bytes() == before


def test_evaluation_settings_may_come_with_resume(capsys, finished):
    for form in (["--resume", str(finished)], ["--resume", "--out", str(finished)]):
        more = [
            "evaluation.networks=mlp",
            "evaluation.baselines=[random]",
            "--cache",
            str(finished.parent / "cache"),
            "--quiet",
        ]
        code, text, error = run(capsys, "distill", *form, *more)
        assert code == 0, error
        assert "mlp" in text
    code, _, error = run(capsys, "distill", "--resume", str(finished), "synthesis.steps=7")
    assert code == 2
    assert (
        f"synthesis.steps differs; choose another --out, or continue that run as it is with 'rayd distill --resume {finished}"
        in error
    )


def test_resume_means_the_recipe_where_a_directory_has_its_name(
    capsys, finished, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(finished)
    code, text, error = run(
        capsys, "distill", "digits", *QUICK, "--resume", "--cache", str(finished.parent / "cache")
    )
    assert code == 0, error
    (tmp_path / "runs" / "digits").rename(tmp_path / "digits")
    assert run(capsys, "distill", "--resume", "digits", "--cache", str(finished.parent / "cache"))[
        :2
    ] == (0, text)


def test_the_table_of_a_run_has_80_columns(capsys, finished):
    _, text, _ = run(
        capsys,
        "distill",
        "--resume",
        str(finished),
        "--cache",
        str(finished.parent / "cache"),
        "--quiet",
    )
    *table, blank, _place, _page = text.splitlines()
    assert not blank
    assert max(map(len, table)) <= 80


def test_images_of_different_sizes_are_refused_with_a_command_that_works(capsys, tmp_path):
    draws = np.random.default_rng(0)
    for name, side in product("ab", (9, 11)):
        for number in range(3):
            (tmp_path / "zoo" / name).mkdir(parents=True, exist_ok=True)
            pixels = draws.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "zoo" / name / f"{side}-{number}.png")
    arguments = [
        "distill",
        "digits",
        f"data={tmp_path / 'zoo'}",
        *QUICK,
        "--out",
        str(tmp_path / "my run"),
    ]
    # a plan, which decodes none of them, refuses them too
    code, _, planned = run(capsys, "plan", "digits", f"data={tmp_path / 'zoo'}")
    assert code == 2
    code, _, error = run(capsys, *arguments)
    _, sentence, command = error.splitlines()
    assert sentence == planned.splitlines()[0]
    assert code == 2
    assert "data.image_size=32 scales each to 32 x 32 and keeps the middle square." in sentence
    assert not (tmp_path / "my run").exists()
    program, *rest = shlex.split(command)
    assert (program, rest) == ("rayd", [*arguments, "data.image_size=32"])
    code, text, _ = run(capsys, *rest, "--cache", str(tmp_path / "cache"), "--quiet")
    assert code == 0
    assert " ".join(text.split()).startswith(f"dm-zoo-ipc1: dm on {tmp_path / 'zoo'}, 1 per class")


def test_an_ascii_terminal_shows_all_text(finished, tmp_path):
    """What it lacks is replaced, such as letters of a class name."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    card = json.loads((folder / "distilled/card.json").read_text())
    for names in (card["class_names"], card["data"]["read"]["class_names"]):
        names[0] = "größe 猫"
    (folder / "distilled/card.json").write_text(json.dumps(card))
    settings = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    for arguments, words in (
        (["recipes"], "recipe"),
        (["show", str(folder)], r"gr\xf6\xdfe \u732b"),
        (["status", str(folder)], "finished"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "rayd", *arguments],
            capture_output=True,
            env=os.environ | settings,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert words in " ".join(done.stdout.decode("ascii").split())


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_a_run_needs_a_directory_whose_name_is_text(capsys, tmp_path, name):
    place = tmp_path / os.fsdecode(name)
    code, _, error = run(capsys, "distill", "digits", *QUICK, "--out", str(place), "--quiet")
    assert code == 2
    assert "must be text in UTF-8, without control characters" in error
    assert not place.exists()


INTERRUPTED = """
import time
from rayd.cli import program
def command(_):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaning up", flush=True)
        time.sleep(60)
program.app = command
program.main([])
"""


@pytest.mark.parametrize("name", ["../else", "/else"])
def test_the_name_of_a_recipe_leads_nowhere_else(capsys, tmp_path, monkeypatch, name):
    """The recipe may be a stranger's, and its run would replace one there with --overwrite."""
    (tmp_path / "own.yaml").write_text(f"base: digits\nname: {name}\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    code, out, err = run(capsys, "distill", str(tmp_path / "own.yaml"), *QUICK)
    assert (code, out) == (2, "")
    assert f"The name '{name}' in 'runs' leads out of that folder" in err
    with pytest.raises(ConfigError, match="leads out of that folder"):
        rayd.distill(str(tmp_path / "own.yaml"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.yaml", "work"]


def test_a_second_interrupt_is_one_sentence():
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning up\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == f"rayd: {STOPPED}\n"


@pytest.mark.parametrize("module", ["typer", "pydantic", "numpy", "torch"])
def test_an_interrupt_during_imports_is_one_sentence(tmp_path, module):
    """It is sent as soon as a module has been imported, while others are."""
    command = [sys.executable, "-X", "importtime", "-m", "rayd", "distill", "digits", "--quiet"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAYD_CACHE": str(tmp_path / "cache")},
    ) as process:
        assert process.stderr is not None
        while process.stderr.readline().rpartition("|")[2].strip() != module:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read().splitlines()
        assert process.wait(60) == 130
    said = [line for line in rest if not line.startswith("import time:")]
    assert len(said) == 1
    assert said[0].startswith("rayd: Interrupted")


def test_an_interrupted_run_names_the_command_that_continues_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(Interrupting, "pending", True)
    settings = [*QUICK, "synthesis.log_every=2", "callbacks=[tests.faults:Interrupting]"]
    place = ["--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--quiet"]
    code, _, error = run(capsys, "distill", "digits", *settings, *place)
    assert code == 130
    command = f"rayd distill --resume {tmp_path / 'run'} --cache {tmp_path / 'cache'}"
    assert (
        error.splitlines()[-1]
        == f"rayd: Interrupted; finished work is kept. To continue: {command}"
    )
    monkeypatch.undo()
    assert run(capsys, *shlex.split(command)[1:], "--quiet")[0] == 0


def test_show_has_accuracies(capsys, finished, tmp_path):
    _, text, _ = run(capsys, "show", str(finished))
    report = json.loads((finished / "evaluation.json").read_text())
    (ours,) = (
        r for r in report["results"] if r["set"] == "distilled" and r["network"] == "convnet-d2-w8"
    )
    assert f"test accuracy  convnet-d2-w8: distilled {ours['test_accuracy']['mean']:.3f}" in text
    assert run(capsys, "show", str(finished / "distilled"))[1] == text
    assert max(map(len, text.splitlines())) <= 80
    shutil.copytree(finished / "distilled", tmp_path / "set")
    assert (
        "test accuracy  unknown: 'rayd evaluate'" in run(capsys, "show", str(tmp_path / "set"))[1]
    )


@pytest.mark.parametrize(
    ("name", "start"),
    [("sheet.jpg", b"\xff\xd8\xff"), ("sheet.webp", b"RIFF"), ("sheet", b"\x89PNG")],
)
def test_a_picture_has_the_format_of_its_name(capsys, finished, tmp_path, name, start):
    assert run(capsys, "show", str(finished), "--png", str(tmp_path / name))[0] == 0
    assert (tmp_path / name).read_bytes().startswith(start)


def test_a_class_that_does_not_exist_is_refused_without_a_picture(capsys, finished):
    code, out, error = run(capsys, "show", str(finished), "--class", "owl")
    assert (code, out) == (2, "")
    assert "Unknown class 'owl'" in error


def test_show_says_where_a_picture_goes_that_the_terminal_cannot_show(capsys, finished):
    code, _, error = run(capsys, "show", str(finished), "--class", "8")
    assert code == 0
    assert "This terminal shows no pictures; --png FILE writes the picture." in error
    assert run(capsys, "show", str(finished))[2] == ""


def test_other_formats_of_pictures_are_refused(capsys, finished, tmp_path):
    code, _, error = run(capsys, "show", str(finished), "--png", str(tmp_path / "sheet.tif"))
    assert code == 2
    assert "must end in one of .png, .jpg, .jpeg, .webp. Got 'sheet.tif' instead" in error
    assert list(tmp_path.iterdir()) == []


def test_spectra_of_a_method_without_them_are_refused_with_the_reason(capsys, finished):
    code, _, error = run(capsys, "show", str(finished), "--spectrum")
    assert code == 2
    assert "which method 'dm' neither measures nor matches; cfm and unidd do" in error
    assert "'rayd analyse DIR spectra'" in error


def test_show_tells_and_draws(capsys, finished, tmp_path):
    code, text, _ = run(capsys, "show", str(finished), "--png", str(tmp_path / "sheet.png"))
    assert code == 0
    assert "10 images of 1x8x8, 10 classes, 1 per class" in text
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    code, _, error = run(capsys, "show", str(finished), "--png", str(tmp_path / "sheet.png"))
    assert code == 2
    assert "exists already" in error
    _, document, _ = run(capsys, "show", str(finished), "--json")
    assert json.loads(document)["method"] == "dm"


@pytest.mark.parametrize("form", ["parquet", "imagefolder", "npz"])
def test_export(capsys, finished, tmp_path, form):
    destination = tmp_path / f"set.{form}"
    arguments = ["export", str(finished), "--format", form, str(destination), "--lossy"]
    assert run(capsys, *arguments)[0] == 0
    assert destination.exists()
    code, _, error = run(capsys, "export", str(finished), "--format", form, str(destination))
    assert code == 2
    assert "exists" in error


def test_cite_prints_bibtex_once_each(capsys):
    _, text, _ = run(capsys, "cite", "digits")
    keys = [line for line in text.splitlines() if line.startswith("@")]
    assert len(keys) == len(set(keys)) >= 4
    assert "zhao2023dm" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["distill", "digitz"], "Unknown recipe 'digitz'; did you mean 'digits', 'dc-digits' or"),
        (["distill", "nowhere/recipe.yaml"], "Cannot read the recipe"),
        (["distill", "digits", "synthesis.stepz=3"], "did you mean 'synthesis.steps'?"),
        (["distill", "digits", "step=3"], "did you mean 'synthesis.steps'?"),
        (["distill", "digits", "ipc"], "must have the form key.sub=value"),
        (["distill", "digits", "ipc=9999"], "ipc must not exceed the smallest class"),
        (["distill", "digits", "evaluation.networks=[convnett]"], "did you mean 'convnet'?"),
        (["distill", "digits", "observers.networks=lenet"], "lenet"),
        (["distill", "digits", "data.classes=[seven]"], "Unknown class 'seven'"),
        (["distill", "digits", "data.name=cifar11"], "did you mean 'cifar10'"),
        (["distill", "digits", "data.classes=['3']"], "class"),
        (["distill", "dm-cifar10-ipc1"], "rayd data fetch cifar10"),
        (["distill", "digits", "evaluation.augmentation=flipp"], "flipp"),
        (["distill", "digits", "observers.augmentation=flipp"], "flipp"),
        (["distill", "digits", "method=dn"], "Unknown method 'dn'"),
        (["distill", "digits", "terms.maen.weight=1"], "Unknown term 'maen'"),
        (["distill", "digits", "resources.device=tpu"], "'resources.device'"),
        (["show", "nowhere"], "must be a run directory or a distilled set"),
        (["status", "nowhere"], "holds no run of rayd"),
        (["evaluate", "nowhere"], "must be a run directory or a distilled set"),
        (
            ["export", "nowhere", "x", "--format", "npz"],
            "must be a run directory or a distilled set",
        ),
        (["data", "fetch", "cifar11"], "cifar10"),
        (["cite", "digitz"], "Unknown recipe"),
        (["distil"], "No such command"),
        (["distill"], "Missing argument"),
        (["distill", "--resume"], "rayd distill --resume DIR"),
        (["distill", "--resume", "nowhere"], "holds no run of rayd to continue"),
        (["distill", "digits", "data.path=x"], "Use data=PATH for your own data"),
        (["distill", "digits", "data=nowhere/x"], "There is no data set at 'nowhere/x'"),
        (["distill", "digits", "data=cifar11"], "Use data=PATH for your own data"),
        (["show", "nowhere", "--png", "x.tif"], "must be a run directory"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    capsys, tmp_path, monkeypatch, arguments: Sequence[str], sentence
):
    monkeypatch.chdir(tmp_path)
    code, out, error = run(capsys, *arguments)
    assert code == 2
    assert sentence in error
    assert "Traceback" not in error
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback():
    from rayd.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["distill", "digitz", "--debug"])


def test_nan_pixels_are_refused(capsys, tmp_path):
    images = np.random.default_rng(0).random((20, 8, 8))
    images[3, 2, 2] = np.nan
    np.savez(tmp_path / "broken.npz", images=images, labels=np.arange(20) % 2)
    code, _, error = run(
        capsys,
        "distill",
        "digits",
        f"data.name={tmp_path / 'broken.npz'}",
        "--out",
        str(tmp_path / "run"),
    )
    assert code == 2
    assert "3" in error
    assert not (tmp_path / "run").exists()


def test_a_swapped_or_damaged_file_in_a_distilled_set_is_refused(capsys, finished, tmp_path):
    import shutil

    from rayd.artifacts import read_tensors, write_tensors

    shutil.copytree(finished / "distilled", tmp_path / "set")
    file = tmp_path / "set" / "data.safetensors"
    tensors, metadata = read_tensors(file)
    write_tensors(file, {name: tensor + 1 for name, tensor in tensors.items()}, metadata)
    code, _, error = run(capsys, "show", str(tmp_path / "set"))
    assert code == 2
    assert "SHA-256" in error
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    code, _, error = run(capsys, "show", str(tmp_path / "set"))
    assert code == 2
    assert "damaged" in error


def test_a_private_setting_of_one_machine_is_not_in_the_card(capsys, finished):
    _, document, _ = run(capsys, "show", str(finished), "--json")
    assert str(finished.parent) not in document


def test_examples_of_the_help_name_recipes_and_spaces_that_exist():
    named = {}
    for path in Path(cli.__file__).parent.glob("*.py"):
        for line in re.findall(r'example\("(rayd .+?)"\)', path.read_text(encoding="utf-8")):
            _, command, *words = line.split()
            if command in ("distill", "plan", "cite", "tune"):
                named[command] = words[0]
    assert named.keys() == {"distill", "plan", "cite", "tune"}
    assert named.pop("tune") in space.names()
    assert set(named.values()) <= set(recipes.names())


def test_tune_without_a_space_lists_them(capsys):
    code, text, error = run(capsys, "tune")
    assert (code, error) == (0, "")
    assert [line.split()[0] for line in text.splitlines()[1:]] == space.names()
    _, document, _ = run(capsys, "tune", "--json")
    assert all(entry["summary"] for entry in json.loads(document))


def test_a_command_in_a_folder_that_is_gone_says_so(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, _, error = run(capsys, "distill", "digits", "--out", "run")
    assert code == 1
    said = "rayd: The current folder no longer exists; run the command in another one.\n"
    assert error.endswith(said)


def test_an_interrupted_sweep_says_how_it_goes_on(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("tuning.driver.sweep", interrupted)
    out = str(tmp_path / "my sweep")
    code, _, error = run(capsys, "tune", "csdm-digits", "--samples", "3", "--out", out)
    assert code == 130
    # before the imports, which take long on a busy machine
    assert error.startswith("csdm-digits: loading PyTorch and Ray Tune\n")
    assert error.endswith(
        f"To continue: rayd tune csdm-digits --samples 3 --out {shlex.quote(out)} --resume\n"
    )


@pytest.mark.parametrize("words", [("--out", ""), ("--out=",)])
def test_an_empty_option_is_refused(capsys, words):
    """It would be the current folder."""
    code, _, error = run(capsys, "distill", "digits", *words)
    assert (code, error) == (2, "rayd: Option '--out' is empty.\n")


@pytest.mark.parametrize("words", [("--import",), ("--import", ""), ("--import=",)])
def test_an_import_without_a_file_is_refused(capsys, words):
    code, _, error = run(capsys, "plan", "digits", *words)
    assert code == 2
    assert "rayd: Option --import needs a file" in error
