"""Add the sets of finished runs to the gallery of the site.

rayd distill digits --out runs/digits
python docs/add_to_gallery.py runs/digits
"""

from __future__ import annotations

import sys
from pathlib import Path

from rayd.artifacts import write_json
from rayd.distilled import contact_sheet, load
from rayd.evaluation.report import Report
from rayd.export import export

GALLERY = Path(__file__).parent / "gallery"
LARGEST = 200_000
"""Maximum size in bytes of a set's file."""


def add(directory: Path) -> None:
    """Write a run's set as one file, its picture and its report."""
    distilled = load(directory)
    report = Report.kept(directory)
    assert report is not None
    target = GALLERY / f"{report.recipe}.safetensors"
    for path in GALLERY.glob(f"{report.recipe}.*"):
        path.unlink()
    export(distilled, "safetensors", target, overwrite=True, lossy=False)
    if target.stat().st_size > LARGEST:
        target.unlink()
        raise SystemExit(f"The set of '{directory}' is too large for the gallery.")
    contact_sheet(distilled).save(target.with_suffix(".png"), optimize=True)
    write_json(target.with_suffix(".json"), report.to_json())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        add(Path(name))
