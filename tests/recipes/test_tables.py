"""What recipes stand on: tables and their cells, files of one's own, several levels, mistakes."""

from collections import Counter

import pytest
import yaml

from rayd import recipes
from rayd.config import packaged_yaml
from rayd.errors import ConfigError
from rayd.recipes import tables


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in place of that of the built-in tables."""
    for cached in (tables._tables_by_cell, tables._table):
        cached.cache_clear()
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    yield tmp_path
    for cached in (tables._tables_by_cell, tables._table):
        cached.cache_clear()


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


TABLE = """
base:
  method: dm
  data: digits
  summary: "IPC {ipc}, imbalance {data.imbalance}, {data}"

cells:
  one: {ipc: 1, data: {imbalance: 5}}
  two: {base: one, ipc: 2}
  three:
    base: two
    seed: 3
  alone: {base: {method: csdm, data: svhn}}
"""


def test_names_are_those_that_parsing_finds():
    parsed = Counter()
    for path in tables.FOLDER.glob("*.yaml"):
        parsed.update(packaged_yaml(path)["cells"].keys())
    assert recipes.names() == sorted(parsed)
    assert set(parsed.values()) == {1}


def test_every_table_says_what_it_is_about():
    for family in recipes.families():
        assert recipes.about(family).endswith("."), family


def test_families_are_the_tables_and_quick_ones_come_first():
    families = recipes.families()
    assert list(families)[:2] == ["digits", "reduced"]
    assert sorted(name for members in families.values() for name in members) == recipes.names()
    assert "dm-cifar10-ipc10-sampled" in families["dm-sampled"]


def test_find_names_the_table():
    assert recipes.find("dm-cifar10-ipc10").name == "dm.yaml"
    assert recipes.find("dm-cifar10-ipc10-sampled").name == "dm-sampled.yaml"


def test_cells_stand_on_their_table_or_on_a_base_of_their_own(folder):
    write(folder / "table.yaml", TABLE)
    assert recipes.names() == ["alone", "one", "three", "two"]
    one, two, three, alone = map(recipes.read, ("one", "two", "three", "alone"))
    assert one["data"] == {"name": "digits", "imbalance": 5}
    assert (two["ipc"], two["method"], two["data"]) == (2, "dm", one["data"])
    assert two["summary"] == "IPC 2, imbalance 5, digits"
    assert (three["seed"], three["ipc"]) == (3, 2)
    assert alone == {
        "name": "alone",
        "method": "csdm",
        "data": {"name": "svhn"},
        "summary": "",
        "paper": [],
    }


def test_what_is_read_is_no_part_of_the_table(folder):
    write(folder / "table.yaml", TABLE)
    recipes.read("one")["data"]["name"] = "mnist"
    assert recipes.read("one")["data"]["name"] == "digits"


def test_mistake_in_a_cell_names_cell_and_table(folder):
    write(folder / "table.yaml", TABLE.replace("ipc: 2}", "ipc: 2, sede: 1}"))
    with pytest.raises(
        ConfigError, match=r"'sede' in cell 'two' of table\.yaml; did you mean 'seed'"
    ):
        recipes.resolve("two")


def test_own_recipe_of_three_lines(tmp_path):
    path = write(tmp_path / "mine.yaml", "base: digits\nipc: 2\nsynthesis: {steps: 7}\n")
    mine = recipes.resolve(path)
    digits = recipes.resolve("digits")
    assert (mine.name, mine.ipc, mine.synthesis.steps) == ("mine", 2, 7)
    assert (mine.summary, mine.measured) == ("Recipe 'digits' with other settings", ())
    assert mine.observers == digits.observers
    assert mine.evaluation == digits.evaluation


def test_overrides_win_over_an_own_recipe_and_it_over_its_base(tmp_path):
    path = write(tmp_path / "mine.yaml", "base: digits\nsynthesis: {steps: 7, learning_rate: 2}\n")
    synthesis = recipes.resolve(path, {"synthesis.steps": 9}).synthesis
    assert (synthesis.steps, synthesis.learning_rate) == (9, 2)


def test_files_are_relative_to_the_file_that_names_them(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    write(tmp_path / "shared" / "low.yaml", "base: digits\nseed: 3\nipc: 4\n")
    write(tmp_path / "shared" / "middle.yaml", "base: low.yaml\nipc: 5\nname: middle\n")
    path = write(tmp_path / "top.yaml", "base: shared/middle.yaml\nresources: {threads: 2}\n")
    monkeypatch.chdir(tmp_path / "shared")
    top = recipes.resolve(path)
    assert (top.name, top.seed, top.ipc, top.resources.threads) == ("top", 3, 5, 2)
    assert recipes.resolve("middle.yaml").ipc == 5


def test_base_may_be_a_mapping_with_a_base(tmp_path):
    path = write(tmp_path / "mine.yaml", "base: {base: digits, ipc: 3, seed: 1}\nseed: 2\n")
    mine = recipes.resolve(path)
    assert (mine.method, mine.ipc, mine.seed) == ("dm", 3, 2)


def test_base_need_not_be_whole(tmp_path):
    write(tmp_path / "protocol.yaml", "evaluation: {epochs: 5, schedule: {stretch: 2}}\n")
    path = write(tmp_path / "mine.yaml", "base: protocol.yaml\nmethod: dm\ndata: digits\n")
    assert recipes.resolve(path).evaluation.epochs == 5


def test_the_papers_number_stays_with_its_cell_in_a_file(tmp_path):
    path = write(tmp_path / "mine.yaml", "base: dm-cifar10-ipc10\nsynthesis: {steps: 9}\n")
    assert recipes.resolve(path).paper == recipes.resolve("dm-cifar10-ipc10").paper
    for change in ("ipc: 20", "data: svhn", "method: csdm", "data: {imbalance: 10}"):
        path = write(tmp_path / "mine.yaml", f"base: dm-cifar10-ipc10\n{change}\n")
        assert recipes.resolve(path).paper == (), change
    assert recipes.resolve("dm-cifar10-ipc10").paper[0].value == 0.489


def test_another_word_for_a_base_is_told(tmp_path):
    path = write(tmp_path / "mine.yaml", "extends: digits\nipc: 2\n")
    with pytest.raises(ConfigError, match=r"Unknown setting 'extends' in .*, as in 'base: digits'"):
        recipes.resolve(path)


def test_own_summary_and_results_of_a_base(tmp_path):
    write(tmp_path / "low.yaml", "base: digits\nsummary: Mine {ipc}\n")
    path = write(tmp_path / "mine.yaml", "base: low.yaml\n")
    assert (recipes.resolve(path).summary, recipes.resolve(path).measured) == ("Mine {ipc}", ())


def test_what_a_base_says_of_a_variant_that_is_left_is_dropped(tmp_path):
    low = "base: digits\nsynthetic: {kind: lowrank, rank: 3}\n"
    write(tmp_path / "low.yaml", low)
    path = write(tmp_path / "mine.yaml", "base: low.yaml\nsynthetic: {kind: pixels}\n")
    assert recipes.resolve(path).synthetic == recipes.resolve("digits").synthetic


def test_what_changes_nothing_on_a_base_is_refused(tmp_path):
    path = write(tmp_path / "mine.yaml", "base: digits\nsynthetic: {rank: 3}\n")
    with pytest.raises(ConfigError, match=r"'synthetic\.rank' .* in recipe 'mine'"):
        recipes.resolve(path)


def test_old_names_of_settings_win_over_a_base(tmp_path, caplog):
    path = write(tmp_path / "mine.yaml", "base: iid-digits\nguides: {pool: 2}\n")
    assert recipes.resolve(path).classifiers.pool == 2
    assert f"'guides' in '{path}' is called 'classifiers' now" in caplog.text


@pytest.mark.parametrize(
    ("files", "circle"),
    [
        ({"a": "a.yaml"}, "a.yaml on a.yaml"),
        ({"a": "b.yaml", "b": "./a.yaml"}, "a.yaml on b.yaml on a.yaml"),
        ({"a": "b.yaml", "b": "c.yaml", "c": "b.yaml"}, "b.yaml on c.yaml on b.yaml"),
    ],
)
def test_a_circle_is_refused(tmp_path, files, circle):
    for name, base in files.items():
        write(tmp_path / f"{name}.yaml", f"base: {base}\n")
    with pytest.raises(ConfigError) as refused:
        recipes.resolve(tmp_path / "a.yaml")
    sentence = str(refused.value).replace(f"{tmp_path}/", "")
    assert sentence == f"Recipes are based on each other in a circle: {circle}."


def test_a_circle_of_cells_is_refused(folder):
    table = {"cells": {"a": {"base": "b"}, "b": {"base": "a"}}}
    write(folder / "table.yaml", "# A table.\n" + yaml.safe_dump(table))
    with pytest.raises(ConfigError, match="in a circle: a on b on a"):
        recipes.resolve("a")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base: digitz\n", r"'digitz' as the base of '.*mine\.yaml'; did you mean 'digits'"),
        ("base: other.yaml\n", r"Cannot read the recipe '.*/other\.yaml'"),
        ("base: [digits, iid-digits]\n", r"'base' in '.*mine\.yaml' must be the name of a recipe"),
        ("base:\nipc: 2\n", r"'base' in '.*mine\.yaml' is empty"),
        ("cells: {a: {method: dm}}\n", r"'.*mine\.yaml' is a table of several recipes"),
        ("base: digits\nipcc: 2\n", r"'ipcc' in recipe 'mine'; did you mean 'ipc'"),
        ("base: {base: digits, ipc: []}\n", r"'ipc' in '.*mine\.yaml' must fit"),
    ],
)
def test_mistakes_name_the_file(tmp_path, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        recipes.resolve(write(tmp_path / "mine.yaml", text))


def test_mistake_in_a_base_names_the_file_that_holds_it(tmp_path):
    write(tmp_path / "low.yaml", "base: digits\nsynthesis: {stepz: 7}\n")
    path = write(tmp_path / "mine.yaml", "base: low.yaml\nipc: 2\n")
    with pytest.raises(ConfigError, match=r"'synthesis\.stepz' in '.*low\.yaml'; did you mean"):
        recipes.resolve(path, {"seed": 1})
