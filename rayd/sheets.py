"""Pictures of a set for the command line: selected classes, enlarged, next to earlier states.

A contact sheet has a row for each of the first classes (`rayd.pictures.contact_sheet`). Sheets of
earlier steps are those that the run logged for TensorBoard; a set that was found in the store has
none.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from rayd.distilled import DIRECTORY, Distilled
from rayd.errors import ArtifactError, ConfigError, unknown
from rayd.pictures import GAP, ROWS, contact_sheet

CAPTION = 16
"""Height of a caption in pixels."""


def sheet(
    distilled: Distilled,
    *,
    classes: Sequence[str] = (),
    scale: int = 1,
    before: bool = False,
    steps: int | None = None,
) -> Image.Image:
    """Draw a set.

    Args:
        distilled: the set.
        classes: names of the classes to show; by default the first ones.
        scale: whole factor by which the picture is enlarged.
        before: show the initial images next to the distilled ones.
        steps: show the images at this many evenly spaced steps next to the distilled ones.

    Raises:
        ConfigError: a class does not exist.
        ArtifactError: there are no pictures of earlier steps.
    """
    rows = [_class(distilled, name) for name in classes]
    sheets = [] if not before and steps is None else _earlier(distilled, rows, before, steps)
    last = contact_sheet(distilled, rows or None)
    drawn = last if not sheets else _beside([*sheets, ("distilled", last)])
    size = (drawn.width * scale, drawn.height * scale)
    return drawn if scale == 1 else drawn.resize(size, Image.Resampling.NEAREST)


def _class(distilled: Distilled, name: str) -> int:
    names = distilled.class_names
    if name not in names:
        raise ConfigError(unknown("class", name, names, "the set"))
    return names.index(name)


def _earlier(
    distilled: Distilled, rows: Sequence[int], before: bool, steps: int | None
) -> list[tuple[str, Image.Image]]:
    """Sheets of earlier steps with their captions."""
    from rayd.page.run import logged_pictures

    folder = distilled.directory
    logged: dict[int, bytes] = {}
    if folder is not None and folder.name == DIRECTORY:
        logged = logged_pictures(folder.parent / "tensorboard")
    if not logged or (before and 0 not in logged):
        raise ArtifactError(
            "There are no pictures of earlier steps: they are in the directory of the run that "
            "made the set, and not where the set was found in the cache; "
            "'rayd distill' with --overwrite and a new --cache makes them."
        )
    too_late = [distilled.class_names[row] for row in rows if row >= ROWS]
    if too_late:
        raise ConfigError(
            f"Pictures of earlier steps show the first {ROWS} classes. Got '{too_late[0]}' "
            "instead; leave --before and --steps out."
        )
    known = sorted(logged)
    chosen = {0} if before else set[int]()
    if steps is not None:
        last = len(known) - 1
        chosen |= {known[round(index * last / max(1, steps - 1))] for index in range(steps)}
    drawn = []
    for step in sorted(chosen):
        image = Image.open(io.BytesIO(logged[step])).convert("RGB")
        image = _rows_of(image, min(distilled.classes, ROWS), rows)
        drawn.append(("before" if step == 0 else f"step {step}", image))
    return drawn


def _rows_of(image: Image.Image, count: int, rows: Sequence[int]) -> Image.Image:
    """Some rows of a contact sheet of `count` rows; all of them if none is named."""
    if not rows:
        return image
    height = (image.height - GAP) // count
    made = Image.new("RGB", (image.width, height * len(rows) + GAP), "white")
    for place, row in enumerate(rows):
        part = image.crop((0, row * height, image.width, (row + 1) * height + GAP))
        made.paste(part, (0, place * height))
    return made


def _beside(sheets: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Put sheets side by side, with captions."""
    width = sum(image.width for _, image in sheets)
    height = CAPTION + max(image.height for _, image in sheets)
    made = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(made)
    font = ImageFont.load_default()
    left = 0
    for caption, image in sheets:
        draw.text((left + 2 * GAP, CAPTION / 2), caption, fill="black", font=font, anchor="lm")
        made.paste(image, (left, CAPTION))
        left += image.width
    return made
