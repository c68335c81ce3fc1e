"""Every analysis of a small run on digits: its numbers, its picture and its page."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import rayd
from rayd.analyses import ANALYSES, analyse, budgets, check_free, embedding, images, run
from rayd.analyses.base import PALETTE, Analysis, Options, Subject, sampled
from rayd.analyses.budgets import chart, curves
from rayd.analyses.classes import ClassGain, _terms, gains
from rayd.analyses.images import WIDE, _cut
from rayd.analyses.lowrank import _classes
from rayd.analyses.steps import evaluated, snapshots
from rayd.config import SyntheticSettings
from rayd.data import Standardization
from rayd.distilled import Distilled, load
from rayd.engine.distill import distill
from rayd.engine.reading import read
from rayd.errors import ArtifactError, ConfigError, OutputError
from rayd.evaluation.report import Report
from rayd.synthetic.lowrank import LowRank
from tests.conftest import tiny
from tests.evaluation.test_report import build, student
from tests.runs import QUIET
from tests.test_cli import run as command

SMALL = {"steps": 20, "images": 100}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with one image a class, which kept its set of steps 4, 8 and 12, and one with two."""
    folder = tmp_path_factory.mktemp("analyses")
    cache = folder / "cache"
    common = {"evaluation": {"whole_epochs": 1}}
    first = tiny(callbacks=[{"name": "snapshots"}], **common)
    distill(first, folder / "one", cache=cache, progress=QUIET)
    distill(tiny(ipc=2, **common), folder / "two", cache=cache, progress=QUIET)
    return folder


def done(made: Path, what: str, **options) -> Analysis:
    return analyse(made / "one", what, cache=made / "cache", **{**SMALL, **options})


def test_analyses_are_reached_from_the_package():
    assert rayd.analyses.analyse is analyse
    for name in ANALYSES:
        assert callable(getattr(rayd.analyses, name).analyse), name


@pytest.mark.parametrize(
    "what",
    ["embedding", "landscape", "hessian", "gradients", "steps", "spectra", "images", "classes"],
)
def test_an_analysis_has_picture_numbers_and_page(made, tmp_path, what):
    found = done(made, what)
    assert found.name == what
    assert min(found.picture.size) > 200
    # not one colour
    assert len(found.picture.convert("L").getcolors(256)) > 5
    assert max(map(len, found.lines)) <= 80 or what == "images"
    picture, page, numbers = found.write(tmp_path)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    html = page.read_text(encoding="utf-8")
    # nothing is loaded from elsewhere
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert json.loads(numbers.read_text())["name"] == what
    with pytest.raises(OutputError, match="exists already"):
        found.write(tmp_path)
    found.write(tmp_path, overwrite=True)


def test_the_same_seed_gives_the_same_numbers(made):
    assert done(made, "embedding").numbers == done(made, "embedding").numbers
    assert done(made, "gradients").numbers == done(made, "gradients").numbers


def test_gradients_of_the_whole_set_as_the_set_have_cosine_one(made):
    """The real images of the sample in place of the set."""
    subject = Subject.at(made / "one", options=Options(images=100, steps=5), cache=made / "cache")
    images, labels = subject.sample()
    same = Distilled(images, labels, subject.distilled.class_names, subject.distilled.normalization)
    same.card["config"] = subject.distilled.card["config"]
    from rayd.analyses.gradients import analyse as compared

    found = compared(Subject(made / "one", same, subject.options, cache=made / "cache"))
    assert found.numbers["cosines"]["distilled"] == pytest.approx([1.0, 1.0], abs=1e-9)
    assert max(found.numbers["cosines"]["random"]) <= 1.0


