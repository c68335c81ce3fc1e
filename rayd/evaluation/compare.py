"""Comparison of runs: means and deviations over distillations, and deviations over students.

A single run shows how much students of one distilled set differ. Runs of one recipe with several
seeds show how much distillations differ, which is the deviation that papers report. Both are given.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Self

from rayd import remote
from rayd.artifacts import read_json
from rayd.config import flat
from rayd.distilled import CARD, DIRECTORY
from rayd.errors import ArtifactError, RaydError
from rayd.evaluation.matrix import words_of
from rayd.evaluation.published import is_immaterial
from rayd.evaluation.report import Report, SetResult
from rayd.evaluation.scores import Scores, label_robust_score
from rayd.evaluation.table import wrapped
from rayd.evaluation.variants import DISTILLED, EQUAL_STORAGE
from rayd.recipes import restore
from rayd.recipes.difference import shown
from rayd.shown import short

log = logging.getLogger(__name__)

_MEASURED = {
    "random": "random",
    "whole": "whole",
    f"{DISTILLED}, hard labels": "hard_labels",
    "random, hard labels": "random_hard_labels",
    "whole, hard labels": "whole_hard_labels",
    EQUAL_STORAGE: "equal_storage",
}
"""Fields of a measured result by the name of the training set."""


@dataclass(frozen=True)
class Spread:
    """A quantity over distillations, as fractions."""

    mean: float
    """Mean over distillations of the means over students."""
    std: float | None
    """Sample standard deviation of these means; None for a single distillation."""
    students: float | None
    """Mean over distillations of the standard deviation over students; None for single students."""
    runs: tuple[float, ...]
    """Mean of each distillation."""

    @classmethod
    def of(cls, means: Sequence[float], stds: Sequence[float | None] = ()) -> Self | None:
        """Summarise distillations; None if there is none."""
        if not means:
            return None
        known = [std for std in stds if std is not None]
        return cls(
            mean=fmean(means),
            std=stdev(means) if len(means) > 1 else None,
            students=fmean(known) if known else None,
            runs=tuple(means),
        )

    def text(self, signed: bool = False) -> str:
        """Format as `0.941 ± 0.001`, the deviation over distillations, or the mean only.

        >>> Spread(0.941, 0.001, 0.004, (0.94, 0.942)).text()
        '0.941 ± 0.001'
        """
        number = f"{self.mean:+.3f}" if signed else f"{self.mean:.3f}"
        return number if self.std is None else f"{number} ± {self.std:.3f}"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seeds, for one architecture."""

    recipe: str
    """Name of the recipe."""
    data: str
    """Name of the real data."""
    departures: tuple[str, ...]
    """Settings in which the runs differ from the recipe."""
    network: str
    """Label of the architecture."""
    directories: tuple[str, ...]
    """The runs."""
    seeds: tuple[int | None, ...]
    """Seed of each distillation."""
    students: int
    """Students per distillation."""
    accuracies: dict[str, Spread]
    """By training set, as `distilled`, `random`, or `distilled, hard labels`."""
    scores: dict[str, Spread]
    """IOR, HLR and LRS, where known."""
    values: dict[str, Any] = field(default_factory=dict)
    """Values of these settings, as far as the sets' cards contain them."""
    is_on_validation: bool = False
    """Whether accuracies are those of the validation split, as for a sweep's trials."""
    paired: Spread | None = None
    """Difference of the distilled accuracy to that of the first group with this architecture, over
    distillations paired by their seeds.
    """

    @property
    def title(self) -> str:
        """Recipe and architecture, with the settings that differ."""
        words = []
        for name in self.departures:
            value = f"={shown(self.values[name])}" if name in self.values else ""
            words.append(f"{name}{value}")
        others = f", other {', '.join(words)}" if words else ""
        where = ", on the validation split" if self.is_on_validation else ""
        return f"{self.recipe} with {self.network}{others}{where}"

    def measured(self) -> dict[str, float]:
        """Accuracies and scores as fields of `rayd.config.MeasuredResult`, to three digits.

        Values that were not evaluated are missing. The deviation of the accuracy is over
        distillations, or over students for a single distillation.
        """
        ours = self.accuracies[DISTILLED]
        found = {"accuracy": ours.mean, "std": ours.students if ours.std is None else ours.std}
        for name, key in _MEASURED.items():
            if name in self.accuracies:
                found[key] = self.accuracies[name].mean
        for name, spread in self.scores.items():
            found[name.lower()] = spread.mean
            if name != "LRS":
                found[f"{name.lower()}_std"] = spread.std
        return {key: round(value, 3) for key, value in found.items() if value is not None}

    def lines(self) -> list[str]:
        """Format as lines of at most 80 characters."""
        count = len(self.directories)
        runs = "1 distillation" if count == 1 else f"{count} distillations"
        students = "1 student" if self.students == 1 else f"{self.students} students"
        where = ", ".join(self.directories)
        lines = [wrapped(f"{self.title} ({runs}, {students} each): {where}")]
        width = max(len(name) for name in self.accuracies)
        for name, spread in self.accuracies.items():
            over = "" if spread.students is None else f"   ± {spread.students:.3f} over students"
            lines.append(f"  {name:<{width}}  {spread.text():<13}{over}".rstrip())
        words = [f"{name} {s.text(name != 'LRS')}" for name, s in self.scores.items()]
        if self.paired is not None:
            words.append(f"above the first {self.paired.text(signed=True)} (paired by seed)")
        if words:
            lines.append(wrapped("  " + ", ".join(words)))
        return lines


