"""The README's Python example, as it stands there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rayd
from rayd.networks import names
from rayd.results import __main__ as tables
from rayd.results import applications
from rayd.results.__main__ import BEGIN, BEGIN_USES, END, END_USES, updated
from rayd.results.applications import ApplicationResult

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text(encoding="utf-8")
RESULTS = (TOP / "docs" / "pages" / "results.md").read_text(encoding="utf-8")


def example() -> str:
    """The first Python block."""
    found = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def calls(name: str) -> list[ast.Call]:
    """Calls of a function of `rayd` in the example."""
    nodes = (node for node in ast.walk(ast.parse(example())) if isinstance(node, ast.Call))
    return [node for node in nodes if ast.unparse(node.func) == f"rayd.{name}"]


def test_example_does_not_collide_with_the_command_before_it():
    """The first command's run has other settings: in the same directory the example would be
    refused.
    """
    command = re.search(r"rayd distill digits --out (\S+)", README)
    (distill,) = calls("distill")
    out = next(ast.literal_eval(word.value) for word in distill.keywords if word.arg == "out")
    assert command is not None
    assert out != command[1]
    assert [ast.literal_eval(call.args[0]) for call in calls("load")] == [out]


def test_example_names_what_exists(tmp_path):
    (distill,) = calls("distill")
    (resolve,) = calls("recipes.resolve")
    (evaluate,) = calls("evaluate")
    settings = {
        word.arg: ast.literal_eval(word.value)
        for word in distill.keywords
        if word.arg not in ("out", "resume")
    }
    assert rayd.recipes.resolve(ast.literal_eval(distill.args[0]), settings).ipc == settings["ipc"]
    rayd.recipes.resolve(*map(ast.literal_eval, resolve.args))
    networks = next(
        ast.literal_eval(word.value) for word in evaluate.keywords if word.arg == "networks"
    )
    assert set(networks) <= set(names())


def test_readme_has_at_most_a_hundred_lines():
    assert len(README.splitlines()) <= 100


@pytest.mark.parametrize("path", [path for path, _ in tables.RENEWED])
def test_tables_of_results_are_up_to_date(path):
    renewed = dict(tables.RENEWED)[path]
    text = (TOP / path).read_text(encoding="utf-8")
    assert renewed(text) == text, "run: python -m rayd.results"
    with pytest.raises(ValueError, match="must hold"):
        renewed("no marks")


def test_rows_of_the_readme_are_the_last_ones_of_the_table_of_scores():
    rows = re.findall(r"^\| [^|`]+\| (`[\w-]+` \|.*\|)$", README, re.MULTILINE)
    assert len(rows) == 6
    for row in rows:
        name = row.partition(" ")[0]
        *_, last = re.findall(rf"^\| ({name} \| (?:soft|hard) \|.*\|)$", RESULTS, re.MULTILINE)
        assert row == last


def test_table_of_results_names_settings_and_keeps_the_rest_of_the_page():
    page = updated(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    row = "| `iid-dm-cifar10-ipc10-reduced terms.covariance.weight=0` | 10 |  | 0.447 ± 0.007 |"
    assert page.startswith("above\n")
    assert page.endswith("\nbelow\n")
    assert row in page
    assert "| `dm-cifar10-ipc10` | 10 | 0.489 ± 0.006 | 0.491 ± 0.003 | 0.311 |" in page
    assert "old" not in page.splitlines()
    with pytest.raises(ValueError, match="must hold"):
        updated("no marks")


def test_methods_on_equal_terms_are_ordered_by_the_students_of_all(monkeypatch):
    common = {
        "seeds": "distillation and pool 0 1 2, students 0 1 each",
        "command": "rayd distill x",
        "commit": "0",
        "hardware": "one core",
        "seconds": 1,
        "cpu_seconds": 360,
    }
    dm = common | {"accuracy": 0.3, "std": 0.01, "random": 0.2}
    sre2l = [
        common | {"accuracy": 0.5, "std": 0.02, "random": 0.4},
        common | {"accuracy": 0.25, "std": 0.01, "random": 0.2},
    ]
    frepo = common | {"accuracy": 0.45, "std": 0.01, "random": 0.2}
    frepo |= {"hard_labels": 0.35, "hard_labels_std": 0.02}
    found = {"sre2l-cifar10-ipc1-equal": sre2l, "dm-cifar10-ipc1-equal": [dm]}
    found["frepo-cifar10-ipc1-equal"] = [frepo]
    command = "rayd distill dm-cifar10-ipc1-equal evaluation.whole_epochs=20 seed=0"
    whole = dm | {"accuracy": 0.31, "whole": 0.7, "command": command}
    found["dm-cifar10-ipc1-equal"].append(whole)
    monkeypatch.setattr(tables, "entries", lambda: found)
    page = tables.equal_terms()
    title, _, sentence, _, header, _, *rows = page.splitlines()
    assert title == "### CIFAR-10, IPC 1"
    assert "0.700 (`rayd distill dm-cifar10-ipc1-equal evaluation.whole_epochs=20`)" in sentence
    assert header.startswith("| method |")
    # worked by hand: alpha = (0.150 - 0.350) / 2 = -0.1, its score (e^-0.1 - e^-1) / (e - e^-1)
    assert rows == [
        "| frepo | 0.450 ± 0.010 | 0.200 | 0.350 ± 0.020 | 0.200 | +0.150 | +0.350 | 0.228 | 2.0 |",
        "| dm |  |  | 0.300 ± 0.010 | 0.200 | +0.100 | +0.400 | 0.210 | 2.0 |",
        "| sre2l | 0.500 ± 0.020 | 0.400 | 0.250 ± 0.010 | 0.200 | +0.050 | +0.450 | 0.192 | 2.0 |",
    ]
    assert not any("equal" in row for row in tables.table().splitlines())


def test_a_recipe_has_the_row_of_most_distillations(monkeypatch):
    one = {
        "accuracy": 0.9,
        "seeds": "distillation and pool 0, students 0 1 each",
        "command": "for s in 0; do rayd distill digits seed=$s --out runs/$s; done",
        "commit": "0",
        "hardware": "a machine",
        "seconds": 1,
    }
    two = {**one, "accuracy": 0.8, "seeds": "distillation 0 1, students 0 1 each"}
    other = {**one, "accuracy": 0.7, "command": "rayd distill digits ipc=2 --out runs/2"}
    monkeypatch.setattr(tables, "entries", lambda: {"digits": [one, two, other, one]})
    assert tables.table().splitlines()[2:] == [
        "| `digits` | 1 |  | 0.800 |  |  | 2 × 2 |",
        "| `digits ipc=2` | 1 |  | 0.700 |  |  | 1 × 2 |",
    ]


def test_scores_of_results_make_a_second_table(monkeypatch):
    common = {
        "accuracy": 0.936,
        "random": 0.892,
        "seeds": "distillation 0",
        "command": "rayd distill digits",
        "commit": "0",
        "hardware": "a machine",
        "seconds": 1,
    }
    plain = {**common, "ior": 0.044, "ior_std": 0.01, "hlr": 0.04, "lrs": 0.27}
    soft = {
        **plain,
        "equal_storage": 0.919,
        "hard_labels": 0.848,
        "random_hard_labels": 0.737,
        "whole_hard_labels": 0.994,
        "hlr": 0.146,
    }
    found = {"digits": [common, plain], "edc-digits": [soft]}
    monkeypatch.setattr(tables, "entries", lambda: found)
    lines = updated(f"{BEGIN}\n{END}").splitlines()
    start = lines.index(
        "| recipe | labels | distilled | random | equal storage | whole | IOR | HLR | LRS |"
    )
    assert lines[start + 2 : -1] == [
        # without scores, the improvement over random images is known all the same
        "| `digits` | hard | 0.936 | 0.892 |  |  | +0.044 |  |  |",
        "| `digits` | hard | 0.936 | 0.892 |  |  | +0.044 ± 0.010 | +0.040 | 0.270 |",
        "| `edc-digits` | soft | 0.936 | 0.892 | 0.919 |  | +0.044 ± 0.010 | +0.146 | 0.270 |",
        "|  | hard | 0.848 | 0.737 |  | 0.994 | +0.111 |  |  |",
    ]
    # the whole set, learned once in fewer epochs, completes the rows of all distillations
    command = "rayd distill digits evaluation.whole_epochs=3"
    whole = {**common, "whole": 0.976, "command": command}
    other = {**common, "command": "rayd distill digits labels.kind=online"}
    found = {"digits": [common, whole, other]}
    monkeypatch.setattr(tables, "entries", lambda: found)
    assert tables.scores_table().splitlines()[2:] == [
        # worked by hand: alpha = (0.044 - 0.040) / 2 = 0.002, its score (e^0.002 - e^-1) / (e - e^-1)
        "| `digits` | hard | 0.936 | 0.892 |  | 0.976 | +0.044 | +0.040 | 0.270 |",
        "| `digits labels.kind=online` | hard | 0.936 | 0.892 |  |  | +0.044 |  |  |",
    ]
    assert "| `digits` | 1 |  | 0.936 | 0.892 | 0.976 | 1 |" in tables.table()
    found["digits"][0] = {**common, "hard_labels": 0.848}
    found["digits"][1] = {**whole, "whole_hard_labels": 0.948}
    # alpha = (0.044 - 0.100) / 2 = -0.028
    assert tables.scores_table().splitlines()[2:4] == [
        "| `digits` | hard | 0.936 | 0.892 |  | 0.976 | +0.044 | +0.100 | 0.257 |",
        "|  | hard | 0.848 |  |  | 0.948 |  |  |  |",
    ]
    alone = {name: value for name, value in common.items() if name != "random"}
    monkeypatch.setattr(tables, "entries", lambda: {"digits": [alone]})
    assert "labels" not in updated(f"{BEGIN}\n{END}")


def test_applications_have_a_table_each(monkeypatch):
    one = ApplicationResult(
        title="Learning in steps",
        command="rayd distill digits; rayd apply continual digits",
        commit="0",
        date="2026-11-29",
        hardware="a machine",
        cpu_seconds=61.2,
        repeats="2 class orders",
        columns=("2 classes", "4 classes"),
        rows={"random": ((0.8, 0.9), (0.5,))},
    )
    monkeypatch.setattr(applications, "entries", lambda: {"steps": one})
    page = updated(f"{BEGIN}\n{END}\n{BEGIN_USES}\nold\n{END_USES}\n")
    assert page.partition(f"{BEGIN_USES}\n")[2].splitlines()[:-1] == [
        "**Learning in steps.** Mean ± standard deviation over 2 class orders:",
        "",
        "| | 2 classes | 4 classes |",
        "|---|---|---|",
        "| random | 0.850 ± 0.071 | 0.500 |",
        "",
        "Processor time of the last command: 61 s.",
        "",
        "```bash",
        "rayd distill digits",
        "rayd apply continual digits",
        "```",
    ]


@pytest.mark.slow
def test_example_runs_after_the_first_command_and_again(tmp_path):
    first = [
        "digits",
        "--out",
        "runs/digits",
        "--quiet",
        "synthesis.steps=1",
        "evaluation.seeds=1",
        "evaluation.epochs=1",
    ]
    subprocess.run([sys.executable, "-m", "rayd", "distill", *first], check=True, cwd=tmp_path)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", example()],
            check=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        lines = [line.split() for line in done.stdout.splitlines()]
        accuracies = {line[1]: float(line[2]) for line in lines if line[:1] == ["mlp"]}
        assert accuracies["distilled"] > accuracies["random"]