def test_accuracies_over_steps_come_from_the_sets_that_were_kept(made):
    assert [step for step, _ in snapshots(made / "one")] == [4, 8, 12]
    found = done(made, "steps")
    assert list(found.numbers["accuracies"]) == ["4", "8", "12"]
    last = load(made / "one" / "snapshots" / "step-00000012")
    assert torch.equal(last.images, load(made / "one").images)
    report = json.loads((made / "one" / "evaluation.json").read_text())
    ours = next(one for one in report["results"] if one["set"] == "distilled")
    assert found.numbers["accuracies"]["12"] == ours["test_accuracy"]["runs"]
    assert set(found.numbers["references"]) == {"random", "whole"}
    with pytest.raises(ArtifactError, match="kept no sets of earlier steps"):
        analyse(made / "two", "steps")


def test_the_whole_set_is_a_level_line_over_all_budgets():
    picture = np.asarray(chart({"distilled": {1: [0.3], 10: [0.4]}, "whole": {1: [0.7]}}))
    colour = [int(PALETTE[1][place : place + 2], 16) for place in (1, 3, 5)]
    _, columns = (picture[..., :3] == colour).all(-1).nonzero()
    # without the legend at the right
    columns = columns[columns < 0.8 * picture.shape[1]]
    assert columns.max() - columns.min() > 0.6 * picture.shape[1]


def test_budgets_are_those_of_the_runs(made):
    found = analyse(made / "two", "ipc", others=[made / "one"], cache=made / "cache")
    assert set(found.numbers["accuracies"]["distilled"]) == {"1", "2"}
    assert "1 IPC" in found.lines[0]
    with pytest.raises(ArtifactError, match=r"two numbers of images per class\. Got \[1\]"):
        curves([Subject.at(made / "one")])


def reported(ipc: int, report: Report, **changes) -> SimpleNamespace:
    """What curves over the budget need of a run."""
    return SimpleNamespace(report=replace(report, ipc=ipc, **changes), directory=f"ipc{ipc}")


def test_curves_have_one_result_of_a_run():
    own = build(("distilled", student(0.8)))
    merged = own.merge(build(("distilled", student(0.2)), epochs=20))
    _, found = curves([reported(1, merged), reported(5, own)])
    assert found["distilled"] == {1: [0.8], 5: [0.8]}


def test_curves_are_of_one_method_and_data():
    own = build(("distilled", student(0.8)))
    runs = [reported(1, own), reported(5, own, method="iid")]
    with pytest.raises(ArtifactError, match=r"of one method on the same data\. Got dm on digits"):
        curves(runs)


def test_images_say_the_settings_that_differ(made):
    found = done(made, "images", others=[made / "two"])
    first, second = found.numbers["runs"]
    assert (first["settings"]["ipc"], second["settings"]["ipc"]) == (1, 2)


def test_gains_are_differences_by_class():
    report = build(("distilled", student(0.8)), ("random", student(0.5)))
    names = [str(label) for label in range(len(report.results[0].per_class))]
    found = gains(report, names)
    ours, theirs = (result.per_class for result in report.results)
    assert [one.gain for one in found] == pytest.approx(
        [a - b for a, b in zip(ours, theirs, strict=True) if a is not None]
    )
    assert ClassGain("a", 0.5, 0.7).gain == pytest.approx(-0.2)
    with pytest.raises(ArtifactError, match="on the set 'herding'"):
        gains(report, names, "herding")


def test_gains_are_those_of_one_protocol():
    """Of a report with results of several, the first pair of sets counts."""
    own = build(("distilled", student(0.8, per_class=(0.8, 0.8))))
    later = build(
        ("distilled", student(0.5, per_class=(0.5, 0.5))),
        ("random", student(0.4, per_class=(0.4, 0.4))),
        epochs=20,
    )
    assert [one.gain for one in gains(own.merge(later), ["a", "b"])] == pytest.approx([0.1, 0.1])


def test_random_images_of_a_small_class_are_taken_again(monkeypatch):
    """A distilled set has as many of every class, also where the real ones have a long tail."""
    recipe = tiny(data={"imbalance": 100}, ipc=5)
    data = read(recipe.data, None, None, QUIET)
    assert data.train.counts.min() < 5
    images = torch.zeros(50, *data.shape)
    labels = torch.arange(10).repeat_interleave(5)
    made = Distilled(images, labels, data.train.class_names, data.normalization, {})
    subject = Subject(Path("."), made)
    subject.__dict__["data"] = data
    _, drawn = subject.random()
    assert drawn.bincount().tolist() == [5] * 10


