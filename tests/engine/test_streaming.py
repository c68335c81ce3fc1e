"""Runs on streamed images are runs on decoded ones, to the byte, in memory that does not grow with
the data.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rayd.config import Recipe, merge
from rayd.data import load
from rayd.data.formats import parquet
from rayd.engine.distill import distill
from rayd.engine.evaluate import evaluate_distilled
from rayd.engine.plan import plan
from rayd.engine.progress import Progress
from rayd.engine.reading import read
from rayd.engine.stages import measure
from rayd.engine.store import Store
from rayd.recipes import assemble
from tests.conftest import tiny
from tests.data.files import encode, some_images, write_folder, write_parquet
from tests.engine.test_decoupled import edc
from tests.faults import stopping
from tests.runs import QUIET, bytes_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 300 of the digits for training and 60 for testing, as Parquet in three files
    and as folders.
    """
    from rayd.config import DataSettings

    path = tmp_path_factory.mktemp("root")
    digits = load(DataSettings(name="digits"))
    names = digits.class_names
    for split, images, count in (("train", digits.train, 300), ("test", digits.test, 60)):
        rows = np.concatenate([rows[: count // 10] for rows in images.class_index])
        rows = np.random.default_rng(0).permutation(rows)
        for shard, some in enumerate(np.array_split(rows, 3)):
            contents = [encode(image) for image in images.images[some]]
            labels = images.labels[some].tolist()
            write_parquet(
                path / "few" / f"{split}-{shard}.parquet",
                contents,
                labels,
                names=names,
                row_group_size=30,
            )
        write_folder(
            path / "folders" / split,
            {name: images.images[rows[images.labels[rows] == int(name)]] for name in names},
        )
    return path


def recipe(kind: str, streamed: bool | None, **chosen: object) -> Recipe:
    """A run of a second or two through all stages of a method."""
    data = {"data": {"name": "few", "stream": streamed}}
    evaluation = {
        "evaluation": {
            "seeds": 1,
            "epochs": 2,
            "whole_epochs": 1,
            "batch_size": 64,
            "baselines": ["random", "whole"],
            "comparisons": [],
        }
    }
    if kind == "edc":
        fitted = {
            "synthetic": {"init": "rded", "candidates": 12},
            "data": {"validation_fraction": 0.1},
        }
        judged = {
            "evaluation": {"epoch": ["last", "validation-best"]},
            "labels": {"kind": "stored"},
        }
        return edc(**merge(merge(merge(merge(data, evaluation), fitted), judged), chosen))
    real = {"real": "sampled", "observers": {"real_batch": 40}} if kind == "sampled" else {}
    return tiny(**merge(merge(merge(data, evaluation), real), chosen))


def stored(cache: Path, stage: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (cache / stage).iterdir()}


@pytest.mark.parametrize(("kind", "workers"), [("dm", 0), ("sampled", 0), ("edc", 0), ("edc", 2)])
def test_a_streamed_run_gives_the_bytes_of_a_decoded_one(
    tmp_path: Path, root: Path, kind: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "SHARD", 100)
    runs = {}
    for streamed in (True, False):
        name = str(streamed)
        resources = {"workers": workers if streamed else 0, "threads": 1, "cpus_per_worker": 0.5}
        chosen = recipe(kind, streamed, resources=resources)
        cache = tmp_path / f"{name}-cache"
        runs[name] = distill(chosen, tmp_path / name, data_root=root, cache=cache, progress=QUIET)
    assert bytes_of(tmp_path / "True") == bytes_of(tmp_path / "False")
    results = [
        [(r.set, r.epoch, r.test_accuracy.runs, r.per_class) for r in run.report.results]
        for run in runs.values()
    ]
    assert results[0] == results[1]
    for stage in {"dm": ("measure",), "sampled": (), "edc": ("squeeze", "measure", "score")}[kind]:
        streamed_work, decoded_work = (stored(tmp_path / f"{name}-cache", stage) for name in runs)
        assert streamed_work.keys() == decoded_work.keys()
        if stage != "squeeze":  # its notes hold seconds
            assert streamed_work == decoded_work


def test_what_one_form_made_serves_the_other(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill(recipe("dm", False), tmp_path / "run", data_root=root, progress=QUIET)
    monkeypatch.setattr("rayd.engine.observer_tasks.ObserverTasks.measure", None)
    monkeypatch.setattr("rayd.engine.evaluate.StudentTrainer.train", None)
    run = distill(recipe("dm", True), tmp_path / "run", data_root=root, resume=True, progress=QUIET)
    again = {"data": {"stream": True}}
    report = evaluate_distilled(
        run.distilled, merge(again, {"data": {"name": "few"}}), root, None, QUIET
    )
    assert [r.test_accuracy for r in report.results] == [
        r.test_accuracy for r in run.report.results
    ]


def test_an_interrupted_run_goes_on_in_the_other_form(tmp_path: Path, root: Path) -> None:
    distill(recipe("sampled", False), tmp_path / "whole", data_root=root, progress=QUIET)
    with pytest.raises(KeyboardInterrupt):
        distill(
            recipe("sampled", False),
            tmp_path / "cut",
            data_root=root,
            progress=QUIET,
            callbacks=stopping(KeyboardInterrupt(), 7),
        )
    distill(recipe("sampled", True), tmp_path / "cut", data_root=root, resume=True, progress=QUIET)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "cut")


def test_folders_are_streamed_as_parquet_files_are(tmp_path: Path, root: Path) -> None:
    for streamed in (True, False):
        chosen = recipe("dm", streamed, data={"name": "folders"}, evaluation={"baselines": []})
        distill(
            chosen,
            tmp_path / str(streamed),
            data_root=root,
            cache=tmp_path / f"{streamed}-cache",
            progress=QUIET,
        )
    assert bytes_of(tmp_path / "True") == bytes_of(tmp_path / "False")


def test_of_a_class_its_candidates_alone_are_decoded(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 images and 12 candidates a class: scoring decodes 120 images, stitching those of the 2
    patches of each class.
    """
    from rayd.engine.stages import score as initial
    from rayd.engine.worker import Worker

    read = list[int]()
    at = parquet.ParquetImages.at
    counts = dict[str, int]()
    monkeypatch.setattr(
        parquet.ParquetImages, "at", lambda self, rows: (read.extend(rows), at(self, rows))[1]
    )
    score = Worker.score
    stitch = initial.stitched

    def scored(self: Worker, *arguments: object) -> object:
        before = len(read)
        result = list(score(self, *arguments))
        counts["score"] = counts.get("score", 0) + len(read) - before
        return result

    def stitched(pixels: object, *arguments: object) -> object:
        counts["stitch"] = counts.get("stitch", 0) + len(pixels)
        return stitch(pixels, *arguments)

    monkeypatch.setattr(Worker, "score", scored)
    monkeypatch.setattr(initial, "stitched", stitched)
    chosen = recipe(
        "edc", True, labels={"kind": "online"}, evaluation={"baselines": [], "epoch": ["last"]}
    )
    distill(chosen, tmp_path / "run", data_root=root, progress=QUIET)
    assert counts == {"score": 120, "stitch": 20}


def test_a_plan_counts_the_batches_that_are_held(root: Path) -> None:
    big = {"observers": {"batch_size": 8}, "evaluation": {"batch_size": 8, "baselines": []}}
    streamed, decoded = (
        plan(recipe("dm", stream, **big), root, progress=QUIET) for stream in (True, False)
    )
    assert decoded.memory["data"] == 360 * 64
    assert (
        streamed.memory["data"] == 300 * 64
    )  # the training split, which is smaller than four batches of the judging
    assert "streamed" in streamed.data
    assert "streamed" not in decoded.data


def test_a_first_look_is_shown(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for again in (False, True):
        chosen = recipe("dm", True, evaluation={"baselines": []})
        planned = plan(chosen, root, tmp_path / "cache", QUIET)
        assert ("read" in [stage.stage for stage in planned.stages]) is not again
        read(chosen.data, root, tmp_path / "cache", Progress())
        lines = capsys.readouterr().err
        assert ("read (train): 300/300 images" in lines) is not again
        assert ("read (test): 60/60 images" in lines) is not again


def test_streamed_images_are_looked_at_first(tmp_path: Path, root: Path) -> None:
    """The median length of a kernel comes from the same images, streamed or not."""
    chosen = [
        recipe("dm", stream, method="csdm", evaluation={"baselines": [], "seeds": 1, "epochs": 1})
        for stream in (True, False)
    ]
    for one, name in zip(chosen, ("streamed", "decoded"), strict=True):
        distill(
            one, tmp_path / name, data_root=root, cache=tmp_path / f"{name} cache", progress=QUIET
        )
    assert bytes_of(tmp_path / "streamed") == bytes_of(tmp_path / "decoded")


MEASURE = """
import json, sys
from pathlib import Path
from rayd.data import load
from rayd.engine.job import Job
from rayd.engine.open_pool import open_pool
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.stages.measure import Measure
from rayd.engine.store import Store
from rayd.recipes import assemble

recipe = assemble(json.loads(sys.argv[1]))
data = load(recipe.data, Path(sys.argv[2]))
with open_pool(recipe.resources, ObserverTasks, recipe, DatasetInfo.of(data)) as pool:
    Measure(Job(recipe, data, Store())).run(pool)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
"""The peak of this process alone, in kB: what `resource` tells begins with that of its parent."""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc"
)
def test_measuring_eight_times_the_images_takes_no_more_memory(tmp_path: Path) -> None:
    """512 and 4096 images of 3 x 128 x 128: decoded they are 25 and 201 MB."""
    rng = np.random.default_rng(0)
    contents = [
        encode(rng.integers(0, 256, (3, 8, 8), np.uint8).repeat(16, 1).repeat(16, 2), "JPEG")
        for _ in range(64)
    ]
    peaks: list[float] = []
    for count, streamed in ((512, True), (4096, True), (4096, False)):
        labels = [row % 2 for row in range(count)]
        write_parquet(
            tmp_path / f"{count}" / "train-0.parquet",
            contents * (count // 64),
            labels,
            row_group_size=16,
        )
        tested = [encode(image, "JPEG") for image in some_images(4, side=128)]
        write_parquet(tmp_path / f"{count}" / "test-0.parquet", tested, labels[:4])
        observers = {
            "networks": {"name": "convnet", "width": 4, "depth": 1},
            "pool": 1,
            "per_step": 1,
            "batch_size": 8,
        }
        data = {"name": str(count), "stream": streamed}
        chosen = {"method": "dm", "data": data, "observers": observers, "resources": {"threads": 1}}
        load(assemble(chosen).data, tmp_path)  # the first look is not what is measured here
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, json.dumps(chosen), str(tmp_path)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-900:]
        peaks.append(int(done.stdout) / 1024)
        shutil.rmtree(Store().root / "measure")
    few, many, decoded = peaks
    assert many - few < 25
    assert decoded - many > 125
