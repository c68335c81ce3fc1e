"""The documentation: its pages build, its commands and settings exist, its messages are ours."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image

from rayd import recipes
from rayd.cli import app
from rayd.config import parse_overrides
from rayd.distilled import contact_sheet, load
from rayd.evaluation.report import Report

TOP = Path(__file__).parents[1]
PAGES = sorted((TOP / "docs" / "pages").glob("*.md"))
CALL = re.compile(r"(?:^|-- |bin/)rayd ([a-z]+ .*)")
CONTINUED = re.compile(r"\\\n\s*")


def blocks(language: str) -> list[tuple[str, str]]:
    """Pages and contents of all blocks of code in a language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += [
            (page.name, block) for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
        ]
    return found


def commands() -> list[tuple[str, str]]:
    """Pages and words of all calls of rayd in the blocks."""
    found = []
    for page, block in blocks("bash"):
        for line in CONTINUED.sub(" ", block).splitlines():
            call = CALL.search(line)
            if call is not None:
                found.append((page, call[1].partition(" > ")[0]))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_command_of_a_page_is_understood(page, command):
    """Every option exists, and a built-in recipe takes the settings beside it."""
    words = shlex.split(command, comments=True)
    imports = "--import" in words
    while "--import" in words:
        # taken off before the command line is read; a file of a page does not exist here
        start = words.index("--import")
        del words[start : start + 2]
    context = typer.main.get_command(app).make_context("rayd", list(words), resilient_parsing=False)
    group = context.command
    name, chosen, rest = group.resolve_command(context, words)
    below = chosen.make_context(name, list(rest), parent=context)
    given = below.params
    if hasattr(chosen, "commands"):
        return
    recipe = given.get("recipe")
    if recipe in recipes.names() and not imports:
        recipes.resolve(recipe, parse_overrides(given.get("overrides") or []))


@pytest.mark.parametrize(("page", "block"), blocks("python"))
def test_python_of_a_page_can_be_parsed(page, block):
    ast.parse(block)


READ_AS_THEY_ARE = [
    *PAGES,
    TOP / "README.md",
    TOP / "CONTRIBUTING.md",
    TOP / "clusters" / "README.md",
]


