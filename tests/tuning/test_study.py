"""Studies: rows and grids that are all tried, beside what a paper reports for them."""

from __future__ import annotations

import csv

import pytest
import ray
from PIL import Image

import tuning
from rayd.engine.progress import Progress
from rayd.errors import ConfigError
from rayd.results.papers import entries, read_value
from tests.tuning.spaces import small
from tuning import study
from tuning.search import points
from tuning.space import ResolvedSpace, Space
from tuning.table import Row

ROWS = {
    "plain": {"synthesis": {"momentum": 0.0}},
    "momentum": {"base": "plain", "synthesis.momentum": 0.9},
    "adam": {"base": "plain", "synthesis": {"optimizer": "adam"}},
}
PAPER = [
    {
        "table": "Table 1",
        "conditions": "CIFAR-10",
        "values": {"plain": "48.5 ± 0.2", "adam": "52.25; on two seeds"},
    }
]
STUDIES = [name for name in tuning.names() if tuning.load(name).is_study]


def rows_of_digits(**settings) -> Space:
    """A study of three rows, two distillations each."""
    given = {"search": {"seed": {"grid": [0, 1]}}, "rows": ROWS, "paper": PAPER, **settings}
    return small(**given)


def trials(resolved: ResolvedSpace) -> list[Row]:
    """Trials of a study, of which the last failed; accuracies rise by a point."""
    tried = points(resolved, 1)
    found = []
    for number, point in enumerate(tried):
        last = number == len(tried) - 1
        row = Row(
            trial=str(number),
            status="failed" if last else "finished",
            settings=point,
            own=False,
            fraction=1.0,
            validation_accuracy=None if last else 0.5 + number / 100,
            validation_std=0.01,
            storage_bytes=1,
            seconds=1.0,
            reason="",
            run="",
        )
        found.append(row)
    return found


def test_rows_are_tried_with_every_seed_and_build_on_rows_above():
    resolved = ResolvedSpace(rows_of_digits())
    tried = points(resolved, 5)
    assert [(point["row"], point["seed"]) for point in tried] == [
        ("plain", 0), ("plain", 1), ("momentum", 0), ("momentum", 1), ("adam", 0), ("adam", 1),
    ]  # fmt: skip
    recipes = {point["row"]: resolved.recipe(point) for point in tried}
    assert recipes["momentum"].synthesis.momentum == 0.9
    assert recipes["adam"].synthesis.optimizer == "adam"
    assert recipes["adam"].synthesis.momentum == 0.0
    assert {recipe.seed for recipe in recipes.values()} == {1}


