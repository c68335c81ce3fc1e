"""Commands about data sets: `data list`, `data fetch` and `data check`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from rayd import remote
from rayd.cli.group import example, new_group
from rayd.cli.options import DataRoot, Debug, Json, complete_data
from rayd.cli.printing import print_json, print_result, print_text, wide

commands = new_group(
    help="Known data sets: list, download and check them.",
    epilog=example("rayd data list"),
)


@commands.command("list", epilog=example("rayd data list --data-root ~/data"))
def data_list(as_json: Json = False, data_root: DataRoot = None, debug: Debug = False) -> None:
    """List known data sets, and where they were found."""
    from rayd.data.sources import known_sources

    known = known_sources(data_root)
    if as_json:
        listed = []
        for source in known:
            found = None if source.found is None else remote.shown(source.found)
            listed.append(
                {"name": source.name, "classes": source.classes, "found": found, "how": source.how}
            )
        print_json(listed)
        return
    table = Table(box=None, header_style="bold")
    for column in ("data", "classes", "found"):
        table.add_column(column, overflow="fold")
    for source in known:
        found = remote.shown(source.found) if source.found is not None else f"no: {source.how}"
        # brackets in names of files are no markup
        table.add_row(escape(source.name), str(source.classes), escape(found))
    wide().print(table)


@commands.command("fetch", epilog=example("rayd data fetch cifar10"))
def data_fetch(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", autocompletion=complete_data, help="A name of 'rayd data list'."
        ),
    ],
    data_root: DataRoot = None,
    debug: Debug = False,
) -> None:
    """Download a data set into the data root."""
    from rayd.data.fetch import fetch

    print_text(str(fetch(name, data_root)))


@commands.command("check", epilog=example("rayd data check ~/flowers image_size=64"))
def data_check(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A folder, an .npz file, a URL or a known name.",
            autocompletion=complete_data,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of 'data', e.g. image_size=64."),
    ] = None,
    as_json: Json = False,
    data_root: DataRoot = None,
    debug: Debug = False,
) -> None:
    """Read every image of a data set and list all problems; exits with 1 if there are any.

    PATH is the value of data=PATH in other commands (short for data.name=PATH): a folder
    <class>/*.png or <split>/<class>/*.png, with images in any format; a folder of Parquet files
    train-*.parquet, test-*.parquet; or an .npz file with x_train, y_train, x_test, y_test, or
    images and labels (class_names is optional).

    Settings, which other commands take as data.KEY=VALUE: image_size=64 where sizes differ, and
    fit=crop|squash|pad for images that are not square; mode=grey|rgb; background=white for
    transparent pixels; white_level=65535 for more than 8 bits per channel; train=NAME,
    validation=NAME, test=NAME if it is ambiguous which part is which split, and train=. if folders
    are classes; classes=[a,b]; validation_fraction=0.1; split_seed=42; copies=keep to test on
    copies of training images.

    Without a test split, the validation split is used for testing; without either, 20 % of each
    class are set aside from the training images.
    """
    from rayd.config import DataSettings, parse_overrides
    from rayd.config.reading import validate
    from rayd.data.check import check

    given = [override.removeprefix("data.") for override in overrides or []]
    settings = validate(DataSettings, {"name": path, **parse_overrides(given)}, prefix="data")
    found = check(settings, data_root)
    print_result(found, as_json)
    if not found.good:
        raise typer.Exit(1)