@pytest.mark.parametrize("page", READ_AS_THEY_ARE, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files_of_the_repository(page):
    """On a code host, too, where generated pages do not exist."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_messages_of_troubleshooting_are_those_of_the_code():
    """The first column quotes messages; … stands for what differs."""
    text = (TOP / "docs" / "pages" / "troubleshooting.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted(TOP.glob("rayd/**/*.py")))
    # f-strings are cut at their values, and lines of a message at quotation marks
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    code = re.sub(r"\{[^{}]*\}", "…", code)
    rows = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    assert rows
    for row in rows:
        message = row.strip("`").replace("runs/a", "…")
        parts = [part.strip() for part in re.split("…", message) if len(part.strip()) > 5]
        missing = [part for part in parts if part not in code]
        assert not missing, f"{row}: {missing}"


def test_site_builds_strictly(tmp_path):
    """No page is missing from the menu, and no link is broken."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "-f",
            str(TOP / "docs" / "mkdocs.yml"),
            "-d",
            str(tmp_path / "site"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "methods" / "edc" / "index.html").read_text(encoding="utf-8")
    assert "Elucidating the Design Space" in page
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in page
    # symbols are a table, whose code stays code
    assert '<td>0.01 (<code class="short">terms.moments.weight</code>)</td>' in page
    # examples in docstrings are code, not quotations
    reference = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "<blockquote>" not in reference
    assert ":math:" not in reference
    assert '<span class="gp">&gt;&gt;&gt; </span>' in reference
    # tables that docstrings align with spaces are tables
    assert "<td>GradientStep</td>" in reference
    # each line of code is an element, which phones wrap
    assert re.search(r'<span id="[\w-]*__line-\d', reference)
    # sentences of methods that take two lines are whole
    # links to sources lead to the pages that are made from them
    families = (tmp_path / "site" / "families" / "index.html").read_text(encoding="utf-8")
    assert '<a href="../methods/edc/">EDC</a>' in families
    methods = (tmp_path / "site" / "methods" / "index.html").read_text(encoding="utf-8")
    assert "through a ridge filter whose parameter decreases from block to block." in methods
    assert "DC and DSA" in methods
    # on phones, rows of many columns say what each cell is
    results = (tmp_path / "site" / "results" / "index.html").read_text(encoding="utf-8")
    assert '<td data-column="distilled" class="number">0.941 ± 0.001</td>' in results
    # the page of clusters holds the README beside their files
    clusters = (tmp_path / "site" / "clusters" / "index.html").read_text(encoding="utf-8")
    assert "Workers that come and go" in clusters
    commands = (tmp_path / "site" / "command-line" / "index.html").read_text(encoding="utf-8")
    assert '<a href="#rayd-data-list"><code class="short">list</code></a>' in commands
    assert "(default 1, 1 to 16)" in commands
    assert "with <code>--schedule</code> a recipe" in commands.replace(' class="short"', "")
    gallery = (tmp_path / "site" / "gallery" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "site" / "gallery" / "digits.safetensors").is_file()
    assert "0.940 ± 0.004" in gallery
    settings = (tmp_path / "site" / "settings" / "index.html").read_text(encoding="utf-8")
    assert "<code>synthesis.<wbr>learning_rate<wbr></code>" in settings
    # defaults are those of the place where a group is used; groups that come again are not repeated
    key = "<code>evaluation.<wbr>schedule.<wbr>name<wbr></code>"
    assert f'{key}</td>\n<td><code class="short">restart</code></td>' in settings
    assert "experts.<wbr>schedule.<wbr>name" in settings
    assert "experts.<wbr>schedule.<wbr>stretch" not in settings
    words = (f'<code class="short">{name}</code>' for name in ("crop", "squash", "pad"))
    assert f"One of {', '.join(words)}." in settings
    # marks at which a narrow page breaks a key do not keep readers from finding it
    search = (tmp_path / "site" / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "synthesis.learning_rate" in search


def test_every_objective_in_the_head_of_a_module_is_drawn_as_a_formula():
    formulas = yaml.safe_load((TOP / "docs" / "formulas.yaml").read_text(encoding="utf-8"))
    heads = {}
    for path in sorted((TOP / "rayd" / "methods").glob("*.py")):
        heads[path.stem] = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert formulas.keys() <= heads.keys()
    with_objective = {name for name, head in heads.items() if "    minimise over" in head}
    assert with_objective <= formulas.keys()


SETS = sorted((TOP / "docs" / "gallery").glob("*.safetensors"))


@pytest.mark.parametrize("path", SETS, ids=[path.stem for path in SETS])
def test_sets_of_the_gallery_are_small_and_whole(path):
    """Each has the picture of its images and the report of its students."""
    assert path.stat().st_size < 200_000
    distilled = load(path)
    assert np.array_equal(
        np.asarray(Image.open(path.with_suffix(".png"))), contact_sheet(distilled)
    )
    report = Report.from_json(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    assert report.recipe == distilled.card["recipe"] == path.stem
    assert report.results[0].set == "distilled"


def test_the_loss_in_an_own_loop_falls():
    """The example of `rayd.terms` runs as it stands on its page."""
    (example,) = (block for _, block in blocks("python") if "term.measure" in block)
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        exec(example, names)
    real = names["features"](names["real"])
    start = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    before = names["term"](
        real, names["features"](start), names["real_labels"], names["labels"]
    ).item()
    assert names["loss"].item() < before / 2


def test_the_use_of_a_set_runs_as_it_stands_on_its_page(tmp_path, monkeypatch):
    """Its network learns, and pixels that are normalised again are the images that were loaded."""
    (example,) = (block for _, block in blocks("python") if "nn.LazyLinear" in block)
    load(TOP / "docs" / "gallery" / "digits.safetensors").save(tmp_path / "runs" / "digits2")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        exec(example, names)
    assert names["loss"].item() < 0.5
    distilled = names["distilled"]
    low, high = distilled.normalization(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    # up to the rounding to 8 bits of what lies in their range
    rounded = (high - low).item() / 255
    clipped = distilled.images.clamp(low.item(), high.item())
    assert (names["inputs"] - clipped).abs().max() <= rounded


def test_the_data_by_name_of_a_page_can_be_distilled(tmp_path, monkeypatch):
    """`flowers.py` as it stands on its page: its test images are no copies of training images."""
    (example,) = (block for _, block in blocks("python") if "# flowers.py" in block)
    path = tmp_path / "flowers.py"
    path.write_text(example, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "rayd", "data", "check", "flowers:small", "--import", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TOP), "RAYD_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert "no problems" in done.stdout