@dataclass(frozen=True)
class Comparison:
    """Several runs, those of equal settings grouped."""

    groups: tuple[Group, ...]
    """In the order of the first run of each."""

    def __repr__(self) -> str:
        return short("Comparison", groups=len(self.groups))

    def text(self) -> str:
        """Format for a terminal."""
        lines = [line for group in self.groups for line in group.lines()]
        lines.append("± beside an accuracy is over distillations; it is missing for a single one")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Run:
    directory: Path
    report: Report
    seed: int | None
    settings: dict[str, Any]
    """Settings of the distillation by dotted key, except those that differ between repetitions;
    empty if the card has none.
    """
    images: str | None
    """Fingerprint of the training split; None if the card has none."""
    digest: str | None
    """Hash of the distilled set; None if the card has none."""

    def key(self, network: str) -> tuple[Any, ...]:
        """Key that is equal for all distillations of a group."""
        report = self.report
        named = (report.recipe, report.method, report.data, report.ipc, report.departures)
        # the first results of a report may be of an earlier protocol than the card's
        results = [r for r in report.results if (r.set, r.network) == (DISTILLED, network)]
        trained = (results[0].label_kind, results[0].training) if results else None
        return *named, self.images, json.dumps(self.settings, sort_keys=True), trained, network

    def values(self) -> dict[str, Any]:
        """Values of the settings that differ from the recipe's, as far as they are known."""
        protocols = {r.training for r in self.report.results if r.set == DISTILLED and r.augmented}
        certain = {}
        for name in self.report.departures:
            is_of_students = name.startswith(("evaluation.", "labels."))
            if name in self.settings and not (is_of_students and len(protocols) > 1):
                certain[name] = self.settings[name]
        return certain


def compare(directories: Sequence[Path]) -> Comparison:
    """Compare finished runs by their reports.

    Args:
        directories: run directories or distilled sets with an `evaluation.json`; those of the same
            recipe and settings are distillations of one group. A directory that is named twice
            counts once, and so do equal sets: those of a copy, or of a run that was repeated with
            the same seed.

    Raises:
        ArtifactError: a directory holds no report, or a damaged one.
    """
    groups: dict[tuple[Any, ...], list[_Run]] = {}
    twice: dict[Path, Path] = {}
    for directory in distinct(directories):
        run = _read(directory)
        report = run.report
        for network in dict.fromkeys(result.network for result in report.results):
            group = groups.setdefault(run.key(network), [])
            same = (one for one in group if run.digest is not None and one.digest == run.digest)
            first_of_set = next(same, None)
            if first_of_set is None:
                group.append(run)
            else:
                twice[directory] = first_of_set.directory
    for directory, first_directory in twice.items():
        log.warning(
            "'%s' holds the same set as '%s'; they count as one distillation.",
            *(directory, first_directory),
        )
    made = [_group(key[-1], runs) for key, runs in groups.items()]
    # accuracies of another architecture say nothing about the sets
    first = {group.network: group for group in reversed(made)}
    return Comparison(tuple(_paired(group, first[group.network]) for group in made))


def distinct(directories: Sequence[Path]) -> list[Path]:
    """Directories without duplicates, in order; different paths may name the same run."""
    found: dict[Path, Path] = {}
    for directory in directories:
        found.setdefault(remote.local(directory).resolve(), directory)
    return list(found.values())


