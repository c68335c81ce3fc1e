"""MkDocs hook that generates pages from the code, so that they cannot contradict it.

`methods/` has a page for each module of `rayd.methods`, `settings.md` all fields of a recipe,
`command-line.md` the help of every command, `reproducing.md` every recipe with the paper's number
and ours, `gallery.md` the sets in `gallery/`, and `clusters.md` the README of `clusters/`.

Pages in `pages/` link to the sources of these pages, so that links also work on a code host; on the
site they lead to the generated pages.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
import typer
import yaml
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

TOP = Path(__file__).parents[1]
sys.path[:0] = [str(TOP), str(TOP / "docs")]
from plain_tables import escaped, with_tables  # noqa: E402

from rayd import methods, recipes  # noqa: E402
from rayd.cli import app  # noqa: E402
from rayd.config import Recipe, lookup  # noqa: E402
from rayd.distilled import load  # noqa: E402
from rayd.evaluation.matrix import words_of  # noqa: E402
from rayd.evaluation.report import Report  # noqa: E402

RESULTS = {"paper", "measured"}
"""Fields of a recipe that are not settings."""
GALLERY = TOP / "docs" / "gallery"
"""Distilled sets with their pictures and reports."""
FORMULAS = TOP / "docs" / "formulas.yaml"
PAGES_OF_SOURCES = {
    r"\.\./\.\./rayd/config": "settings.md",
    r"\.\./\.\./rayd/recipes": "reproducing.md",
    r"\.\./\.\./rayd/methods/(\w+)\.py": r"methods/\1.md",
    r"\.\./\.\./\.github/([\w.-]+\.png)": r"pictures/\1",
}
"""Pages of the site by pattern of links to the source files from which they are generated."""
CODE = re.compile(r"<code>([^<]{1,24})</code>")
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
NUMBER = re.compile(r"<td>([+-]?\d[\d.,]*(?: [±×]\s[\d.]+)?)</td>")
LITERAL = re.compile(
    r"(?<![^\s(])(?:--[a-z][\w-]*|\$[A-Z_]+|~/[\w./]+|[\w.]+=\S+?|\S*[<*]\S*?)(?=[,;:.)]*(?:\s|$))"
)
"""Words in help texts that users type literally."""
INDENTED = re.compile(
    r'(<span id="[\w-]*__line[\w-]*")(>(?:<a [^>]*></a>)?(?:<span class="\w+">)?( +))'
)
MANY = 5
"""Minimum number of columns of tables whose cells are stacked on phones."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the methods to the menu."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Methods" in entry:
            # only the method's name, as titles are sentences
            entry["Methods"] += [
                {title.partition(":")[0]: f"methods/{module}.md"} for module, title in _titles()
            ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "command-line.md": command_line(),
        "settings.md": settings(),
        "reproducing.md": reproducing(),
        "gallery.md": gallery(),
        "methods/index.md": method_index(),
        **{f"methods/{name}.md": page for name, page in method_pages()},
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    for picture in sorted((TOP / ".github").glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    for path in sorted(GALLERY.iterdir()):
        files.append(File.generated(config, f"gallery/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Redirect links from sources to generated pages, and append the README of the cluster files to
    their page.
    """
    for source, target in PAGES_OF_SOURCES.items():
        markdown = re.sub(rf"\]\({source}\)", f"]({target})", markdown)
    if page.file.src_uri != "clusters.md":
        return markdown
    readme = (TOP / "clusters" / "README.md").read_text(encoding="utf-8")
    _, table, rest = readme.partition("| way and file |")
    # the site does not contain the files
    rest = re.sub(r"\[(`[^`]+`)\]\([^)]+\)", r"\1", rest)
    rest = re.sub(r"\[([^]`]+)\]\(([^):]+\.\w+)\)", r"\1 (`clusters/\2`)", rest)
    return f"{markdown}\n{table}{rest}"


def on_page_content(html: str, **kwargs: Any) -> str:
    """Mark names and numbers without line breaks, and cells of tables with their columns."""
    html = CODE.sub(r'<code class="short">\1</code>', html)
    html = NUMBER.sub(r'<td class="number">\1</td>', html)
    # the rest of a wrapped line of code is indented further than its beginning
    html = INDENTED.sub(lambda line: f'{line[1]} style="--indent: {len(line[3])}ch"{line[2]}', html)
    return TABLE.sub(_with_labels, html)


def _with_labels(table: re.Match[str]) -> str:
    columns = [
        re.sub("<[^>]+>", "", head).strip() for head in re.findall(r"<th.*?>(.*?)</th>", table[0])
    ]
    if len(columns) < MANY:
        return table[0]
    head, body, rows = table[0].partition("<tbody>")
    lines = []
    for row in rows.split("<tr>"):
        cells = row.split("<td")
        lines.append(
            cells[0]
            + "".join(
                f'<td data-column="{column}"{cell}'
                for column, cell in zip(columns, cells[1:], strict=False)
            )
        )
    return head.replace("<table>", "<table data-wide>") + body + "<tr>".join(lines)


def modules() -> dict[str, list[type[methods.Method]]]:
    """The methods of each module of `rayd.methods`."""
    found = defaultdict[str, list[type[methods.Method]]](list)
    for name in methods.names():
        method = methods.get(name)
        found[method.__module__.rpartition(".")[2]].append(method)
    return found


def method_index() -> str:
    """The page with the list of methods and their summaries."""
    lines = [
        "# Methods",
        "",
        "Each page is the head of the module that implements the method: the paper, its objective,",
        "what every symbol means, and where paper and released code differ.",
        "",
        "| method | what it does |",
        "|---|---|",
    ]
    for module, found in sorted(modules().items()):
        for method in found:
            summary, _, _ = (inspect.getdoc(method) or "").partition("\n\n")
            lines.append(f"| [`{method.name}`]({module}.md) | {' '.join(summary.split())} |")
    return "\n".join(lines) + "\n"


def _titles() -> Iterator[tuple[str, str]]:
    """Yield each module of methods with the title of its page."""
    for module in sorted(modules()):
        head = inspect.getdoc(sys.modules[f"rayd.methods.{module}"]) or ""
        yield module, split_head(head)[0]


def method_pages() -> Iterator[tuple[str, str]]:
    """Yield name and content of the page of each module."""
    formulas = yaml.safe_load(FORMULAS.read_text(encoding="utf-8"))
    for module, found in sorted(modules().items()):
        head = inspect.getdoc(sys.modules[f"rayd.methods.{module}"]) or ""
        title, body = split_head(head)
        lines = [f"# {title}", ""]
        if module in formulas:
            body = with_formula(body, formula(formulas[module]))
        lines += [with_tables(body), ""]
        for method in found:
            lines.extend(_method(method))
        yield module, "\n".join(lines) + "\n"


def split_head(head: str) -> tuple[str, str]:
    """Split a module's head into its first sentence, possibly of several lines, and the rest."""
    title, _, body = head.partition("\n\n")
    first, dot, more = " ".join(title.split()).partition(". ")
    return (first + dot).strip().rstrip("."), "\n\n".join(part for part in (more, body) if part)


def formula(latex: str) -> str:
    """LaTeX as MathML, which browsers draw without a script; a double backslash begins a line."""
    text = " ".join(latex.split())
    for operator in ("min", "sum"):
        # the converter places indices below operators only in some cases
        text = text.replace(f"\\{operator}_", f"\\{operator}\\limits_")
    lines = [convert(line.strip(), display="block") for line in text.split("\\\\ ")]
    return f'<div class="formula">{"".join(lines)}</div>'


def with_formula(body: str, drawn: str) -> str:
    """Replace the objective in plain text by a formula, or insert it after the citation.

    The objective is the line that begins with "minimise over", or else the first equation in a code
    block, with the more deeply indented lines below it.
    """
    lines = body.splitlines()
    objective = next((line for line in lines if line.startswith("    minimise over")), None)
    if objective is None:
        objective = next(
            (line for line in lines if line.startswith("    ") and " = " in line), None
        )
    if objective is None:
        paper, _, more = body.partition("\n\n")
        return f"{paper}\n\n{drawn}\n\n{more}"
    start = lines.index(objective)
    kept = lines[:start]
    rest = lines[start + 1 :]
    while rest and rest[0].startswith("     "):
        del rest[0]
    while rest and not rest[0].strip():
        del rest[0]
    return "\n".join([*kept, drawn, "", *rest])


def _method(method: type[methods.Method]) -> Iterator[str]:
    """Recipes and citation of a method."""
    yield f"## `{method.name}`"
    yield ""
    yield inspect.getdoc(method) or ""
    yield ""
    rows = [headline for headline in recipes.headlines() if headline.method == method.name]
    if rows:
        yield "| recipe | data | IPC |"
        yield "|---|---|---|"
        for row in rows:
            yield f"| `{row.name}`{{.name}} | {row.data} | {row.ipc} |"
        yield ""
    yield "```bibtex"
    yield str(method.citation).strip()
    yield "```"
    yield ""


def command_line() -> str:
    """The help of every command."""
    lines = [
        "# Command line",
        "",
        "Every command takes `--help` and `--debug`. Exit codes: 0 success, 1 a failed run, 2 a usage",
        "error, 130 interrupted.",
        "",
        "`rayd --install-completion` makes Tab complete commands, recipes, spaces, known data, and",
        "settings with their values; `rayd --show-completion` prints what it installs.",
        "",
    ]
    root = typer.main.get_command(app)
    for names, command in _commands(root, ["rayd"]):
        lines += [f"## {' '.join(names)}", "", *_help(command, " ".join(names))]
    return "\n".join(lines)


def _help(command: Any, name: str) -> Iterator[str]:
    """The help of a command: usage, purpose, parameters, commands below it and an example."""
    context = click.Context(command, info_name=name)
    yield from ["```text", " ".join([name, *command.collect_usage_pieces(context)]), "```", ""]
    yield from [escaped(_with_code(inspect.cleandoc(command.help or ""))), ""]
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    # every command has these two, as stated above
    shown = [record for record in records if record and record[0] not in ("--help", "--debug")]
    if shown:
        yield from ["| parameter | meaning |", "|---|---|"]
        for usage, meaning in shown:
            # options of list type can be repeated
            usage = re.sub(r"<list\[(\w+)\]>", r"<\1>", usage).replace(" range>", ">")
            usage = usage.replace("<Path>", "<path>")
            words = _with_code(_limits(" ".join(meaning.split())))
            yield f"| `{usage}` | {escaped(words)} |"
        yield ""
    if below := getattr(command, "commands", {}):
        yield from ["| command | purpose |", "|---|---|"]
        for each, inner in below.items():
            if not inner.hidden:
                anchor = f"{name} {each}".replace(" ", "-")
                yield f"| [`{each}`](#{anchor}) | {inner.get_short_help_str(limit=200)} |"
        yield ""
    if command.epilog:
        yield from ["Example:", "", "```bash", command.epilog.removeprefix("Example: "), "```", ""]


def _with_code(text: str) -> str:
    """Format options, settings, variables and path patterns in help texts as code."""
    return text if "`" in text else LITERAL.sub(r"`\g<0>`", text)


def _limits(meaning: str) -> str:
    """Rephrase Typer's remarks at the end of an option's help."""
    text, bracket, remarks = meaning.rpartition(" [")
    if not bracket or not remarks.endswith("]"):
        return meaning
    words = []
    for remark in remarks[:-1].split("; "):
        if remark == "x>=0":
            continue
        if match := re.fullmatch(r"x>=(\S+)", remark):
            words.append(f"at least {match[1]}")
        elif match := re.fullmatch(r"(\S+)<=x<=(\S+)", remark):
            words.append(f"{match[1]} to {match[2]}")
        else:
            words.append(remark.replace("default: ", "default "))
    return f"{text} ({', '.join(words)})" if words else text


def _commands(command: Any, names: list[str]) -> Iterator[tuple[list[str], Any]]:
    """Yield a group and all commands below it."""
    yield names, command
    for name, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from _commands(below, [*names, name])


def settings() -> str:
    """Tables of all fields of a recipe, by group."""
    lines = [
        "# Settings",
        "",
        "Settings of a recipe, as `key.sub=value` on the command line or nested in YAML. Defaults",
        "of a method apply where the recipe sets nothing: `rayd recipes NAME` prints what it resolves",
        "to, and `rayd recipes --schema` a JSON schema for editors. Settings of objectives and",
        "terms are on the pages of the [methods](methods/index.md).",
        "",
    ]
    shown: dict[type[BaseModel], tuple[str, BaseModel | None]] = {}
    for path, model, defaults in _models(Recipe, "", None):
        # a separate heading, so that the group above can link to it
        lines += [f"## {f'`{path}` {{ #{path} }}' if path else 'The recipe'}", ""]
        description = (inspect.getdoc(model) or "").split("\n\n")[0]
        lines += [" ".join(description.split()), ""]
        known, known_defaults = shown.setdefault(model, (path, defaults))
        rows = []
        for name, field in model.model_fields.items():
            default = _default_in(defaults, name, field)
            is_known = known != path and default == _default_in(known_defaults, name, field)
            is_below = known != path and _group(field) is not None
            if full_name(path, name) not in RESULTS and not is_known and not is_below:
                rows.append(_setting_row(full_name(path, name), field, default))
        if known != path:
            differ = "; these defaults differ:" if rows else " and their defaults."
            lines += [f"The settings of [`{known}`](#{known}){differ}", ""]
        if rows:
            lines += ["| setting | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _setting_row(full: str, field: Any, default: Any) -> str:
    """The row of a setting with its dotted key."""
    text = " ".join((field.description or "").split())
    if values := _choices(field.annotation):
        text = f"{text} One of {', '.join(f'`{value}`' for value in values)}."
    text = text.replace("|", "\\|")
    # phones break the key at its dots; the last tag marks it for the style sheet
    key = full.replace(".", ".<wbr>") + "<wbr>"
    value = f"[below](#{full})" if _group(field) else _default(default)
    return f"| <code>{key}</code> | {value} | {text} |"


def _models(
    model: type[BaseModel], path: str, defaults: BaseModel | None
) -> Iterator[tuple[str, type[BaseModel], BaseModel | None]]:
    """Yield a settings model and those nested in its fields, with their default values there."""
    yield path, model, defaults
    for name, field in model.model_fields.items():
        inner = _group(field)
        if inner is not None and full_name(path, name) not in RESULTS:
            default = _default_in(defaults, name, field)
            within = default if isinstance(default, BaseModel) else None
            yield from _models(inner, full_name(path, name), within)


def _group(field: Any) -> type[BaseModel] | None:
    """The settings model of a field; None for plain values."""
    inner = [each for each in _types(field.annotation) if issubclass(each, BaseModel)]
    return inner[0] if len(inner) == 1 and inner[0].model_fields else None


def _default_in(defaults: BaseModel | None, name: str, field: Any) -> Any:
    """The default of a field in the context in which its group is used."""
    if defaults is not None:
        return getattr(defaults, name)
    return field.get_default(call_default_factory=True)


def full_name(path: str, name: str) -> str:
    """The dotted key of a setting."""
    return f"{path}.{name}" if path else name


def _types(annotation: Any) -> Iterator[type]:
    """The classes of an annotation without those in containers."""
    if get_origin(annotation) in (Union, UnionType):
        for each in get_args(annotation):
            yield from _types(each)
    elif isinstance(annotation, type):
        yield annotation


def _choices(annotation: Any) -> list[str]:
    """The possible values of a setting, if these are a few words."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) in (Union, UnionType):
        kinds = [each for each in get_args(annotation) if each is not NoneType]
        found = [value for each in kinds for value in _choices(each)]
        # with other types, the words are not a complete list
        return found if all(get_origin(each) is Literal for each in kinds) else []
    return []


def _default(value: Any) -> str:
    """Format a default as on the command line."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, tuple | list):
        value = [_short(each) for each in value]
    if value in ("", {}):
        return ""
    # as on the command line: words without quotation marks
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    words = text.replace("_", "_<wbr>").replace('"', "")
    return f"<code>{words}</code>" if len(text) <= 60 else "see the schema"


def _short(value: Any) -> Any:
    """Abbreviate a part of a default: only what differs from a model's defaults, or a bare name."""
    if not isinstance(value, BaseModel):
        return value
    content = value.model_dump(mode="json", exclude_defaults=True)
    if hasattr(value, "name"):
        content = {"name": value.name, **content}
    return content["name"] if set(content) == {"name"} else content


def reproducing() -> str:
    """The page of all recipes that have a result, with the paper's and ours."""
    lines = [
        "# Reproducing papers",
        "",
        "Accuracies on the real test images, as fractions, of the recipe's first network. `ours` is",
        "what this code reached with the recipe unchanged; an empty cell was not run. *Reduced*",
        "recipes have small observers and few epochs, so that two cores suffice, and are not to be",
        "compared with the paper's number; *equal* ones give every method the same networks and a minute of",
        "synthesis ([Methods on equal terms](results.md#methods-on-equal-terms)). `random` is the accuracy of as",
        "many random real images under the same protocol. `rayd recipes NAME` prints seeds, command,",
        "hardware and time of each result, and all that papers print of a recipe: other networks, other",
        "settings, other metrics.",
        "",
    ]
    by_method = defaultdict[str, list[recipes.Headline]](list)
    for headline in recipes.headlines():
        if headline.measured or _published(headline):
            by_method[headline.method].append(headline)
    titles = dict(_titles())
    for method, rows in sorted(by_method.items()):
        lines += [f"## {method}", ""]
        lines += [f"[{titles[_module(method)]}](methods/{_module(method)}.md)", ""]
        lines += ["| recipe | paper | ours | random |", "|---|---|---|---|"]
        for row in rows:
            ours = row.measured[0] if row.measured else None
            measured = "" if ours is None else _number(ours.accuracy, ours.std)
            random = "" if ours is None else _number(ours.random, None)
            lines.append(f"| `{row.name}`{{.name}} | {_published(row)} | {measured} | {random} |")
        lines.append("")
    return "\n".join(lines)


def _published(headline: recipes.Headline) -> str:
    """The paper's number of a recipe."""
    paper = headline.published
    return "" if paper is None else _number(paper.value, paper.std)


def _number(value: float | None, std: float | None) -> str:
    if value is None:
        return ""
    # no line break between the sign and the deviation
    return f"{value:.3f}" if std is None else f"{value:.3f} ±\u00a0{std:.3f}"


def gallery() -> str:
    """The page of the gallery: picture, accuracy, description and files of each set."""
    lines = [
        "# Gallery",
        "",
        "Distilled sets to look at and to use, each with its report. They were made on two cores by",
        "the commands below; [Reproducing papers](reproducing.md) has the numbers of all recipes. A file",
        "holds images, labels and the card, and commands accept it in place of a run's directory:",
        "",
        "```bash",
        "rayd show digits.safetensors",
        "rayd evaluate digits.safetensors --network mlp --seeds 3",
        "```",
        "",
    ]
    for path in sorted(GALLERY.glob("*.safetensors")):
        lines.extend(_gallery_entry(path))
    return "\n".join(lines) + "\n"


def _gallery_entry(path: Path) -> Iterator[str]:
    """A set of the gallery."""
    distilled = load(path)
    report = Report.from_json(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    card = distilled.card
    shape = "x".join(map(str, distilled.shape))
    summary = recipes.resolve(card["recipe"]).summary
    yield f"## {card['recipe']}"
    yield ""
    yield f"![{len(distilled)} distilled images of {card['recipe']}](gallery/{path.stem}.png){{.distilled}}"
    yield ""
    yield f"{summary.rstrip('.')}."
    yield ""
    yield f"Method [`{card['method']}`](methods/{_module(card['method'])}.md), "
    size = f"{distilled.storage.total_bytes:,} bytes"
    if distilled.needs_teachers:
        size += " with the networks that label them"
    yield f"{len(distilled)} images of {shape}, {size}."
    yield ""
    yield "| network | trained on | test accuracy | students |"
    yield "|---|---|---|---|"
    for result in report.results:
        words = words_of(result, report.results)
        students = len(result.test_accuracy.runs)
        yield f"| {result.network} | {words} | {result.test_accuracy.text()} | {students} |"
    yield ""
    for need in distilled.needs[1:]:
        yield f"{need[0].upper()}{need[1:]}."
        yield ""
    changed = [f"{key}={lookup(card, f'config.{key}')}" for key in report.departures]
    yield f"`{' '.join(['rayd distill', card['recipe'], *changed])}` · [{path.name}](gallery/{path.name}) "
    yield f"({path.stat().st_size / 1000:.0f} kB) · [report as JSON](gallery/{path.stem}.json)"
    yield ""


def _module(name: str) -> str:
    """The module of a method."""
    return methods.get(name).__module__.rpartition(".")[2]
