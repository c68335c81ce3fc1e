"""Notebooks for tests, built from scripts in cells and run in their own kernel."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")


def of_script(path: Path) -> Any:
    """The notebook of a script in cells (py:percent)."""
    cells = []
    text = path.read_text(encoding="utf-8")
    for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if kind.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.splitlines()]
            cells.append(nbformat.v4.new_markdown_cell("\n".join(lines).strip()))
        else:
            cells.append(nbformat.v4.new_code_cell(body.strip()))
    return nbformat.v4.new_notebook(cells=cells)


def of_cells(*cells: str) -> Any:
    """The notebook of cells of code."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def executed(notebook: Any, folder: Path, timeout: float = 600) -> Any:
    """The notebook after a run from top to bottom, in a folder, with one thread of torch.

    Args:
        notebook: the notebook, to which outputs are added.
        folder: working directory of its kernel.
        timeout: seconds per cell, long enough for a busy machine.
    """
    client = nbclient.NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})


def printed(cell: Any) -> str:
    """Standard output of a cell."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def facts(cell: Any) -> Any:
    """JSON that a cell printed last."""
    return json.loads(printed(cell).splitlines()[-1])
