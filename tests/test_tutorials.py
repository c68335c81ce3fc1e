"""The tutorials run from top to bottom."""

import re
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"


FACTS = """
import json
import time

print(
    json.dumps(
        {
            "losses": len(losses),
            "own_losses": own_losses,
            "accuracy": accuracy,
            "page": page.is_file(),
            "seconds": time.process_time(),
        }
    )
)
"""


@pytest.mark.timeout(900)
def test_tutorial_of_digits(tmp_path):
    """As a notebook, from top to bottom, in a kernel."""
    from tests.notebooks import executed, facts, of_cells, of_script, printed

    script = of_script(TUTORIALS / "digits.py")
    script.cells += of_cells(FACTS).cells
    notebook = executed(script, tmp_path)
    found = facts(notebook.cells[-1])
    assert found["losses"] == 8
    assert found["own_losses"][-1] < found["own_losses"][0] / 2
    assert found["accuracy"] > 0.4
    assert found["page"]
    assert found["seconds"] < 120, "processor time of all cells together"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any("a linear classifier" in printed(cell) for cell in code)
    (distilled,) = [cell for cell in code if "rayd.distill(" in cell.source]
    kinds = [output.output_type for output in distilled.outputs]
    assert kinds == ["display_data", "execute_result"], "progress, and the run"
    outputs = [output for cell in code for output in cell.outputs]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == 3


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