def test_students_over_steps_see_the_batches_of_stored_labels(monkeypatch):
    """So that the last point of the chart is the accuracy of the run's report."""
    seen = []

    def evaluate(distilled, overrides, *rest):
        seen.append(overrides["labels"])
        return build(("distilled", student(0.8)))

    monkeypatch.setattr("rayd.analyses.steps.evaluate_distilled", evaluate)
    observers = {"trained": True, "pool": 1, "per_step": 1}
    stored = tiny(labels={"kind": "stored"}, observers=observers, evaluation={"loss": "kl"})
    subject = Subject(Path("."), None)
    subject.__dict__["recipe"] = stored
    evaluated(subject, None)
    assert seen == [{"kind": "online", "seed": 0}]


def test_mappers_and_bases_are_drawn(tmp_path):
    torch.manual_seed(0)
    learned = LowRank(
        torch.randn(2, 1, 8, 3), torch.randn(2, 1, 3, 8), torch.randn(4, 1, 3, 3), torch.arange(4)
    )
    settings = SyntheticSettings.model_validate({"kind": "lowrank", "rank": 3})
    half = torch.tensor([0.5], dtype=torch.float64)
    normalization = Standardization(half, half.clone())
    distilled = Distilled.of(learned, settings, ["a", "b", "c", "d"], normalization, {})
    distilled.save(tmp_path)
    assert set(load(tmp_path).parameters) >= {"left", "right", "bases"}
    found = analyse(tmp_path, "lowrank")
    assert (found.numbers["sets"], found.numbers["sharing"], found.numbers["rank"]) == (2, 2, 3)
    assert 1 <= found.numbers["effective_rank"]["least"] <= 3
    assert _classes(Subject.at(tmp_path)) == ["a", "b", "c", "d"]


def test_what_is_missing_is_said(made, tmp_path):
    with pytest.raises(ArtifactError, match="no mappers and bases"):
        done(made, "lowrank")
    with pytest.raises(ConfigError, match="did you mean 'embedding'"):
        analyse(made / "one", "embeding")
    with pytest.raises(ConfigError, match="at least one step"):
        run(made / "one", "embedding", steps=0)
    with pytest.raises(ArtifactError, match="no spectra to show"):
        done(made, "spectra", how="filter")


def test_samples_have_the_same_number_of_every_class(made):
    subject = Subject.at(made / "one", cache=made / "cache")
    train = subject.data.train
    rows = sampled(train, 50, 0, "sample")
    assert train.subset(rows).counts.tolist() == [5] * 10
    assert len(sampled(train, 10**6, 0, "sample")) == len(train)


def test_command_lists_analyses_and_writes_one(made, tmp_path, capsys):
    code, text, _ = command(capsys, "analyse", str(made / "one"))
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == list(ANALYSES)
    rest = ["--out", str(tmp_path), "--cache", str(made / "cache"), "--quiet"]
    code, text, _ = command(capsys, "analyse", str(made / "one"), "classes", *rest)
    assert (code, "classes lose" in text) == (0, True)
    assert {path.name for path in tmp_path.iterdir()} >= {"classes.png", "classes.html"}
    code, _, error = command(capsys, "analyse", str(made / "one"), "classes", *rest)
    assert (code, "add --overwrite" in error) == (2, True)
    code, document, _ = command(
        capsys, "analyse", str(made / "one"), "classes", *rest, "--overwrite", "--json"
    )
    assert len(json.loads(document)["classes"]) == 10
    code, _, error = command(capsys, "analyse", str(made / "one"), "clases", *rest)
    assert (code, "did you mean 'classes'" in error) == (2, True)


def test_command_compares_with_other_runs(made, tmp_path, capsys):
    rest = ["--with", str(made / "two"), "--out", str(tmp_path), "--quiet", "--json"]
    code, document, _ = command(capsys, "analyse", str(made / "one"), "ipc", *rest)
    assert code == 0
    assert set(json.loads(document)["accuracies"]["random"]) == {"1", "2"}