def test_rows_choose_their_recipe():
    space = rows_of_digits(
        base=["digits", "datadam-digits"],
        overrides={},
        rows={"DM": {}, "DataDAM": {"recipe": "datadam-digits"}},
        paper=[],
    )
    resolved = ResolvedSpace(space)
    assert len(resolved.check()) == 6
    assert [resolved.base(point) for point in points(resolved, 1)][1:3] == [
        "digits",
        "datadam-digits",
    ]
    assert resolved.recipe({"row": "DataDAM", "seed": 0}).method == "datadam"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rows": {"a": {"base": "b"}, "b": {}}}, "'base' of row 'a' must be one of: no row. Got"),
        ({"rows": {"a": {"recipe": "dm-digits"}}}, "'recipe' of row 'a' must be one of: digits"),
        ({"search": {"ipc": {"choice": [1, 2]}}}, "'ipc' beside them must be a 'grid'"),
        ({"rows": {}, "search": {"ipc": {"choice": [1, 2]}}}, "'paper' needs a space of 'rows'"),
        (
            {"paper": [{"table": "T", "values": {"plian": 1}}]},
            "'plian', which is no value of 'row'; values of it are: plain, momentum, adam",
        ),
        ({"paper": [{"table": "T", "setting": "ipc", "values": {1: 1}}]}, "values of it are: none"),
        ({"paper": [{"table": "T", "values": {"plain": "high"}}]}, "in percent such as 54.6 ± 0.2"),
    ],
)
def test_rows_and_values_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        rows_of_digits(**settings)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"synthesis.stepz": 3}, "'synthesis.stepz' in row 'wrong' of space.*'synthesis.steps'"),
        ({"data": {"imbalance": 10}}, "'data' cannot be searched.*same validation images"),
    ],
)
def test_settings_of_rows_are_checked(row, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ResolvedSpace(rows_of_digits(rows={"wrong": row}, paper=[])).check()


def test_lines_average_over_seeds_and_keep_the_order_of_the_space():
    resolved = ResolvedSpace(rows_of_digits())
    lines = study.lines(resolved, trials(resolved)[::-1])
    assert [line.name for line in lines] == ["plain", "momentum", "adam"]
    assert lines[0].mean == pytest.approx(0.505)
    assert lines[0].std == pytest.approx(0.00707, abs=1e-5)
    # a single distillation that finished has the deviation over its students
    assert (lines[2].accuracies, lines[2].std) == ((0.54,), 0.01)


def test_tables_and_chart_have_the_values_of_the_paper(tmp_path):
    resolved = ResolvedSpace(rows_of_digits())
    done = trials(resolved)
    study.write(tmp_path, resolved, done)
    with (tmp_path / "study.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["Table 1, CIFAR-10"] for row in written] == ["0.485", "", "0.5225"]
    assert [row["distillations"] for row in written] == ["2", "2", "1"]
    text = (tmp_path / "study.md").read_text()
    assert "| plain | 50.5 ± 0.7 | 48.5 ± 0.2 |" in text
    assert "| momentum | 52.5 ± 0.7 | – |" in text
    assert "| adam | 54.0 ± 1.0 (1 of 2 distillations, ± over students) | 52.25 |" in text
    assert "- Table 1, adam: on two seeds" in text
    assert "digits, IPC 1, validation accuracy, ± over 2 distillations" in text
    with_paper = study.chart(resolved, done)
    orange = tuple(bytes.fromhex(study.PAPER[0][1:]))
    assert orange in {colour for _, colour in with_paper.getcolors(1 << 20)}
    alone = study.chart(ResolvedSpace(rows_of_digits(paper=[])), done)
    assert orange not in {colour for _, colour in alone.getcolors(1 << 20)}


def test_a_remark_that_columns_share_stands_once():
    other = {**PAPER[0], "conditions": "CIFAR-10, another network"}
    resolved = ResolvedSpace(rows_of_digits(paper=[PAPER[0], other]))
    text = study.markdown(resolved, study.lines(resolved, trials(resolved)))
    assert text.count("- Table 1, adam: on two seeds") == 1


def test_a_bar_in_a_name_stays_in_its_cell():
    resolved = ResolvedSpace(rows_of_digits(rows={"a|b": ROWS["plain"]}, paper=[]))
    text = study.markdown(resolved, study.lines(resolved, trials(resolved)))
    assert r"| a\|b | 50.0" in text


def test_values_of_a_grid_are_found_by_their_number():
    series = {"table": "T", "setting": "synthesis.momentum", "values": {0: 40, 0.5: 41}}
    search = {"synthesis.momentum": {"grid": [0.0, 0.5, 0.9]}}
    resolved = ResolvedSpace(rows_of_digits(rows={}, search=search, paper=[series]))
    lines = study.lines(resolved, trials(resolved))
    assert [line.name for line in lines] == ["momentum 0", "momentum 0.5", "momentum 0.9"]
    (paper,) = resolved.space.paper
    assert [paper.value(line.settings) for line in lines] == [
        (0.4, None, ""),
        (0.41, None, ""),
        None,
    ]


@pytest.mark.parametrize("name", STUDIES)
def test_values_of_studies_are_those_of_the_papers(name):
    """Every value stands in the table that is named, for the network that is named."""
    printed = set()
    for result in (result for found in entries().values() for result in found):
        network = result.get("network", "network not stated").replace("_", "")
        printed.add((result["table"], network, result["value"], result.get("std")))
    for series in tuning.load(name).paper:
        paper, numbers = series.table.split(", ", 1)
        numbers = numbers.removeprefix("Tables ").removeprefix("Table ").replace(" and ", ", ")
        tables = [f"{paper}, Table {number}" for number in numbers.split(", ")]
        network = series.conditions.rpartition(", ")[2].lower().replace("-", "")
        for value in series.values.values():
            number, std, _ = read_value(value)
            known = [(table, network, number, std) in printed for table in tables]
            assert any(known), (series.table, network, value)


@pytest.mark.shared_synthesis
def test_a_study_ends_with_its_table_and_chart(tmp_path):
    ray.shutdown()
    two = {name: ROWS[name] for name in ("plain", "momentum")}
    paper = [{"table": "Table 1", "values": {"plain": 48.5}}]
    space = rows_of_digits(search={}, rows=two, paper=paper)
    tuning.sweep(
        space,
        out=tmp_path / "out",
        cache=tmp_path / "cache",
        concurrent=1,
        progress=Progress(quiet=True),
    )
    assert tuning.summary(tmp_path / "out").finished == 2
    assert "| plain |" in (tmp_path / "out" / "study.md").read_text()
    assert min(Image.open(tmp_path / "out" / "study.png").size) > 100
    ray.shutdown()