def _read(directory: Path) -> _Run:
    report = Report.kept(directory)
    place = remote.local(directory)
    if report is None:
        cards = (place / DIRECTORY / CARD, place / CARD)
        remedy = "name the --out of a run that has ended."
        if any(remote.bring(card) or card.exists() for card in cards):
            remedy = f"'{shlex.join(['rayd', 'evaluate', str(directory)])}' writes one."
        raise ArtifactError(f"'{directory}' holds no evaluation.json to compare; {remedy}")
    seed = None
    settings: dict[str, Any] = {}
    images = None
    digest = None
    for path in (place / DIRECTORY / CARD, place / CARD):
        if remote.bring(path) or path.exists():
            card = read_json(path)
            seed = card.get("seed")
            digest = card.get("sha256")
            settings = _settings(card.get("config"), report.departures)
            # a whitening matrix is part of the fingerprint, and rounded differently on other
            # machines
            if card.get("normalization") in (None, "standard"):
                images = (card.get("data") or {}).get("fingerprint")
            break
    return _Run(directory, report, seed, settings, images, digest)


def _settings(config: Any, departures: Sequence[str]) -> dict[str, Any]:
    """The settings of a card that distinguish groups of runs.

    Args:
        config: of the card; None where it has none.
        departures: settings that count although they may have been chosen by the machine.
    """
    if not isinstance(config, Mapping):
        return {}
    # cards of other versions may lack settings or have additional ones
    with suppress(RaydError):
        config = restore(config).model_dump(mode="json")
    return {
        key: value
        for key, value in flat(config).items()
        if key in departures
        or not (is_immaterial(key) or key == "evaluation.seeds" or key.endswith(".precision"))
    }


def _group(network: str, runs: Sequence[_Run]) -> Group:
    found: dict[str, list[SetResult]] = {}
    scores: list[Scores] = []
    for run in runs:
        results = [r for r in run.report.results if r.network == network]
        # one tested epoch a network: the first is the protocol's own
        epoch = results[0].epoch
        # later evaluations may have added protocols or numbers of students: the first counts, as a
        # run is one distillation
        of_run: dict[str, SetResult] = {}
        for result in results:
            if result.epoch == epoch:
                of_run.setdefault(words_of(result, results), result)
        for name, result in of_run.items():
            found.setdefault(name, []).append(result)
        scores += [s for s in run.report.scores if (s.network, s.epoch) == (network, epoch)]
    first = runs[0].report
    return Group(
        recipe=first.recipe,
        data=first.data,
        departures=first.departures,
        network=network,
        directories=tuple(str(run.directory) for run in runs),
        seeds=tuple(run.seed for run in runs),
        students=len(found[DISTILLED][0].seeds) if DISTILLED in found else 0,
        accuracies={name: _accuracy(results) for name, results in found.items()},
        scores=_scores(scores),
        values=runs[0].values(),
        is_on_validation=any(result.is_on_validation for result in found.get(DISTILLED, ())),
    )


def _accuracy(results: Sequence[SetResult]) -> Spread:
    """Test accuracies of a training set, over the runs that have it."""
    means = [result.test_accuracy.mean for result in results]
    spread = Spread.of(means, [result.test_accuracy.std for result in results])
    assert spread is not None
    return spread


def _scores(scores: Sequence[Scores]) -> dict[str, Spread]:
    ior = [one.ior for one in scores if one.ior is not None]
    hlr = [one.hlr for one in scores if one.hlr is not None]
    both = [(one.ior, one.hlr) for one in scores if one.ior is not None and one.hlr is not None]
    found = {
        "IOR": Spread.of([gap.mean for gap in ior], [gap.std for gap in ior]),
        "HLR": Spread.of([gap.mean for gap in hlr], [gap.std for gap in hlr]),
        "LRS": Spread.of([label_robust_score(gain.mean, loss.mean) for gain, loss in both]),
    }
    return {name: spread for name, spread in found.items() if spread is not None}


def _paired(group: Group, first: Group) -> Group:
    """The group with its paired differences to the first, if both have the same data and seeds."""
    if group is first or DISTILLED not in group.accuracies or DISTILLED not in first.accuracies:
        return group
    if (group.data, group.is_on_validation) != (first.data, first.is_on_validation):
        # accuracies on different test images are not comparable
        return group
    if sorted(map(str, group.seeds)) != sorted(map(str, first.seeds)):
        return group
    theirs = dict(zip(first.seeds, first.accuracies[DISTILLED].runs, strict=True))
    ours = zip(group.seeds, group.accuracies[DISTILLED].runs, strict=True)
    gaps = Spread.of([run - theirs[seed] for seed, run in ours])
    return Group(**{**vars(group), "paired": gaps})