def test_snapshots_need_a_positive_distance():
    with pytest.raises(ConfigError, match=r"at least 1\. Got 0"):
        rayd.callbacks.Snapshots(every=0)


def of_classes(*names: str) -> Subject:
    """A set with an image of each class, without a recipe."""
    half = torch.tensor([0.5], dtype=torch.float64)
    normalization = Standardization(half, half.clone())
    pixels = torch.zeros(len(names), 1, 8, 8)
    made = Distilled(pixels, torch.arange(len(names)), names, normalization, {})
    return Subject(Path(names[0]), made)


def test_images_of_other_classes_are_not_drawn_side_by_side():
    """They would stand in rows that are named for the classes of the first run."""
    first = of_classes("cat", "dog")
    subject = replace(first, others=(of_classes("dog", "cat"),))
    with pytest.raises(ArtifactError, match=r"same order\. Got cat, dog in 'cat', and dog, cat in"):
        images.analyse(subject)


def test_captions_do_not_run_into_each_other():
    assert _cut("ipc=2") == "ipc=2"
    assert len(_cut("observers.networks=" + "x" * 50)) == WIDE


def test_an_unknown_embedding_is_refused_before_a_network_is_trained():
    subject = replace(of_classes("cat", "dog"), options=Options(how="tnse"))
    with pytest.raises(ConfigError, match="did you mean 'tsne'"):
        embedding.analyse(subject)


def test_settings_that_no_network_has_are_named():
    subject = replace(
        of_classes("cat", "dog"), options=Options(network={"name": "convnet", "dpth": 3})
    )
    with pytest.raises(ConfigError, match=r"network\.dpth"):
        _ = subject.network


def test_an_analysis_is_written_to_a_folder_by_name_and_not_into_a_file(tmp_path):
    picture = Image.new("RGB", (4, 4))
    found = Analysis("images", "Images", "", picture, ("a",), {})
    assert [path.name for path in found.write(str(tmp_path / "new"))] == [
        "images.png",
        "images.html",
        "images.json",
    ]
    export = tmp_path / "set.npz"
    export.touch()
    with pytest.raises(OutputError, match="is a file: name a folder"):
        check_free(export / "analyses", "images", overwrite=True)


def test_a_network_that_was_not_evaluated_is_named():
    own = build(("distilled", student(0.8)), ("random", student(0.5)))
    known = own.results[0].network
    with pytest.raises(ArtifactError, match=f"no accuracies of mlp, but of {known}"):
        curves([reported(1, own), reported(5, own)], "mlp")
    with pytest.raises(ArtifactError, match=f"of mlp on the distilled set, but of {known}"):
        gains(own, [], network="mlp")


def test_gains_say_under_which_labels_they_are():
    own = build(("distilled", student(0.8)), ("random", student(0.5)))
    network = own.results[0].network
    assert _terms(own, "random", network) == " under the same labels"
    learned = replace(own.results[0], labels="learned")
    other = replace(own, results=(learned, *own.results[1:]))
    words = ", the former under learned labels, the latter under hard ones"
    assert _terms(other, "random", network) == words


def test_curves_are_of_the_same_images():
    """A long tail of the same data has another accuracy at every budget."""
    balanced = of_classes("cat", "dog")
    tail = of_classes("dog", "cat")
    balanced.__dict__["recipe"] = tiny()
    tail.__dict__["recipe"] = tiny(data={"imbalance": 10})
    with pytest.raises(ArtifactError, match=r"Got data\.imbalance=1\.0, and 10\.0 in 'dog'"):
        budgets.analyse(SimpleNamespace(recipe=balanced.recipe, others=(tail,)))


def test_a_title_is_text_in_a_notebook():
    found = Analysis("images", '"><script>', "", Image.new("RGB", (4, 4)), ("a",), {})
    assert "<script>" not in found._repr_html_()
