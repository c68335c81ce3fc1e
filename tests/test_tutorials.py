"""The tutorials run from top to bottom."""

import re
import runpy
from pathlib import Path

import pytest
import torch

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"


def test_tutorial_of_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        names = runpy.run_path(str(TUTORIALS / "digits.py"))
    assert len(names["losses"]) == 8
    assert names["own_losses"][-1] < names["own_losses"][0] / 2
    assert names["accuracy"] > 0.4
    assert names["page"].is_file()
    assert all(figure._repr_png_() for figure in names["figures"])
    assert "a linear classifier" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.py")), ids=lambda path: path.stem)
def test_a_tutorial_is_a_script_in_cells(path):
    """Every cell has its mark, and prose stands in cells of Markdown."""
    cells = re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not cells[0].strip()
    assert len(cells) > 5
    for cell in cells[1:]:
        kind, _, body = cell.partition("\n")
        prose = all(line.startswith("#") or not line for line in body.splitlines())
        assert prose == (kind.strip() == "[markdown]")
