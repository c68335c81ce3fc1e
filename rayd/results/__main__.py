"""Write the tables of measured results into README and documentation: `python -m rayd.results`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rayd.config import MeasuredResult, validate
from rayd.evaluation.scores import label_robust_score
from rayd.recipes import Headline, headlines, resolve
from rayd.recipes.tables import TITLES, families
from rayd.results import applications, entries, settings, studies
from rayd.results.text import three_digits

BEGIN = "<!-- results: written by python -m rayd.results -->"
END = "<!-- end of results -->"
BEGIN_USES = "<!-- applications: written by python -m rayd.results -->"
END_USES = "<!-- end of applications -->"
BEGIN_STUDIES = "<!-- studies: written by python -m rayd.results -->"
END_STUDIES = "<!-- end of studies -->"
PAGES = Path("docs/pages")
README = Path("README.md")
PAPERS = {
    "dm-cifar10-ipc10": "DM",
    "iid-dm-cifar10-ipc10-reduced": "IID, on DM",
    "edc-cifar10-ipc10-reduced": "EDC",
    "cfm-cifar10-ipc10-reduced": "UniDD/CFM",
    "csdm-cifar10-lt200-ipc10-reduced": "CSDM, long tail",
    "ls-mtt-cifar10-reduced": "LS-MTT",
}
"""Papers in the table of the README, by recipe."""
COLUMNS = ("recipe", "IPC", "paper", "distilled", "random", "whole", "runs")
SCORES = (
    "recipe",
    "labels",
    "distilled",
    "random",
    "equal storage",
    "whole",
    "IOR",
    "HLR",
    "LRS",
)
EXPLAINED = """\
The same sets compared with random images under the same labels, random images of as many bytes
(*equal storage*) and the whole training set, with [the scores](concepts.md#what-an-accuracy-is-worth)
of DD-Ranking. A row without a recipe is the set above under hard labels; if a recipe has two rows,
the second is another series of distillations, each with its own pool and with all comparisons. If a
student was trained on the whole set for fewer epochs, the command is among the results of
`rayd recipes NAME` (`evaluation.whole_epochs`)."""
EQUAL = ("equal", "combined")
"""Families of the recipes that compare all methods, and combinations of them, at one budget."""
EQUAL_COLUMNS = (
    "method",
    "own labels",
    "random",
    "hard labels",
    "random",
    "IOR",
    "HLR",
    "LRS",
    "minutes",
)
EQUAL_EXPLAINED = """\
## Methods on equal terms

Every method with the same networks (ConvNets of width 32), a minute of synthesis on one core and the
same students, best first; ± is over distillations, if there are several.

- *own labels*: accuracy with the learned or teachers' labels of the set, if it has any; *random* next
  to it is that of random images with the same teachers, or with hard labels if labels are learned
- *hard labels*: accuracy of students common to all methods, by DSA's protocol with 300 epochs;
  *random* next to it is that of random images, *IOR* the difference, *HLR* the gap to the whole set,
  and *LRS* the label-robust score of both ([the scores](concepts.md#what-an-accuracy-is-worth))
- *minutes*: processor time of one distillation, with networks, statistics, synthesis and students, but
  without the five experts that trajectory methods share, which take 16 to 26 minutes in total (30 to 45
  for DATM's, which are its own)
- DCC compares class by class, as DSA does, in about a quarter of its steps, as in its paper
- rows named *partitioned*, *ninths*, *sixteenths* and *best* are combinations of this project, whose
  stored images each contain four, nine or sixteen smaller ones; *best* is the choice on the validation
  split, NCFM's objective with sixteen (`rayd tune combined-cifar10-ipc1` and `combined-cifar10-ipc10`,
  then `combined-ncfm-cifar10-ipc1` and `combined-ncfm-cifar10-ipc10`), whose networks learn for seven
  minutes

The papers use far more than a minute: the tables compare what methods achieve in that time, not their
final accuracy."""


def table() -> str:
    """Measured results as a Markdown table, without those on equal terms.

    Among results of the same recipe and settings, the one with the most distillations has a row.
    """
    rows: dict[str, list[str]] = {}
    for headline, result in _results(equal=False):
        cells = list(_cells(headline, result))
        known = rows.get(cells[0])
        if known is None or _distillations(cells) > _distillations(known):
            rows[cells[0]] = cells
    return _markdown(COLUMNS, rows.values())


def _distillations(cells: Sequence[str]) -> int:
    """The first number in the last cell of a row, such as '3 × 5'."""
    return int(cells[-1].partition(" ")[0])


def counts() -> str:
    """A sentence with the number of recipes that have results."""
    known = headlines()
    measured = {name for name, results in entries().items() if results}
    published = {headline.name for headline in known if headline.published}
    return (
        f"Of {len(known)} recipes, {len(published)} have an accuracy printed in a paper, "
        f"{len(measured)} one measured here, and {len(published & measured)} both."
    )


def scores_table() -> str:
    """Scores as a Markdown table, for results that have any; empty if none has.

    A result under soft labels has a second row with its accuracies under hard ones.
    """
    rows: list[list[str]] = []
    for headline, result in _results(equal=False):
        rows += _scores(headline, result)
    return _markdown(SCORES, rows) if rows else ""


def readme_table() -> str:
    """The scores of a recipe of each paper as a Markdown table.

    Among several results of an unmodified recipe, the last one has all comparisons.
    """
    rows: dict[str, list[list[str]]] = {}
    for headline, result in _results(equal=False):
        name = headline.name
        if name not in PAPERS or _name(headline, result) != f"`{name}`":
            continue
        published = headline.published
        printed = (
            "" if published is None else f", printed {three_digits(published.value, published.std)}"
        )
        first, *others = _scores(headline, result)
        rows[name] = [[PAPERS[name] + printed, *first], *(["", *row] for row in others)]
    return _markdown(("paper", *SCORES), [row for name in PAPERS for row in rows[name]])


def equal_terms() -> str:
    """Markdown tables of the methods on equal terms, one for each data set and IPC; empty if none
    is measured.
    """
    found: dict[str, list[MeasuredResult]] = {}
    known: dict[str, Headline] = {}
    for headline, result in _results(equal=True):
        known[headline.name] = headline
        found.setdefault(headline.name, []).append(result)
    # students of the whole set are the same for all methods and budgets, so one result has them
    whole: dict[str, tuple[str, MeasuredResult]] = {}
    for name, results in found.items():
        for result in results:
            if result.whole is not None:
                whole[known[name].data] = (name, result)

    budgets: dict[tuple[str, int], list[tuple[float, list[str]]]] = {}
    for name, results in found.items():
        headline = known[name]
        plain = [result for result in results if result.whole is None]
        if not plain:
            continue
        best = whole[headline.data][1].whole if headline.data in whole else None
        rows = budgets.setdefault((headline.data, headline.ipc), [])
        method = name.removesuffix(f"-{headline.data}-ipc{headline.ipc}-equal")
        rows.append(_equal(method, plain, best))

    parts = []
    for (data, ipc), rows in sorted(budgets.items()):
        best_first = [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
        title = f"### {TITLES.get(data, data.upper())}, IPC {ipc}"
        sections = [title, _markdown(EQUAL_COLUMNS, best_first)]
        if data in whole:
            sections.insert(1, _whole_set(*whole[data]))
        parts.append("\n\n".join(sections))
    return "\n\n".join(parts)


def _whole_set(name: str, result: MeasuredResult) -> str:
    """A sentence with the accuracy of the whole set, and its command."""
    given = " ".join(settings(result.command))
    return f"The whole set reaches {three_digits(result.whole)} (`rayd distill {name} {given}`)."


def _equal(
    method: str, results: Sequence[MeasuredResult], whole: float | None
) -> tuple[float, list[str]]:
    """Accuracy by the common students of all methods, and the cells of a method's row.

    Args:
        method: name of the method or combination.
        results: results under its own protocol and, if that differs, under the common one.
        whole: accuracy of the whole set by the common students.
    """
    own, common = results[0], results[-1]
    learned = common.hard_labels is not None
    accuracy = common.hard_labels if learned else common.accuracy
    assert accuracy is not None
    # random images have hard labels unless a teacher labels them
    taught = common.random_hard_labels is not None
    random = common.random_hard_labels if taught else common.random
    std = common.hard_labels_std if learned else common.std
    ior = None if random is None else accuracy - random
    hlr = None if whole is None else whole - accuracy
    lrs = None if ior is None or hlr is None else label_robust_score(ior, hlr)
    brings_labels = len(results) > 1 or learned
    named = re.match(r"distillation and (pool|experts) ([\d ]+)", own.seeds)
    distillations = len(named.group(2).split()) if named else 1
    trains_experts = named is not None and named.group(1) == "experts"
    seconds = own.cpu_seconds_given_experts
    if seconds is None and own.cpu_seconds is not None and not trains_experts:
        seconds = own.cpu_seconds / distillations
    minutes = "" if seconds is None else f"{seconds / 60:.1f}"
    return accuracy, [
        method,
        three_digits(own.accuracy, own.std) if brings_labels else "",
        three_digits(own.random) if brings_labels else "",
        three_digits(accuracy, std),
        three_digits(random),
        _gap(ior),
        _gap(hlr),
        three_digits(lrs),
        minutes,
    ]


def _results(equal: bool) -> Iterator[tuple[Headline, MeasuredResult]]:
    """Results with the headlines of their recipes: those on equal terms, or all others."""
    alone = {name for family in EQUAL for name in families()[family]}
    known = {headline.name: headline for headline in headlines()}
    for name, results in entries().items():
        if (name in alone) != equal:
            continue
        read = [validate(MeasuredResult, one, f"the results of '{name}'") for one in results]
        for result in read if equal else _completed(read):
            yield known[name], result


def _completed(results: Sequence[MeasuredResult]) -> Iterator[MeasuredResult]:
    """Fill in the accuracy of the whole set in the results of a recipe, if it was measured for one
    of them: by a command with `evaluation.whole_epochs`, which has no row of its own, or together
    with another result. Its students are the same unless settings differ.
    """
    alone = [result for result in results if _is_of_whole(result)]
    beside = [result for result in results if result.whole is not None]
    shared = next(iter([*alone, *beside]), None)
    for result in results:
        if _is_of_whole(result):
            continue
        own = settings(result.command)
        others = any(one.startswith(("evaluation.", "labels.", "data.")) for one in own)
        yield result if shared is None or others else _with_whole(result, shared)


def _is_of_whole(result: MeasuredResult) -> bool:
    return any(one.startswith("evaluation.whole_epochs=") for one in settings(result.command))


def _with_whole(result: MeasuredResult, shared: MeasuredResult) -> MeasuredResult:
    """A result with the accuracy of the whole set from another one, and the resulting scores."""
    update: dict[str, float | None] = {}
    if result.whole is None:
        update["whole"] = shared.whole
    if result.whole_hard_labels is None:
        update["whole_hard_labels"] = shared.whole_hard_labels
    if result.hlr is None:
        # HLR is a comparison under hard labels, which are those of a set without soft ones
        is_soft = shared.whole_hard_labels is not None
        whole = shared.whole_hard_labels if is_soft else shared.whole
        accuracy = result.hard_labels if is_soft else result.accuracy
        if whole is not None and accuracy is not None:
            update["hlr"] = whole - accuracy
            ior = result.ior
            if ior is None and result.random is not None:
                ior = result.accuracy - result.random
            if ior is not None:
                update["lrs"] = label_robust_score(ior, whole - accuracy)
    return result.model_copy(update=update)


def _markdown(columns: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines)


def updated(text: str) -> str:
    """Update the tables between the marks of a page.

    Tables of applications have their own marks, which a page may lack.

    Raises:
        ValueError: the page lacks the marks of the results.
    """
    parts = [counts(), table()]
    scores = scores_table()
    if scores:
        parts += [EXPLAINED, scores]
    equal = equal_terms()
    if equal:
        parts += [EQUAL_EXPLAINED, equal]
    found = _between(text, BEGIN, END, parts)
    if found is None:
        raise ValueError(f"The page must hold '{BEGIN}' and, below it, '{END}'.")
    with_uses = _between(found, BEGIN_USES, END_USES, list(applications.tables()))
    return found if with_uses is None else with_uses


def _between(text: str, begin: str, end: str, parts: Sequence[str]) -> str | None:
    """Replace the paragraphs between two marks of a page; None if it lacks the marks."""
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        return None
    content = "\n\n".join(parts)
    return f"{before}{begin}\n{content}\n{end}{after}"


def _cells(headline: Headline, result: MeasuredResult) -> Iterator[str]:
    """The cells of a result's row."""
    yield _name(headline, result)
    yield str(headline.ipc)
    paper = headline.published
    yield "" if paper is None else three_digits(paper.value, paper.std)
    yield three_digits(result.accuracy, result.std)
    yield three_digits(result.random)
    yield three_digits(result.whole)
    yield _runs(result.seeds)


def _runs(seeds: str) -> str:
    """Number of distillations and of students of each: '3 × 5' of 'distillation 0 1 2, students …'."""
    counts = []
    for part in seeds.partition(";")[0].split(", "):
        numbers = re.findall(r"\d+", part)
        counts.append(str(len(numbers)))
    return " × ".join(counts)


def _scores(headline: Headline, result: MeasuredResult) -> Iterator[list[str]]:
    """The rows of a result's scores: none, one, or one for soft and one for hard labels."""
    improvement = result.ior
    # entries from before the introduction of scores only have accuracies
    if improvement is None and result.random is not None:
        improvement = result.accuracy - result.random
    found = (improvement, result.hlr, result.lrs, result.hard_labels, result.equal_storage)
    if all(value is None for value in found):
        return
    recipe = resolve(headline.name)
    is_hard = recipe.labels.kind == recipe.synthetic.labels == "hard"
    yield [
        _name(headline, result),
        "hard" if is_hard else "soft",
        three_digits(result.accuracy, result.std),
        three_digits(result.random),
        three_digits(result.equal_storage),
        three_digits(result.whole),
        _gap(improvement, result.ior_std),
        _gap(result.hlr, result.hlr_std),
        three_digits(result.lrs),
    ]
    if result.hard_labels is not None:
        over_random = None
        if result.random_hard_labels is not None:
            over_random = result.hard_labels - result.random_hard_labels
        yield [
            "",
            "hard",
            three_digits(result.hard_labels, result.hard_labels_std),
            three_digits(result.random_hard_labels),
            "",
            three_digits(result.whole_hard_labels),
            _gap(over_random),
            "",
            "",
        ]


def _name(headline: Headline, result: MeasuredResult) -> str:
    """A recipe's name with the overrides of its command."""
    return f"`{' '.join([headline.name, *settings(result.command)])}`"


def _gap(value: float | None, std: float | None = None) -> str:
    """A difference of fractions with its sign."""
    if value is None:
        return ""
    return f"{value:+.3f}" if std is None else f"{value:+.3f} ± {std:.3f}"


def with_studies(text: str) -> str:
    """Update the tables between the marks of the page of studies.

    Raises:
        ValueError: the page lacks them.
    """
    found = _between(text, BEGIN_STUDIES, END_STUDIES, list(studies.tables()))
    if found is None:
        raise ValueError(f"The page must hold '{BEGIN_STUDIES}' and, below it, '{END_STUDIES}'.")
    return found


def with_papers(text: str) -> str:
    """Update the table between the marks of the README.

    Raises:
        ValueError: the README lacks them.
    """
    found = _between(text, BEGIN, END, [readme_table()])
    if found is None:
        raise ValueError(f"The README must hold '{BEGIN}' and, below it, '{END}'.")
    return found


RENEWED = (
    (README, with_papers),
    (PAGES / "results.md", updated),
    (PAGES / "studies.md", with_studies),
)
"""Files with tables, and the functions that update their text."""


def main() -> None:
    """Update all tables."""
    for path, renewed in RENEWED:
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
